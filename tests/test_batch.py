"""GraphBatch: order of networks, levels, rows, buckets, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import HAZARDS, by_name, randomise
from torch import Tensor

import paramgraph as pg
from paramgraph.batch import ROLES, GraphBatch, fan_in
from paramgraph.structure import EdgeKind, NeuronKind, ScaleKind
from paramgraph.values import Values

Pair = tuple[pg.ParamGraph, Values]


def pair(name: str, *seeds: int) -> Pair:
    """Networks of a hazard with other weights for each seed, captured anew."""
    hazard = by_name(name)
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    states = [randomise(hazard.make(), seed).state_dict() for seed in seeds]
    return graph, graph.features(states)


def neuron_values(batch: GraphBatch, network: int) -> Tensor:
    """The neuron values of one network of a batch, by depth."""
    return batch.neuron_values[batch.network == network]


def by_depth(graph: pg.ParamGraph, values: Values, row: int) -> Tensor:
    """The same, from the values that went in."""
    groups = sorted(range(len(graph.neuron_groups)), key=lambda g: graph.neuron_groups[g].depth)
    return torch.cat([values.neurons[group][row] for group in groups])


def test_network_i_is_the_ith_one_given() -> None:
    """Interleaved architectures, several networks in one pair, architectures captured twice."""
    pairs = [pair("mlp", 0), pair("flatten", 1), pair("mlp", 2, 3), pair("siren", 4)]
    pairs += [pair("flatten", 5), pair("mlp", 6)]
    batch = pg.collate(pairs)
    assert batch.num_networks == 7
    number = 0
    for graph, values in pairs:
        for row in range(values.num_networks):
            assert torch.equal(neuron_values(batch, number), by_depth(graph, values, row))
            number += 1


def test_equal_architectures_share_one_part_and_remember_their_places() -> None:
    pairs = [pair("mlp", 0), pair("siren", 1), pair("mlp", 2), pair("siren", 3, 4), pair("mlp", 5)]
    assert pairs[0][0] is not pairs[2][0]
    batch = pg.collate(pairs)
    assert [part.graph.name for part in batch.parts] == ["Sequential", "Wired"]
    assert [part.rows.tolist() for part in batch.parts] == [[0, 2, 5], [1, 3, 4]]
    assert [part.values.num_networks for part in batch.parts] == [3, 3]
    third = pairs[4][1].blocks[0][0]
    assert torch.equal(batch.parts[0].values.blocks[0][2], third)


def test_the_weights_of_every_bucket_are_those_of_its_networks() -> None:
    """Each entry of each network stands in exactly one place of one bucket."""
    pairs = [pair(hazard.name, 0, 1) for hazard in HAZARDS]
    pairs.append(pair("mlp", 2))
    batch = pg.collate(pairs)
    have = torch.cat([bucket.values.reshape(-1) for bucket in batch.buckets]).sort().values
    blocks = [block for _, values in pairs for block in values.blocks]
    assert torch.equal(have, torch.cat([block.reshape(-1) for block in blocks]).sort().values)


def test_edges_stay_within_one_network_and_lead_forward() -> None:
    batch = pg.collate([pair(hazard.name, 0, 1) for hazard in HAZARDS])
    levels = batch.split(batch.network)
    for bucket in batch.buckets:
        assert bucket.sender_depth < bucket.receiver_depth
        blocks, receivers, senders = bucket.block_shape
        sent = bucket.senders.take(levels[bucket.sender_depth]).reshape(blocks, senders)
        got = bucket.receivers.take(levels[bucket.receiver_depth]).reshape(blocks, receivers)
        assert bool((sent == sent[:, :1]).all())
        assert bool((got == sent[:, :1]).all())


def test_levels_cover_all_neurons_by_depth() -> None:
    batch = pg.collate([pair("mlp", 0), pair("width_one", 0), pair("resnet", 0)])
    assert batch.levels[0] == (0, 3 + 1 + 1)
    ends = [0, *(end for _, end in batch.levels)]
    assert [start for start, _ in batch.levels] == ends[:-1]
    assert ends[-1] == batch.num_neurons
    for depth, (start, end) in enumerate(batch.levels):
        assert batch.depth[start:end].tolist() == [depth] * (end - start)
    assert [len(part) for part in batch.split(batch.kind)] == [e - s for s, e in batch.levels]


def test_buckets_lie_side_by_side_in_the_edge_order() -> None:
    batch = pg.collate([pair(hazard.name, 0) for hazard in HAZARDS])
    start = 0
    for bucket in batch.buckets:
        assert bucket.edges[0] == start
        start += bucket.values[..., 0].numel()
        assert bucket.edges[1] == start
    assert start == batch.num_edges == sum(part.graph.num_edges for part in batch.parts)


def test_blocks_of_equal_shape_and_place_share_a_bucket() -> None:
    """mlp and batch_norm start with a 5 x 3 matrix; unused_parameter ends with the same 2 x 5."""
    batch = pg.collate([pair("mlp", 0), pair("batch_norm", 0), pair("unused_parameter", 0)])
    first = [bucket for bucket in batch.buckets if bucket.role == (EdgeKind.LINEAR, "first")]
    assert [bucket.values.shape for bucket in first] == [(3, 1, 5, 3, 1)]
    last = [bucket for bucket in batch.buckets if bucket.role == (EdgeKind.LINEAR, "last")]
    assert {bucket.receiver_depth for bucket in last} == {2, 3}
    assert {bucket.role for bucket in batch.buckets} <= set(ROLES)


def test_facts_of_neurons_come_from_their_group() -> None:
    graph, values = pair("batch_norm", 0)
    batch = pg.collate([(graph, values)])
    groups = sorted(graph.neuron_groups, key=lambda group: group.depth)
    facts = {
        "activation": [group.activation.index for group in groups],
        "kind": [list(NeuronKind).index(group.kind) for group in groups],
        "scale": [list(ScaleKind).index(group.scale) for group in groups],
        "reverse_depth": [3, 2, 1, 0],
        "is_read": [1, 1, 1, 0],
    }
    for name, expected in facts.items():
        have = getattr(batch, name).int().tolist()
        sizes = [group.size for group in groups]
        rows = [v for v, size in zip(expected, sizes, strict=True) for _ in range(size)]
        assert have == rows, name
    identity = [*range(3), *[-1] * 10, *range(2)]
    assert batch.identity.tolist() == identity
    # input: nothing; Linear: bias and the running statistics; normalised: shift; output: bias
    has = [[0, 0, 0]] * 3 + [[1, 1, 1]] * 5 + [[1, 0, 0]] * 5 + [[1, 0, 0]] * 2
    assert batch.neuron_has.tolist() == has


def test_identities_count_on_over_several_inputs_and_outputs() -> None:
    batch = pg.collate([pair("two_inputs", 0, 1), pair("dict_output", 0)])
    for network, (num_inputs, num_outputs) in enumerate([(5, 2), (5, 2), (3, 3)]):
        rows = batch.network == network
        assert sorted(batch.identity[rows & (batch.kind == 0)].tolist()) == [*range(num_inputs)]
        assert sorted(batch.identity[rows & (batch.kind == 2)].tolist()) == [*range(num_outputs)]


def test_is_read_tells_neurons_with_outgoing_edges() -> None:
    batch = pg.collate([pair(hazard.name, 0) for hazard in HAZARDS])
    levels = batch.split(torch.zeros(batch.num_neurons, dtype=torch.bool))
    for bucket in batch.buckets:
        levels[bucket.sender_depth][bucket.senders.numbers(batch.network.device)] = True
    assert torch.equal(torch.cat(levels), batch.is_read)


def test_fan_in_counts_senders_and_positions() -> None:
    batch = pg.collate([pair("strided_cnn", 0), pair("depthwise", 0)])
    have = {(b.kind, tuple(b.values.shape[1:])): fan_in(b) for b in batch.buckets}
    assert have[EdgeKind.CONV, (1, 4, 3, 4)] == 3 * 4
    assert have[EdgeKind.CONV, (4, 1, 1, 9)] == 9
    assert have[EdgeKind.LINEAR, (1, 2, 4, 1)] == 4


def test_the_layout_is_cached_but_the_weights_are_not() -> None:
    graph, values = pair("mlp", 0)
    other = graph, graph.features(randomise(by_name("mlp").make(), 1).state_dict())
    first, second = pg.collate([(graph, values)]), pg.collate([other])
    assert first.is_read is second.is_read
    assert torch.equal(first.buckets[0].values, values.blocks[0])
    assert torch.equal(second.buckets[0].values, other[1].blocks[0])


def test_gradients_reach_the_weights() -> None:
    hazard = by_name("mlp")
    graph, network = pg.capture(hazard.make(), hazard.example_inputs), hazard.make()
    weights = dict(network.named_parameters())
    batch = pg.collate([(graph, graph.features(weights))] * 2)
    total = sum(bucket.values.sum() for bucket in batch.buckets) + batch.neuron_values.sum()
    assert isinstance(total, Tensor)
    total.backward()
    for name, weight in weights.items():
        assert weight.grad is not None, name
        assert weight.grad.unique().tolist() == [2.0], name  # read twice


def test_an_iterator_of_networks_is_read_once() -> None:
    pairs = [pair("mlp", 0), pair("siren", 1)]
    assert pg.collate(iter(pairs)).num_networks == pg.collate(pairs).num_networks == 2


def test_no_network_is_refused() -> None:
    with pytest.raises(pg.BatchError, match="cannot collate: no network was given"):
        pg.collate([])


def test_values_of_another_graph_are_refused() -> None:
    mlp, siren = pair("mlp", 0), pair("siren", 0)
    match = r"do not fit the graph of 'Wired': blocks \[\(1, 5, 3, 1\).* expected \[\(1, 5, 2, 1\)"
    with pytest.raises(pg.BatchError, match=match):
        pg.collate([mlp, (siren[0], mlp[1])])


def test_values_with_other_neurons_are_refused() -> None:
    graph, values = pair("mlp", 0)
    neurons = (values.neurons[0][:, :2], *values.neurons[1:])
    match = r"neuron groups \[2, 5, 4, 2\], expected \[3, 5, 4, 2\]"
    with pytest.raises(pg.BatchError, match=match):
        pg.collate([(graph, replace(values, neurons=neurons))])


def test_several_dtypes_are_refused() -> None:
    (graph, single), (other, values) = pair("mlp", 0), pair("siren", 0)
    match = "values of 'Wired' are torch.float64 on cpu, those of the first network torch.float32"
    with pytest.raises(pg.BatchError, match=match):
        pg.collate([(graph, single), (other, values.to(torch.float64))])
