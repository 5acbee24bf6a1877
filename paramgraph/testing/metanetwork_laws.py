"""Check a metanetwork: each law on each network, on copies in float64 and evaluation mode."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.errors import BatchError
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.testing.captured import CapturedNetworks, Seating, capture_networks
from paramgraph.testing.case import Case
from paramgraph.testing.hazards import ExampleNetwork, hazard_networks
from paramgraph.testing.law import DoesNotApply, Law
from paramgraph.testing.laws import LAWS
from paramgraph.testing.outputs import WrongOutput, read
from paramgraph.testing.report import LawReport, LawRow

__all__ = ["assert_metanetwork", "check_metanetwork"]

_MIXED = "mixed batch"
_BEFORE_MIXED = [law.name for law in LAWS].index("batch of one") + 1
LAW_NAMES = (
    *(law.name for law in LAWS[:_BEFORE_MIXED]),
    _MIXED,
    *(law.name for law in LAWS[_BEFORE_MIXED:]),
)
_KNOWN_SYMMETRIES = ("permutation", "sign", "scale", "phase")


def check_metanetwork(
    metanetwork: Metanetwork,
    networks: Sequence[ExampleNetwork] | CapturedNetworks | None = None,
    *,
    tolerance: float = 1e-8,
    fit_statistics: bool = True,
    seed: int = 0,
) -> LawReport:
    """Check the laws of metanetworks on small networks, each with one hazard.

    Changes are measured in units of the spread: the standard deviation of the outputs over networks
    of the architecture with other weights (of the outputs for each neuron group or parameter, at
    those levels). "Must change" is by more than 1000 times the tolerance.

    | law | statement |
    |---|---|
    | shape | the outputs are those of the level; entries can be written and read again |
    | permutation, sign, scale, phase | if promised: outputs move as the level says when a drawn |
    | | symmetry is applied (factors 1/100 to 100, where 100 times the tolerance is allowed) |
    | combined | the same with all promised symmetries at once |
    | batch of one | alone or among networks of its architecture: the same output |
    | mixed batch | with or without other architectures, in any order: the same output |
    | sensitive | other values in any one trained tensor must change the output |
    | running statistics | other values in any one running statistic must change the output |
    | wrong permutation | moving any one tensor alone, no symmetry, must change the output (whose |
    | | numbers are compared in any order); these three where the network's function changes |
    | spread | over networks of other weights, the output deviates by more than 1/1000 of its size |
    | gradient | the gradient with respect to the weights equals finite differences |
    | finite, zero weight | outputs and gradients are finite in float32, with all weights 0 too |
    | deterministic | the same output twice, bit by bit |

    Outputs at level ``"graph"`` do not move, those at level ``"neuron"`` go with the neurons, and
    those at level ``"parameter"`` transform like the parameters: editing a network and then
    applying a symmetry equals applying it and then editing.

    Args:
        metanetwork: Reads a ``GraphBatch``; it is not changed. The symmetries it names in
            ``promised_symmetries()`` are checked, at its ``level``.
        networks: What to check on; ``hazard_networks()`` when not given. From ``capture_networks``
            if several metanetworks are checked on them: draws are then shared.
        tolerance: Largest change, in units of the spread, that counts as none, in float64.
        fit_statistics: Fit the copies to the networks first.
        seed: Of all draws (captured networks have theirs).

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
    if networks is None:
        networks = _captured_hazards(seed)
    elif not isinstance(networks, CapturedNetworks):
        networks = capture_networks(networks, seed=seed)
    rows = _promises(metanetwork, name)
    readers = _readers(metanetwork, networks, fit=fit_statistics, tolerance=tolerance)
    for number, law in enumerate(LAWS):
        if number == _BEFORE_MIXED:
            rows += _mixed_batch(readers, tolerance)
        rows += [_row(law, case) for case in readers.cases]
    rows += [
        LawRow(law, other, None, 0.0, why) for law in LAW_NAMES for other, why in readers.unread
    ]
    return LawReport(name, tuple(rows))


