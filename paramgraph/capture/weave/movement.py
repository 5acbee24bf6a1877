"""Operations that only move entries: where each block of the result comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paramgraph.capture.axes import size_of
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.origins import RESHAPES, SAME, SPLITS, source_of
from paramgraph.capture.weave.parameters import forgotten, relabelled, spread, stated
from paramgraph.capture.weave.reading import as_hidden
from paramgraph.capture.weave.records import Constant, Hidden, Input, Labels, Param, Piece, Strand

__all__ = ["MOVES", "along_positions", "by_likeness", "move", "moved", "united"]


MOVES = {
    *SAME,
    *RESHAPES,
    *SPLITS,
    *("t", "transpose", "permute", "numpy_T", "expand", "repeat", "slice", "select", "unbind"),
    *("cat", "stack", "constant_pad_nd", "repeat_interleave"),
}


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
    hidden = [
        as_hidden(loom, v, here, entry) for v in values if not isinstance(v, Input | Constant)
    ]
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
