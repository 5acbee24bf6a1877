"""The hand-written networks of the tests, one hazard each."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.coverage.architecture import Architecture, Inputs

__all__ = ["architectures"]

_TESTS = Path(__file__).resolve().parents[2] / "tests"


def architectures() -> list[Architecture]:
    """All networks of the tests; they are no package, so their folder joins the search path."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    hazards = importlib.import_module("more_networks").ALL_HAZARDS
    return [
        Architecture(hazard.name, "networks of the tests", functools.partial(_build, hazard))
        for hazard in hazards
    ]


def _build(hazard: Any) -> tuple[nn.Module, Inputs]:
    return hazard.make().eval(), hazard.example_inputs
