"""The block engine: every primitive equals its slow twin, and the network itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from more_networks import ALL_HAZARDS
from networks import HAZARDS, by_name, outputs, randomise
from torch import Tensor

import paramgraph as pg
from paramgraph.batch import GraphBatch, Rows
from paramgraph.engine import (
    add_rows,
    edge_index,
    push,
    receivers_of,
    senders_of,
    slow_push,
)
from paramgraph.structure import Activation, EdgeKind
from paramgraph.values import Values

TOLERANCE = 1e-10
DIM = 12


def pair(name: str, *seeds: int) -> tuple[pg.ParamGraph, Values]:
    """Networks of a hazard with other weights for each seed, in float64."""
    hazard = next(hazard for hazard in ALL_HAZARDS if hazard.name == name)
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    states = [randomise(hazard.make().double(), seed).state_dict() for seed in seeds]
    return graph, graph.features(states)


@pytest.fixture(scope="module")
def batch() -> GraphBatch:
    """All hazards, then some of them again, so that parts have one or several networks."""
    names = [hazard.name for hazard in HAZARDS]
    names += ["packed_by_kind", "packed_gate", "tied_embedding"]  # attention, gates, tables
    batch = pg.collate([pair(name, 0) for name in names] + [pair(n, 1, 2) for n in names[::3]])
    kinds = {bucket.kind for bucket in batch.buckets}
    assert kinds == set(EdgeKind)
    assert any(b.values.shape[1] > 1 and len(b.positions) > 1 for b in batch.buckets)  # depthwise
    assert any(bucket.senders.index is not None for bucket in batch.buckets)
    assert any(bucket.receivers.index is not None for bucket in batch.buckets)
    return batch


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same_gradients(fast: Tensor, slow: Tensor, inputs: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of a random projection with respect to the inputs."""
    torch.testing.assert_close(fast, slow, rtol=0, atol=TOLERANCE)
    probe = random(*fast.shape, seed=9)
    one, two = (torch.autograd.grad((out * probe).sum(), inputs) for out in (fast, slow))
    assert any(bool(grad.any()) for grad in two)
    for got, expected in zip(one, two, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def operators(batch: GraphBatch, num_operators: int) -> list[Tensor]:
    """Weights as operators: kernels have several, plain matrices one (as in the metanetwork)."""
    result = []
    for number, bucket in enumerate(batch.buckets):
        psi = random(len(bucket.positions), num_operators, seed=number)
        weights = bucket.values if len(bucket.positions) == 1 else bucket.values @ psi
        result.append(weights.detach().clone().requires_grad_())
    return result


@pytest.mark.parametrize("num_operators", [1, 3])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_push_equals_its_slow_twin(batch: GraphBatch, num_operators: int, backward: bool) -> None:
    weights = operators(batch, num_operators)
    features = random(batch.num_neurons, DIM).requires_grad_()
    levels = batch.split(features)
    arrived: list[Tensor | None] = [None] * len(levels)
    for bucket, weight in zip(batch.buckets, weights, strict=True):
        source = bucket.senders, bucket.sender_depth
        target = bucket.receivers, bucket.receiver_depth
        if backward:
            source, target = target, source
        sent = push(bucket, weight, source[0].take(levels[source[1]]), backward=backward)
        depth = target[1]
        arrived[depth] = add_rows(arrived[depth], target[0], sent, len(levels[depth]))
    fast = [
        torch.zeros_like(level) if sum_ is None else sum_
        for level, sum_ in zip(levels, arrived, strict=True)
    ]
    slow = slow_push(batch, weights, features, backward=backward)
    assert_same_gradients(torch.cat(fast), slow, [features, *weights])


def test_push_through_the_weights_computes_the_networks() -> None:
    """Neuron = activation(sum of pushed senders + bias): what the network itself returns."""
    names = ["mlp", "no_bias", "residual_mlp", "width_one", "raw_parameters", "tied"]
    batch = pg.collate([pair(name, 5) for name in names] + [pair(name, 6) for name in names])
    functions = {
        Activation.NONE: lambda x: x,
        Activation.RELU: torch.relu,
        Activation.LEAKY_RELU: torch.nn.functional.leaky_relu,
        Activation.TANH: torch.tanh,
    }
    assert set(batch.activation.tolist()) == {kind.index for kind in functions}
    inputs = {name: random(7, 1 if name == "width_one" else 3, seed=3) for name in names}
    neurons = random(batch.num_neurons, 7)
    for number, name in enumerate(names + names):
        rows = (batch.network == number) & (batch.kind == 0)
        neurons[rows] = inputs[name].T
    levels = batch.split(neurons)
    bias, activation = batch.split(batch.neuron_values[:, :1]), batch.split(batch.activation)
    for depth in range(1, len(levels)):
        total = bias[depth].expand(-1, 7)
        for bucket in batch.buckets:
            if bucket.receiver_depth == depth:
                sent = push(bucket, bucket.values, bucket.senders.take(levels[bucket.sender_depth]))
                total = add_rows(total, bucket.receivers, sent, len(total))
        for kind, function in functions.items():
            total = torch.where(activation[depth][:, None] == kind.index, function(total), total)
        levels[depth] = total
    neurons = torch.cat(levels)
    for number, name in enumerate(names + names):
        network = randomise(by_name(name).make().double(), 5 if number < len(names) else 6)
        (expected,) = outputs(network, inputs[name])
        got = neurons[(batch.network == number) & (batch.kind == 2)].T
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE, msg=name)


