"""Rules for reading and writing at indices.

What is indexed is ordered, unless the indices are themselves indices into that axis (a router's
choice of experts).
"""

from __future__ import annotations

import torch

from paramgraph.capture.axes import Axis, Leaf, Pick, Wild, axis_size, freeze, resolve
from paramgraph.capture.axis_rules.registry import broadcast, operand, output, positions, rule
from paramgraph.capture.axis_rules.taking import choose
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.tape import TapeEntry, TensorRef, entry_refs
from paramgraph.capture.tensor_types import Axes, TensorType
from paramgraph.capture.unification import unify

__all__: list[str] = []

_MASKS = (torch.bool, torch.uint8)


def _chosen(
    run: Inference, entry: TapeEntry, ref: TensorRef, dim: int, index: TensorRef
) -> Leaf | None:
    """The leaf that an indexed axis is; it is frozen unless the indices are indices into it.

    What stands beside a frozen leaf may still differ for each of its indices.
    """
    leaf = run.index_of.get(index.number)
    if leaf is not None and choose(run, entry, ref, dim, leaf):
        return leaf
    axis = run.axes(ref, entry)[dim]
    freeze(axis, f"indexed by {where(entry)}")
    factors = resolve(axis)
    only = factors[0] if len(factors) == 1 else None
    return only if isinstance(only, Leaf) else None


@rule("embedding", "index_select", indices=True)
def _embedding(run: Inference, entry: TapeEntry) -> TensorType:
    """Rows are indexed, columns stay."""
    ref = operand(entry, "weight", "self")
    index = operand(entry, "indices", "index")
    dim = entry.args.get("dim", 0) % len(ref.shape)
    leaf = _chosen(run, entry, ref, dim, index)
    places = _marked(run.axes(index, entry), leaf)
    axes = run.axes(ref, entry)
    if ref.number in run.index_of:
        run.index_of[output(entry).number] = run.index_of[ref.number]
    return (*axes[:dim], *places, *axes[dim + 1 :])


def _marked(axes: Axes, leaf: Leaf | None) -> Axes:
    """Positions of indices, marked as choices of a leaf."""
    if leaf is None:
        return axes
    if not axes:
        return axes
    factors = [factor for axis in axes for factor in resolve(axis)]
    if any(isinstance(f, Pick) and f.leaf.root() is leaf.root() for f in factors):
        return axes
    first = resolve(axes[0])
    if len(first) == 1 and isinstance(first[0], int):
        return ((Pick(first[0], leaf),), *axes[1:])
    return ((Pick(1, leaf), *axes[0]), *axes[1:])


@rule("gather", "take_along_dim", indices=True)
def _gather(run: Inference, entry: TapeEntry) -> TensorType:
    """One axis is indexed, the others are the same."""
    ref, index = operand(entry, "self"), operand(entry, "index", "indices")
    dim = entry.args["dim"] % max(len(ref.shape), 1)
    if not ref.shape:
        return positions(output(entry))
    leaf = _chosen(run, entry, ref, dim, index)
    axes, places = run.axes(ref, entry), run.axes(index, entry)
    result: list[Axis] = []
    for axis, (ours, theirs) in enumerate(zip(axes, places, strict=True)):
        if axis == dim:
            result.append((Pick(axis_size(theirs), leaf),) if leaf is not None else theirs)
        elif axis_size(ours) == axis_size(theirs):
            result.append(broadcast(run, entry, [(ours,), (theirs,)], (axis_size(ours),))[0])
        else:
            freeze((*ours, *theirs), f"cropped by {where(entry)}")
            result.append((axis_size(theirs),))
    if ref.number in run.index_of:
        run.index_of[output(entry).number] = run.index_of[ref.number]
    return tuple(result)


@rule("scatter", "scatter_add", "scatter_reduce", "_scatter_reduce", indices=True)
def _scatter(run: Inference, entry: TapeEntry) -> TensorType:
    """One axis is written at indices, the others are the same."""
    ref, index = operand(entry, "self"), operand(entry, "index")
    if not ref.shape:
        return ()
    dim = entry.args["dim"] % len(ref.shape)
    leaf = run.index_of.get(index.number)
    if leaf is None or not _scatter_choice(run, entry, ref, dim, leaf):
        freeze(run.axes(ref, entry)[dim], f"indexed by {where(entry)}")
    axes, places = run.axes(ref, entry), run.axes(index, entry)
    sources = [places]
    for name in ("src", "value"):
        if isinstance(entry.args.get(name), TensorRef) and entry.args[name].shape:
            sources.append(run.axes(operand(entry, name), entry))
            freeze(sources[-1][dim], f"scattered by {where(entry)}")
    result = list(axes)
    for axis in range(len(axes)):
        if axis == dim:
            continue
        for source in sources:
            if axis_size(source[axis]) == axis_size(axes[axis]):
                result[axis] = broadcast(
                    run, entry, [(result[axis],), (source[axis],)], (axis_size(axes[axis]),)
                )[0]
            else:
                freeze((*axes[axis], *source[axis]), f"cropped by {where(entry)}")
    return tuple(result)


