"""Matrix products and convolutions: blocks of parameters, or products of activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from paramgraph.capture.axes import Axis, Leaf, Pick, size_of
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.elementwise import Operand, add, add_bias, is_owned, product
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.parameters import attach, forgotten, grid, main_piece, part_axes
from paramgraph.capture.weave.records import (
    Constant,
    Group,
    Hidden,
    Input,
    Param,
    Piece,
    Reduced,
    Strand,
    identity,
)
from paramgraph.structure import EdgeKind, NeuronRole

__all__ = ["PRODUCTS", "contraction"]

PRODUCTS = {
    "mm": ("self", "ik", "mat2", "kj", "ij"),
    "bmm": ("self", "bik", "mat2", "bkj", "bij"),
    "mv": ("self", "ik", "vec", "k", "i"),
    "dot": ("self", "k", "tensor", "k", ""),
    "vdot": ("self", "k", "other", "k", ""),
    "addmm": ("mat1", "ik", "mat2", "kj", "ij"),
    "baddbmm": ("batch1", "bik", "batch2", "bkj", "bij"),
    "addmv": ("mat", "ik", "vec", "k", "i"),
    "linear": ("input", "ik", "weight", "jk", "ij"),
    "_cdist_forward": ("x1", "ik", "x2", "jk", "ij"),
    "_euclidean_dist": ("x1", "ik", "x2", "jk", "ij"),
    "_grouped_mm": ("self", "ik", "mat2", "bkj", "ij"),
    "convolution": ("input", "", "weight", "", ""),
}


@dataclass
class _Side:
    """One block of one operand, with a letter per factor."""

    ref: TensorRef
    block: int
    strand: Strand
    axes: tuple[Axis, ...]
    letters: tuple[str, ...]  # one per axis
    factor_letters: tuple[tuple[str, ...], ...]


def contraction(loom: Loom, entry: TapeEntry) -> None:
    """Strands of the result of a product, with a bias where it has one."""
    name = entry.operation.removeprefix("aten.")
    first, left, second, right, out = PRODUCTS[name]
    a, b, ref = entry.args[first], entry.args[second], entry.outputs[0]
    assert ref is not None
    if name == "convolution":
        space = "xyz"[: len(b.shape) - 2]
        swapped = entry.args["transposed"]
        left, right = "nk" + space.upper(), ("kj" if swapped else "jk") + space
        out = "nj" + space.upper()
    else:
        lead = "abcdefgh"[: max(len(a.shape) - len(left.replace("b", "")), 0)]
        if name == "linear" or name in ("_cdist_forward", "_euclidean_dist"):
            more = "uvwxyz"[: len(a.shape) - 2]
            left, out = more + left, more + out
            if name != "linear":
                right = more + right
        del lead
    parts = loom.partition(ref)
    strands = []
    for block in range(len(parts)):
        strands.append(_block(loom, entry, (ref, block), (a, left), (b, right), out))
    loom.strands[ref.number] = tuple(strands)
    bias = entry.args.get("bias") if name in ("convolution", "linear") else None
    if name in ("addmm", "baddbmm", "addmv"):
        bias = entry.args["self"]
    if isinstance(bias, TensorRef):
        _with_bias(loom, entry, ref, bias, channel=1 if name == "convolution" else -1)


def _with_bias(
    loom: Loom, entry: TapeEntry, ref: TensorRef, bias: TensorRef, *, channel: int
) -> None:
    parts = loom.partition(ref)
    others = loom.partition(bias)
    strands = []
    for block, strand in enumerate(loom.strands[ref.number]):
        number = 0
        if len(others) > 1:
            probe = parts.probes(block)[0]
            place = [probe[channel]] if len(bias.shape) == 1 else list(probe[-len(bias.shape) :])
            place = [p if s != 1 else 0 for p, s in zip(place, bias.shape, strict=True)]
            number = (others.find(place) or [0])[0]
        value = loom.strand(bias, number)
        scale = float(entry.args.get("beta", 1))
        if isinstance(value, Param) and isinstance(strand, Hidden):
            known = strand.group.features.get(NeuronRole.BIAS)
            pieces = {(p.parameter, p.part) for p in value.pieces}
            if known is not None and {(known.parameter, known.part)} == pieces:
                strands.append(strand)
                continue
        if isinstance(value, Param) and isinstance(strand, Hidden) and scale == 1:
            fresh = is_owned(loom, strand, ref) or strand.chain == ()
            if fresh and strand.owned and add_bias(loom, strand.group, value, parts.axes[block]):
                strands.append(strand)
                continue
        left: Operand = (
            ref,
            replace(strand, owned=False) if isinstance(strand, Hidden) else strand,
            block,
        )
        if isinstance(value, Constant) and value.value == 0:
            strands.append(strand)
            continue
        strands.append(add(loom, entry, (ref, block), left, (bias, value, number), scale))
    loom.strands[ref.number] = tuple(strands)


def _sides(
    loom: Loom,
    entry: TapeEntry,
    operand: tuple[TensorRef, str],
    blocks: Sequence[int],
    *,
    kernel: bool,
) -> list[_Side]:
    ref, letters = operand
    sides = []
    for block in blocks:
        axes = loom.partition(ref).axes[block]
        names = []
        for place, (axis, letter) in enumerate(zip(axes, letters, strict=True)):
            here = [letter] * len(axis)
            # The first factors of channels and kernels number the groups.
            if place == _grouped_axis(entry, kernel=kernel):
                wanted, have = len(_groups_of(loom, entry, ref, block, place)), 1
                for i, factor in enumerate(axis):
                    if have < wanted:
                        have *= size_of(factor)
                        here[i] = "g"
            names.append(tuple(here))
        sides.append(_Side(ref, block, loom.strand(ref, block), axes, tuple(letters), tuple(names)))
    return sides


def _grouped_axis(entry: TapeEntry, *, kernel: bool) -> int | None:
    """The axis of a grouped convolution's kernel, or of its image, that runs over all groups."""
    if entry.operation != "aten.convolution" or entry.args["groups"] == 1:
        return None
    return 0 if kernel else 1


