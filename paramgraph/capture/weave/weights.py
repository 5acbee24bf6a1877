"""Activations times a parameter: an edge block to a new neuron group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from paramgraph.capture.axes import Axis, Leaf, Pick, size_of
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.parameters import attach, grid, main_piece, part_axes
from paramgraph.capture.weave.reading import as_hidden, read_as
from paramgraph.capture.weave.records import Group, Hidden, Param, Piece, Reduced, Strand
from paramgraph.structure import EdgeKind

__all__ = ["Side", "contracted_leaves", "grouped_axis", "groups_of", "weighted"]


@dataclass
class Side:
    """One block of one operand, with a letter per factor."""

    ref: TensorRef
    block: int
    strand: Strand
    axes: tuple[Axis, ...]
    letters: tuple[str, ...]  # one per axis
    factor_letters: tuple[tuple[str, ...], ...]


def grouped_axis(entry: TapeEntry, *, kernel: bool) -> int | None:
    """The axis of a grouped convolution's kernel, or of its image, that runs over all groups."""
    if entry.operation != "aten.convolution" or entry.args["groups"] == 1:
        return None
    return 0 if kernel else 1


def groups_of(loom: Loom, entry: TapeEntry, ref: TensorRef, block: int, axis: int) -> set[int]:
    """The groups of a convolution that a block of a tensor has channels of."""
    index = loom.partition(ref).index[block][axis]
    return set((index * entry.args["groups"] // ref.shape[axis]).tolist())


def weighted(
    loom: Loom,
    entry: TapeEntry,
    site: tuple[TensorRef, int],
    value: Side,
    weight: Side,
    before: Strand | None,
) -> Strand:
    """Activations times a parameter: an edge block to a new group."""
    parameter = weight.strand
    assert isinstance(parameter, Param)
    strand = value.strand
    if isinstance(strand, Reduced):
        strand = as_hidden(loom, strand, contracted_leaves(loom, value), entry)
    known = list(strand.group.factors) if isinstance(strand, Hidden) else []
    contracted = {"k"}
    shared: list[Any] = []
    receivers: list[Any] = []
    senders: list[Any] = []
    rest: list[Any] = []
    piece = main_piece(loom, parameter, weight.axes)
    labels = piece.labels if piece is not None else None
    here = [loom.leaf(f) for axis in value.axes for f in axis]
    for place, axis in enumerate(weight.axes):
        for i, factor in enumerate(axis):
            letter = weight.factor_letters[place][i]
            label = labels[place][i] if labels is not None else ()
            leaf = loom.leaf(factor)
            item = (leaf, label, factor)
            if leaf is not None and labels is not None and not label:
                continue  # the parameter is repeated along it
            if leaf is None:
                if label:
                    rest.append(item)
            elif isinstance(factor, Pick) and any(leaf is f for f in known):
                shared.append(item)  # the expert that was chosen before
            elif letter in contracted:
                senders.append(item)
            elif letter in ("g", "b", *"uvw"):
                is_shared = any(leaf is f for f in here) and (
                    any(leaf is f for f in known) or not known
                )
                (shared if is_shared or letter == "g" else receivers).append(item)
            else:
                receivers.append(item)
    if isinstance(strand, Hidden):
        # An expert that was chosen is no neuron of theirs, but those of the weight depend on it.
        needed = loom.given_by(item[0] for item in (*receivers, *senders))
        own = [s for s in senders if any(s[0] is f for f in known) or loom.is_free(s[0])]
        own += [s for s in senders if loom.name_of(s[0]) in needed and all(s is not o for o in own)]
        if own or shared:
            # What numbers no neuron of the activations are positions of theirs.
            rest += [s for s in senders if all(s is not o for o in own)]
            senders = own
    if labels is None:
        shared, receivers, senders = (_once(some) for some in (shared, receivers, senders))
    _with_dependence(loom, shared, receivers, senders)
    whole = grouped_axis(entry, kernel=True)
    flat = 1
    if whole is not None:
        flat = len(groups_of(loom, entry, weight.ref, weight.block, whole))
    for some in (shared, receivers, senders):
        some.sort(key=lambda item: loom.rank(item[0]))
    wanted = tuple(item[0] for item in (*shared, *senders))
    numbers = tuple(item[0] for item in (*shared, *receivers))
    where = _where(loom, value, weight, contracted)
    size = math.prod(leaf.size for leaf in wanted)
    hidden_away = isinstance(strand, Hidden) and not any(f is leaf for f in known for leaf in here)
    if isinstance(strand, Hidden) and hidden_away and strand.group.size == size:
        # Neurons that cannot be permuted, as positions: they are numbered as the weight is.
        sender = loom.read(strand)
    else:
        sender = read_as(loom, strand, wanted, entry, where)
    name = piece.parameter if piece is not None else parameter.pieces[0].parameter
    key = ("stack", name, piece.part if piece is not None else -1, id(sender), *map(id, numbers))
    is_stack = len(loom.axis_groups.parameter(name)[2]) > 1
    if is_stack and key in loom.made:
        # The experts are one group: the weights of all of them stand in one block.
        return Hidden(loom.made[key], owned=False, site=(site[0].number, site[1]))
    here_key = (entry.position, name, *key[2:])
    if before is None and here_key in loom.made:
        return Hidden(loom.made[here_key], site=(site[0].number, site[1]))
    if isinstance(before, Hidden) and before.group.factors == numbers:
        receiver = before.group
    else:
        place_of = (site[0].number, site[1])
        receiver = loom.new_group(entry, numbers, name, origin=place_of)
        if isinstance(before, Hidden):
            loom.flow(loom.read(before), receiver)
    loom.made[here_key] = receiver
    if is_stack:
        loom.made[key] = receiver
    if piece is not None:
        _add_block(
            loom,
            entry,
            piece,
            (sender, receiver),
            (shared, receivers, senders, rest),
            value,
            known,
            flat,
            contracted,
        )
    for other in parameter.pieces:
        if other is not piece:
            attach(loom, other, sender, receiver, entry)
    return Hidden(receiver, site=(site[0].number, site[1]))


def _with_dependence(
    loom: Loom, shared: list[Any], receivers: list[Any], senders: list[Any]
) -> None:
    """Neurons that are permuted per index of others must stand with these on both ends."""
    for some, others in ((senders, receivers), (receivers, senders)):
        have = {loom.name_of(item[0]) for item in (*some, *shared)}
        given = loom.given_by(item[0] for item in some) - have
        for item in [item for item in others if loom.name_of(item[0]) in given]:
            others.remove(item)
            shared.append(item)


def _once(items: list[Any]) -> list[Any]:
    """Each leaf once."""
    return list({id(item[0]): item for item in items}.values())


def _where(
    loom: Loom, value: Side, weight: Side, contracted: set[str]
) -> tuple[int, int, int] | None:
    """For inputs: the axis that is contracted, and which of its indices."""
    axes = [i for i, ls in enumerate(value.letters) if ls in contracted or ls == "k"]
    if not axes:
        return None
    axis = axes[-1]
    size = value.ref.shape[axis]
    if value.letters[axis] in weight.letters:
        index = loom.partition(weight.ref).index[weight.block][
            weight.letters.index(value.letters[axis])
        ]
        if (
            len(index) < size
            and weight.ref.shape[weight.letters.index(value.letters[axis])] == size
        ):
            return axis, int(index[0]), len(index)
    return axis, 0, size


def _add_block(
    loom: Loom,
    entry: TapeEntry,
    piece: Piece,
    ends: tuple[Group, Group],
    items: tuple[Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]],
    value: Side,
    known: Sequence[Any],
    flat: int,
    contracted: set[str],
) -> None:
    shared, receivers, senders, rest = items
    is_conv = entry.operation == "aten.convolution"
    blocks = math.prod(item[0].size for item in shared)
    if flat > 1 and blocks != flat:
        blocks = flat  # groups of channels that are fixed: whole axes, cut by size
    num = (ends[1].size // blocks, ends[0].size // blocks)
    is_whole = all(end.size % blocks == 0 for end in ends)
    order = [i for item in (*shared, *receivers, *senders, *rest) for i in item[1]]
    factors = part_axes(loom, piece)
    order += [i for i in range(len(factors)) if i not in order]
    sizes = [size_of(item[2]) for item in rest]
    total = math.prod(map(size_of, factors))
    num_positions = total // max(blocks * num[0] * num[1], 1)
    is_whole &= blocks * num[0] * num[1] * num_positions == total
    if not is_whole or len(set(order)) != len(order):
        attach(loom, replace(piece, labels=None), ends[0], ends[1], entry)
        return
    if is_conv:
        kernel = list(entry.args["weight"].shape[2:])
        step = [1] * (2 - len(kernel)) + list(entry.args["dilation"])
        positions = tuple((r * step[0], c * step[1]) for r, c in grid(kernel))
    else:
        outside = [
            size_of(f)
            for axis, ls in zip(value.axes, value.factor_letters, strict=True)
            for f, letter in zip(axis, ls, strict=True)
            if letter in contracted and not any(loom.leaf(f) is k for k in known)
        ]
        positions = grid(outside if math.prod(outside) == num_positions else sizes)
    if len(positions) != num_positions:
        positions = grid([num_positions])
    kind = EdgeKind.CONV if is_conv else EdgeKind.LINEAR
    shape = (blocks, *num)
    loom.block(piece.parameter, piece.part, kind, ends, order, shape, positions)


def contracted_leaves(loom: Loom, side: Side) -> list[Leaf]:
    """The leaves that a product sums over."""
    axes = [axis for axis, letter in zip(side.axes, side.letters, strict=True) if letter == "k"]
    return loom.present(tuple(axes))
