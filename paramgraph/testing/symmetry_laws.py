"""Laws of symmetry: outputs move as their level says when a symmetry is applied to the network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from paramgraph.testing.case import Case
from paramgraph.testing.law import DoesNotApply, Law, Measured, largest

__all__ = ["SYMMETRY_LAWS"]

SCALE_FACTOR = 100.0  # of the tolerance: weights become 10^4 times as large and as small

_MISSING = {
    "permutation": "the network has no neurons to permute",
    "sign": "the network has no neurons with a sign symmetry",
    "scale": "the network has no neurons with a positive symmetry",
    "phase": "the network has no biases of sines",
}


def _errors(case: Case, name: str) -> Measured:
    moves = case.sample.moves(name, case.metanetwork.level)
    rows = case.outputs[case.sample.rows[name]]
    errors = [case.moved(move, row) for move, row in zip(moves, rows, strict=True)]
    return largest({f"draw {draw}": error for draw, error in enumerate(errors)})


def _one_kind(case: Case, name: str) -> Measured:
    if name not in case.promised:
        raise DoesNotApply("the metanetwork does not promise it")
    if name not in case.sample.symmetries:
        raise DoesNotApply(_MISSING[name])
    return _errors(case, name)


def _combined(case: Case) -> Measured:
    if "combined" not in case.sample.symmetries:
        raise DoesNotApply("there are not two promised kinds of symmetries in the network")
    for law in SYMMETRY_LAWS:
        if law.name in case.sample.symmetries and law.name != "combined":
            error, _ = _errors(case, law.name)
            if not error <= law.bound(case.tolerance, case.promised):
                raise DoesNotApply(f"{law.name} is broken by itself")
    return _errors(case, "combined")


def _measure(name: str) -> Callable[[Case], Measured]:
    return partial(_one_kind, name=name)


SYMMETRY_LAWS = (
    Law("permutation", _measure("permutation")),
    Law("sign", _measure("sign")),
    Law("scale", _measure("scale"), factor=SCALE_FACTOR),
    Law("phase", _measure("phase")),
    Law("combined", _combined, scale_factor=SCALE_FACTOR),
)
"""Permutations, signs, positive factors, phases, and all that are promised at once."""
