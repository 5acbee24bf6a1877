"""NG-GNN's schedules, directions and virtual neurons against loops over neurons and edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from networks import by_name, randomise
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import GraphBatch
from paramgraph.engine import edge_index
from paramgraph.nn import NeuralGraphGNN
from paramgraph.nn.virtual_neurons import with_virtual_neurons
from paramgraph.values import Values

Pair = tuple[pg.ParamGraph, Values]
NAMES = ("mlp", "cnn_1d", "resnet", "depthwise", "width_one", "two_inputs")


def pair(name: str, *seeds: int) -> Pair:
    """Networks of a hazard with other weights for each seed."""
    hazard = by_name(name)
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    return graph, graph.features(
        [randomise(hazard.make().double(), seed).state_dict() for seed in seeds]
    )


def make(**options: Any) -> NeuralGraphGNN:
    torch.manual_seed(0)
    m = NeuralGraphGNN(2, **{"hidden_dim": 8, "num_layers": 2, "norm": "neuron", **options})
    for parameter in m.parameters():
        if parameter.ndim == 1:  # biases start at 0, where a lost one would not be seen
            nn.init.normal_(parameter)
    return m.double().eval()


def twin(m: Any, batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """Neurons ``[N (+ num_networks), dim]`` and edges after all layers, one message at a time."""
    x = list(m.neuron_encoder(batch, m.standardizer))
    directions = m.edge_encoder(batch, m.standardizer)
    up: list[Tensor] = list(directions[0])
    down: list[Tensor] | None = None if directions[1] is None else list(directions[1])
    ends: list[list[int]] = edge_index(batch).T.tolist()
    depth = batch.depth.tolist()
    if m.virtual_edges is not None:
        start, last = batch.num_neurons, max(depth) + 1
        x += list(m.reader.token.expand(batch.num_networks, -1))
        depth += [last] * batch.num_networks
        order = sorted(range(start), key=lambda i: _bucket_order(batch, i))
        ends += [[i, start + int(batch.network[i])] for i in order]
        up += [m.virtual_edges[0]] * start
        down = down and down + [m.virtual_edges[1]] * start

    def arriving(i: int, directions: tuple[str, ...]) -> list[Tensor]:
        messages = []
        for number, (sender, receiver) in enumerate(ends):
            for direction, e, source, target in (
                ("up", up, sender, receiver),
                ("down", down, receiver, sender),
            ):
                if e is not None and direction in directions and target == i:
                    scale, shift = layer.film(e[number]).chunk(2)
                    both = layer.message_target(x[i]) + layer.message_source(x[source])
                    messages.append(scale * both + shift)
        return messages

    def heard(i: int, messages: list[Tensor]) -> Tensor:
        four = torch.zeros(4 * len(x[i]), dtype=torch.float64)
        if messages:
            stacked = torch.stack(messages)
            std = (stacked.var(0, correction=0) + 1e-5).sqrt()
            low, high = stacked.min(0).values, stacked.max(0).values
            four = torch.cat([stacked.mean(0), low, high, std])
        amplified = four * math.log(len(messages) + 1) / m.log_degree
        summary: Tensor = layer.out(layer.post(torch.cat([x[i], four, amplified])))
        return summary

    for layer in m.layers:
        if hasattr(layer, "memory"):
            visits = [(d, "up") for d in range(max(depth) + 1)]
            if down is not None:
                visits += [(d, "down") for d in reversed(range(max(depth) + 1))]
            for d, direction in visits:
                new = list(x)
                for i in (i for i in range(len(x)) if depth[i] == d):
                    if messages := arriving(i, (direction,)):
                        new[i] = layer.memory(heard(i, messages)[None], x[i][None])[0]
                x = new
        else:
            x = [heard(i, arriving(i, ("up", "down"))) for i in range(len(x))]
            if layer.norm is not None:
                x = [nn.functional.silu(layer.norm(row)) for row in x]
        if layer.updates_edges:
            for e, (source, target) in ((up, (0, 1)), (down or [], (1, 0))):
                for number in range(len(e)):
                    inner = layer.edge_own(e[number]) + layer.edge_source(x[ends[number][source]])
                    inner = inner + layer.edge_target(x[ends[number][target]])
                    e[number] = layer.edge_out(nn.functional.silu(inner))
    return torch.stack(x), torch.stack(up)


def _bucket_order(batch: GraphBatch, neuron: int) -> int:
    """Place of the virtual edge of a neuron among all virtual edges."""
    larger = with_virtual_neurons(batch)
    senders = edge_index(larger)[0, batch.num_edges :]
    return int((senders == neuron).nonzero())


@pytest.mark.parametrize("level", ["graph", "parameter"])
@pytest.mark.parametrize(
    ("schedule", "reverse_edges", "readout"),
    list(itertools.product(["parallel", "forward"], [True, False], ["mean", "cls"])),
)
def test_message_passing_equals_its_slow_twin(
    schedule: str, reverse_edges: bool, readout: str, level: str
) -> None:
    m = make(schedule=schedule, reverse_edges=reverse_edges, readout=readout, level=level)
    pairs = [pair(name, 1) for name in NAMES] + [pair("mlp", 2, 3)]
    batch = pg.collate(pairs)
    m.fit_statistics([batch])
    with torch.no_grad():
        neurons, edges = m._neurons_and_edges(batch)
        expected_neurons, expected_edges = twin(m, batch)
    torch.testing.assert_close(neurons, expected_neurons, rtol=0, atol=1e-8)
    torch.testing.assert_close(edges, expected_edges, rtol=0, atol=1e-8)


def test_virtual_neurons_are_joined_with_all_neurons_of_their_network() -> None:
    batch = pg.collate([pair("mlp", 1), pair("resnet", 1), pair("mlp", 2), pair("width_one", 1)])
    larger = with_virtual_neurons(batch)
    sender, receiver = edge_index(larger)[:, batch.num_edges :]
    assert sorted(sender.tolist()) == list(range(batch.num_neurons))
    assert torch.equal(receiver - batch.num_neurons, batch.network[sender])
    assert torch.equal(edge_index(larger)[:, : batch.num_edges], edge_index(batch))
    assert larger.network[-4:].tolist() == [0, 1, 2, 3]


def test_one_sweep_carries_the_first_weights_to_the_outputs() -> None:
    """In parallel, one layer sees neighbours; in data-flow order, all that was computed before."""
    graph, values = pair("mlp", 1, 1)
    values.blocks[0][1] *= 2
    batch = pg.collate([(graph, values)])
    options = {"num_layers": 1, "reverse_edges": False, "readout": "mean-outputs"}
    for schedule, is_equal in (("parallel", True), ("forward", False)):
        rows = make(schedule=schedule, **options)(batch)
        assert torch.allclose(rows[0], rows[1], atol=1e-12) is is_equal


def test_without_reverse_edges_inputs_hear_nothing() -> None:
    graph, values = pair("mlp", 1, 2)
    batch = pg.collate([(graph, values)])
    inputs = (batch.kind == 0).nonzero()[:, 0]
    for reverse_edges, is_equal in ((True, False), (False, True)):
        m = make(level="neuron", reverse_edges=reverse_edges)
        rows = m(batch)[inputs].reshape(2, -1)
        assert torch.allclose(rows[0], rows[1], atol=1e-12) is is_equal


def test_the_virtual_neuron_hears_of_every_weight_in_one_layer() -> None:
    graph, values = pair("mlp", *[1] * 4)
    for number in range(3):
        values.neurons[number + 1][number + 1, 0, 0] += 1.0  # a bias of each layer
    seen = make(readout="cls", num_layers=1)(pg.collate([(graph, values)]))
    assert ((seen[1:] - seen[0]).abs().amax(1) > 1e-6).all()


def test_levels_other_than_the_graph_read_no_network() -> None:
    batch = pg.collate([pair("mlp", 1, 2), pair("cnn_1d", 1)])
    assert make(level="neuron", readout="outputs")(batch).shape == (batch.num_neurons, 2)
    entries = make(level="parameter", readout="cls")(batch)
    assert entries.neurons.shape == (batch.num_neurons, 3, 2)
    for bucket, edges in zip(batch.buckets, entries.edges, strict=True):
        assert edges.shape == (*bucket.values.shape, 2)


def test_unknown_schedules_and_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule must be 'parallel' or 'forward', got 'back'"):
        NeuralGraphGNN(1, schedule="back")
    with pytest.raises(ValueError, match="norm must be 'graph' or 'neuron', got 'batch'"):
        NeuralGraphGNN(1, norm="batch")
    with pytest.raises(ValueError, match=r"readout must be one of outputs, .* got 'sum'"):
        NeuralGraphGNN(1, readout="sum")
