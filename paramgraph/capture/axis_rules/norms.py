"""Rules for softmax and normalisations: shapes stay, what is reduced on the way is noted."""

from __future__ import annotations

from paramgraph.capture.axes import axis_size
from paramgraph.capture.axis_rules.reductions import reduced_axes
from paramgraph.capture.axis_rules.registry import give_up, operand, positions, rule
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.reshaping import split_rows
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType
from paramgraph.capture.unification import unify

__all__: list[str] = []


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "renorm")
def _softmax(run: Inference, entry: TapeEntry) -> TensorType:
    """Shape stays; the sum over the axis is noted as a tensor of its own."""
    ref = operand(entry, "self")
    kind = run.type(ref)
    rank = len(ref.shape)
    dim = entry.args["dim"] % rank if rank else 0
    if isinstance(kind, Bundle) and kind.axis != dim:
        for block in kind.blocks:
            run.reduced.append(reduced_axes(block, {dim}, keep=False))
        return kind
    axes = run.axes(ref, entry)
    run.reduced.append(reduced_axes(axes, {dim}, keep=False))
    return axes


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def _layer_norm(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Gain and shift have the normalised axes; the statistics are noted."""
    ref = operand(entry, "input")
    axes = run.axes(ref, entry)
    start = len(axes) - len(entry.args["normalized_shape"])
    for name in ("weight", "bias"):
        if isinstance(entry.args.get(name), TensorRef):
            for axis, other in zip(
                axes[start:], run.axes(operand(entry, name), entry), strict=True
            ):
                unify(axis, other, where(entry))
    reduced = axes[:start]
    run.reduced.append(reduced)
    statistics: Axes = (*reduced, *(() for _ in axes[start:]))
    result: list[TensorType] = [axes, statistics, statistics]
    return result[: len(entry.outputs)]


@rule("native_group_norm")
def _group_norm(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Channels are split into groups and what stands in them."""
    ref = operand(entry, "input")
    axes, groups = run.axes(ref, entry), entry.args["group"]
    for name in ("weight", "bias"):
        if isinstance(entry.args.get(name), TensorRef):
            unify(axes[1], run.axes(operand(entry, name), entry)[0], where(entry))
    rows = split_rows(axes[1], ref.shape[1] // groups)
    if rows is None:
        return give_up(run, entry, f"groups cut across in {where(entry)}")
    run.reduced += [(axes[0], outer) for outer, _ in rows]
    return [axes]


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "batch_norm", "miopen_batch_norm", "_batch_norm_no_update"),
    *("_batch_norm_with_update", "_native_batch_norm_legit_functional", "batch_norm_elemt"),
)
def _batch_norm(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Gain, shift and statistics have the axis of the channels."""
    axes = run.axes(operand(entry, "input"), entry)
    channels = axes[1] if len(axes) > 1 else axes[0]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(entry.args.get(name), TensorRef):
            unify(channels, run.axes(operand(entry, name), entry)[0], where(entry))
    result: list[TensorType] = [axes]
    for ref in entry.outputs[1:]:
        is_one = ref is not None and ref.shape == (axis_size(channels),)
        result.append((channels,) if is_one or ref is None else positions(ref))
    return result


@rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Direction and length share the axis of the rows."""
    direction, length = run.axes(operand(entry, "v"), entry), run.axes(operand(entry, "g"), entry)
    dim = entry.args["dim"] % len(direction)
    if len(length) == len(direction):
        unify(direction[dim], length[dim], where(entry))
    norm: Axes = tuple(axis if i == dim else () for i, axis in enumerate(direction))
    run.reduced.append((direction[dim],))
    result: list[TensorType] = [direction, norm]
    return result[: len(entry.outputs)]
