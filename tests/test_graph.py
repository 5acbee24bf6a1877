"""ParamGraph: its checks, counts, signature and summary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import HAZARDS, by_name, vectors
from torch import nn

import paramgraph as pg
from paramgraph.structure import EntryView, NeuronFeature, NeuronRole


@pytest.fixture
def graph() -> pg.ParamGraph:
    hazard = by_name("mlp")
    return pg.capture(hazard.make(), hazard.example_inputs)


def test_a_block_of_the_wrong_size_is_refused(graph: pg.ParamGraph) -> None:
    blocks = (replace(graph.blocks[0], num_senders=7), *graph.blocks[1:])
    match = "'0.weight' joins 7 senders with 5 receivers, .* 'input' and '0' have 3 and 5 neurons"
    with pytest.raises(pg.GraphError, match=match):
        replace(graph, blocks=blocks)


def test_a_block_that_leads_backward_is_refused(graph: pg.ParamGraph) -> None:
    groups = (replace(graph.neuron_groups[0], depth=4), *graph.neuron_groups[1:])
    with pytest.raises(pg.GraphError, match=r"'0\.weight' leads from depth 4 to depth 1"):
        replace(graph, neuron_groups=groups)


def test_a_block_of_an_unknown_parameter_is_refused(graph: pg.ParamGraph) -> None:
    view = EntryView("other", 0, (0, 1), (1, 5, 3, 1))
    blocks = (replace(graph.blocks[0], view=view), *graph.blocks[1:])
    with pytest.raises(pg.GraphError, match=r"without a layout: \['other'\]"):
        replace(graph, blocks=blocks)


def test_a_parameter_that_nothing_reads_is_refused(graph: pg.ParamGraph) -> None:
    groups = tuple(replace(group, features=()) for group in graph.neuron_groups)
    match = r"in no block and no feature: \['0.bias', '2.bias', '4.bias'\]"
    with pytest.raises(pg.GraphError, match=match):
        replace(graph, neuron_groups=groups)


def test_a_view_that_loses_entries_is_refused(graph: pg.ParamGraph) -> None:
    view = EntryView("0.bias", 0, (0,), (4,))
    feature = NeuronFeature(NeuronRole.BIAS, view)
    groups = list(graph.neuron_groups)
    groups[1] = replace(groups[1], features=(feature,))
    with pytest.raises(pg.GraphError, match=r"'0\.bias' reads 4 entries of 5"):
        replace(graph, neuron_groups=tuple(groups))


def test_the_depth_is_the_longest_path() -> None:
    hazard = by_name("residual_mlp")
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    depths = {group.name: group.depth for group in graph.neuron_groups}
    assert depths == {"input": 0, "first": 1, "down": 2, "up": 3, "head": 4}
    assert graph.depth == 4


def test_outputs_are_counted_over_all_heads() -> None:
    hazard = by_name("dict_output")
    assert pg.capture(hazard.make(), hazard.example_inputs).num_outputs == 2 + 1


def test_signatures_tell_architectures_apart() -> None:
    signatures = {pg.capture(h.make(), h.example_inputs).signature for h in HAZARDS}
    assert len(signatures) == len(HAZARDS)
    # Neither has scale symmetries, so only the activation differs.
    gelu = pg.capture(nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)), vectors(4, 3))
    silu = pg.capture(nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2)), vectors(4, 3))
    assert gelu.signature != silu.signature


def test_edges_are_those_of_the_trace_and_not_of_the_values() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    before = pg.capture(network, vectors(4, 3))
    nn.init.zeros_(network[0].weight)  # type: ignore[arg-type]
    after = pg.capture(network, vectors(4, 3))
    assert after.num_edges == before.num_edges == 25
    assert after.signature == before.signature


def test_the_summary_shows_every_group_block_and_reason() -> None:
    hazard = by_name("unused_parameter")
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    text = graph.summary()
    # 10^2.1 = 5! permutations
    assert text.startswith("Wired: 10 neurons, 25 edges, 32 parameters, 10^2.1 permutations\n")
    lines = [line.split() for line in text.splitlines()]
    assert ["first", "5", "hidden", "1", "relu", "positive", "first"] in lines
    assert ["first.weight", "linear", "input", "first", "1", "x", "5", "x", "3", "x", "1"] in lines
    assert ["head", "2", "no", "network", "output", "0"] in lines
    assert text.endswith("unused parameters: idle.weight, idle.bias")


def test_the_summary_names_what_a_group_depends_on() -> None:
    hazard = by_name("group_norm")
    text = pg.capture(hazard.make(), hazard.example_inputs).summary()
    assert any(
        line.split() == ["0.inner", "2", "yes", "given", "0.outer"] for line in text.splitlines()
    )


def test_group_size_counts_copies_of_dependent_groups() -> None:
    hazard = by_name("group_norm")
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    # 3! orders of the groups, and 2! orders of the channels in each of them
    assert graph.log_group_size() == pytest.approx(torch.tensor(6.0 * 2**3).log().item())
