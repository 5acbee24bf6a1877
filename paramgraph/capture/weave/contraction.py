"""Matrix products and convolutions: blocks of parameters, or products of activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paramgraph.capture.axes import size_of
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.factors import product
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.operands import Operand, is_owned
from paramgraph.capture.weave.parameters import forgotten
from paramgraph.capture.weave.reading import as_hidden
from paramgraph.capture.weave.records import (
    Constant,
    Hidden,
    Input,
    Param,
    Reduced,
    Strand,
    identity,
)
from paramgraph.capture.weave.sums import add, add_bias
from paramgraph.capture.weave.weights import (
    Side,
    contracted_leaves,
    grouped_axis,
    groups_of,
    weighted,
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
            more = "uvwxyzcdefhlmopqrst"[: len(a.shape) - 2]
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
    strands: list[Strand] = []
    for block, strand in enumerate(loom.strands[ref.number]):
        number = 0
        if len(others) > 1 and (probes := parts.probes(block)):
            probe = probes[0]
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
) -> list[Side]:
    ref, letters = operand
    sides = []
    for block in blocks:
        axes = loom.partition(ref).axes[block]
        names = []
        for place, (axis, letter) in enumerate(zip(axes, letters, strict=True)):
            here = [letter] * len(axis)
            # The first factors of channels and kernels number the groups.
            if place == grouped_axis(entry, kernel=kernel):
                wanted, have = len(groups_of(loom, entry, ref, block, place)), 1
                for i, factor in enumerate(axis):
                    if have < wanted:
                        have *= size_of(factor)
                        here[i] = "g"
            names.append(tuple(here))
        sides.append(Side(ref, block, loom.strand(ref, block), axes, tuple(letters), tuple(names)))
    return sides


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

    def found(operand: tuple[TensorRef, str], *, kernel: bool) -> list[Side]:
        ref, letters = operand
        spots = [place.get(letter) if letter.islower() else None for letter in letters]
        axis = grouped_axis(entry, kernel=kernel)
        if axis is None:
            blocks = loom.partition(ref).find(spots)
            return _sides(loom, entry, operand, blocks, kernel=kernel)
        spots = [None] * len(spots)
        if kernel and place:  # an empty tensor has no place
            is_whole = not entry.args["transposed"]  # the kernel's own output channels
            spots[1 - is_whole] = place["j"] if is_whole else place["j"] % ref.shape[1]
        groups = groups_of(loom, entry, *site, 1)
        blocks = loom.partition(ref).find(spots)
        blocks = [block for block in blocks if groups & groups_of(loom, entry, ref, block, axis)]
        return _sides(loom, entry, operand, blocks, kernel=kernel)

    ours, theirs = found(left, kernel=False), found(right, kernel=True)
    pairs = [(a, b) for a in ours for b in theirs if _meet(loom, a, b)]
    result: Strand | None = None
    for a, b in pairs:
        result = _pair(loom, entry, site, a, b, result)
    return result if result is not None else Constant()


def _meet(loom: Loom, a: Side, b: Side) -> bool:
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
    a: Side,
    b: Side,
    before: Strand | None,
) -> Strand:
    """The product of two blocks, added to what other blocks gave."""
    one, two = a.strand, b.strand
    if isinstance(one, Param) and isinstance(two, Param):
        if one.is_spread and not two.is_spread:
            one = as_hidden(loom, one, contracted_leaves(loom, a), entry)
        elif two.is_spread and not one.is_spread:
            two = as_hidden(loom, two, contracted_leaves(loom, b), entry)
        else:
            pieces = {(p.parameter, p.part): p for p in (*one.pieces, *two.pieces)}
            if isinstance(before, Param):
                pieces |= {(p.parameter, p.part): p for p in before.pieces}
            return forgotten(Param(tuple(pieces.values())))
    if isinstance(two, Param) and not isinstance(one, Param):
        if not (isinstance(one, Constant) and isinstance(before, Hidden)):
            return weighted(
                loom, entry, site, replace(a, strand=one), replace(b, strand=two), before
            )
    if isinstance(one, Param) and not isinstance(two, Param):
        return weighted(loom, entry, site, replace(b, strand=two), replace(a, strand=one), before)
    for value, other, side in ((one, two, a), (two, one, b)):
        if isinstance(other, Constant | Input) and isinstance(value, Hidden | Reduced):
            if isinstance(value, Hidden) and _keeps(loom, value, site):
                return replace(value, owned=False, site=(site[0].number, site[1]))
            del side
    if isinstance(one, Constant | Input) and isinstance(two, Constant | Input):
        is_data = isinstance(one, Input) or isinstance(two, Input)
        return Input(site[0].number, site[0].shape) if is_data else Constant()
    return _mixture(loom, entry, site, one, two, before)


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
