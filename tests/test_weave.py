"""Graphs of any network: all laws hold, wiring is visible, and loops do not unroll."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expected_groups import found_groups
from more_networks import ALL_HAZARDS, MORE_HAZARDS
from networks import Hazard, Wired, vectors
from torch import Tensor, nn
from torch.nn import functional

import paramgraph as pg
from paramgraph.capture.axes import Leaf
from paramgraph.capture.groups import find_groups
from paramgraph.capture.infer import infer
from paramgraph.capture.record import record
from paramgraph.capture.running import ExampleInputs
from paramgraph.capture.tape import TapeEntry
from paramgraph.capture.weave.loom import Loom
from paramgraph.nn import NeuralGraphGNN, OperatorMetanetwork
from paramgraph.structure import Activation, EdgeKind, NeuronKind, NormKind
from paramgraph.testing import ExampleNetwork, check_graph, check_metanetwork


def captured(name: str) -> pg.ParamGraph:
    hazard = next(hazard for hazard in ALL_HAZARDS if hazard.name == name)
    return pg.capture(hazard.make(), hazard.example_inputs)


@pytest.mark.parametrize("hazard", MORE_HAZARDS, ids=str)
def test_all_laws_hold(hazard: Hazard) -> None:
    report = check_graph(hazard.make(), hazard.example_inputs, num_seeds=2)
    assert report.passed, "\n".join(map(str, report.failures))


def test_metanetworks_read_what_has_no_parameters() -> None:
    names = {"packed_by_kind", "chosen_experts", "gru", "squeeze_excite", "tied_embedding"}
    rows = [h for h in MORE_HAZARDS if h.name in names]
    networks = [ExampleNetwork(h.name, h.make(), h.example_inputs) for h in rows]
    torch.manual_seed(0)
    ng_gnn = NeuralGraphGNN(2, hidden_dim=8, num_layers=3, num_frequencies=16)
    operator = OperatorMetanetwork(2, hidden_dim=8, symmetry="permutation")
    for metanetwork in (ng_gnn, operator):
        report = check_metanetwork(metanetwork, networks)
        assert report.passed, "\n".join(map(str, report.failures))


def test_heads_share_what_they_have_in_common() -> None:
    graph = captured("packed_by_kind")
    shapes = {(b.name, b.kind): b.shape for b in graph.blocks}
    # 3 heads of 2: queries and keys meet within a head.
    assert shapes["qkv->bmm", EdgeKind.ATTENTION] == (3, 1, 2, 1)
    assert shapes["qkv.weight[0]", EdgeKind.LINEAR] == (1, 6, 5, 1)
    norms = {group.name: group.norm for group in graph.neuron_groups}
    assert norms["norm"] is NormKind.LAYER


def test_a_table_is_read_from_fixed_neurons_and_a_hand_written_norm_is_seen() -> None:
    table = captured("tied_embedding")
    first = table.blocks[0]
    assert first.kind is EdgeKind.EMBEDDING
    assert table.neuron_groups[first.sender].kind is NeuronKind.FIXED
    assert first.shape == (1, 4, 7, 1)
    groups = captured("gated_with_rms_norm").neuron_groups
    assert [group.norm for group in groups].count(NormKind.RMS) == 1


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def test_a_longer_sequence_makes_no_larger_graph() -> None:
    short, long = (pg.capture(_Recurrent(), torch.randn(2, time, 3)) for time in (20, 60))
    assert len(short.neuron_groups) == len(long.neuron_groups)
    assert len(short.blocks) == len(long.blocks)


class _TwoWays(nn.Module):
    """Short batches go through one layer, long ones through another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.short, self.long, self.tail = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        inner = torch.tanh(self.short(x)) if len(x) < 5 else torch.sigmoid(self.long(x))
        return self.head(x + self.tail(inner))


def test_every_run_is_woven() -> None:
    network = _TwoWays()
    runs: list[ExampleInputs] = [torch.randn(4, 3), torch.randn(5, 3)]
    graph = pg.capture(network, runs)
    ends = {
        (block.view.parameter, graph.neuron_groups[block.sender].name): block.receiver
        for block in graph.blocks
        if block.view is not None
    }
    names = [group.name for group in graph.neuron_groups]
    kinds = Counter(group.kind for group in graph.neuron_groups)
    activations = {group.name: group.activation for group in graph.neuron_groups}
    # What both runs do stands there once, what only the second one does is as well wired.
    assert names.count("stem") == 1
    assert ("short.weight", "stem") in ends
    assert ("long.weight", "stem") in ends
    assert {("tail.weight", "short"), ("tail.weight", "long")} <= ends.keys()
    assert activations["short"] is Activation.TANH
    assert activations["long"] is Activation.SIGMOID
    assert kinds[NeuronKind.INPUT] == kinds[NeuronKind.OUTPUT] == 1
    assert graph.num_outputs == 2
    report = check_graph(network, runs, graph=graph, num_seeds=2)
    assert report.passed, "\n".join(map(str, report.failures))


def test_runs_that_do_the_same_make_the_graph_of_one() -> None:
    network = _Recurrent()
    one = pg.capture(network, torch.randn(2, 20, 3))
    assert pg.capture(network, [torch.randn(2, 20, 3)] * 3).signature == one.signature
    for last in (33, 60):
        both = pg.capture(network, [torch.randn(2, time, 3) for time in (20, last)])
        # A longer loop has a last turn of its own, and no more.
        assert len(both.blocks) - len(one.blocks) <= 10


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.conv = nn.Conv1d(6, 6, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).transpose(1, 2)
        return self.head((x + torch.tanh(self.conv(x))).transpose(1, 2))


