"""What was added to NG-GNN beside the paper's equations: each against explicit loops over edges."""

from __future__ import annotations

import pytest
import torch
from networks import by_name
from torch import Tensor

import paramgraph as pg
from paramgraph.batch import GraphBatch
from paramgraph.engine import edge_index
from paramgraph.nn import NeuralGraphGNN
from paramgraph.nn.edge_chain import EdgeChain
from paramgraph.nn.magnitudes import log_magnitudes
from paramgraph.structure import EdgeKind
from paramgraph.tasks import EpochOrder

NAMES = ("mlp", "cnn_1d", "resnet", "depthwise", "residual_mlp", "width_one")


@pytest.fixture
def batch() -> GraphBatch:
    """Kernels, skips, diagonal blocks and dense ones, networks of one architecture apart."""
    pairs = []
    for name in (*NAMES, "mlp"):
        hazard = by_name(name)
        network = hazard.make()
        graph = pg.capture(network, hazard.example_inputs)
        state = {k: v.double() * 1.5 for k, v in network.state_dict().items()}
        pairs.append((graph, graph.features(state)))
    return pg.collate(pairs)


def test_magnitudes_equal_a_loop_over_neurons(batch: GraphBatch) -> None:
    weights = [bucket.values for bucket in batch.buckets]
    sender, receiver = edge_index(batch)
    flat = [row for w in weights for row in w.reshape(-1, w.shape[-1])]  # one row per edge
    expected = torch.zeros(batch.num_neurons, 4, dtype=torch.float64)
    for neuron in range(batch.num_neurons):
        for column, ends in ((0, receiver), (2, sender)):
            mine = [flat[edge] for edge in (ends == neuron).nonzero()[:, 0].tolist()]
            if mine:
                square = torch.cat(mine).square()
                expected[neuron, column] = (square.mean() + 1e-4).log()
                expected[neuron, column + 1] = (square.max() + 1e-4).log()
    assert any(w.shape[-1] > 1 for w in weights)
    assert torch.allclose(log_magnitudes(batch, weights), expected, atol=1e-12)
    flipped = log_magnitudes(batch, [-w for w in weights])
    assert torch.equal(flipped, log_magnitudes(batch, weights))


def test_magnitudes_reach_the_prediction(batch: GraphBatch) -> None:
    torch.manual_seed(0)
    m = NeuralGraphGNN(2, hidden_dim=8, num_layers=2, magnitudes=True).double().eval()
    before = m(batch)
    layer = m.neuron_encoder.magnitudes
    assert layer is not None
    with torch.no_grad():
        layer.weight.mul_(2)
    assert ((m(batch) - before).abs().amax(1) > 1e-6).all()


def test_the_edge_readout_is_the_mean_over_each_networks_edges(batch: GraphBatch) -> None:
    torch.manual_seed(0)
    m = NeuralGraphGNN(2, hidden_dim=8, num_layers=2, readout="mean-edges").double().eval()
    seen: list[tuple[Tensor, EdgeChain]] = []
    m.layers[-1].register_forward_hook(lambda _m, _a, out: seen.append((out[0], out[1])))
    read = m._features(batch)
    neurons, edges = seen[0]
    assert any(bucket.kind is EdgeKind.SKIP for bucket in batch.buckets)
    network_of_edge = batch.network[edge_index(batch)[1]]
    for network in range(batch.num_networks):
        mine = batch.network == network
        parts = (
            neurons[mine].mean(0),
            neurons[mine & (batch.kind == 2)].mean(0),
            edges.value(batch)[network_of_edge == network].mean(0),
        )
        assert torch.allclose(read[network], torch.cat(parts), atol=1e-10)


def test_messages_that_nobody_reads_change_nothing() -> None:
    """The last layer works for output neurons alone; their features are those of a full layer."""
    torch.manual_seed(0)
    hazards = [by_name(name) for name in ("mlp", "cnn_1d", "resnet")]
    pairs = []
    for hazard in hazards:
        network = hazard.make()
        graph = pg.capture(network, hazard.example_inputs)
        pairs.append((graph, graph.features(network.double().state_dict())))
    batch = pg.collate(pairs)
    m = NeuralGraphGNN(2, hidden_dim=8, num_layers=2, readout="outputs", num_outputs=2)
    m = m.double().eval()
    seen: list[Tensor] = []
    handle = m.layers[-1].register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    m(batch)
    m.readout = "mean"  # now every message is computed
    m._features(batch)
    handle.remove()
    outputs = batch.kind == 2
    assert torch.allclose(seen[0][outputs], seen[1][outputs], atol=1e-10)
    assert not torch.allclose(seen[0][~outputs], seen[1][~outputs])


def test_an_epoch_has_every_network_once_and_keeps_groups_together() -> None:
    architecture = torch.tensor([0, 1, 2] * 20)
    order = EpochOrder(architecture, 16, seed=0, group_size=4)
    flat = [number for numbers in order for number in numbers]
    assert sorted(flat) == list(range(60))
    groups = architecture[torch.tensor(flat)].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
