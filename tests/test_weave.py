"""Graphs of any network: all laws hold, wiring is visible, and loops do not unroll."""

from __future__ import annotations

import pytest
import torch
from more_networks import ALL_HAZARDS, MORE_HAZARDS
from networks import Hazard
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.nn import NeuralGraphGNN, OperatorMetanetwork
from paramgraph.structure import EdgeKind, NeuronKind, NormKind
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
