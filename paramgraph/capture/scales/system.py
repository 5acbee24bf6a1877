"""Linear equations between exponents, solved exactly while they come in.

An expression is a sum of unknowns with coefficients. Over the rationals it is the logarithm of a
positive factor, over the integers modulo two it says whether a sign flips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

__all__ = ["Expression", "Number", "Span", "System", "combined"]

Number = int | Fraction
Expression = Mapping[int, Number]
"""Coefficient of each unknown; an empty one is zero."""


def combined(
    first: Expression, second: Expression, times: Number = 1, *, is_sign: bool = False
) -> dict[int, Number]:
    """``first + times * second``.

    Example:
        >>> combined({0: 1, 1: 1}, {1: 1, 2: 1}, -1)
        {0: 1, 2: -1}
        >>> combined({0: 1, 1: 1}, {1: 1, 2: 1}, is_sign=True)
        {0: 1, 2: 1}
    """
    total = dict(first)
    for unknown, coefficient in second.items():
        value = total.get(unknown, 0) + times * coefficient
        if is_sign:
            value %= 2
        if value:
            total[unknown] = value
        else:
            total.pop(unknown, None)
    return total


class System:
    """Equations of one kind: each one eliminates the unknown that was made last.

    Example:
        >>> system = System(is_sign=False)
        >>> a, b, c = system.unknown(), system.unknown(), system.unknown()
        >>> system.demand_none({a: 1, b: 1})
        >>> system.demand_none({b: 2, c: -1})
        >>> system.reduced({c: 1})
        {0: -2}
    """

    def __init__(self, *, is_sign: bool) -> None:
        self.is_sign = is_sign
        self.num_unknowns = 0
        self.solved: dict[int, Expression] = {}

    def unknown(self) -> int:
        """A new unknown."""
        self.num_unknowns += 1
        return self.num_unknowns - 1

    def plus(self, first: Expression, second: Expression, times: Number = 1) -> Expression:
        """``first + times * second``."""
        return combined(first, second, times, is_sign=self.is_sign)

    def reduced(self, expression: Expression) -> Expression:
        """An expression in the unknowns that are still free."""
        if self.solved.keys().isdisjoint(expression):
            return expression
        waiting, done = dict(expression), {}
        while waiting:
            # An unknown is solved by older ones, so that none comes back.
            unknown = max(waiting)
            coefficient = waiting.pop(unknown)
            known = self.solved.get(unknown)
            if known is None:
                done[unknown] = coefficient
            else:
                waiting = combined(waiting, known, coefficient, is_sign=self.is_sign)
        if len(expression) == 1:
            ((unknown, coefficient),) = expression.items()
            if coefficient == 1:
                self.solved[unknown] = done
        return done

    def demand_none(self, expression: Expression) -> None:
        """Add the equation that an expression is zero."""
        rest = dict(self.reduced(expression))
        if not rest:
            return
        newest = max(rest)
        coefficient = rest.pop(newest)
        self.solved[newest] = combined({}, rest, _inverse(-coefficient), is_sign=self.is_sign)

    def basis(self) -> dict[int, dict[int, Number]]:
        """For each free unknown the solution in which it is 1 and the other free ones are 0."""
        vectors: dict[int, dict[int, Number]] = {
            unknown: {} for unknown in range(self.num_unknowns) if unknown not in self.solved
        }
        for unknown in range(self.num_unknowns):
            for free, coefficient in self.reduced({unknown: 1}).items():
                vectors[free][unknown] = coefficient
        return vectors


class Span:
    """Which vectors are combinations of vectors seen before.

    Example:
        >>> span = Span([{0: 1, 1: 1}], is_sign=False)
        >>> span.add({0: 2, 1: 2}), span.add({1: 1})
        (False, True)
    """

    def __init__(self, vectors: Iterable[Expression], *, is_sign: bool) -> None:
        self.is_sign = is_sign
        self.rows: dict[int, Expression] = {}
        for vector in vectors:
            self.add(vector)

    def add(self, vector: Expression) -> bool:
        """Add a vector; whether it is new."""
        rest = dict(vector)
        while rest:
            lead = max(rest)
            row = self.rows.get(lead)
            if row is None:
                self.rows[lead] = rest
                return True
            factor = -rest[lead] * _inverse(row[lead])
            rest = combined(rest, row, factor, is_sign=self.is_sign)
        return False


def _inverse(number: Number) -> Number:
    return number if number in (1, -1) else 1 / Fraction(number)
