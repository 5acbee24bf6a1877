"""Rules for pooling, padding, resizing and windows: the last axes are positions."""

from __future__ import annotations

from paramgraph.capture.axes import Axis, freeze
from paramgraph.capture.axis_rules.registry import operand, output, positions, rule
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.reshaping import regroup
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, TensorType, joined
from paramgraph.capture.unification import unify

__all__ = ["SPATIAL"]


SPATIAL = (
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"),
    *("adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d"),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "fractional_max_pool2d"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d"),
    *("replication_pad2d", "replication_pad3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    *("max_pool2d", "max_pool1d", "max_pool3d", "mkldnn_max_pool2d"),
)


@rule(*SPATIAL)
def _resize(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """The last axes are positions that change their number."""
    ref = operand(entry, "self", "input")
    num = int(next(c for c in entry.operation if c.isdigit()))
    outs = [out for out in entry.outputs if out is not None]
    return [_positions_from(run, entry, ref, len(ref.shape) - num, out) for out in outs]


def _positions_from(
    run: Inference, entry: TapeEntry, ref: TensorRef, start: int, out: TensorRef
) -> Axes:
    axes = run.axes(ref, entry)
    for axis in axes[start:]:
        freeze(axis, f"positions of {where(entry)}")
    return (*axes[:start], *((size,) for size in out.shape[start:]))


@rule("constant_pad_nd")
def _pad(run: Inference, entry: TapeEntry) -> TensorType:
    """What is added in front and behind are pieces of their own."""
    ref, pad = operand(entry, "self"), entry.args["pad"]
    axes = list(run.axes(ref, entry))
    for number in range(len(pad) // 2):
        before, after = pad[2 * number], pad[2 * number + 1]
        place = len(axes) - 1 - number
        size = output(entry).shape[place]
        if before < 0 or after < 0:
            freeze(axes[place], f"cropped by {where(entry)}")
            axes[place] = (size,)
        elif before or after:
            pieces: list[Axis] = [(n,) for n in (before,) if n]
            pieces += [axes[place], *((n,) for n in (after,) if n)]
            axes[place] = joined(pieces, "padded")
    return tuple(axes)


@rule("unfold", "im2col", "col2im", "as_strided")
def _windows(run: Inference, entry: TapeEntry) -> TensorType:
    """Windows over positions are positions."""
    ref, out = operand(entry, "self"), output(entry)
    if entry.operation == "aten.unfold":
        axes = list(run.axes(ref, entry))
        dim = entry.args["dimension"] % len(axes)
        freeze(axes[dim], f"windows of {where(entry)}")
        axes[dim] = (out.shape[dim],)
        return (*axes, (out.shape[-1],))
    if entry.operation == "aten.im2col":
        axes = list(run.axes(ref, entry))
        for axis in axes[-2:]:
            freeze(axis, f"windows of {where(entry)}")
        window = out.shape[-2] // ref.shape[-3]
        return (*axes[:-3], (*axes[-3], window), (out.shape[-1],))
    if entry.operation == "aten.col2im":
        axes = list(run.axes(ref, entry))
        freeze(axes[-1], f"windows of {where(entry)}")
        halves = regroup([axes[-2]], (out.shape[-3], ref.shape[-2] // out.shape[-3]), None)
        if halves is not None:
            freeze(halves[1], f"windows of {where(entry)}")
            return (*axes[:-2], halves[0], (out.shape[-2],), (out.shape[-1],))
    run.freeze_ref(ref, f"strides of {where(entry)}")
    return positions(out)


@rule("glu")
def _glu(run: Inference, entry: TapeEntry) -> TensorType:
    """Both halves of an axis are the same."""
    ref = operand(entry, "self")
    axes = run.axes(ref, entry)
    dim = entry.args["dim"] % len(axes)
    halves = run.take(axes[dim], [ref.shape[dim] // 2], entry)
    if halves is None:
        return positions(output(entry))
    unify(halves[0], halves[1], where(entry))
    return (*axes[:dim], halves[0], *axes[dim + 1 :])
