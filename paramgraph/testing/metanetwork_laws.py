"""Check a metanetwork: each law on each network, on copies in float64 and evaluation mode."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from paramgraph.batch import collate
from paramgraph.capture import capture
from paramgraph.errors import BatchError
from paramgraph.graph import ParamGraph
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.testing.case import Case
from paramgraph.testing.draws import StateDict, double_state, other_weights
from paramgraph.testing.hazards import ExampleNetwork, hazard_networks
from paramgraph.testing.laws import LAWS, DoesNotApply, Law
from paramgraph.testing.report import LawReport, LawRow
from paramgraph.values import Values

__all__ = ["assert_metanetwork", "check_metanetwork"]

LAW_NAMES = (*(law.name for law in LAWS), "mixed batch")
_KNOWN_SYMMETRIES = ("permutation", "sign", "scale")

Pair = tuple[ParamGraph, Values]


def check_metanetwork(
    metanetwork: Metanetwork,
    networks: Sequence[ExampleNetwork] | None = None,
    *,
    tolerance: float = 1e-8,
    fit_statistics: bool = True,
    seed: int = 0,
) -> LawReport:
    """Check the laws of metanetworks on small networks, each with one hazard.

    Changes are measured in units of the spread: the standard deviation of the output over networks
    of the architecture with other weights. "Must change" is by more than 1000 times the tolerance.

    | law | statement |
    |---|---|
    | permutation, sign, scale | if promised: a drawn symmetry leaves the output equal |
    | batch of one | alone or among networks of its architecture: the same output |
    | mixed batch | alone or among other architectures, in any order: the same output |
    | sensitive | a change of any one trained tensor must change the output |
    | running statistics | a change of any one running statistic must change the output |
    | wrong permutation | moving any one tensor alone, no symmetry, must change the output |
    | spread | over networks of other weights, the output deviates by more than 1/1000 of its size |
    | gradient | the gradient with respect to the weights equals finite differences |
    | finite, zero weight | outputs and gradients are finite in float32, with all weights 0 too |
    | deterministic | the same output twice, bit by bit |

    Args:
        metanetwork: Reads a ``GraphBatch``; it is not changed. The symmetries it names in
            ``promised_symmetries()`` are checked.
        networks: What to check on; ``hazard_networks()`` when not given.
        tolerance: Largest change, in units of the spread, that counts as none, in float64.
        fit_statistics: Fit the copies to the networks first.
        seed: Of all draws.

    Returns:
        A report with one row per law and network. Laws that do not apply (nothing of that kind in
        the network, or the metanetwork reads no mixed batch) are reported as such.

    Example:
        >>> from paramgraph.nn import StatNN
        >>> report = check_metanetwork(StatNN(1, hidden_dim=32), hazard_networks()[:2])
        >>> [row.passed for row in report.of("permutation")]
        [True, True]
        >>> [row.passed for row in report.of("wrong permutation")]  # statistics have no order
        [False, False]
    """
    name = type(metanetwork).__name__
    networks = hazard_networks(seed) if networks is None else networks
    rows = _promises(metanetwork, name)
    cases, unread, problem = _cases(metanetwork, networks, fit=fit_statistics, seed=seed)
    for law in LAWS:
        rows += [_row(law, case, tolerance) for case in cases]
        if law.name == "batch of one":
            rows += _mixed_batch(cases, problem, tolerance, seed)
    rows += [LawRow(law, other, None, 0.0, why) for law in LAW_NAMES for other, why in unread]
    return LawReport(name, tuple(rows))


def assert_metanetwork(
    metanetwork: Metanetwork,
    networks: Sequence[ExampleNetwork] | None = None,
    *,
    tolerance: float = 1e-8,
    fit_statistics: bool = True,
    seed: int = 0,
) -> None:
    """Raise unless all laws hold; for tests of your own metanetwork.

    Args:
        metanetwork: As for ``check_metanetwork``.
        networks: As for ``check_metanetwork``.
        tolerance: As for ``check_metanetwork``.
        fit_statistics: As for ``check_metanetwork``.
        seed: As for ``check_metanetwork``.

    Raises:
        AssertionError: A law is broken, or none applies; the message is the report.

    Example:
        >>> from paramgraph.nn import OperatorMetanetwork
        >>> assert_metanetwork(OperatorMetanetwork(1, hidden_dim=8), hazard_networks()[:2])
    """
    report = check_metanetwork(
        metanetwork, networks, tolerance=tolerance, fit_statistics=fit_statistics, seed=seed
    )
    if not report.passed:
        raise AssertionError(str(report))


def _promises(metanetwork: Metanetwork, name: str) -> list[LawRow]:
    """A broken row for each promise that no law stands for: it would go unchecked."""
    unknown = sorted(metanetwork.promised_symmetries() - set(_KNOWN_SYMMETRIES))
    note = "promised_symmetries() names {!r}, known are {}"
    return [
        LawRow("promises", name, math.nan, 0.0, note.format(word, ", ".join(_KNOWN_SYMMETRIES)))
        for word in unknown
    ]


def _row(law: Law, case: Case, tolerance: float) -> LawRow:
    bound = law.bound(tolerance)
    try:
        error, note = law.measure(case)
    except DoesNotApply as reason:
        return LawRow(law.name, case.name, None, bound, str(reason), law.must_exceed)
    return LawRow(law.name, case.name, error, bound, note, law.must_exceed)


def _cases(
    metanetwork: Metanetwork, networks: Sequence[ExampleNetwork], *, fit: bool, seed: int
) -> tuple[list[Case], list[tuple[str, str]], str]:
    """Cases; names of networks that are refused, and why; why there is no mixed batch, or ""."""
    captured = []
    for name, network, inputs in networks:
        graph = capture(network, inputs)
        generator = torch.Generator().manual_seed(seed)
        captured.append((name, graph, other_weights(graph, double_state(network), generator)))
    pairs = [(graph, graph.features(state)) for _, graph, state in captured]
    promised = metanetwork.promised_symmetries()

    def case(row: tuple[str, ParamGraph, StateDict], reader: Metanetwork) -> Case:
        return Case(*row, reader, promised, seed)

    try:
        reader = _prepared(metanetwork, pairs, fit=fit)
        return [case(row, reader) for row in captured], [], ""
    except BatchError as refusal:
        problem = f"refused: {refusal}"
    # Each network by itself: some may be refused alone, or only their mixture is.
    cases, unread = [], []
    for row, pair in zip(captured, pairs, strict=True):
        try:
            cases.append((case(row, _prepared(metanetwork, [pair], fit=fit)), pair))
        except BatchError as refusal:
            unread.append((row[0], f"refused: {refusal}"))
    if unread and cases:
        try:
            reader = _prepared(metanetwork, [pair for _, pair in cases], fit=fit)
            return [replace(row, metanetwork=reader) for row, _ in cases], unread, ""
        except BatchError as refusal:
            problem = f"refused: {refusal}"
    return [row for row, _ in cases], unread, problem


def _prepared(metanetwork: Metanetwork, pairs: list[Pair], *, fit: bool) -> Metanetwork:
    """A copy in float64 and evaluation mode that has read the networks once."""
    prepared = copy.deepcopy(metanetwork).cpu().double().eval()
    if fit:
        prepared.fit_statistics([collate(pairs)])
    with torch.no_grad():
        prepared(collate(pairs))
    return prepared


@dataclass(frozen=True)
class _Seat:
    """A network in a mixed batch."""

    case: int
    is_mate: bool


def _mixed_batch(cases: list[Case], problem: str, tolerance: float, seed: int) -> list[LawRow]:
    """Largest change of each network's output over three batches of all architectures."""
    law = "mixed batch"
    if len(cases) == 1:
        problem = problem or "there is one network only"
    if problem:
        return [LawRow(law, case.name, None, tolerance, problem) for case in cases]
    generator = torch.Generator().manual_seed(seed)
    states = [(case.state, other_weights(case.graph, case.state, generator)) for case in cases]
    own = [_Seat(number, False) for number in range(len(cases))]
    everyone = [*own, *(_Seat(number, True) for number in range(len(cases)))]
    shuffled = [everyone[i] for i in torch.randperm(len(everyone), generator=generator)]
    seatings = {
        "in the order given": own,
        "in reverse": own[::-1],
        "shuffled, with other weights between": shuffled,
        "every other network": own[::2],
    }
    alone = [case.read([case.state])[0] for case in cases]
    worst: list[tuple[float, str]] = [(0.0, "")] * len(cases)
    for text, seats in seatings.items():
        pairs = []
        for seat in seats:
            graph = cases[seat.case].graph
            pairs.append((graph, graph.features(states[seat.case][seat.is_mate])))
        with torch.no_grad():
            rows = cases[0].metanetwork(collate(pairs))
        for seat, row in zip(seats, rows, strict=True):
            if not seat.is_mate:
                error = cases[seat.case].change(alone[seat.case], row)
                if not error <= worst[seat.case][0]:
                    worst[seat.case] = (error, text)
    return [
        LawRow(law, case.name, error, tolerance, text)
        for case, (error, text) in zip(cases, worst, strict=True)
    ]