def test_the_edge_list_follows_the_blocks() -> None:
    """Written out for two networks of one small architecture with a skip."""
    graph, values = pair("residual_mlp", 0, 1)
    batch = pg.collate([(graph, values)])
    index = edge_index(batch).tolist()
    found = dict(zip(zip(*index, strict=True), _flat_values(batch), strict=True))
    starts, start = {}, 0
    for number in sorted(range(5), key=lambda g: graph.neuron_groups[g].depth):
        starts[number] = start
        start += 2 * graph.neuron_groups[number].size
    expected = {}
    for number, block in enumerate(graph.blocks):
        for network in range(2):
            s = starts[block.sender] + network * graph.neuron_groups[block.sender].size
            r = starts[block.receiver] + network * graph.neuron_groups[block.receiver].size
            for k in range(block.num_blocks):
                for i in range(block.num_receivers):
                    for j in range(block.num_senders):
                        edge = (s + k * block.num_senders + j, r + k * block.num_receivers + i)
                        expected[edge] = values.blocks[number][network, k, i, j, 0].item()
    assert found == expected
    assert batch.num_edges == len(expected) == 2 * graph.num_edges


def _flat_values(batch: GraphBatch) -> list[float]:
    return torch.cat([bucket.values.reshape(-1) for bucket in batch.buckets]).tolist()


def test_senders_and_receivers_are_the_ends_of_each_edge(batch: GraphBatch) -> None:
    features = random(batch.num_neurons, DIM)
    levels = batch.split(features)
    index = edge_index(batch)
    for bucket in batch.buckets:
        start, end = bucket.edges
        shape = (*bucket.block_shape, DIM)
        sent = senders_of(levels[bucket.sender_depth], bucket).expand(shape).reshape(-1, DIM)
        got = receivers_of(levels[bucket.receiver_depth], bucket).expand(shape).reshape(-1, DIM)
        assert torch.equal(sent, features[index[0, start:end]])
        assert torch.equal(got, features[index[1, start:end]])


@pytest.mark.parametrize("start", [None, 1.0], ids=["to nothing", "to a level"])
@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        (Rows(0, 4, None), [0, 1, 2, 3]),
        (Rows(1, 2, None), [1, 2]),
        (Rows(-1, 3, torch.tensor([3, 0, 1])), [3, 0, 1]),
    ],
    ids=["all rows", "a slice", "an index"],
)
def test_rows_are_added_in_their_place(rows: Rows, numbers: list[int], start: float | None) -> None:
    level = None if start is None else torch.full((4, 2), start)
    values = torch.arange(1.0, 1 + 2 * len(numbers)).reshape(-1, 2)
    expected = torch.full((4, 2), start or 0.0)
    for number, value in zip(numbers, values, strict=True):
        expected[number] += value
    assert torch.equal(add_rows(level, rows, values, 4), expected)
    assert torch.equal(rows.take(expected), expected[numbers])
    assert level is None or torch.equal(level, torch.full((4, 2), start or 0.0))
