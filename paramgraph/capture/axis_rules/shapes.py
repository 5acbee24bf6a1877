"""Rules for operations that only rearrange: reshapes, permutations, selections, concatenation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from paramgraph.capture.axes import (
    Axis,
    Leaf,
    Pick,
    Wild,
    axis_size,
    cut,
    freeze,
    merged,
    regroup,
    resolve,
    unify,
)
from paramgraph.capture.axis_rules.registry import operand, output, positions, rule
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.liveness import choosing_reading
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType, collapse, joined

__all__: list[str] = []


def _blockwise(kind: TensorType, function: Callable[[Axes], Axes], axis: int) -> TensorType:
    """Apply a function of axes to every block; ``axis`` is the bundled axis of the result."""
    if isinstance(kind, Bundle):
        return Bundle(axis, tuple(function(block) for block in kind.blocks))
    return function(kind)


def _carry_index(run: Inference, entry: TapeEntry, ref: TensorRef) -> None:
    """A rearranged tensor of indices holds indices into the same leaf."""
    for table in (run.index_of, run.offsets_of):
        if ref.number in table:
            table.update({out.number: table[ref.number] for out in entry.outputs if out})


@rule(
    *("detach", "clone", "alias", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy"),
    *("real", "conj", "_conj", "resolve_conj", "_neg_view", "resolve_neg"),
    indices=True,
)
def _same(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, *entry.args)
    _carry_index(run, entry, ref)
    return run.type(ref)


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias", indices=True)
def _reshape(run: Inference, entry: TapeEntry) -> TensorType:
    ref, out = operand(entry, "self"), output(entry)
    _carry_index(run, entry, ref)
    if len(entry.args) > 1 and "dtype" in entry.args and len(ref.shape) == len(out.shape):
        run.freeze_ref(ref, f"bits read as another type by {where(entry)}")
        return positions(out)
    kind = run.type(ref)
    if isinstance(kind, Bundle):
        moved = _reshaped_bundle(kind, ref.shape, out.shape, entry)
        if moved is not None:
            return moved
        kind = run.axes(ref, entry)
    for axis in range(len(out.shape)):
        if ends := run.cuts.get((entry.position, axis)):
            bundle = _split_bundle(kind, out.shape, axis, sorted(ends), entry)
            if bundle is not None:
                return bundle
    axes = regroup(kind, out.shape, entry.position)
    if axes is None:
        run.freeze_ref(ref, f"axes cut across by {where(entry)}")
        return positions(out)
    return tuple(axes)


def _reshaped_bundle(
    kind: Bundle, before: tuple[int, ...], after: tuple[int, ...], entry: TapeEntry
) -> Bundle | None:
    """A reshape that leaves the bundled axis alone acts on each block."""
    size = before[kind.axis]
    major = math.prod(before[: kind.axis])
    for axis, new in enumerate(after):
        if new == size and math.prod(after[:axis]) == major:
            break
    else:
        return None
    blocks = []
    for block, length in zip(kind.blocks, kind.sizes, strict=True):
        shape = [length if i == axis else s for i, s in enumerate(after)]
        axes = regroup(block, shape, entry.position)
        if axes is None:
            return None
        blocks.append(tuple(axes))
    return Bundle(axis, tuple(blocks))


def _split_bundle(
    axes: Axes, shape: tuple[int, ...], axis: int, ends: list[int], entry: TapeEntry
) -> Bundle | None:
    """The result of a reshape, cut along one of its axes, with axes of its own in every block."""
    minor = math.prod(shape[axis + 1 :])
    outer = regroup(axes, (math.prod(shape[:axis]), shape[axis] * minor), entry.position)
    if outer is None:
        return None
    factors = resolve(outer[1])
    if not factors or not isinstance(factors[0], Leaf):
        return None
    first, rest = factors[0], factors[1:]
    row = minor // axis_size(rest) if minor % axis_size(rest) == 0 else 0
    if not row or first.size != shape[axis] * row:
        return None
    pieces = cut((first,), [end * row for end in ends])
    if pieces is None:
        return None
    sizes = [b - a for a, b in itertools.pairwise([0, *ends, shape[axis]])]
    blocks = []
    for piece, size in zip(pieces, sizes, strict=True):
        new = [size if i == axis else s for i, s in enumerate(shape)]
        block = regroup([outer[0], (*piece, *rest)], new, entry.position)
        if block is None:
            return None
        blocks.append(tuple(block))
    return Bundle(axis, tuple(blocks))


@rule("t", "transpose", "permute", "numpy_T", "movedim", indices=True)
def _permute(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, "self")
    _carry_index(run, entry, ref)
    rank = len(ref.shape)
    order = list(range(rank))
    if entry.operation == "aten.transpose":
        a, b = entry.args["dim0"], entry.args["dim1"]
        if rank:
            order[a], order[b] = order[b], order[a]
    elif entry.operation == "aten.permute":
        order = [axis % rank for axis in entry.args["dims"]]
    else:
        order = order[::-1]
    kind = run.type(ref)
    axis = order.index(kind.axis) if isinstance(kind, Bundle) else 0
    return _blockwise(kind, lambda axes: tuple(axes[i] for i in order), axis)


@rule("expand", indices=True)
def _expand(run: Inference, entry: TapeEntry) -> TensorType:
    ref, out = operand(entry, "self"), output(entry)
    _carry_index(run, entry, ref)
    missing = len(out.shape) - len(ref.shape)
    kind = run.type(ref)
    if isinstance(kind, Bundle) and out.shape[missing + kind.axis] != ref.shape[kind.axis]:
        kind = run.axes(ref, entry)

    def expanded(axes: Axes) -> Axes:
        new: list[Axis] = [(Wild(size),) for size in out.shape[:missing]]
        for axis, before, after in zip(axes, ref.shape, out.shape[missing:], strict=True):
            new.append(axis if before == after else (Wild(after),))
        return tuple(new)

    axis = kind.axis + missing if isinstance(kind, Bundle) else 0
    return _blockwise(kind, expanded, axis)


@rule("repeat")
def _repeat(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, "self")
    axes = run.axes(ref, entry)
    repeats = entry.args["repeats"]
    missing = len(repeats) - len(axes)
    new: list[Axis] = [(Wild(n),) for n in repeats[:missing]]
    for axis, times in zip(axes, repeats[missing:], strict=True):
        new.append((Wild(times), *axis) if times != 1 else axis)
    return tuple(new)


@rule("repeat_interleave")
def _repeat_interleave(run: Inference, entry: TapeEntry) -> TensorType:
    ref, out = operand(entry, "self", "repeats"), output(entry)
    if not isinstance(entry.args.get("repeats"), int) or entry.args.get("dim") is None:
        run.freeze_ref(ref, f"repeated by {where(entry)}")
        return positions(out)
    axes = list(run.axes(ref, entry))
    dim = entry.args["dim"] % len(axes)
    axes[dim] = (*axes[dim], Wild(entry.args["repeats"]))
    return tuple(axes)


def take_ranges(
    run: Inference, entry: TapeEntry, ref: TensorRef, dim: int, bounds: list[int]
) -> list[TensorType]:
    """The parts of a tensor between the given indices (0 and the size included) of one axis."""
    kind = run.type(ref)
    inside = bounds[1:-1]
    if not isinstance(kind, Bundle):
        return list(_cut_block(run, entry, kind, dim, inside))
    if kind.axis != dim:
        parts = [_cut_block(run, entry, block, dim, inside) for block in kind.blocks]
        return [Bundle(kind.axis, blocks) for blocks in zip(*parts, strict=True)]
    blocks: list[Axes] = []
    ends: list[int] = []
    start = 0
    for block, size in zip(kind.blocks, kind.sizes, strict=True):
        here = [b - start for b in inside if start < b < start + size]
        blocks += _cut_block(run, entry, block, dim, here)
        start += size
    ends = list(itertools.accumulate(axis_size(block[dim]) for block in blocks))
    result: list[TensorType] = []
    begin = 0
    for bound in bounds[1:]:
        stop = ends.index(bound) + 1 if bound in ends else begin
        some = tuple(blocks[begin:stop])
        result.append(some[0] if len(some) == 1 else Bundle(dim, some))
        begin = stop
    return result


def _cut_block(
    run: Inference, entry: TapeEntry, axes: Axes, dim: int, inside: list[int]
) -> tuple[Axes, ...]:
    size = axis_size(axes[dim])
    pieces = run.take(axes[dim], inside, entry) if inside else [axes[dim]]
    if pieces is None:
        bounds = [0, *inside, size]
        pieces = [(b - a,) for a, b in itertools.pairwise(bounds)]
    return tuple((*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces)


def _range(
    run: Inference, entry: TapeEntry, ref: TensorRef, dim: int, start: int, end: int
) -> TensorType:
    """The part of a tensor between two indices of one axis."""
    size = ref.shape[dim]
    if start >= end:
        axes = run.axes(ref, entry)
        return (*axes[:dim], (0,), *axes[dim + 1 :])
    bounds = sorted({0, start, end, size})
    return take_ranges(run, entry, ref, dim, bounds)[bounds.index(start)]


def _without(kind: TensorType, dim: int) -> TensorType:
    """The type without an axis of one index."""
    if isinstance(kind, Bundle) and kind.axis == dim:
        kind = collapse(kind, "one index")
    axis = kind.axis - (kind.axis > dim) if isinstance(kind, Bundle) else 0
    return _blockwise(kind, lambda axes: _dropped(axes, dim), axis)


def _dropped(axes: Axes, dim: int) -> Axes:
    """Axes without one of them; what it says of a choice goes to its neighbour."""
    picks = tuple(f for f in resolve(axes[dim]) if isinstance(f, Pick))
    rest = [axis for i, axis in enumerate(axes) if i != dim]
    if picks and rest:
        rest[0] = (*picks, *rest[0])
    return tuple(rest)


@rule("select", indices=True)
def _select(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, "self")
    _carry_index(run, entry, ref)
    dim, index = entry.args["dim"] % len(ref.shape), entry.args["index"]
    index %= max(ref.shape[dim], 1)
    reading = choosing_reading(run.readings, entry)
    if reading is not None and _is_choice(run, entry, ref, dim, reading.ref):
        axes = run.axes(ref, entry)
        leaf = next(f for f in resolve(axes[dim]) if isinstance(f, Leaf))
        return _dropped((*axes[:dim], (Pick(1, leaf),), *axes[dim + 1 :]), dim)
    return _without(_range(run, entry, ref, dim, index, index + 1), dim)


def _is_choice(
    run: Inference, entry: TapeEntry, ref: TensorRef, dim: int, index: TensorRef
) -> bool:
    """Whether an axis is indexed by an index into a leaf; then that leaf is the axis."""
    leaf = run.index_of.get(index.number)
    factors = resolve(run.axes(ref, entry)[dim]) if leaf is not None else ()
    if leaf is None or len(factors) != 1 or not isinstance(factors[0], Leaf):
        return False  # the same number by chance
    return choose(run, entry, ref, dim, leaf)


def choose(run: Inference, entry: TapeEntry, ref: TensorRef, dim: int, leaf: Leaf) -> bool:
    """Declare the axis of a tensor to be the leaf that the indices into it are of."""
    axis = run.axes(ref, entry)[dim]
    size, total = axis_size(axis), leaf.size
    ours = resolve(axis)
    if len(ours) != 1 or not isinstance(ours[0], Leaf):
        freeze((leaf,), f"its indices pick positions in {where(entry)}")
        return False
    theirs: Axis = (leaf,)
    if size < total:
        pieces = cut(theirs, [size])
        if pieces is None:
            return False
        theirs = pieces[0]
    elif size > total:
        pieces = cut(axis, [total])
        if pieces is None:
            return False
        axis = pieces[0]
    unify(axis, theirs, where(entry))
    return True


@rule("slice", indices=True)
def _slice(run: Inference, entry: TapeEntry) -> TensorType:
    ref, out = operand(entry, "self"), output(entry)
    _carry_index(run, entry, ref)
    dim = entry.args["dim"] % len(ref.shape)
    size, step = ref.shape[dim], entry.args["step"]
    start, end = entry.args["start"] or 0, entry.args["end"]
    end = size if end is None else end
    start = min(max(start + size if start < 0 else start, 0), size)
    end = min(max(end + size if end < 0 else end, 0), size)
    if step == 1:
        return _range(run, entry, ref, dim, start, end)
    axes = run.axes(ref, entry)
    halves = None
    if size % step == 0 and start < step and out.shape[dim] == size // step:
        halves = regroup([axes[dim]], (size // step, step), entry.position)
    if halves is None:
        freeze(axes[dim], f"strided by {where(entry)}")
        return (*axes[:dim], (out.shape[dim],), *axes[dim + 1 :])
    freeze(halves[1], f"strided by {where(entry)}")
    return (*axes[:dim], halves[0], *axes[dim + 1 :])


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", indices=True)
def _split(run: Inference, entry: TapeEntry) -> list[TensorType]:
    ref = operand(entry, "self")
    _carry_index(run, entry, ref)
    dim = entry.args.get("dim", 0) % len(ref.shape)
    sizes = [out.shape[dim] for out in entry.outputs if out is not None]
    return take_ranges(run, entry, ref, dim, [0, *itertools.accumulate(sizes)])


@rule("unbind", indices=True)
def _unbind(run: Inference, entry: TapeEntry) -> list[TensorType]:
    ref = operand(entry, "self")
    _carry_index(run, entry, ref)
    dim = entry.args["dim"] % len(ref.shape)
    parts = take_ranges(run, entry, ref, dim, list(range(ref.shape[dim] + 1)))
    return [_without(part, dim) for part in parts]


@rule("cat", "concat")
def _cat(run: Inference, entry: TapeEntry) -> TensorType:
    refs = [ref for ref in entry.args["tensors"] if 0 not in ref.shape] or entry.args["tensors"]
    out = output(entry)
    dim = entry.args["dim"] % len(out.shape)
    types = [run.axes(ref, entry) for ref in refs]
    return collapse(Bundle(dim, tuple(_most_said(run, types, dim, entry))), where(entry))


def _most_said(run: Inference, types: list[Axes], dim: int, entry: TapeEntry) -> list[Axes]:
    """The types, with what all of them say about the other axes."""
    best = list(types[0])
    for axis in range(len(best)):
        for other in types[1:] if axis != dim else ():
            best[axis] = merged(best[axis], other[axis], where(entry))
    return [tuple(t[dim] if i == dim else best[i] for i in range(len(best))) for t in types]


@rule("stack")
def _stack(run: Inference, entry: TapeEntry) -> TensorType:
    types = [run.axes(ref, entry) for ref in entry.args["tensors"]]
    dim = entry.args["dim"] % len(output(entry).shape)
    # Each tensor is one position of a new axis; what they have in common is not asked yet.
    return Bundle(dim, tuple((*axes[:dim], (1,), *axes[dim:]) for axes in types))


@rule("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(run: Inference, entry: TapeEntry) -> TensorType:
    ref, out = operand(entry, "self"), output(entry)
    axes = run.axes(ref, entry)
    lead, (channels, *space) = axes[:-3], axes[-3:]
    for axis in space:
        freeze(axis, f"positions of {where(entry)}")
    if entry.operation == "aten.pixel_unshuffle":
        factor = entry.args["downscale_factor"]
        return (*lead, (*channels, factor * factor), *((s,) for s in out.shape[-2:]))
    halves = regroup([channels], (out.shape[-3], ref.shape[-3] // out.shape[-3]), entry.position)
    if halves is None:
        freeze(channels, f"cut across by {where(entry)}")
        return positions(out)
    freeze(halves[1], f"become positions in {where(entry)}")
    return (*lead, halves[0], *((size,) for size in out.shape[-2:]))


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, "self")
    axes, groups = run.axes(ref, entry), entry.args["groups"]
    halves = regroup([axes[1]], (groups, ref.shape[1] // groups), entry.position)
    if halves is None:
        freeze(axes[1], f"cut across by {where(entry)}")
        return positions(output(entry))
    return (axes[0], (*halves[1], *halves[0]), *axes[2:])


@rule("diagonal")
def _diagonal(run: Inference, entry: TapeEntry) -> TensorType:
    ref = operand(entry, "self")
    axes = run.axes(ref, entry)
    a, b = (entry.args[name] % len(axes) for name in ("dim1", "dim2"))
    if entry.args["offset"] == 0 and ref.shape[a] == ref.shape[b]:
        unify(axes[a], axes[b], where(entry))
        last: Axis = axes[a]
    else:
        freeze((*axes[a], *axes[b]), f"diagonal of {where(entry)}")
        last = (output(entry).shape[-1],)
    return (*(axis for i, axis in enumerate(axes) if i not in (a, b)), last)


@rule("view_as_real", "view_as_complex")
def _complex(run: Inference, entry: TapeEntry) -> TensorType:
    axes = run.axes(operand(entry, "self"), entry)
    if entry.operation == "aten.view_as_real":
        return (*axes, (2,))
    freeze(axes[-1], f"real and imaginary part in {where(entry)}")
    return axes[:-1]


@rule("meshgrid")
def _meshgrid(run: Inference, entry: TapeEntry) -> list[TensorType]:
    for ref in entry.args["tensors"]:
        run.freeze_ref(ref, f"coordinates in {where(entry)}")
    return [positions(ref) for ref in entry.outputs if ref is not None]


__all__ += ["choose", "joined", "take_ranges"]
