"""Operations that only move entries: where each block of the result comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paramgraph.capture.axes import size_of
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.parameters import forgotten, relabelled, spread, stated
from paramgraph.capture.weave.records import Constant, Hidden, Input, Labels, Param, Piece, Strand

__all__ = [
    "MOVES",
    "along_positions",
    "by_likeness",
    "move",
    "moved",
    "overwritten",
    "source_of",
    "united",
]

Place = tuple[int, ...]
Source = tuple[TensorRef, Place]

SAME = {
    *("detach", "clone", "alias", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy"),
    *("real", "conj", "_conj", "resolve_conj", "resolve_neg"),
}
RESHAPES = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias"}
SPLITS = {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"}
MOVES = {
    *SAME,
    *RESHAPES,
    *SPLITS,
    *("t", "transpose", "permute", "numpy_T", "expand", "repeat", "slice", "select", "unbind"),
    *("cat", "stack", "constant_pad_nd", "repeat_interleave"),
}


def source_of(entry: TapeEntry, number: int, place: Place) -> Source | None:
    """The argument, and the entry of it, that an entry of output ``number`` is a copy of."""
    name, args = entry.operation.removeprefix("aten."), entry.args
    out = entry.outputs[number]
    assert out is not None
    if name in ("cat", "stack"):
        return _of_several(name, args, out, place)
    ref: TensorRef = next(v for v in args.values() if isinstance(v, TensorRef))
    shape, rank = ref.shape, len(ref.shape)
    if name in SAME:
        return ref, place
    if name in RESHAPES:
        if math.prod(out.shape) != math.prod(shape):
            return None
        flat = int(np.ravel_multi_index(place, out.shape)) if place else 0
        return ref, tuple(map(int, np.unravel_index(flat, shape))) if rank else ()
    if name in ("t", "transpose", "permute", "numpy_T"):
        order = list(range(rank))
        if name == "transpose" and rank:
            a, b = args["dim0"], args["dim1"]
            order[a], order[b] = order[b], order[a]
        elif name == "permute":
            order = [axis % rank for axis in args["dims"]]
        elif name != "transpose":
            order = order[::-1]
        inside = [0] * rank
        for axis, source in enumerate(order):
            inside[source] = place[axis]
        return ref, tuple(inside)
    if name in ("expand", "repeat"):
        missing = len(place) - rank
        return ref, tuple(p % size for p, size in zip(place[missing:], shape, strict=True))
    if name == "repeat_interleave":
        dim, times = args.get("dim"), args.get("repeats")
        if not isinstance(dim, int) or not isinstance(times, int):
            return None
        return ref, _at(place, dim % rank, place[dim % rank] // times)
    return ref, _taken(name, args, entry, number, place, shape)


def _taken(
    name: str, args: dict[str, Any], entry: TapeEntry, number: int, place: Place, shape: Place
) -> Place:
    """For selections: the place in what is selected from."""
    rank = len(shape)
    if name == "constant_pad_nd":
        before = [0] * rank
        for i, n in enumerate(args["pad"][::2]):
            before[rank - 1 - i] = n
        return tuple(p - b for p, b in zip(place, before, strict=True))
    dim = args.get("dim", 0) % rank
    if name == "slice":
        start = args.get("start") or 0
        start = min(start + shape[dim] if start < 0 else start, shape[dim])
        return _at(place, dim, start + place[dim] * (args.get("step") or 1))
    if name == "select":
        return (*place[:dim], args["index"] % shape[dim], *place[dim:])
    if name == "unbind":
        return (*place[:dim], number, *place[dim:])
    sizes = [ref.shape[dim] for ref in entry.outputs if ref is not None]
    return _at(place, dim, place[dim] + sum(sizes[:number]))


def _of_several(name: str, args: dict[str, Any], out: TensorRef, place: Place) -> Source | None:
    dim = args.get("dim", 0) % len(out.shape)
    if name == "stack":
        return args["tensors"][place[dim]], (*place[:dim], *place[dim + 1 :])
    at = place[dim]
    for ref in args["tensors"]:
        if len(ref.shape) != len(out.shape):
            continue  # an old way to write an empty tensor
        if at < ref.shape[dim]:
            return ref, _at(place, dim, at)
        at -= ref.shape[dim]
    return None


def _at(place: Place, dim: int, value: int) -> Place:
    return (*place[:dim], value, *place[dim + 1 :])


def move(loom: Loom, entry: TapeEntry) -> None:
    """Strands of the results of an operation that only moves entries."""
    for number, ref in enumerate(entry.outputs):
        if ref is None:
            continue
        parts = loom.partition(ref)
        strands: list[Strand] = []
        for block in range(len(parts)):
            found: dict[tuple[int, int], tuple[TensorRef, int]] = {}
            for place in parts.probes(block):
                source = source_of(entry, number, place)
                if source is None or any(
                    not 0 <= p < size for p, size in zip(source[1], source[0].shape, strict=True)
                ):
                    continue
                for at in loom.partition(source[0]).find(source[1]):
                    found[source[0].number, at] = (source[0], at)
            strands.append(_merged(loom, entry, ref, block, list(found.values())))
        if entry.operation == "aten.cat":
            strands = along_positions(loom, entry, ref, strands)
        loom.strands[ref.number] = tuple(strands)


def along_positions(
    loom: Loom, entry: TapeEntry, ref: TensorRef, strands: list[Strand]
) -> list[Strand]:
    """The same neurons at different positions (a token in front of patches) become one group."""
    alike: dict[tuple[object, ...], list[int]] = {}
    parts = loom.partition(ref)
    for block, (axes, value) in enumerate(zip(parts.axes, strands, strict=True)):
        here = loom.distinct(axes)
        if isinstance(value, Hidden):
            neurons = [leaf for leaf in here if any(leaf is f for f in value.group.factors)]
        elif isinstance(value, Param):
            neurons = [leaf for leaf in here if loom.is_free(leaf)]
        else:
            continue
        # Blocks must differ on axes without neurons only: queries and keys are no positions.
        places = [
            index.tobytes()
            for axis, index in zip(axes, parts.index[block], strict=True)
            if any(leaf is loom.leaf(f) for leaf in neurons for f in axis)
        ]
        key = (*map(id, loom.ordered(neurons)), *places)
        alike.setdefault(key, []).append(block)
    for blocks in alike.values():
        values = {_key(strands[block]): strands[block] for block in blocks}
        if len(values) > 1:
            one = united(loom, entry, ref, blocks[0], list(values.values()))
            for block in blocks:
                strands[block] = one
    return strands


def _merged(
    loom: Loom, entry: TapeEntry, ref: TensorRef, block: int, found: list[tuple[TensorRef, int]]
) -> Strand:
    values = [(source, at, loom.strand(source, at)) for source, at in found]
    telling = [v for v in values if not isinstance(v[2], Constant)]
    if not telling:
        return values[0][2] if values else Constant()
    if len(telling) == 1 or len({_key(v[2]) for v in telling}) == 1:
        source, at, value = telling[0]
        result = moved(loom, entry, value, (source, at), (ref, block))
        if len(values) > 1 and isinstance(result, Hidden):
            return replace(result, owned=False)
        if len(values) > 1 and isinstance(result, Param):
            return forgotten(result)
        return result
    return united(loom, entry, ref, block, [value for _, _, value in telling])


def _key(value: Strand) -> object:
    return (id(value.group), value.chain) if isinstance(value, Hidden) else id(value)


def united(
    loom: Loom, entry: TapeEntry, ref: TensorRef, block: int, values: Sequence[Strand]
) -> Strand:
    """Different values that stand side by side on positions: neurons that depend on all."""
    axes = loom.partition(ref).axes[block]
    if all(isinstance(value, Param) for value in values) and entry.operation != "aten.cat":
        pieces = dict.fromkeys(p for v in values if isinstance(v, Param) for p in v.pieces)
        return forgotten(Param(tuple(pieces)))
    known = [f for v in values if isinstance(v, Hidden) for f in v.group.factors]
    here = loom.neurons_in(axes, known)
    hidden = [loom.hidden(v, here, entry) for v in values if not isinstance(v, Input | Constant)]
    if not hidden:
        return Input(ref.number, ref.shape)
    known = [f for value in hidden for f in value.group.factors]
    neurons = loom.neurons_in(axes, known)
    senders = {id(sender): sender for sender in map(loom.read, hidden)}
    key = ("united", *sorted(senders), *map(id, neurons))
    if key not in loom.made:
        group = loom.made[key] = loom.new_group(entry, neurons, origin=(ref.number, block))
        for sender in senders.values():
            loom.flow(sender, group)
    return Hidden(loom.made[key], owned=False, site=(ref.number, block))


def moved(
    loom: Loom,
    entry: TapeEntry,
    value: Strand,
    source: tuple[TensorRef, int],
    target: tuple[TensorRef, int],
) -> Strand:
    """One strand in a tensor of another shape."""
    ref, block = target
    if isinstance(value, Input):
        return Input(ref.number, ref.shape)
    if isinstance(value, Hidden):
        name = entry.operation.removeprefix("aten.")
        owned = value.owned and loom.uses.get(source[0].number, 0) <= 1
        owned = owned and name != "constant_pad_nd"  # zeros get no bias
        is_same = name in SAME and source[0].shape == ref.shape
        return replace(value, owned=owned, site=value.site if is_same else (ref.number, block))
    if isinstance(value, Param):
        before = loom.partition(source[0]).axes[source[1]]
        after = loom.partition(ref).axes[block]
        pieces = []
        is_spread = value.is_spread
        for piece in value.pieces:
            labels = _labels(entry, piece.labels, before, after, source[0], ref)
            new = Piece(piece.parameter, piece.part, labels)
            if not stated(loom, new):
                new = replace(new, labels=None)
            is_spread |= spread(after, new.labels)
            pieces.append(new)
        return replace(value, pieces=tuple(pieces), is_spread=is_spread)
    return value


def _labels(
    entry: TapeEntry, labels: Labels | None, before: Any, after: Any, ref: TensorRef, out: TensorRef
) -> Labels | None:
    name = entry.operation.removeprefix("aten.")
    if labels is None:
        return None
    if name in ("t", "transpose", "permute", "numpy_T"):
        rank = len(ref.shape)
        order = list(range(rank))
        if name == "transpose" and rank:
            a, b = entry.args["dim0"], entry.args["dim1"]
            order[a], order[b] = order[b], order[a]
        elif name == "permute":
            order = [axis % rank for axis in entry.args["dims"]]
        elif name != "transpose":
            order = order[::-1]
        return tuple(labels[i] for i in order)
    if name in ("expand", "repeat"):
        missing = len(out.shape) - len(ref.shape)
        new: list[tuple[tuple[int, ...], ...]] = [((),) * len(axis) for axis in after[:missing]]
        for place, axis in enumerate(after[missing:]):
            same = ref.shape[place] == out.shape[place + missing]
            new.append(labels[place] if same else ((),) * len(axis))
        fits = all(len(a) == len(b) for a, b in zip(new, after, strict=True))
        return tuple(new) if fits else None
    if name in ("select", "unbind"):
        dim = entry.args.get("dim", 0) % len(ref.shape)
        picks = tuple(axis for i, axis in enumerate(before) if i != dim)
        rest = tuple(label for i, label in enumerate(labels) if i != dim)
        return relabelled(rest, picks, after)
    if name in ("cat", "stack", "constant_pad_nd", "repeat_interleave"):
        return labels if _shapes(before) == _shapes(after) else None
    if name in RESHAPES | SAME:
        return relabelled(labels, before, after)
    return labels if _shapes(before) == _shapes(after) else relabelled(labels, before, after)


def _shapes(axes: Any) -> list[list[int]]:
    return [[size_of(f) for f in axis] for axis in axes]


def overwritten(
    loom: Loom, ref: TensorRef, block: int, before: TensorRef, source: TensorRef
) -> list[tuple[TensorRef, int]]:
    """Blocks that a block is made of after ``source``, in the same memory, was written."""
    found: dict[tuple[int, int], tuple[TensorRef, int]] = {}
    target, written = loom.partition(ref), loom.partition(source)
    for place in target.probes(block):
        inside = _elsewhere(loom, place, ref, source)
        origin, spot = (before, place) if inside is None else (source, inside)
        for at in loom.partition(origin).find(spot):
            found[origin.number, at] = (origin, at)
    for at in range(len(written)):
        for place in written.probes(at):
            inside = _elsewhere(loom, place, source, ref)
            if inside is not None and block in target.find(inside):
                found[source.number, at] = (source, at)
    return list(found.values())


def _elsewhere(loom: Loom, place: Place, ref: TensorRef, other: TensorRef) -> Place | None:
    """Where in another view of the same memory an entry stands."""
    geometry = loom.run.tape.windows
    (start, steps), (begin, strides) = geometry[ref.number], geometry[other.number]
    rest = start + sum(p * step for p, step in zip(place, steps, strict=True)) - begin
    inside = [0] * len(other.shape)
    for axis in sorted(range(len(strides)), key=lambda axis: -strides[axis]):
        if strides[axis] and other.shape[axis] > 1:
            inside[axis], rest = divmod(rest, strides[axis])
    fits = rest == 0 and all(0 <= i < size for i, size in zip(inside, other.shape, strict=True))
    return tuple(inside) if fits else None


def by_likeness(loom: Loom, ref: TensorRef, block: int, source: TensorRef) -> int:
    """The block of another tensor that has most leaves in common with a block."""
    parts, other = loom.partition(ref), loom.partition(source)
    if len(other) == 1:
        return 0
    here = {id(leaf) for leaf in loom.present(parts.axes[block])}
    score = [len(here & {id(leaf) for leaf in loom.present(axes)}) for axes in other.axes]
    best = max(score)
    ties = [i for i, s in enumerate(score) if s == best]
    # Blocks of equal axes (the gates of a cell) keep their order.
    return block if block in ties else ties[0]
