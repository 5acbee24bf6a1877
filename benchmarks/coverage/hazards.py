"""The hand-written networks of the tests, one hazard each."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.coverage.architecture import Architecture, Inputs
from paramgraph.graph import ParamGraph

__all__ = ["architectures"]

_TESTS = Path(__file__).resolve().parents[2] / "tests"


def architectures() -> list[Architecture]:
    """All networks of the tests; they are no package, so their folder joins the search path."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    hazards = importlib.import_module("more_networks").ALL_HAZARDS
    return [
        Architecture(
            hazard.name,
            "networks of the tests",
            functools.partial(_build, hazard),
            expected=functools.partial(_as_expected, hazard.name),
        )
        for hazard in hazards
    ]


def _as_expected(name: str, graph: ParamGraph) -> str:
    """Size, number and dependence of all free groups, against those worked out by hand."""
    table = importlib.import_module("expected_groups")
    found = table.found_groups(graph.axis_groups)
    if found == table.EXPECTED_GROUPS[name]:
        return "yes"
    rows, _ = table.KNOWN_SMALLER.get(name, (None, 1))
    return "fewer" if found == rows else "no"


def _build(hazard: Any) -> tuple[nn.Module, Inputs]:
    return hazard.make().eval(), hazard.example_inputs
