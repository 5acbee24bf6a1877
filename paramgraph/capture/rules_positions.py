"""Rules that combine positions: pooling, padding, upsampling, reductions."""

from __future__ import annotations

from dataclasses import replace

from paramgraph.capture.axes import Axis, resolve
from paramgraph.capture.flow import Flow
from paramgraph.capture.records import Hidden, Input, Value, unsupported
from paramgraph.capture.rules import activations, first_output, moved, rule
from paramgraph.capture.tape import TapeEntry, TensorRef

__all__: list[str] = []


@rule(
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_linear1d"),
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
)
def _spatial(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, next(iter(entry.args)))
    ref = first_output(entry)
    num_spatial = int(next(c for c in entry.operation if c.isdigit()))
    keep = len(ref.shape) - num_spatial
    is_linear = "max" not in entry.operation
    # Zeros at the border enter the average: a bias in front of it is not a bias behind it.
    keeps_bias = is_linear and not any(_numbers(entry.args.get("padding", 0)))
    return _resized(flow, value, entry, ref, keep, is_linear=is_linear, keeps_bias=keeps_bias)


def _numbers(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else value


@rule("constant_pad_nd")
def _pad(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "self")
    ref = first_output(entry)
    keep = len(ref.shape) - len(entry.args["pad"]) // 2
    if entry.args.get("value"):
        raise unsupported(entry, "pads with a value other than 0")
    return _resized(flow, value, entry, ref, keep, is_linear=True, keeps_bias=False)


def _resized(
    flow: Flow,
    value: Hidden | Input,
    entry: TapeEntry,
    ref: TensorRef,
    keep: int,
    *,
    is_linear: bool,
    keeps_bias: bool,
) -> Value:
    """Axes from ``keep`` on are positions that change their number."""
    for axis in range(keep, len(value.shape)):
        if any(not isinstance(f, int) and f.size > 1 for f in resolve(value.axes[axis])):
            raise unsupported(entry, f"treats the neurons on axis {axis} as positions")
    axes = value.axes[:keep] + tuple((size,) for size in ref.shape[keep:])
    return _after_reduction(flow, value, ref, axes, is_linear=is_linear, keeps_bias=keeps_bias)


def _after_reduction(
    flow: Flow,
    value: Hidden | Input,
    ref: TensorRef,
    axes: tuple[Axis, ...],
    *,
    is_linear: bool,
    keeps_bias: bool,
) -> Value:
    """The neurons after positions were combined."""
    result = moved(flow, value, ref, axes)
    if not isinstance(result, Hidden):
        return result
    if not is_linear:
        result.group.forbid_scale(positive=False)  # max(-x) is not -max(x)
    # Otherwise a later bias or skip may not move in front of the reduction.
    return result if keeps_bias else replace(result, owned=False)


@rule("mean", "sum", "amax", "amin", "max")
def _reduce(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "self")
    ref = first_output(entry)
    rank = len(value.shape)
    dims = entry.args.get("dim", list(range(rank)))
    dims = [dims] if isinstance(dims, int) else (dims or list(range(rank)))
    reduced = {axis % rank for axis in dims}
    for axis in reduced:
        if any(not isinstance(f, int) and f.size > 1 for f in resolve(value.axes[axis])):
            raise unsupported(entry, f"reduces over the neurons on axis {axis}")
    keep = bool(entry.args.get("keepdim", False))
    axes: list[Axis] = []
    for axis in range(rank):
        if axis not in reduced:
            axes.append(value.axes[axis])
        elif keep:
            axes.append(())
    is_linear = entry.operation in ("aten.mean", "aten.sum")
    keeps_bias = entry.operation == "aten.mean"
    return _after_reduction(
        flow, value, ref, tuple(axes), is_linear=is_linear, keeps_bias=keeps_bias
    )