def test_groups_of_a_convolution_are_exchanged_as_a_whole() -> None:
    """Another one per channel is no symmetry, though two groups can only be exchanged."""
    network, inputs = _Residual(), torch.randn(2, 5, 3)
    graph = pg.capture(network, inputs, check=False)
    assert pg.verify(network, graph, inputs).passed
    assert {group.size: group.given for group in graph.axis_groups if group.free}[2] == ()


class _CutGroups(nn.Module):
    """The channels of the first group come from elsewhere than those of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 2)
        self.conv, self.head = nn.Conv1d(3, 6, 3, padding=1, groups=3), nn.Linear(4, 2)
        self.side = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.tanh(self.one(x)), torch.relu(self.two(x))], -1)
        x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.side(x[..., :2]) + self.head(x[..., 2:])


def test_a_grouped_convolution_is_cut_where_its_channels_are() -> None:
    network, inputs = _CutGroups(), torch.randn(2, 5, 3)
    graph = pg.capture(network, inputs)
    shapes = {block.name: block.shape for block in graph.blocks}
    assert shapes["conv.weight[0]"] == (1, 2, 1, 3)
    assert shapes["conv.weight[1]"] == (2, 2, 1, 3)
    report = check_graph(network, inputs, graph=graph, num_seeds=2)
    assert report.passed, "\n".join(map(str, report.failures))


class _Outer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, width), nn.Linear(2, width)
        self.head = nn.Linear(width * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.tanh(self.one(x)), torch.tanh(self.two(x))
        return self.head((one[:, :, None] * two[:, None, :]).flatten(1))


def test_too_many_edges_without_parameters_go_through_one_neuron() -> None:
    width = 170  # 170 ** 3 is more than 2 ** 22
    network, inputs = _Outer(width), torch.randn(3, 2)
    graph = pg.capture(network, inputs)
    hub = next(n for n, group in enumerate(graph.neuron_groups) if group.name.endswith(".hub"))
    around = [block for block in graph.blocks if hub in (block.sender, block.receiver)]
    assert graph.neuron_groups[hub].size == 1
    assert [(block.num_senders, block.num_receivers) for block in around] == [
        (width, 1),
        (1, width * width),
    ]
    assert all(block.view is not None or block.num_edges < 2**22 for block in graph.blocks)
    report = check_graph(network, inputs, graph=graph, num_seeds=1)
    assert report.passed, "\n".join(map(str, report.failures))
    # With fewer edges there is none.
    small = pg.capture(_Outer(4), inputs)
    assert not any(group.name.endswith(".hub") for group in small.neuron_groups)


class _Empty(nn.Module):
    """What is computed of no examples at all stands in the graph as well."""

    def __init__(self, wiring: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.head, self.parts = nn.Linear(3, 8), nn.Linear(8, 2), nn.ModuleDict(parts)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x) + self.wiring(self.parts, x[:0]).sum()


@pytest.mark.parametrize(
    "network",
    [
        _Empty(lambda n, x: n["conv"](x[:, :, None]), conv=nn.Conv1d(8, 8, 1, groups=2)),
        _Empty(
            lambda n, x: n["conv"](x[:, :, None]),
            conv=nn.ConvTranspose1d(8, 4, 1, groups=2, bias=False),
        ),
        _Empty(lambda n, x: n["last"](functional.glu(x, -1)), last=nn.Linear(4, 8)),
        _Empty(lambda n, x: n["norm"](x[:, :, None]), norm=nn.GroupNorm(2, 8)),
    ],
    ids=["grouped convolution", "transposed", "glu", "group norm"],
)
def test_empty_tensors(network: nn.Module) -> None:
    report = check_graph(network, torch.randn(4, 3), num_seeds=2)
    assert report.passed, "\n".join(map(str, report.failures))


def test_neurons_never_stand_without_those_they_depend_on() -> None:
    hazard = next(hazard for hazard in ALL_HAZARDS if hazard.name == "packed_by_kind")
    run = infer([record(hazard.make(), hazard.example_inputs)])
    groups = find_groups(run)
    loom = Loom(run, groups, 1)
    given = {row.name: row.given for row in groups.rows}
    leaves = {name: leaf for name, leaf in loom._leaves.items() if given[name]}
    assert leaves
    for name, leaf in leaves.items():
        closed = loom.new_group(TapeEntry("any", {}, (), "", False), [leaf]).factors
        assert [loom.name_of(f) for f in closed if isinstance(f, Leaf)] == [*given[name], name]
        assert loom.closed(closed) == closed


def test_empty_tensors_that_are_joined_say_nothing() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(n.first(x))
        nothing = torch.stack([hidden[:0], hidden[:0]]).flatten(0, 1)
        return n.head(torch.cat([hidden, torch.cat([hidden[:0], hidden[:0]]), nothing]))

    network = Wired(wiring, first=nn.Linear(3, 5), head=nn.Linear(5, 2))
    graph = pg.capture(network, vectors(4, 3), check=False)
    assert found_groups(graph.axis_groups) == [(5, ())]
    assert pg.verify(network, graph, vectors(4, 3)).passed
