"""A law: a number that is measured on one network, and a bound on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paramgraph.testing.case import Case

__all__ = ["MUST_CHANGE", "DoesNotApply", "Law", "Measured", "largest", "smallest"]

MUST_CHANGE = 1e3

Measured = tuple[float, str]
"""A number, and where it was found."""


class DoesNotApply(Exception):
    """The law says nothing about this network; the message says why."""


@dataclass(frozen=True)
class Law:
    """A statement about a metanetwork and one network.

    Attributes:
        name: Shown in reports.
        measure: The number that is bounded.
        factor: The bound, in units of the tolerance.
        scale_factor: The same for metanetworks that promise ``"scale"``, where it differs.
        fixed: The bound, if it does not depend on the tolerance.
        must_exceed: Whether the bound is a lower one.
    """

    name: str
    measure: Callable[[Case], Measured]
    factor: float = 1.0
    scale_factor: float | None = None
    fixed: float | None = None
    must_exceed: bool = False

    def bound(self, tolerance: float, promised: frozenset[str]) -> float:
        """The bound at this tolerance, for a metanetwork with these promises."""
        if self.fixed is not None:
            return self.fixed
        if self.scale_factor is not None and "scale" in promised:
            return self.scale_factor * tolerance
        return self.factor * tolerance


def largest(errors: Mapping[str, float]) -> Measured:
    """The largest error, NaN above all, and its name.

    Example:
        >>> largest({"a": 1.0, "b": float("nan"), "c": 2.0})
        (nan, 'b')
    """
    name = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))
    return errors[name], name


def smallest(changes: Mapping[str, float]) -> Measured:
    """The smallest change, NaN below all, and its name.

    Example:
        >>> smallest({"a": 2.0, "b": 1.0})
        (1.0, 'b')
    """
    name = min(changes, key=lambda key: (changes[key] == changes[key], changes[key]))
    return changes[name], name
