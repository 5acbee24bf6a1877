"""Rules for sums and other reductions: what is reduced goes."""

from __future__ import annotations

from paramgraph.capture.axes import Axis
from paramgraph.capture.axis_rules.registry import dims_of, operand, rule
from paramgraph.capture.inference import Inference
from paramgraph.capture.tape import TapeEntry
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType

__all__ = ["reduced_axes"]


@rule(
    *("mean", "sum", "prod", "amax", "amin", "any", "all", "logsumexp", "nansum", "std", "var"),
    *("var_mean", "std_mean", "linalg_vector_norm", "norm", "count_nonzero", "nanmean"),
)
def _reduce(run: Inference, entry: TapeEntry) -> TensorType | list[TensorType]:
    """What is reduced goes, the other axes stay."""
    ref = operand(entry, "self")
    rank = len(ref.shape)
    reduced = set(dims_of(entry, rank))
    keep = bool(entry.args.get("keepdim", False))
    kind = run.type(ref)
    if isinstance(kind, Bundle) and kind.axis not in reduced:
        axis = kind.axis if keep else kind.axis - sum(r < kind.axis for r in reduced)
        blocks = tuple(reduced_axes(block, reduced, keep=keep) for block in kind.blocks)
        return [Bundle(axis, blocks)] * len(entry.outputs)
    return [reduced_axes(run.axes(ref, entry), reduced, keep=keep)] * len(entry.outputs)


def reduced_axes(axes: Axes, reduced: set[int], *, keep: bool) -> Axes:
    """The axes without those that are reduced, or with empty ones in their place."""
    result: list[Axis] = []
    for place, axis in enumerate(axes):
        if place not in reduced:
            result.append(axis)
        elif keep:
            result.append(())
    return tuple(result)