def _groups_of(loom: Loom, entry: TapeEntry, ref: TensorRef, block: int, axis: int) -> set[int]:
    """The groups of a convolution that a block of a tensor has channels of."""
    index = loom.partition(ref).index[block][axis]
    return set((index * entry.args["groups"] // ref.shape[axis]).tolist())


def _block(
    loom: Loom,
    entry: TapeEntry,
    site: tuple[TensorRef, int],
    left: tuple[TensorRef, str],
    right: tuple[TensorRef, str],
    out: str,
) -> Strand:
    """One block of the result."""
    parts = loom.partition(site[0])
    probes = parts.probes(site[1])
    place = dict(zip(out, probes[0], strict=True)) if probes else {}

    def found(operand: tuple[TensorRef, str], *, kernel: bool) -> list[_Side]:
        ref, letters = operand
        spots = [place.get(letter) if letter.islower() else None for letter in letters]
        axis = _grouped_axis(entry, kernel=kernel)
        if axis is None:
            blocks = loom.partition(ref).find(spots)
            return _sides(loom, entry, operand, blocks, kernel=kernel)
        spots = [None] * len(spots)
        if kernel:
            is_whole = not entry.args["transposed"]  # the kernel's own output channels
            spots[1 - is_whole] = place["j"] if is_whole else place["j"] % ref.shape[1]
        groups = _groups_of(loom, entry, *site, 1)
        blocks = loom.partition(ref).find(spots)
        blocks = [block for block in blocks if groups & _groups_of(loom, entry, ref, block, axis)]
        return _sides(loom, entry, operand, blocks, kernel=kernel)

    ours, theirs = found(left, kernel=False), found(right, kernel=True)
    pairs = [(a, b) for a in ours for b in theirs if _meet(loom, a, b)]
    result: Strand | None = None
    for a, b in pairs:
        result = _pair(loom, entry, site, a, b, result)
    return result if result is not None else Constant()


def _meet(loom: Loom, a: _Side, b: _Side) -> bool:
    """Whether two blocks have contracted indices in common."""
    for axis, letter in enumerate(a.letters):
        if letter != "k" or letter not in b.letters:
            continue
        mine = loom.partition(a.ref).index[a.block][axis]
        other = loom.partition(b.ref).index[b.block][b.letters.index(letter)]
        if a.ref.shape[axis] == b.ref.shape[b.letters.index(letter)]:
            if not set(mine.tolist()) & set(other.tolist()):
                return False
    return True


def _pair(
    loom: Loom,
    entry: TapeEntry,
    site: tuple[TensorRef, int],
    a: _Side,
    b: _Side,
    before: Strand | None,
) -> Strand:
    """The product of two blocks, added to what other blocks gave."""
    one, two = a.strand, b.strand
    if isinstance(one, Param) and isinstance(two, Param):
        if one.is_spread and not two.is_spread:
            one = loom.hidden(one, _leaves(loom, a), entry)
        elif two.is_spread and not one.is_spread:
            two = loom.hidden(two, _leaves(loom, b), entry)
        else:
            pieces = {(p.parameter, p.part): p for p in (*one.pieces, *two.pieces)}
            if isinstance(before, Param):
                pieces |= {(p.parameter, p.part): p for p in before.pieces}
            return forgotten(Param(tuple(pieces.values())))
    if isinstance(two, Param) and not isinstance(one, Param):
        if not (isinstance(one, Constant) and isinstance(before, Hidden)):
            return _weight(
                loom, entry, site, replace_strand(a, one), replace_strand(b, two), before
            )
    if isinstance(one, Param) and not isinstance(two, Param):
        return _weight(loom, entry, site, replace_strand(b, two), replace_strand(a, one), before)
    for value, other, side in ((one, two, a), (two, one, b)):
        if isinstance(other, Constant | Input) and isinstance(value, Hidden | Reduced):
            if isinstance(value, Hidden) and _keeps(loom, value, site):
                return replace(value, owned=False, site=(site[0].number, site[1]))
            del side
    if isinstance(one, Constant | Input) and isinstance(two, Constant | Input):
        is_data = isinstance(one, Input) or isinstance(two, Input)
        return Input(site[0].number, site[0].shape) if is_data else Constant()
    return _mixture(loom, entry, site, one, two, before)


def replace_strand(side: _Side, strand: Strand) -> _Side:
    """The side with another strand."""
    return replace(side, strand=strand)


def _leaves(loom: Loom, side: _Side) -> list[Leaf]:
    axes = [axis for axis, letter in zip(side.axes, side.letters, strict=True) if letter == "k"]
    return loom.present(tuple(axes))


def _keeps(loom: Loom, value: Hidden, site: tuple[TensorRef, int]) -> bool:
    here = loom.present(loom.partition(site[0]).axes[site[1]])
    return all(any(f is leaf for leaf in here) for f in value.group.factors)


def _mixture(
    loom: Loom,
    entry: TapeEntry,
    site: tuple[TensorRef, int],
    one: Strand,
    two: Strand,
    before: Strand | None,
) -> Strand:
    """A product of activations: attention, or a weight that another network wrote."""

    def is_score(value: Strand) -> bool:
        return isinstance(value, Hidden) and any("softmax" in step for step in value.chain)

    kinds = [EdgeKind.ATTENTION, EdgeKind.ATTENTION]
    if is_score(one) != is_score(two):
        kinds = [EdgeKind.ATTENTION if is_score(v) else EdgeKind.FLOW for v in (one, two)]
    mixed = loom.mixed.setdefault((entry.position, site[1]), set())
    pair = (identity(one), identity(two))
    if before is not None and pair in mixed:
        return before  # the same neurons at other positions
    mixed.add(pair)
    values = [(v, k) for v, k in zip((one, two), kinds, strict=True) if not isinstance(v, Constant)]
    if isinstance(before, Hidden):
        values.append((before, EdgeKind.FLOW))
    several = [kind for value, kind in values if not isinstance(value, Input) or value.shape[1:]]
    return product(loom, entry, site, [value for value, _ in values], kinds[0], several)


def _weight(
    loom: Loom,
    entry: TapeEntry,
    site: tuple[TensorRef, int],
    value: _Side,
    weight: _Side,
    before: Strand | None,
) -> Strand:
    """Activations times a parameter: an edge block to a new group."""
    parameter = weight.strand
    assert isinstance(parameter, Param)
    strand = value.strand
    if isinstance(strand, Reduced):
        strand = loom.hidden(strand, _leaves(loom, value), entry)
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
    axis = _grouped_axis(entry, kernel=True)
    flat = len(_groups_of(loom, entry, weight.ref, weight.block, axis)) if axis is not None else 1
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
        sender = loom.read_as(strand, wanted, entry, where)
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
    loom: Loom, value: _Side, weight: _Side, contracted: set[str]
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
    value: _Side,
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
    total = math.prod(size_of(factors[i]) for i in range(len(factors)))  # type: ignore[arg-type]
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