def _scatter_choice(run: Inference, entry: TapeEntry, ref: TensorRef, dim: int, leaf: Leaf) -> bool:
    """Like a choice; a constant that is the same along the axis fits every leaf."""
    axes = run.axes(ref, entry)
    factors = resolve(axes[dim])
    if factors and all(isinstance(factor, Wild) for factor in factors):
        size = axis_size(axes[dim])
        fresh = leaf if leaf.size == size else Leaf(f"{leaf.name}.hot", size)
        run.types[ref.number] = (*axes[:dim], (fresh,), *axes[dim + 1 :])
    return choose(run, entry, ref, dim, leaf)


@rule("index_add", "index_copy", "index_fill", "index_reduce", indices=True)
def _index_add(run: Inference, entry: TapeEntry) -> TensorType:
    """One axis is written at indices, the others are the same."""
    ref, index = operand(entry, "self"), operand(entry, "index")
    dim = entry.args["dim"] % max(len(ref.shape), 1)
    _chosen(run, entry, ref, dim, index)
    axes = list(run.axes(ref, entry))
    if isinstance(entry.args.get("source"), TensorRef):
        source = run.axes(operand(entry, "source"), entry)
        freeze(source[dim], f"scattered by {where(entry)}")
        for axis in range(len(axes)):
            if axis != dim:
                size = axis_size(axes[axis])
                axes[axis] = broadcast(run, entry, [(axes[axis],), (source[axis],)], (size,))[0]
    return tuple(axes)


def _indexed_axes(entry: TapeEntry, ref: TensorRef, run: Inference) -> list[tuple[int, TensorRef]]:
    """Which axes the indices of ``x[i, :, j]`` stand for; a mask stands for several."""
    pairs: list[tuple[int, TensorRef]] = []
    axis = 0
    for index in entry.args["indices"]:
        if not isinstance(index, TensorRef):
            axis += 1
            continue
        is_mask = run.tape.dtypes[index.number] in _MASKS
        for step in range(len(index.shape) if is_mask else 1):
            pairs.append((axis + step, index))
        axis += len(index.shape) if is_mask else 1
    return pairs


def _is_together(dims: list[int]) -> bool:
    return dims == list(range(dims[0], dims[0] + len(dims)))


@rule("index", indices=True)
def _index(run: Inference, entry: TapeEntry) -> TensorType:
    """Indexed axes become the positions of the indices, the others stay."""
    ref, out = operand(entry, "self"), output(entry)
    pairs = _indexed_axes(entry, ref, run)
    dims = [dim for dim, _ in pairs]
    given = [i for i, index in enumerate(entry.args["indices"]) if isinstance(index, TensorRef)]
    # Indexed axes that are not neighbours come first in the result.
    first = dims[0] if _is_together(given) else 0
    places = _index_positions(run, entry, ref, pairs, out.shape[first] if out.shape else 1)
    axes = run.axes(ref, entry)
    if ref.number in run.index_of:
        run.index_of[out.number] = run.index_of[ref.number]
    rest = [axis for dim, axis in enumerate(axes) if dim not in dims]
    kind = (*rest[:first], *places, *rest[first:])
    return kind if tuple(map(axis_size, kind)) == out.shape else positions_frozen(run, entry)


def positions_frozen(run: Inference, entry: TapeEntry) -> Axes:
    """Positions only, after freezing what was read."""
    for ref in entry_refs(entry.args):
        run.freeze_ref(ref, f"indexed by {where(entry)}")
    return positions(output(entry))


