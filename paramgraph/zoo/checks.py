"""Checks of arguments that several files of the zoo share."""

import math

from paramgraph.errors import ZooError

__all__ = ["require_numbers", "require_positive"]


def require_numbers(**values: float) -> None:
    """Raise ZooError unless every argument is a positive, finite number."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ZooError(f"expected {name} to be positive, got {value!r}.")


def require_positive(spec: object, *fields: str) -> None:
    """Raise ZooError unless every named field is a positive number, or a tuple of them."""
    for field in fields:
        value = getattr(spec, field)
        values = value if isinstance(value, tuple) else (value,)
        whole = field != "omega"
        if not values or any(
            isinstance(v, bool) or not isinstance(v, int if whole else int | float) or v <= 0
            for v in values
        ):
            number = "whole numbers" if whole else "a number"
            raise ZooError(
                f"{type(spec).__name__}: expected {field} to be positive {number}, got {value!r}."
            )
