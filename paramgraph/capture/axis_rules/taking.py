"""Rules for taking tensors apart and putting them together: selections, splits, concatenation."""

from __future__ import annotations

import itertools

from paramgraph.capture.axes import Axis, Leaf, Pick, axis_size, freeze, resolve
from paramgraph.capture.axis_rules.registry import operand, output, rule
from paramgraph.capture.axis_rules.shapes import blockwise, carry_index
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.liveness import choosing_reading
from paramgraph.capture.reshaping import regroup
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType, collapse
from paramgraph.capture.unification import cut, merged, unify

__all__ = ["choose", "take_ranges"]


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


def without(kind: TensorType, dim: int) -> TensorType:
    """The type without an axis of one index."""
    if isinstance(kind, Bundle) and kind.axis == dim:
        kind = collapse(kind, "one index")
    axis = kind.axis - (kind.axis > dim) if isinstance(kind, Bundle) else 0
    return blockwise(kind, lambda axes: dropped(axes, dim), axis)


def dropped(axes: Axes, dim: int) -> Axes:
    """Axes without one of them; what it says of a choice goes to its neighbour."""
    picks = tuple(f for f in resolve(axes[dim]) if isinstance(f, Pick))
    rest = [axis for i, axis in enumerate(axes) if i != dim]
    if picks and rest:
        rest[0] = (*picks, *rest[0])
    return tuple(rest)


@rule("select", indices=True)
def _select(run: Inference, entry: TapeEntry) -> TensorType:
    """One index of an axis; an index that a router chose takes any of them alike."""
    ref = operand(entry, "self")
    carry_index(run, entry, ref)
    dim, index = entry.args["dim"] % len(ref.shape), entry.args["index"]
    index %= max(ref.shape[dim], 1)
    reading = choosing_reading(run.readings, entry)
    if reading is not None and _is_choice(run, entry, ref, dim, reading.ref):
        axes = run.axes(ref, entry)
        leaf = next(f for f in resolve(axes[dim]) if isinstance(f, Leaf))
        return dropped((*axes[:dim], (Pick(1, leaf),), *axes[dim + 1 :]), dim)
    return without(_range(run, entry, ref, dim, index, index + 1), dim)


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
    """Some indices of an axis: the axis is cut, a step splits it."""
    ref, out = operand(entry, "self"), output(entry)
    carry_index(run, entry, ref)
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
    """An axis is cut into pieces."""
    ref = operand(entry, "self")
    carry_index(run, entry, ref)
    dim = entry.args.get("dim", 0) % len(ref.shape)
    sizes = [out.shape[dim] for out in entry.outputs if out is not None]
    return take_ranges(run, entry, ref, dim, [0, *itertools.accumulate(sizes)])


@rule("unbind", indices=True)
def _unbind(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """An axis is cut into single indices."""
    ref = operand(entry, "self")
    carry_index(run, entry, ref)
    dim = entry.args["dim"] % len(ref.shape)
    parts = take_ranges(run, entry, ref, dim, list(range(ref.shape[dim] + 1)))
    return [without(part, dim) for part in parts]


@rule("cat", "concat")
def _cat(run: Inference, entry: TapeEntry) -> TensorType:
    """Pieces follow each other on one axis, other axes are the same."""
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
    """Tensors side by side on a new axis of positions."""
    types = [run.axes(ref, entry) for ref in entry.args["tensors"]]
    dim = entry.args["dim"] % len(output(entry).shape)
    # Each tensor is one position of a new axis; what they have in common is not asked yet.
    return Bundle(dim, tuple((*axes[:dim], (1,), *axes[dim:]) for axes in types))
