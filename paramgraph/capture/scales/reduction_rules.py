"""Scale rules for sums, pooling, orderings and normalisations."""

from __future__ import annotations

from paramgraph.capture.axis_rules.registry import dims_of, operand, output
from paramgraph.capture.scales.boxes import row_major
from paramgraph.capture.scales.flow import Flow, Scaled, Values
from paramgraph.capture.scales.registry import scale_rule
from paramgraph.capture.tape import TapeEntry, TensorRef

__all__: list[str] = []


def _strides_without(flow: Flow, entry: TapeEntry, dims: set[int], number: int = 0) -> list[int]:
    """Where each axis of the argument goes in the result; reduced axes go nowhere."""
    ref, out = operand(entry, "self", "input"), output(entry, number)
    strides = row_major(out.shape)
    if len(out.shape) == len(ref.shape):
        return [0 if axis in dims else s for axis, s in enumerate(strides)]
    kept = iter(strides)
    return [0 if axis in dims else next(kept) for axis in range(len(ref.shape))]


def _reduced(flow: Flow, entry: TapeEntry, dims: set[int], number: int = 0) -> Values:
    """All entries along some axes must scale alike."""
    source = flow.argument(entry, "self", "input")
    strides = _strides_without(flow, entry, dims, number)
    return flow.write(source, flow.layout(output(entry, number)), strides)


def _reduced_dims(entry: TapeEntry) -> set[int]:
    return set(dims_of(entry, len(operand(entry, "self").shape)))


@scale_rule("mean", "sum", "nansum", "nanmean")
def _sum(flow: Flow, entry: TapeEntry) -> list[Values]:
    return [_reduced(flow, entry, _reduced_dims(entry))]


