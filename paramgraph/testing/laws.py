"""All laws of metanetworks that are measured on one architecture, in the order of reports."""

from __future__ import annotations

from collections.abc import Sequence

from paramgraph.testing.case import Case
from paramgraph.testing.law import MUST_CHANGE, DoesNotApply, Law, Measured, largest, smallest
from paramgraph.testing.number_laws import NUMBER_LAWS
from paramgraph.testing.symmetry_laws import SYMMETRY_LAWS

__all__ = ["LAWS"]

MIN_SPREAD = 1e-3


def _shape(case: Case) -> Measured:
    return (float("nan") if case.problem else 0.0), case.problem


# -------------------------------------------------------------------------------------- batches


def _batch_of_one(case: Case) -> Measured:
    among = {"after a mate": case.behind_its_mate, "before many mates": case.outputs[0]}
    return largest({place: case.change(case.alone, row) for place, row in among.items()})


def _deterministic(case: Case) -> Measured:
    again = case.read(case.network.alone)[0]
    return float((case.alone != again).sum()), "number of outputs that differ"


# ---------------------------------------------------------------------------------- sensitivity


_NO_TENSOR = "the network has no such tensors that its function depends on"
_NO_MOVE = "no tensor can be permuted so that the function is another one"


def _one_tensor(case: Case, law: str, why: str, changes: Sequence[float]) -> Measured:
    names = case.sample.names[law]
    if not names:
        raise DoesNotApply(why)
    return smallest(dict(zip(names, changes, strict=True)))


def _sensitive(case: Case) -> Measured:
    changes = case.changes("sensitive")
    return _one_tensor(case, "sensitive", _NO_TENSOR, changes)


def _running_statistics(case: Case) -> Measured:
    changes = case.changes("running statistics")
    return _one_tensor(case, "running statistics", _NO_TENSOR, changes)


def _wrong_permutation(case: Case) -> Measured:
    """In any order: outputs that only go along with their own weights have seen nothing."""
    law = "wrong permutation"
    before = case.ordered(case.outputs[0])
    rows = case.ordered(case.outputs[case.sample.rows[law]])
    changes = [case.change(before, row) for row in rows]
    return _one_tensor(case, law, _NO_MOVE, changes)


def _spread(case: Case) -> Measured:
    return case.spread / case.size, "standard deviation over root mean square"


LAWS = (
    Law("shape", _shape, fixed=0.0),
    *SYMMETRY_LAWS,
    Law("batch of one", _batch_of_one),
    Law("sensitive", _sensitive, factor=MUST_CHANGE, must_exceed=True),
    Law("running statistics", _running_statistics, factor=MUST_CHANGE, must_exceed=True),
    Law("wrong permutation", _wrong_permutation, factor=MUST_CHANGE, must_exceed=True),
    Law("spread", _spread, fixed=MIN_SPREAD, must_exceed=True),
    *NUMBER_LAWS,
    Law("deterministic", _deterministic, fixed=0.0),
)
"""Each with its measure and its bound; "mixed batch" is about all networks together."""
