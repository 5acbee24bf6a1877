"""Rules for sums, orderings, softmax, normalisation and operations on positions."""

from __future__ import annotations

from paramgraph.capture.axes import (
    Axis,
    Leaf,
    Pick,
    axis_size,
    cut,
    freeze,
    regroup,
    resolve,
    split_rows,
    unify,
)
from paramgraph.capture.axis_rules.registry import (
    broadcast,
    dims_of,
    give_up,
    operand,
    output,
    positions,
    rule,
)
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType

__all__: list[str] = []


def _only_leaf(axis: Axis) -> Leaf | None:
    factors = resolve(axis)
    leaf = factors[0] if len(factors) == 1 else None
    return leaf if isinstance(leaf, Leaf) else None


@rule(
    *("mean", "sum", "prod", "amax", "amin", "any", "all", "logsumexp", "nansum", "std", "var"),
    *("var_mean", "std_mean", "linalg_vector_norm", "norm", "count_nonzero", "nanmean"),
)
def _reduce(run: Inference, entry: TapeEntry) -> TensorType | list[TensorType]:
    ref = operand(entry, "self")
    rank = len(ref.shape)
    reduced = set(dims_of(entry, rank))
    keep = bool(entry.args.get("keepdim", False))
    kind = run.type(ref)
    if isinstance(kind, Bundle) and kind.axis not in reduced:
        axis = kind.axis if keep else kind.axis - sum(r < kind.axis for r in reduced)
        blocks = tuple(_reduced(block, reduced, keep=keep) for block in kind.blocks)
        return [Bundle(axis, blocks)] * len(entry.outputs)
    return [_reduced(run.axes(ref, entry), reduced, keep=keep)] * len(entry.outputs)


def _reduced(axes: Axes, reduced: set[int], *, keep: bool) -> Axes:
    result: list[Axis] = []
    for place, axis in enumerate(axes):
        if place not in reduced:
            result.append(axis)
        elif keep:
            result.append(())
    return tuple(result)


@rule(
    "max",
    "min",
    "argmax",
    "argmin",
    "topk",
    "sort",
    "argsort",
    "median",
    "kthvalue",
    "mode",
    indices=True,
)
def _order(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """What is chosen along an axis are indices into it; values come without its order."""
    ref, name = operand(entry, "self"), entry.operation.removeprefix("aten.")
    axes = run.axes(ref, entry)
    rank = len(axes)
    has_dim = isinstance(entry.args.get("dim"), int)
    if isinstance(entry.args.get("other"), TensorRef):
        from paramgraph.capture.axis_rules.pointwise import elementwise

        result = elementwise(run, entry)
        return result if isinstance(result, list) else [result]
    if name in ("max", "min") and not has_dim:
        return [()]
    if not has_dim and name not in ("topk", "sort", "argsort", "kthvalue", "mode"):
        run.freeze_ref(ref, f"counted through by {where(entry)}")
        return [positions(out) for out in entry.outputs if out is not None]
    dim = entry.args.get("dim", -1) % max(rank, 1)
    leaf = _only_leaf(axes[dim]) if rank else None
    outs = [out for out in entry.outputs if out is not None]
    values = name in ("max", "min", "topk", "sort", "median", "kthvalue", "mode")
    if ref.number in run.index_of:
        # Sorted indices are indices still; where they came from are positions.
        if values:
            run.index_of[outs[0].number] = run.index_of[ref.number]
        run.sorted_by.append(run.index_of[ref.number])
    elif leaf is not None:
        run.index_of[outs[-1].number] = leaf
    elif rank:
        freeze(axes[dim], f"ordered by {where(entry)}")
    result: list[TensorType] = []
    for out in outs:
        new = list(axes)
        if len(out.shape) < rank:
            del new[dim]
        elif rank:
            size = out.shape[dim]
            new[dim] = (Pick(size, leaf),) if leaf is not None else (size,)
        result.append(tuple(new))
    return result


@rule("histc", "bincount", indices=True)
def _counts(run: Inference, entry: TapeEntry) -> TensorType:
    """How often each index into a leaf occurs: one number per index."""
    ref, out = operand(entry, "self"), output(entry)
    leaf = run.index_of.get(ref.number)
    if leaf is None or out.shape[0] != leaf.size:
        run.freeze_ref(ref, f"counted by {where(entry)}")
        return positions(out)
    run.offsets_of[out.number] = leaf
    return ((leaf,),)


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", indices=True)
def _accumulate(run: Inference, entry: TapeEntry) -> list[TensorType]:
    ref = operand(entry, "self")
    axes = run.axes(ref, entry)
    outs = [out for out in entry.outputs if out is not None]
    if ref.number in run.offsets_of and len(axes) == 1:
        # Where each index begins among sorted indices.
        run.offsets_of[outs[0].number] = run.offsets_of[ref.number]
        return [positions(outs[0])]
    if ref.number in run.index_of:
        freeze((run.index_of[ref.number],), f"its indices are added up by {where(entry)}")
    return [_ordered_along(run, entry, ref)] * len(outs)


@rule("flip", "roll", "tril", "triu", "_fft_c2c", "_fft_r2c", "_fft_c2r", "diff")
def _along(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, "self")
    if entry.operation in ("aten.tril", "aten.triu"):
        return _ordered_along(run, entry, ref, [-2, -1])
    return _ordered_along(run, entry, ref)


def _ordered_along(
    run: Inference, entry: TapeEntry, ref: TensorRef, dims: list[int] | None = None
) -> Axes:
    """The order of some axes matters, the others pass."""
    axes, out = run.axes(ref, entry), output(entry)
    rank = len(axes)
    if dims is None:
        name = "dims" if "dims" in entry.args else "dim"
        dims = dims_of(entry, rank, name)
    places = {dim % rank for dim in dims} if rank else set()
    for place in places:
        freeze(axes[place], f"its order matters to {where(entry)}")
    return tuple((out.shape[i],) if i in places else axis for i, axis in enumerate(axes))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "renorm")
