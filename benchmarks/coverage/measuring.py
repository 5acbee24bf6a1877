"""One row of the report: capture an architecture, verify the graph, check that it is complete."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import paramgraph as pg
from benchmarks.coverage.architecture import Architecture, Inputs
from benchmarks.coverage.precision import float64_throughout, runs_in_float64
from benchmarks.coverage.teeth import Teeth, bite
from paramgraph.capture.verify import Probe
from paramgraph.testing.draws import double_state
from paramgraph.testing.graph_laws import _complete, _round_trip

__all__ = ["TOLERANCES", "Measurement", "measure"]

#: Largest change of an output that is allowed, relative to the largest output.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4}


@dataclass
class Measurement:
    """What was found about one architecture; ``None`` where it did not come so far.

    Attributes:
        name: Of the architecture.
        family: Heading in the report.
        num_parameters: Trained scalars of the network, tied ones once.
        num_free: Axis groups that may be permuted.
        num_frozen: Axis groups that may not.
        log_group_size: Natural logarithm of the number of permutations.
        frozen_reasons: Why groups are frozen, with the number of groups.
        unknown_operations: Operations without a rule, whose axes were frozen.
        precision: ``float64`` if the network runs in it throughout, else ``float32``.
        max_error: Largest change of an output under drawn symmetries.
        round_trip: Whether weights come back from values with the same bits.
        teeth: What happened when groups were permuted in one of their tensors.
        expected: Whether the free groups are those worked out by hand: "yes", "no", "fewer" (a
            known limit of capture).
        complete: Whether every trained scalar stands in the graph or is listed as unused.
        time_s: Time of everything.
        problems: Why the row counts as failed; none in a good row.
    """

    name: str
    family: str
    num_parameters: int | None = None
    num_free: int | None = None
    num_frozen: int | None = None
    log_group_size: float | None = None
    frozen_reasons: dict[str, int] = field(default_factory=dict)
    unknown_operations: list[str] = field(default_factory=list)
    precision: str | None = None
    max_error: float | None = None
    round_trip: bool | None = None
    complete: bool | None = None
    expected: str | None = None
    teeth: Teeth | None = None
    time_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything was measured, and is as it must be."""
        return not self.problems


def measure(architecture: Architecture, *, seed: int = 0) -> Measurement:
    """Build, capture and check an architecture; an exception becomes a problem of the row.

    Args:
        architecture: What to build.
        seed: Of weights and inputs.
    """
    row = Measurement(architecture.name, architecture.family)
    start = time.perf_counter()
    with _stage(row, "build"):
        torch.manual_seed(seed)
        network, inputs = architecture.build()
        row.num_parameters = sum(parameter.numel() for parameter in network.parameters())
        row.precision = "float64" if runs_in_float64(network, inputs) else "float32"
        with _stage(row, "capture"):
            # Without its self-check, which would take out what is wrong before it is counted.
            graph = pg.capture(network, inputs, output=architecture.output, check=False)
            _describe(row, graph)
            if architecture.expected is not None:
                with _stage(row, "expected groups"):
                    row.expected = architecture.expected(graph)
                    if row.expected == "no":
                        row.problems.append("other free groups than worked out by hand")
            with _stage(row, "completeness"):
                row.complete = _holds(row, "not complete", _complete(network, graph))
            with _stage(row, "round trip"):
                law = _round_trip(graph, double_state(network))
                row.round_trip = _holds(row, "other bits after a round trip", law)
            with _stage(row, "verify"):
                _verify(row, network, graph, inputs)
            with _stage(row, "teeth"):
                _bite(row, network, graph, inputs)
    row.time_s = time.perf_counter() - start
    return row


@contextlib.contextmanager
def _stage(row: Measurement, name: str) -> Iterator[None]:
    """Whatever happens must be seen in the report, and what does not depend on it still runs."""
    try:
        yield
    except Exception as problem:
        text = re.sub(r"(/[\w.+-]+)+/", "", str(problem).strip().split("\n")[0])  # no folders
        row.problems.append(f"{name}: {type(problem).__name__}: {text}")


def _describe(row: Measurement, graph: pg.ParamGraph) -> None:
    row.num_free = sum(group.free for group in graph.axis_groups)
    row.num_frozen = len(graph.axis_groups) - row.num_free
    row.log_group_size = graph.log_group_size()
    reasons = Counter(str(group.reason) for group in graph.axis_groups if not group.free)
    row.frozen_reasons = dict(sorted(reasons.items()))
    row.unknown_operations = list(getattr(graph, "unknown_operations", ()))


def _holds(row: Measurement, problem: str, law: tuple[float, str]) -> bool:
    violations, note = law
    if violations:
        row.problems.append(f"{problem}: {note}")
    return violations == 0


def _wide(row: Measurement) -> contextlib.AbstractContextManager[Any]:
    return float64_throughout() if row.precision == "float64" else contextlib.nullcontext()


def _bite(row: Measurement, network: nn.Module, graph: pg.ParamGraph, inputs: Inputs) -> None:
    with _wide(row):
        row.teeth = bite(graph, Probe(network, graph, inputs))


def _verify(row: Measurement, network: nn.Module, graph: pg.ParamGraph, inputs: Inputs) -> None:
    with _wide(row):
        verification = pg.verify(network, graph, inputs)
    row.max_error = verification.max_error
    allowed = TOLERANCES[row.precision or "float32"]
    if not (verification.passed and row.max_error <= allowed):
        row.problems.append(f"error {row.max_error:.1e}, allowed {allowed:.0e}")