def _index_positions(
    run: Inference,
    entry: TapeEntry,
    ref: TensorRef,
    pairs: list[tuple[int, TensorRef]],
    num_masked: int,
) -> Axes:
    """The axes that indices broadcast to; freezes or identifies the axes that they index.

    ``num_masked`` is the number of entries that a mask picks.
    """
    shapes: list[Axes] = []
    chosen: list[Leaf] = []
    masks: set[int] = set()
    for dim, index in pairs:
        if run.tape.dtypes[index.number] in _MASKS:
            freeze(run.axes(ref, entry)[dim], f"masked by {where(entry)}")
            run.freeze_ref(index, f"a mask in {where(entry)}")
            masks.add(index.number)
            continue
        leaf = _chosen(run, entry, ref, dim, index)
        shapes.append(run.axes(index, entry))
        chosen += [leaf] if leaf is not None else []
    if masks:
        shapes.append(((num_masked,),))
    rank = max(len(axes) for axes in shapes)
    sizes = []
    for back in range(rank, 0, -1):
        here = [axis_size(axes[-back]) for axes in shapes if len(axes) >= back]
        sizes.append(next((s for s in here if s != 1), 1))
    places = broadcast(run, entry, shapes, sizes)
    for leaf in chosen:
        places = _marked(places, leaf)
    return places


@rule("index_put", "_index_put_impl", "_unsafe_index_put", indices=True)
def _index_put(run: Inference, entry: TapeEntry) -> TensorType:
    """Indexed axes are written at positions, the others are the same."""
    ref = operand(entry, "self")
    pairs = _indexed_axes(entry, ref, run)
    values_ref, dims = operand(entry, "values"), [dim for dim, _ in pairs]
    given = [i for i, index in enumerate(entry.args["indices"]) if isinstance(index, TensorRef)]
    first = dims[0] if _is_together(given) else 0
    # The values end with the axes that are not indexed, so the masked one counts from the back.
    back = len(ref.shape) - len(dims) - first + 1
    num_masked = values_ref.shape[-back] if len(values_ref.shape) >= back else 1
    places = _index_positions(run, entry, ref, pairs, num_masked)
    axes = run.axes(ref, entry)
    rest = [axis for dim, axis in enumerate(axes) if dim not in dims]
    target = (*rest[:first], *places, *rest[first:])
    values = run.axes(values_ref, entry)
    shape = list(map(axis_size, target))
    if len(values) <= len(target):
        broadcast(run, entry, [target, values], shape)
    else:
        run.freeze_ref(values_ref, f"written by {where(entry)}")
    return axes


@rule("nonzero", indices=True)
def _nonzero(run: Inference, entry: TapeEntry) -> TensorType:
    """Where a vector over neurons is not zero: indices into these neurons."""
    ref, out = operand(entry, "self"), output(entry)
    axes = run.axes(ref, entry)
    factors = resolve(axes[0]) if len(axes) == 1 else ()
    leaf = factors[0] if len(factors) == 1 else None
    if isinstance(leaf, Leaf):
        run.index_of[out.number] = leaf
        return ((out.shape[0],), (1,))
    run.freeze_ref(ref, f"searched by {where(entry)}")
    return positions(out)


@rule(
    "masked_select",
    "masked_scatter",
    "select_scatter",
    "slice_scatter",
    "grid_sampler_2d",
    "grid_sampler_3d",
    "take",
)
def _placed(run: Inference, entry: TapeEntry) -> TensorType:
    """Coordinates and masks are positions, channels stay."""
    name, out = entry.operation.removeprefix("aten."), output(entry)
    if name in ("grid_sampler_2d", "grid_sampler_3d"):
        # Channels are interpolated one by one; rows and columns are coordinates.
        axes = run.axes(operand(entry, "input"), entry)
        for axis in axes[2:]:
            freeze(axis, f"coordinates in {where(entry)}")
        grid = run.axes(operand(entry, "grid"), entry)
        unify(axes[0], grid[0], where(entry))
        for axis in grid[1:]:
            freeze(axis, f"coordinates in {where(entry)}")
        return (*axes[:2], *((size,) for size in out.shape[2:]))
    if name == "masked_scatter":
        ref, mask = operand(entry, "self"), operand(entry, "mask")
        source = operand(entry, "source")
        axes, values = run.axes(ref, entry), run.axes(source, entry)
        # Whole rows are replaced when the mask does not differ along the last axis.
        if axis_size(values[-1]) == axis_size(axes[-1]) and not run.is_plain(ref):
            unify(axes[-1], values[-1], where(entry))
            for axis in (*axes[:-1], *values[:-1]):
                freeze(axis, f"masked by {where(entry)}")
            broadcast(run, entry, [axes, run.axes(mask, entry)], ref.shape)
            return axes
    return positions_frozen(run, entry)
