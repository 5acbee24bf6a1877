"""Capture on every hazard: the symmetries worked out by hand, their proof, and its teeth."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from expected_groups import CANCELS, EXPECTED_GROUPS, KNOWN_SMALLER, found_groups
from expected_scales import EXPECTED_SCALES, num_factors
from more_networks import ALL_HAZARDS
from networks import Hazard, as_double, outputs
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.structure import ScaleKind
from paramgraph.testing import check_graph

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

# These meet nothing but the zeros of the first state: the head reads the last of the sequence.
IDLE = {"bi_lstm": {"cell.weight_hh_l1_reverse"}}


@functools.cache
def captured(name: str) -> tuple[nn.Module, pg.ParamGraph]:
    hazard = next(hazard for hazard in ALL_HAZARDS if hazard.name == name)
    network = hazard.make()
    return network, pg.capture(network, hazard.example_inputs)


def test_every_network_has_expected_groups() -> None:
    names = [hazard.name for hazard in ALL_HAZARDS]
    assert list(EXPECTED_GROUPS) == names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_the_free_groups_are_those_worked_out_by_hand(hazard: Hazard) -> None:
    _, graph = captured(hazard.name)
    expected, _ = KNOWN_SMALLER.get(hazard.name, (EXPECTED_GROUPS[hazard.name], 1))
    assert found_groups(graph.axis_groups) == expected


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_drawn_symmetries_keep_the_function(hazard: Hazard) -> None:
    network, graph = captured(hazard.name)
    result = pg.verify(network, graph, as_double(hazard.example_inputs), tolerance=1e-10)
    assert result.passed, str(result)


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_the_laws_of_a_graph_hold(hazard: Hazard) -> None:
    network, graph = captured(hazard.name)
    report = check_graph(network, hazard.example_inputs, graph=graph, num_seeds=2)
    assert report.passed, str(report)


def with_one_group(graph: pg.ParamGraph, name: str, seed: int) -> pg.Symmetry:
    """A symmetry that permutes one axis group and no other."""
    symmetry = graph.sample_symmetry(torch.Generator().manual_seed(seed))
    orders = {
        group: order if group == name else torch.arange(order.shape[-1]).expand_as(order)
        for group, order in symmetry.orders.items()
    }
    return dataclasses.replace(symmetry, orders=orders)


def unnoticed(hazard: Hazard, seed: int) -> tuple[set[str], int]:
    """Parameters that one axis group can permute alone, unseen; and how many were tried."""
    network, graph = captured(hazard.name)
    network = hazard.make().double()
    inputs, state = as_double(hazard.example_inputs), network.state_dict()
    state = {name: value.clone() for name, value in state.items()}
    reference, found, num_tried = outputs(network, inputs), set(), 0
    for group in graph.axis_groups:
        if not group.free or group.size < 2:
            continue
        moved = with_one_group(graph, group.name, seed).apply(state)
        changed = [n for n in state if not torch.equal(moved[n], state[n])]
        for layout in graph.parameters:
            if layout.name in changed and set(changed) - {layout.name, *layout.aliases}:
                num_tried += 1
                alone = {name: moved[name] for name in (layout.name, *layout.aliases)}
                if _is_close(reference, _run(network, {**state, **alone}, inputs)):
                    found.add(layout.name)
    network.load_state_dict(state)
    return found, num_tried


def _run(network: nn.Module, state: Mapping[str, Tensor], inputs: object) -> list[Tensor]:
    network.load_state_dict(dict(state))
    return outputs(network, inputs)


def _is_close(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.allclose(x, y, rtol=1e-6, atol=1e-9) for x, y in pairs)


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_a_group_permuted_in_one_parameter_alone_is_noticed(hazard: Hazard) -> None:
    """Without this, a symmetry that does nothing would pass every check above."""
    found, num_tried = unnoticed(hazard, seed=0)
    assert num_tried > 0
    assert found <= CANCELS.get(hazard.name, set()) | IDLE.get(hazard.name, set())


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_the_scale_groups_are_those_worked_out_by_hand(hazard: Hazard) -> None:
    _, graph = captured(hazard.name)
    rows, sizes = EXPECTED_SCALES[hazard.name], Counter[ScaleKind]()
    for group in graph.scale_groups:
        sizes[group.kind] += group.size
    assert sizes[ScaleKind.POSITIVE] == num_factors(rows, "positive")
    assert sizes[ScaleKind.SIGN] == num_factors(rows, "sign")
