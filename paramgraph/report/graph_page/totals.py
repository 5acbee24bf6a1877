"""The head of the page: totals, and remarks on what was found and what could not be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from paramgraph.capture import Verification
from paramgraph.graph import ParamGraph

__all__ = ["notes", "power_of_ten", "totals"]


def power_of_ten(log_size: float) -> str:
    """A size of a group, from its natural logarithm.

    Example:
        >>> power_of_ten(math.log(1000))
        '10^3.0 (ln 6.9)'
    """
    return f"10^{log_size / math.log(10):.1f} (ln {log_size:.1f})"


def totals(graph: ParamGraph, verification: Verification | None = None) -> list[list[str]]:
    """Label, value, and whether it is good news, bad news or neither.

    Example:
        >>> import torch, paramgraph as pg
        >>> totals(pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3)))[0]
        ['parameters', '8', '']
    """
    free = sum(row.free for row in graph.axis_groups)
    rows = [
        ["parameters", f"{graph.num_parameters:,}", ""],
        ["neurons", f"{graph.num_neurons:,}", ""],
        ["edges", f"{graph.num_edges:,}", ""],
        ["permutations", power_of_ten(graph.log_group_size()), ""],
        ["axis groups", f"{free:,} free, {len(graph.axis_groups) - free:,} frozen", ""],
        ["scale groups", f"{len(graph.scale_groups):,}", ""],
        ["unknown operations", str(len(graph.unknown_operations)), _bad(graph.unknown_operations)],
        ["unused parameters", str(len(graph.unused_parameters)), ""],
        ["constant parameters", str(len(graph.constant_parameters)), ""],
        ["repairs", str(len(graph.repairs)), _bad(graph.repairs)],
    ]
    if verification is None:
        return [*rows, ["verification", "not run", ""]]
    word, tone = ("passed", "good") if verification.passed else ("FAILED", "bad")
    return [*rows, ["verification", f"{word}, error {verification.max_error:.1e}", tone]]


def notes(graph: ParamGraph, verification: Verification | None = None) -> list[list[Any]]:
    """Heading and lines of each remark.

    Example:
        >>> import torch, paramgraph as pg
        >>> notes(pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3)))[0]
        ['verification', ['not run']]
    """
    rows = [
        ["verification", [str(verification)] if verification else ["not run"]],
        ["operations without a rule", list(graph.unknown_operations)],
        ["repairs", list(graph.repairs)],
        ["unused parameters", list(graph.unused_parameters)],
        ["constant parameters", list(graph.constant_parameters)],
    ]
    return [[heading, lines or ["none"]] for heading, lines in rows]


def _bad(found: Sequence[str]) -> str:
    return "bad" if found else ""
