"""Readouts: each kind against a loop over networks, in a batch of several architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import by_name
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import GraphBatch
from paramgraph.nn.readouts import READOUTS, GraphReadout
from paramgraph.nn.set_attention import SetTransformer

DIM = 8
NAMES = ("mlp", "cnn_1d", "resnet", "mlp", "residual_mlp")


def make_batch(*names: str) -> GraphBatch:
    pairs = []
    for name in names:
        hazard = by_name(name)
        network = hazard.make()
        graph = pg.capture(network, hazard.example_inputs)
        pairs.append((graph, graph.features(network.double().state_dict())))
    return pg.collate(pairs)


def read(readout: GraphReadout, batch: GraphBatch, neurons: Tensor) -> Tensor:
    """Read with the mean of edges 1, 2, ... per network, and with tokens where they belong."""
    if readout.kind == "cls":
        neurons = torch.cat([neurons, readout.first_tokens(batch.num_networks)])
    edges = torch.arange(1.0, batch.num_networks + 1, dtype=neurons.dtype)[:, None]
    result: Tensor = readout(batch, neurons, edges.expand(-1, DIM))
    return result


def make(kind: str) -> GraphReadout:
    torch.manual_seed(0)
    return GraphReadout(kind, DIM, num_layers=4).double()


@pytest.mark.parametrize("kind", ["mean", "max", "mean-outputs", "layers", "mean-edges"])
def test_readouts_equal_a_loop_over_networks(kind: str) -> None:
    batch = make_batch(*NAMES)
    neurons = torch.randn(batch.num_neurons, DIM, dtype=torch.float64) - 2
    seen = read(make(kind), batch, neurons)
    for network in range(batch.num_networks):
        mine = batch.network == network
        outputs = neurons[mine & (batch.kind == 2)].mean(0)
        if kind == "max":
            expected = neurons[mine].max(0).values
        elif kind == "mean-outputs":
            expected = outputs
        elif kind == "layers":
            hidden = mine & (batch.kind != 2)
            masks = [hidden & (batch.depth == d) for d in (0, 1)] + [hidden & (batch.depth >= 2)]
            rows = [neurons[m].sum(0) / max(int(m.sum()), 1) for m in masks]
            expected = torch.cat([*rows, outputs])
        else:
            expected = neurons[mine].mean(0)
            if kind == "mean-edges":
                edges = torch.full((DIM,), network + 1.0, dtype=torch.float64)
                expected = torch.cat([expected, outputs, edges])
        torch.testing.assert_close(seen[network], expected, rtol=0, atol=1e-12)


def test_layers_beyond_the_last_share_a_vector_and_missing_ones_are_zero() -> None:
    batch = make_batch("mlp", "resnet")
    assert int(batch.depth[batch.network == 1].max()) > 6
    neurons = torch.ones(batch.num_neurons, DIM, dtype=torch.float64)
    rows = GraphReadout("layers", DIM, num_layers=6)(batch, neurons).reshape(2, 6, DIM)
    assert rows[0, :, 0].tolist() == [1, 1, 1, 0, 0, 1]  # mlp: 3 inputs, two hidden layers
    assert rows[1, :, 0].tolist() == [1] * 6


def test_outputs_are_concatenated_in_their_order() -> None:
    batch = make_batch("mlp", "cnn_1d", "mlp")
    neurons = torch.randn(batch.num_neurons, DIM, dtype=torch.float64)
    seen = GraphReadout("outputs", DIM, num_outputs=2)(batch, neurons)
    for network in range(3):
        rows = (batch.network == network) & (batch.kind == 2)
        in_order = neurons[rows][batch.identity[rows].argsort()]
        assert torch.equal(seen[network], in_order.reshape(-1))


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_the_set_transformer_equals_attention_network_by_network(num_blocks: int) -> None:
    batch = make_batch(*NAMES)
    pool = SetTransformer(DIM, num_points=3, num_heads=2, num_blocks=num_blocks).double()
    neurons = torch.randn(batch.num_neurons, DIM, dtype=torch.float64)
    seen = pool(neurons, batch.network, batch.num_networks)

    def attend(step: Any, asking: Tensor, answering: Tensor) -> Tensor:
        (query, key), value = (
            (layer(x).unflatten(-1, (2, -1)).transpose(0, 1) for layer, x in pairs)
            for pairs in (((step.query, asking), (step.key, answering)), ((step.value, answering),))
        )
        found = nn.functional.scaled_dot_product_attention(query, key, next(value))
        x = step.first(asking + step.out(found.transpose(0, 1).flatten(1)))
        result: Tensor = step.second(x + step.map(x))
        return result

    for network in range(batch.num_networks):
        x = neurons[batch.network == network]
        blocks: Any = pool.blocks
        for block in blocks:
            x = attend(block.spread, x, attend(block.gather, block.points, x))
        expected = attend(pool.pool, pool.seed, x)[0]
        torch.testing.assert_close(seen[network], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [kind for kind in READOUTS if kind != "outputs"])
def test_readouts_have_the_promised_width_and_do_not_see_batch_mates(kind: str) -> None:
    readout = make(kind)
    batch, alone = make_batch(*NAMES), make_batch("mlp")
    torch.manual_seed(1)
    neurons = torch.randn(batch.num_neurons, DIM, dtype=torch.float64)
    seen = read(readout, batch, neurons)
    assert seen.shape == (len(NAMES), readout.read_dim)
    first = read(readout, alone, neurons[batch.network == 0])
    torch.testing.assert_close(seen[0], first[0], rtol=0, atol=1e-12)


def test_large_scores_stay_finite_in_float32() -> None:
    pool = SetTransformer(DIM)
    x = (1e4 * torch.randn(6, DIM)).requires_grad_()
    read = pool(x, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    read.sum().backward()
    assert x.grad is not None
    assert read.isfinite().all()
    assert x.grad.isfinite().all()


def test_readouts_refuse_what_they_cannot_read() -> None:
    batch = make_batch("mlp", "siren")
    neurons = torch.zeros(batch.num_neurons, DIM, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"readout must be one of outputs, mean, .* got 'sum'"):
        GraphReadout("sum", DIM)
    with pytest.raises(ValueError, match="needs num_layers of 2 or more, got 1"):
        GraphReadout("layers", DIM, num_layers=1)
    with pytest.raises(ValueError, match="num_heads must divide dim, got 3 and 8"):
        GraphReadout("set-transformer", DIM, num_heads=3)
    with pytest.raises(ValueError, match="'mean' has no tokens; they belong to 'cls'"):
        GraphReadout("mean", DIM).first_tokens(1)
    with pytest.raises(ValueError, match="'mean-edges' needs edges_mean"):
        GraphReadout("mean-edges", DIM)(batch, neurons)
    with pytest.raises(pg.BatchError, match=r"made for 2 output neurons, .* have \[1, 2\]"):
        GraphReadout("outputs", DIM, num_outputs=2)(batch, neurons)
    rows = batch.num_neurons
    with pytest.raises(
        pg.BatchError, match=f"'cls' needs {rows + 2} rows for {rows} .* got {rows}"
    ):
        GraphReadout("cls", DIM)(batch, neurons)
    with pytest.raises(pg.BatchError, match=f"'mean' needs {rows} rows .* got {rows + 2}"):
        GraphReadout("mean", DIM)(batch, torch.cat([neurons, neurons[:2]]))
