"""Self-repair: what does not hold on the network is found, frozen and named."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from networks import Wired, randomise, vectors
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.structure import PartScale, ScaleGroup, ScaleKind

VECTOR = vectors(4, 3)


def _mlp() -> nn.Module:
    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)]
    return randomise(nn.Sequential(*layers), 0)


def _freed(graph: pg.ParamGraph, name: str, **changes: Any) -> pg.ParamGraph:
    rows = [
        replace(group, free=True, reason=None, **changes) if group.name == name else group
        for group in graph.axis_groups
    ]
    return replace(graph, axis_groups=tuple(rows))


def test_a_graph_that_holds_is_returned_as_it_is() -> None:
    network = _mlp()
    graph = pg.capture(network, VECTOR)
    assert pg.repair(network, graph, VECTOR) is graph
    assert graph.repairs == ()


def test_a_group_that_moves_the_outputs_is_frozen_and_the_others_stay() -> None:
    network = _mlp()
    graph = pg.capture(network, VECTOR)
    wrong = _freed(graph, "4")
    assert not pg.verify(network, wrong, VECTOR).passed
    repaired = pg.repair(network, wrong, VECTOR)
    assert pg.verify(network, repaired, VECTOR).passed
    groups = {group.name: group for group in repaired.axis_groups}
    assert [groups[name].free for name in ("0", "2", "4")] == [True, True, False]
    reason = groups["4"].reason
    assert reason is not None
    assert reason.startswith("changes the outputs (relative error ")
    assert repaired.repairs == (f"axis group 4 {reason}",)


def test_a_false_dependency_is_dropped_before_the_group_is() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(n.inner(x).unflatten(1, (2, 3)).softmax(1).flatten(1))

    network = randomise(Wired(wiring, inner=nn.Linear(3, 6), head=nn.Linear(6, 2)), 0)
    graph = pg.capture(network, VECTOR)
    (rows,) = [group for group in graph.axis_groups if group.size == 2 and group.free]
    (columns,) = [group for group in graph.axis_groups if group.size == 3 and group.free]
    assert (rows.given, columns.given) == ((columns.name,), ())  # sums over rows, per column
    groups = {
        columns.name: replace(columns, given=(rows.name,)),
        rows.name: replace(rows, given=()),
    }
    table = tuple(groups.get(group.name, group) for group in graph.axis_groups)
    wrong = replace(graph, axis_groups=table)
    assert not pg.verify(network, wrong, VECTOR).passed
    repaired = pg.repair(network, wrong, VECTOR)
    assert pg.verify(network, repaired, VECTOR).passed
    (left,) = [group for group in repaired.axis_groups if group.name == columns.name]
    assert (left.free, left.given) == (True, ())
    assert repaired.repairs == (f"axis group {columns.name} permuted alike for all of {rows.name}",)


def test_a_scale_that_moves_the_outputs_is_removed() -> None:
    network = _mlp()
    graph = pg.capture(network, VECTOR)
    row = ScaleGroup("wrong", 5, ScaleKind.POSITIVE, ("0",))
    layouts = [
        replace(
            layout,
            parts=tuple(
                replace(part, scales=(*part.scales, PartScale("wrong", Fraction(1), 0)))
                for part in layout.parts
            ),
        )
        if layout.name == "0.weight"
        else layout
        for layout in graph.parameters
    ]
    wrong = replace(graph, scale_groups=(*graph.scale_groups, row), parameters=tuple(layouts))
    assert not pg.verify(network, wrong, VECTOR).passed
    repaired = pg.repair(network, wrong, VECTOR)
    assert pg.verify(network, repaired, VECTOR).passed
    assert [group.name for group in repaired.scale_groups] == [g.name for g in graph.scale_groups]
    assert repaired.repairs == ("scale group wrong removed: it changes the outputs",)


def _unseen() -> nn.Module:
    """Multiplies by an activation that leaves torch and comes back as a number."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(n.first(x) + 1)
        return n.head(torch.relu(n.second(hidden))) * (1 + hidden.tolist()[0][0])

    first, second, head = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)
    return randomise(Wired(wiring, first=first, second=second, head=head), 0)


def test_capture_repairs_what_the_tape_cannot_show() -> None:
    network = _unseen()
    unchecked = pg.capture(network, VECTOR, check=False)
    assert not pg.verify(network, unchecked, VECTOR).passed
    graph = pg.capture(network, VECTOR)
    assert pg.verify(network, graph, VECTOR).passed
    assert {group.name for group in graph.axis_groups if group.free} == {"second"}
    assert any(text.startswith("axis group first changes the outputs") for text in graph.repairs)


def test_strict_capture_refuses_what_it_would_have_to_repair() -> None:
    with pytest.raises(
        pg.CaptureError, match=r"Wired do not hold on the network: axis group first"
    ):
        pg.capture(_unseen(), VECTOR, strict=True)


def test_several_inputs_are_all_checked() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(n.first(x))
        return n.head(hidden) * (hidden.tolist()[0][0] if x.mean() > 0 else 1.0)

    network = randomise(Wired(wiring, first=nn.Linear(3, 5), head=nn.Linear(5, 2)), 0)
    below, above = -VECTOR.abs(), VECTOR.abs()
    assert pg.capture(network, below).repairs == ()
    assert pg.capture(network, [below, above]).repairs != ()