@scale_rule("amax", "amin")
def _extreme(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    return None if flow.is_sign else [_reduced(flow, entry, _reduced_dims(entry))]


@scale_rule("linalg_vector_norm", "norm")
def _norm(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Signs are lost."""
    if flow.is_sign:
        return []
    return [_reduced(flow, entry, _reduced_dims(entry))]


@scale_rule("var", "std", "var_mean", "std_mean")
def _spread(flow: Flow, entry: TapeEntry) -> list[Values]:
    """A common sign is lost from the spread, but not from the mean."""
    dims = _reduced_dims(entry)
    same = _reduced(flow, entry, dims)
    spread = flow.power(same, 2 if "var" in entry.operation else 1)
    if flow.is_sign:
        spread = flow.none(flow.layout(output(entry)))
    return [spread, same][: len(entry.outputs)]


@scale_rule("max", "min", "topk", "sort", "median", "kthvalue", "argmax", "argmin", "argsort")
def _order(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    """A common positive factor keeps the order, and with it the indices."""
    if flow.is_sign or isinstance(entry.args.get("other"), TensorRef):
        return None
    ref = operand(entry, "self")
    rank = len(ref.shape)
    has_values = not entry.operation.removeprefix("aten.").startswith("arg")
    dim = entry.args.get("dim")
    if dim is None and entry.operation in ("aten.topk", "aten.sort", "aten.argsort"):
        dim = -1
    dims = set(range(rank)) if dim is None else {dim % max(rank, 1)}
    values = _reduced(flow, entry, dims) if rank else flow.of(ref).values
    return [values] if has_values else []


@scale_rule("cumsum", "flip", "roll", "tril", "triu", "diff")
def _along(flow: Flow, entry: TapeEntry) -> list[Values]:
    """The order along some axes matters, so all that stands there scales alike."""
    rank = len(operand(entry, "self").shape)
    if entry.operation in ("aten.tril", "aten.triu"):
        dims = {rank - 2, rank - 1}
    else:
        dims = set(dims_of(entry, rank, "dims" if "dims" in entry.args else "dim"))
    return [_reduced(flow, entry, dims)]


_SPATIAL = (
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d"),
    *("upsample_nearest3d", "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d"),
    *("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
)
_MAXIMA = (
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"),
    *("adaptive_max_pool3d", "fractional_max_pool2d", "max_pool1d", "max_pool2d", "max_pool3d"),
)


@scale_rule(*_SPATIAL, *_MAXIMA)
def _resize(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    if flow.is_sign and entry.operation.removeprefix("aten.") in _MAXIMA:
        return None
    rank = len(operand(entry, "self", "input").shape)
    num = int(next(c for c in entry.operation if c.isdigit()))
    return [_reduced(flow, entry, set(range(rank - num, rank)))]


@scale_rule("grid_sampler_2d", "grid_sampler_3d")
def _sampled(flow: Flow, entry: TapeEntry) -> list[Values]:
    flow.forbid(flow.argument(entry, "grid").values)
    rank = len(operand(entry, "input").shape)
    return [_reduced(flow, entry, set(range(2, rank)))]


@scale_rule("glu")
def _glu(flow: Flow, entry: TapeEntry) -> list[Values]:
    """One half is multiplied with the sigmoid of the other."""
    ref, out = operand(entry, "self"), output(entry)
    strides = row_major(ref.shape)
    half = out.shape[entry.args["dim"] % len(ref.shape)] * strides[entry.args["dim"]]
    layout, source = flow.layout(out), flow.of(ref)
    flow.forbid(flow.read(source, layout, strides, half))
    return [flow.read(source, layout, strides)]


def _affine(flow: Flow, entry: TapeEntry, values: Values, strides: list[int]) -> Values:
    """Times a weight, plus a bias, each with the given strides in the output."""
    layout = flow.layout(output(entry))
    if isinstance(entry.args.get("weight"), TensorRef):
        weight = flow.read(flow.argument(entry, "weight"), layout, strides)
        values = flow.product(values, weight)
    if isinstance(entry.args.get("bias"), TensorRef):
        values = flow.equal(values, flow.read(flow.argument(entry, "bias"), layout, strides))
    return values


@scale_rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(flow: Flow, entry: TapeEntry) -> list[Values]:
    """A small number is added to the variance, so that only signs pass.

    A mean is taken away: then all normalised entries must have one sign.
    """
    ref = operand(entry, "input")
    source, num = flow.of(ref), len(entry.args["normalized_shape"])
    axes = set(range(len(ref.shape) - num, len(ref.shape)))
    is_centred = "layer_norm" in entry.operation
    if flow.is_sign:
        if is_centred:
            flow.alike(source, axes)
        values = flow.onto(source, flow.layout(output(entry)))
    else:
        flow.forbid(source.values)
        values = flow.none(flow.layout(output(entry)))
    strides = row_major(ref.shape)
    return [_affine(flow, entry, values, [0] * (len(ref.shape) - num) + strides[-num:])]


@scale_rule("native_group_norm")
def _group_norm(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, groups = operand(entry, "input"), entry.args["group"]
    source = flow.of(ref)
    layout = flow.layout(output(entry))
    if flow.is_sign:
        shape = (ref.shape[0], groups, ref.shape[1] // groups, *ref.shape[2:])
        key = ("group norm", entry.position)
        grouped = flow.geometry.made(key, lambda: source.layout.reshaped(shape))
        flow.alike(Scaled(grouped, source.values), set(range(2, len(shape))))
        values = flow.onto(source, layout)
    else:
        flow.forbid(source.values)
        values = flow.none(layout)
    return [_affine(flow, entry, values, [0, 1, *[0] * (len(ref.shape) - 2)])]


@scale_rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "batch_norm", "miopen_batch_norm", "_batch_norm_no_update"),
    *("_batch_norm_with_update", "_native_batch_norm_legit_functional"),
)
def _batch_norm(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref = operand(entry, "input")
    source, layout = flow.of(ref), flow.layout(output(entry))
    strides = [0, 1, *[0] * (len(ref.shape) - 2)][: len(ref.shape)]
    mean, variance = (entry.args.get(name) for name in ("running_mean", "running_var"))
    if not flow.is_sign:
        flow.forbid(source.values)
    elif not isinstance(mean, TensorRef):
        flow.alike(source, set(range(len(ref.shape))) - {1})
    values = flow.onto(source, layout)
    if isinstance(mean, TensorRef):
        values = flow.equal(values, flow.read(flow.of(mean), layout, strides))
    if isinstance(variance, TensorRef):
        flow.forbid(flow.of(variance).values)
    return [_affine(flow, entry, values, strides)]


@scale_rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(flow: Flow, entry: TapeEntry) -> list[Values]:
    """The length of a direction is taken out: it does not count, its sign does."""
    direction, length = flow.argument(entry, "v"), flow.argument(entry, "g")
    layout = flow.layout(output(entry))
    axes = set(range(len(layout.shape))) - {entry.args["dim"] % len(layout.shape)}
    lengths = flow.onto(length, layout)
    if flow.is_sign:
        return [flow.product(flow.onto(direction, layout), lengths)]
    flow.alike(direction, axes)
    return [lengths]