def _softmax(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, "self")
    kind = run.type(ref)
    rank = len(ref.shape)
    dim = entry.args["dim"] % rank if rank else 0
    if isinstance(kind, Bundle) and kind.axis != dim:
        for block in kind.blocks:
            run.reduced.append(_reduced(block, {dim}, keep=False))
        return kind
    axes = run.axes(ref, entry)
    run.reduced.append(_reduced(axes, {dim}, keep=False))
    return axes


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def _layer_norm(run: Inference, entry: TapeEntry) -> list[TensorType]:
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
    return [axes, statistics, statistics][: len(entry.outputs)]


@rule("native_group_norm")
def _group_norm(run: Inference, entry: TapeEntry) -> list[TensorType]:
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


_SPATIAL = (
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


@rule(*_SPATIAL)
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
    from paramgraph.capture.tensor_types import joined

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
    ref = operand(entry, "self")
    axes = run.axes(ref, entry)
    dim = entry.args["dim"] % len(axes)
    halves = run.take(axes[dim], [ref.shape[dim] // 2], entry)
    if halves is None:
        return positions(output(entry))
    unify(halves[0], halves[1], where(entry))
    return (*axes[:dim], halves[0], *axes[dim + 1 :])


@rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(run: Inference, entry: TapeEntry) -> list[TensorType]:
    direction, length = run.axes(operand(entry, "v"), entry), run.axes(operand(entry, "g"), entry)
    dim = entry.args["dim"] % len(direction)
    if len(length) == len(direction):
        unify(direction[dim], length[dim], where(entry))
    norm: Axes = tuple(axis if i == dim else () for i, axis in enumerate(direction))
    run.reduced.append((direction[dim],))
    return [direction, norm][: len(entry.outputs)]


@rule("_local_scalar_dense", indices=True)
def _number(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """A number leaves the tape; an index into a leaf may choose what runs next."""
    ref = operand(entry, "self")
    leaf = run.index_of.get(ref.number)
    if leaf is None:
        return []
    run.choices += [(r, leaf) for r in run.readings if r.position == entry.position]
    for stack in run.stacks:
        if stack.position == entry.position:
            chosen: Axis = (leaf,)
            if stack.leaf.size < leaf.size:
                pieces = cut(chosen, [stack.leaf.size])
                chosen = pieces[0] if pieces is not None else ()
            if axis_size(chosen) == stack.leaf.size:
                unify((stack.leaf,), chosen, where(entry))
            else:
                freeze((stack.leaf,), f"not all of its indices are chosen by {where(entry)}")
    return []


@rule("linalg_solve_triangular", "triangular_solve")
def _solve(run: Inference, entry: TapeEntry) -> TensorType | list[TensorType]:
    """The order of equations matters; batches and right-hand sides pass."""
    if entry.operation != "aten.linalg_solve_triangular" or not entry.args["left"]:
        return give_up(run, entry, f"order matters to {where(entry)}")
    matrix, right = operand(entry, "self"), operand(entry, "B")
    left, columns = run.axes(matrix, entry), run.axes(right, entry)
    for axis in (left[-1], left[-2], columns[-2]):
        freeze(axis, f"its order matters to {where(entry)}")
    out = output(entry)
    lead = broadcast(run, entry, [left[:-2], columns[:-2]], out.shape[:-2])
    return (*lead, (out.shape[-2],), columns[-1])
