"""Results as plain text: valid JSON, and tables for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["number", "table", "to_json"]


def to_json(value: Any) -> str:
    """Write a value as valid JSON; what is not a finite number becomes ``null``.

    Example:
        >>> print(to_json({"tau": float("nan"), "num": 3}))
        {
          "tau": null,
          "num": 3
        }
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; ``undefined`` where there is none.

    Example:
        >>> number(0.5), number(float("nan"))
        ('0.500', 'undefined')
    """
    if value is None or not math.isfinite(value):
        return "undefined"
    return f"{value:.{digits}f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with a heading, aligned: the first column to the left, the others to the right.

    Example:
        >>> print(table([("name", "size"), ("a", "10")]))
        name  size
        ----  ----
        a       10
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
