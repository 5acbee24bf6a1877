"""The table of rules: what each operation says about how tensors scale.

A rule gets the reading and the tape entry, adds equations, and returns how the outputs scale. What
has no rule neither scales nor may be scaled.
"""

from __future__ import annotations

from collections.abc import Callable

from paramgraph.capture.scales.boxes import MisfitError
from paramgraph.capture.scales.flow import Flow, Values
from paramgraph.capture.tape import TapeEntry, entry_refs

__all__ = ["SCALE_RULES", "ScaleRule", "apply_scale_rule", "scale_rule"]

ScaleRule = Callable[[Flow, TapeEntry], "list[Values] | None"]
SCALE_RULES: dict[str, ScaleRule] = {}
"""Operation name (``aten.relu``) to rule: how each output scales, further ones do not. ``None``
stands for an operation that takes part in no rescaling."""


def scale_rule(*operations: str) -> Callable[[ScaleRule], ScaleRule]:
    """Register a function as the rule of operations."""

    def register(function: ScaleRule) -> ScaleRule:
        SCALE_RULES.update({f"aten.{operation}": function for operation in operations})
        return function

    return register


def apply_scale_rule(flow: Flow, entry: TapeEntry) -> None:
    """Say how the outputs of one operation scale."""
    found = SCALE_RULES.get(entry.operation)
    results: list[Values] | None = None
    try:
        results = found(flow, entry) if found else None
    except MisfitError:
        pass  # equations that were added before it are too many, never wrong
    if results is None:
        results = []
        for ref in entry_refs(entry.args):
            flow.forbid(flow.of(ref).values)
    for number, out in enumerate(entry.outputs):
        if out is not None:
            is_said = number < len(results)
            flow.values[out.number] = results[number] if is_said else flow.none(flow.layout(out))
