"""Functions of parameters alone: tables, tokens, initial states, derived weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from paramgraph.capture.axes import Factor, Leaf, Wild, size_of
from paramgraph.capture.tape import TapeEntry
from paramgraph.capture.tensor_types import Axes
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.records import Group, Hidden, Labels, Param, Piece
from paramgraph.structure import EdgeKind, NeuronKind, NeuronRole

__all__ = [
    "as_neurons",
    "attach",
    "forgotten",
    "fresh_piece",
    "grid",
    "leaves_of",
    "main_piece",
    "part_axes",
    "relabelled",
    "spread",
    "stated",
    "table",
]


def fresh_piece(loom: Loom, name: str, part: int, axes: Axes) -> Param:
    """A part of a parameter as it is."""
    labels, count = [], 0
    for axis in axes:
        labels.append(tuple((count + i,) for i in range(len(axis))))
        count += len(axis)
    return Param((Piece(name, part, tuple(labels)),))


def part_axes(loom: Loom, piece: Piece) -> list[Factor]:
    """The factors of a part, one per axis of it."""
    return [f for axis in loom.parameter_blocks(piece.parameter)[piece.part] for f in axis]


def leaves_of(loom: Loom, piece: Piece) -> list[Leaf]:
    """The leaves of a part, with repetitions."""
    return [leaf for f in part_axes(loom, piece) if (leaf := loom.leaf(f)) is not None]


def stated(loom: Loom, piece: Piece) -> bool:
    """Whether every axis of the part, other than of length 1, is known to lie in the tensor."""
    if piece.labels is None:
        return False
    have = {label for axis in piece.labels for labels in axis for label in labels}
    factors = part_axes(loom, piece)
    return all(place in have or size_of(f) == 1 for place, f in enumerate(factors))


def main_piece(loom: Loom, value: Param, axes: Axes) -> Piece | None:
    """The piece that has all leaves of the tensor: the weight of a weight that is computed."""
    want = len(loom.distinct(axes))
    for piece in value.pieces:
        if stated(loom, piece) and len(leaves_of(loom, piece)) >= want:
            return piece
    return None


def relabelled(before: Labels | None, axes: Axes, after: Axes) -> Labels | None:
    """Labels after a reshape: factors keep their order, single indices and copies come and go."""
    if before is None:
        return None
    pairs = [
        (f, label)
        for a, ls in zip(axes, before, strict=True)
        for f, label in zip(a, ls, strict=True)
    ]
    waiting = [(f, label) for f, label in pairs if size_of(f) != 1 or label][::-1]
    result: list[tuple[tuple[int, ...], ...]] = []
    for axis in after:
        here: list[tuple[int, ...]] = []
        for factor in axis:
            label: tuple[int, ...] = ()
            have = 1
            while waiting and have * size_of(waiting[-1][0]) <= size_of(factor):
                source, add = waiting[-1]
                if isinstance(source, Leaf) and source is not factor:
                    if source.size > 1:
                        break
                    waiting.pop()  # a single neuron lost its axis
                    continue
                waiting.pop()
                have *= size_of(source)
                label += add
                if have == size_of(factor):
                    break
            if have != size_of(factor) and label:
                return None
            here.append(label)
        result.append(tuple(here))
    if any(size_of(f) != 1 and label for f, label in waiting):
        return None
    return tuple(result)


def as_neurons(loom: Loom, value: Param, wanted: Sequence[Leaf], entry: TapeEntry) -> Hidden:
    """Parameters that are activations themselves: a token, an initial state, a table of positions.

    Leaves that may be permuted (and those ``wanted``) number the neurons; what else the parameter
    has, such as a row per position, are fixed neurons that send to them.
    """
    key = ("parameter", value.pieces, *sorted(map(id, wanted)))
    known = loom.adapters.get(key)
    if known is None:
        known = loom.adapters[key] = _made(loom, value, wanted, entry)
    return Hidden(known, value.chain, owned=False)


def _made(loom: Loom, value: Param, wanted: Sequence[Leaf], entry: TapeEntry) -> Group:
    piece = max(value.pieces, key=lambda p: len(leaves_of(loom, p)))
    group = table(loom, piece, wanted, entry)
    for other in value.pieces:
        if other is not piece:
            attach(loom, other, None, group, entry)
    return group


def table(
    loom: Loom,
    piece: Piece,
    wanted: Sequence[Leaf],
    entry: TapeEntry,
    rows: Sequence[Leaf] | None = None,
) -> Group:
    """A part as neurons; ``rows`` are the leaves that number its rows, when that is known."""
    factors = part_axes(loom, piece)
    ids = {id(leaf) for leaf in wanted}
    places: dict[str, list[int]] = {"neurons": [], "rows": [], "positions": []}
    leaves = {i: leaf for i, f in enumerate(factors) if (leaf := loom.leaf(f)) is not None}
    if rows is None:
        chosen = {i for i, leaf in leaves.items() if loom.is_free(leaf) or id(leaf) in ids}
        chosen = chosen or set(leaves)
    else:
        chosen = {i for i, leaf in leaves.items() if all(leaf is not row for row in rows)}
    # What an axis group depends on stands with it.
    given = loom.given_by(leaves[i] for i in chosen)
    chosen |= {i for i, leaf in leaves.items() if loom.name_of(leaf) in given}
    for i in range(len(factors)):
        places["neurons" if i in chosen else "rows" if i in leaves else "positions"].append(i)
    rank = {id(leaf): n for n, leaf in enumerate(loom.ordered(leaves.values()))}
    for role in ("neurons", "rows"):
        places[role].sort(key=lambda i: rank[id(leaves[i])])
    numbers, lines = ([leaves[i] for i in places[k]] for k in ("neurons", "rows"))
    num_positions = math.prod(size_of(factors[i]) for i in places["positions"])
    name = piece.parameter
    order = [*places["neurons"], *places["rows"], *places["positions"]]
    if not lines and num_positions == 1:
        group = loom.new_group(entry, numbers, name, kind=NeuronKind.FIXED)
        loom.feature(NeuronRole.BIAS, group, piece, order)
        return group
    source = Group(
        loom.unique(f"{name}.rows"),
        tuple(lines),
        math.prod(leaf.size for leaf in lines),
        NeuronKind.FIXED,
        chain=(),
    )
    loom.groups.append(source)
    group = loom.new_group(entry, numbers, name)
    shape = (1, group.size, source.size)
    coordinates = grid([size_of(factors[i]) for i in places["positions"]])
    loom.block(name, piece.part, EdgeKind.EMBEDDING, (source, group), order, shape, coordinates)
    return group


def grid(sizes: list[int]) -> tuple[tuple[float, float], ...]:
    """Coordinates of image positions, in pixels from the centre: (row, column)."""
    if len(sizes) > 2:
        sizes = [math.prod(sizes[:-1]), sizes[-1]]
    rows, columns = ([1, *sizes] if len(sizes) < 2 else sizes)[-2:] if sizes else (1, 1)
    return tuple(
        (r - (rows - 1) / 2, c - (columns - 1) / 2) for r in range(rows) for c in range(columns)
    )


def attach(
    loom: Loom, piece: Piece, sender: Group | None, receiver: Group, entry: TapeEntry
) -> None:
    """A part that is used somehow between two groups: a factor of a weight, a temperature.

    Its leaves that the receiver (the sender) has number receivers (senders); others become neurons
    in between. What fits neither is a fixed group that the receiver depends on.
    """
    if (piece.parameter, piece.part) in loom.claimed:
        return
    left = dict(enumerate(part_axes(loom, piece)))

    def taken(group: Group | None) -> list[int] | None:
        """The axes of the part that number the neurons of a group, all of them or nothing."""
        if group is None or not any(isinstance(f, Leaf) for f in group.factors):
            return None
        found = []
        for factor in group.factors:
            place = next(
                (i for i, f in left.items() if i not in found and loom.leaf(f) is factor),
                None,
            )
            if place is None:
                return None
            found.append(place)
        return found

    receivers = taken(receiver)
    for place in receivers or ():
        del left[place]
    senders = taken(sender) if sender is not receiver else None
    for place in senders or ():
        del left[place]
    inner = [(i, leaf) for i, f in left.items() if (leaf := loom.leaf(f)) is not None]
    places = [i for i in left if all(i != place for place, _ in inner)]
    coordinates = grid([size_of(left[i]) for i in places])
    # Neurons that depend on others cannot stand without them.
    needed = loom.given_by(leaf for _, leaf in inner)
    fits = needed <= {loom.name_of(leaf) for _, leaf in inner}

    def edge(ends: tuple[Group, Group], order: list[int]) -> None:
        shape = (1, ends[1].size, ends[0].size)
        part = (piece.parameter, piece.part)
        loom.block(*part, EdgeKind.LINEAR, ends, [*order, *places], shape, coordinates)

    if receivers and senders and not inner:
        assert sender is not None
        return edge((sender, receiver), [*receivers, *senders])
    if inner and fits and bool(receivers) != bool(senders):
        leaves = loom.ordered([leaf for _, leaf in inner])
        ordered = sorted((i for i, _ in inner), key=lambda i: _place(leaves, dict(inner)[i]))
        key = ("inner", id(receiver), *map(id, leaves))
        between = loom.adapters.get(key)
        if between is None:
            between = loom.adapters[key] = loom.new_group(entry, leaves, piece.parameter)
            between.chain = ()
            loom.flow(between, receiver)
        if receivers:
            return edge((between, receiver), [*receivers, *ordered])
        assert senders is not None
        assert sender is not None
        return edge((sender, between), [*ordered, *senders])
    leaves_there = [f for f in receiver.factors if isinstance(f, Leaf)]
    source = table(loom, piece, leaves_there, entry)
    source.chain = source.chain or ()
    loom.flow(source, receiver, EdgeKind.GATE)
    return None


def _place(leaves: Sequence[Leaf], leaf: Leaf) -> int:
    return next(i for i, other in enumerate(leaves) if other is leaf)


def forgotten(value: Param) -> Param:
    """The same parameters, without knowing how they lie in the tensor."""
    return replace(value, pieces=tuple(replace(p, labels=None) for p in value.pieces))


def spread(axes: Axes, labels: Labels | None) -> bool:
    """Whether a tensor repeats a parameter along axes that the parameter does not have."""
    if labels is None:
        return False
    return any(
        isinstance(f, Wild | int) and size_of(f) > 1 and not label
        for axis, ls in zip(axes, labels, strict=True)
        for f, label in zip(axis, ls, strict=True)
    )
