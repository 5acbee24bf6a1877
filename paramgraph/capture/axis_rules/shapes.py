"""Rules for operations that only rearrange: reshapes, permutations, repetition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from paramgraph.capture.axes import Axis, Leaf, Wild, axis_size, freeze, resolve
from paramgraph.capture.axis_rules.registry import operand, output, positions, rule
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.reshaping import regroup
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType
from paramgraph.capture.unification import cut, unify

__all__ = ["blockwise", "carry_index"]


def blockwise(kind: TensorType, function: Callable[[Axes], Axes], axis: int) -> TensorType:
    """Apply a function of axes to every block; ``axis`` is the bundled axis of the result."""
    if isinstance(kind, Bundle):
        return Bundle(axis, tuple(function(block) for block in kind.blocks))
    return function(kind)


def carry_index(run: Inference, entry: TapeEntry, ref: TensorRef) -> None:
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
    """Copies, casts and views of the same entries keep their axes."""
    ref = operand(entry, *entry.args)
    carry_index(run, entry, ref)
    return run.type(ref)


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias", indices=True)
def _reshape(run: Inference, entry: TapeEntry) -> TensorType:
    """Factors are dealt to the new axes; leaves are split where the shape asks for it."""
    ref, out = operand(entry, "self"), output(entry)
    carry_index(run, entry, ref)
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
    if 0 in out.shape and len(out.shape) != len(ref.shape):
        return tuple((Wild(size),) for size in out.shape)  # no entries, so no order of them
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
    """Axes change places."""
    ref = operand(entry, "self")
    carry_index(run, entry, ref)
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
    return blockwise(kind, lambda axes: tuple(axes[i] for i in order), axis)


@rule("expand", indices=True)
def _expand(run: Inference, entry: TapeEntry) -> TensorType:
    """A repeated axis is constant: it fits every other axis."""
    ref, out = operand(entry, "self"), output(entry)
    carry_index(run, entry, ref)
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
    return blockwise(kind, expanded, axis)


@rule("repeat")
def _repeat(run: Inference, entry: TapeEntry) -> TensorType:
    """Whole copies side by side: the copies are constant, their number is a factor in front."""
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
    """Each entry several times: the repetition is a factor behind."""
    ref, out = operand(entry, "self", "repeats"), output(entry)
    if not isinstance(entry.args.get("repeats"), int) or entry.args.get("dim") is None:
        run.freeze_ref(ref, f"repeated by {where(entry)}")
        return positions(out)
    axes = list(run.axes(ref, entry))
    dim = entry.args["dim"] % len(axes)
    axes[dim] = (*axes[dim], Wild(entry.args["repeats"]))
    return tuple(axes)


@rule("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(run: Inference, entry: TapeEntry) -> TensorType:
    """Channels are split into channels and positions."""
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
    """Groups of channels change places with what stands in them."""
    ref = operand(entry, "self")
    axes, groups = run.axes(ref, entry), entry.args["groups"]
    halves = regroup([axes[1]], (groups, ref.shape[1] // groups), entry.position)
    if halves is None:
        freeze(axes[1], f"cut across by {where(entry)}")
        return positions(output(entry))
    return (axes[0], (*halves[1], *halves[0]), *axes[2:])


@rule("diagonal")
def _diagonal(run: Inference, entry: TapeEntry) -> TensorType:
    """Both axes of a diagonal are the same."""
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
    """Real and imaginary part are positions."""
    axes = run.axes(operand(entry, "self"), entry)
    if entry.operation == "aten.view_as_real":
        return (*axes, (2,))
    freeze(axes[-1], f"real and imaginary part in {where(entry)}")
    return axes[:-1]


@rule("meshgrid")
def _meshgrid(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Coordinates are positions."""
    for ref in entry.args["tensors"]:
        run.freeze_ref(ref, f"coordinates in {where(entry)}")
    return [positions(ref) for ref in entry.outputs if ref is not None]