def assert_metanetwork(
    metanetwork: Metanetwork,
    networks: Sequence[ExampleNetwork] | CapturedNetworks | None = None,
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


@functools.lru_cache(maxsize=1)
def _captured_hazards(seed: int) -> CapturedNetworks:
    return capture_networks(hazard_networks(seed), seed=seed)


def _promises(metanetwork: Metanetwork, name: str) -> list[LawRow]:
    """A broken row for each promise that no law stands for: it would go unchecked."""
    unknown = sorted(metanetwork.promised_symmetries() - set(_KNOWN_SYMMETRIES))
    note = "promised_symmetries() names {!r}, known are {}"
    return [
        LawRow("promises", name, math.nan, 0.0, note.format(word, ", ".join(_KNOWN_SYMMETRIES)))
        for word in unknown
    ]


def _row(law: Law, case: Case) -> LawRow:
    bound = law.bound(case.tolerance, case.promised)
    error: float | None
    try:
        if case.problem and law.name != "shape":
            raise DoesNotApply("the outputs have the wrong form")
        error, note = law.measure(case)
    except DoesNotApply as reason:
        error, note = None, str(reason)
    except WrongOutput as problem:
        error, note = math.nan, str(problem)
    return LawRow(law.name, case.name, error, bound, note, law.must_exceed)


@dataclass(frozen=True)
class _Readers:
    """Who reads which network.

    Attributes:
        cases: The networks that are read.
        unread: Names of those that are refused, and why.
        seatings: Batches of all that are read; none if mixtures are refused.
        why_no_mixture: Why there are none.
    """

    cases: list[Case]
    unread: list[tuple[str, str]]
    seatings: tuple[Seating, ...]
    why_no_mixture: str = ""


def _readers(
    metanetwork: Metanetwork, networks: CapturedNetworks, *, fit: bool, tolerance: float
) -> _Readers:
    """Copies of the metanetwork: one for all networks, or where these are refused one for each."""
    promised = metanetwork.promised_symmetries()

    def cases(chosen: CapturedNetworks) -> list[Case]:
        reader = _prepared(metanetwork, chosen, fit=fit)
        single = copy.deepcopy(reader).float()
        return [Case(row, reader, single, promised, tolerance) for row in chosen.networks]

    try:
        found = cases(networks)
        if len(found) == 1:
            return _Readers(found, [], (), "there is one network only")
        return _Readers(found, [], (networks.in_order, *networks.seatings))
    except BatchError as refusal:
        problem = f"refused: {refusal}"
    # Each network by itself: some may be refused alone, or only their mixture is.
    found, readable, unread = [], [], []
    for number, row in enumerate(networks.networks):
        try:
            found += cases(networks.of([number]))
            readable.append(number)
        except BatchError as refusal:
            unread.append((row.name, f"refused: {refusal}"))
    if unread and len(found) > 1:
        chosen = networks.of(readable)
        try:
            return _Readers(cases(chosen), unread, (chosen.in_order, *chosen.seatings))
        except BatchError as refusal:
            problem = f"refused: {refusal}"
    return _Readers(found, unread, (), problem)


def _prepared(metanetwork: Metanetwork, networks: CapturedNetworks, *, fit: bool) -> Metanetwork:
    """A copy in float64 and evaluation mode that has read the networks once."""
    prepared = copy.deepcopy(metanetwork).cpu().double().eval()
    if fit:
        prepared.fit_statistics([networks.in_order.batch])
    with torch.no_grad():
        prepared(networks.in_order.batch)
    return prepared


def _mixed_batch(readers: _Readers, tolerance: float) -> list[LawRow]:
    """Largest change of the outputs for each network when other architectures are there too.

    Compared with the same networks of its architecture in a batch by themselves.
    """
    law, cases = _MIXED, readers.cases
    problem = readers.why_no_mixture
    if any(case.problem for case in cases):
        problem = "the outputs have the wrong form"
    if problem:
        return [LawRow(law, case.name, None, tolerance, problem) for case in cases]
    worst: list[tuple[float, str]] = [(0.0, "")] * len(cases)
    for seating in readers.seatings:
        try:
            rows = _rows(cases[0].metanetwork, seating)
        except WrongOutput as wrong:
            worst = [(math.nan, str(wrong))] * len(cases)
            break
        for (number, is_mate), row in zip(seating.seats, rows, strict=True):
            if not is_mate:
                case = cases[number]
                expected = case.behind_its_mate if seating.has_mates else case.alone
                error = case.change(expected, row)
                if not error <= worst[number][0]:
                    worst[number] = (error, seating.text)
    return [
        LawRow(law, case.name, error, tolerance, text)
        for case, (error, text) in zip(cases, worst, strict=True)
    ]


def _rows(metanetwork: Metanetwork, seating: Seating) -> list[Tensor]:
    """Outputs ``[places, out_dim]`` for each network of a batch, in order."""
    with torch.no_grad():
        parts = read(metanetwork, seating.batch)
    rows: dict[int, Tensor] = {}
    for part, outputs in zip(seating.batch.parts, parts, strict=True):
        rows.update(zip(part.rows.tolist(), outputs, strict=True))
    return [rows[number] for number in range(seating.batch.num_networks)]
