"""Axis types: which axes of which tensors are the same axis.

Every axis of a tensor is a product of factors, major to minor:

| factor   | meaning                                                                        |
|----------|--------------------------------------------------------------------------------|
| ``int``  | positions: batch, pixels, anything that cannot be permuted                     |
| ``Pick`` | positions that were chosen by an index into a leaf (the experts of a token)    |
| ``Wild`` | the tensor is constant along it (expanded, or zeros): fits every other factor  |
| ``Leaf`` | an unknown axis group: free, or bound to a product of factors (``parts``) or to |
|          | pieces that follow each other (``pieces``)                                     |

Operations unify axes. A leaf that meets positions is frozen, one that is reshaped is split, one
that is sliced is cut. Nothing here raises: what does not line up is frozen, which is always valid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

__all__ = [
    "Axis",
    "Factor",
    "Leaf",
    "Pick",
    "Wild",
    "axis_size",
    "cut",
    "freeze",
    "has_leaf",
    "leaves",
    "merged",
    "regroup",
    "resolve",
    "size_of",
    "split_rows",
    "to_positions",
    "unify",
]


class Leaf:
    """One unknown axis group; equal leaves are joined (union-find).

    Attributes:
        name: Taken from the parameter that introduced it.
        size: Number of indices.
        frozen: Why it may not be permuted, or ``None``.
        parts: The factors that it was split into, or ``None``.
        pieces: The axes that follow each other in it, or ``None``.
        order: Count at creation; of joined leaves the oldest gives the name.
        site: The reshape that made it as a major factor, with the axis there: a cut of it is
            better made in that reshape, because what stands under it may differ per piece.
    """

    _count = itertools.count()

    def __init__(self, name: str, size: int) -> None:
        self.order = next(Leaf._count)
        self.name = name
        self.size = size
        self.frozen: str | None = None
        self.parts: Axis | None = None
        self.pieces: tuple[Axis, ...] | None = None
        self.site: tuple[object, int] | None = None
        self._joined: Leaf | None = None

    def root(self) -> Leaf:
        """The leaf that stands for all leaves joined with this one."""
        leaf = self
        while leaf._joined is not None:
            leaf = leaf._joined
        while self is not leaf:
            self._joined, self = leaf, self._joined or leaf
        return leaf

    def join(self, other: Leaf) -> None:
        """Declare two unbound leaves, or an unbound and a bound one, to be the same."""
        a, b = sorted((self.root(), other.root()), key=lambda leaf: leaf.order)
        if a is b:
            return
        if b.parts is not None or b.pieces is not None:
            b.name, b.order = a.name, a.order
            a, b = b, a
        b._joined = a
        a.site = a.site or b.site
        if reason := a.frozen or b.frozen:
            a.freeze(reason)

    def freeze(self, reason: str) -> None:
        """Forbid permutations, of parts and pieces too; the first reason is kept."""
        root = self.root()
        if root.frozen is None:
            root.frozen = reason
            for axis in (*(root.pieces or ()), root.parts or ()):
                freeze(axis, reason)

    def bind(self, *, parts: Axis | None = None, pieces: tuple[Axis, ...] | None = None) -> None:
        """Say what an unbound leaf consists of."""
        self.parts, self.pieces = parts, pieces
        if self.frozen:
            for axis in (*(pieces or ()), parts or ()):
                freeze(axis, self.frozen)

    def __repr__(self) -> str:
        return f"{self.root().name}[{self.size}]"


class Wild:
    """Positions along which a tensor is constant."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"wild[{self.size}]"


class Pick(int):
    """Positions whose entries belong to chosen indices of ``leaf``.

    A group may depend on ``leaf`` although only the choice, not the leaf, is an axis of a tensor.
    """

    leaf: Leaf

    def __new__(cls, size: int, leaf: Leaf) -> Pick:
        pick = super().__new__(cls, size)
        pick.leaf = leaf
        return pick


Factor = Leaf | Wild | int
Axis = tuple[Factor, ...]


def resolve(axis: Sequence[Factor]) -> Axis:
    """The factors of an axis as known now: roots of joined leaves, parts of split ones."""
    factors: list[Factor] = []
    chosen: list[Leaf] = []
    for factor in axis:
        if isinstance(factor, Pick) and factor == 1:
            # A single choice stands in front; that it was made twice says no more.
            if factor.leaf.root() not in chosen:
                chosen.append(factor.leaf.root())
        elif isinstance(factor, int):
            if factor != 1:
                factors.append(factor)
        elif isinstance(factor, Wild):
            if factor.size != 1:
                factors.append(factor)
        else:
            root = factor.root()
            factors.extend(resolve(root.parts) if root.parts is not None else (root,))
    return (*(Pick(1, leaf) for leaf in chosen), *factors)


def leaves(axis: Sequence[Factor]) -> Iterator[Leaf]:
    """All unbound leaves in an axis, those inside pieces too."""
    for factor in resolve(axis):
        if isinstance(factor, Leaf):
            if factor.pieces is None:
                yield factor
            else:
                for piece in factor.pieces:
                    yield from leaves(piece)


def has_leaf(axis: Sequence[Factor]) -> bool:
    """Whether an axis has a factor of two or more indices that might be permuted."""
    return any(leaf.size > 1 for leaf in leaves(axis))


def freeze(axis: Sequence[Factor], reason: str) -> None:
    """Forbid permutations of an axis."""
    for factor in resolve(axis):
        if isinstance(factor, Leaf):
            factor.freeze(reason)


def to_positions(axis: Sequence[Factor], reason: str) -> None:
    """Declare an axis to be positions: kernel elements, pixels."""
    for factor in resolve(axis):
        if isinstance(factor, Leaf):
            if factor.pieces is None:
                factor.frozen = factor.frozen or reason
                factor.bind(parts=(factor.size,))
            else:
                factor.freeze(reason)


def size_of(factor: Factor) -> int:
    """Number of indices of a factor."""
    return factor if isinstance(factor, int) else factor.size


def axis_size(axis: Sequence[Factor]) -> int:
    """Number of indices of an axis."""
    return math.prod(size_of(factor) for factor in axis)


def unify(first: Sequence[Factor], second: Sequence[Factor], reason: str) -> None:
    """Declare two axes of one size to be the same axis, factor by factor.

    What does not line up is frozen, for the given reason.
    """
    left, right = list(resolve(first))[::-1], list(resolve(second))[::-1]
    while left or right:
        a, b = _pop(left), _pop(right)
        size_a, size_b = size_of(a), size_of(b)
        if size_a == size_b:
            _equate(a, b, reason)
            continue
        if size_a < size_b:
            left, right, a, b, size_a, size_b = right, left, b, a, size_b, size_a
        # a is the larger one
        if size_b == 1:
            left.append(a)
            if not right:
                return freeze([*left, *right], reason)
            continue
        parts = _divided(a, size_b)
        if parts is None:
            return freeze([a, b, *left, *right], reason)
        left.extend(parts[::-1])
        right.append(b)
    return None


def merged(first: Sequence[Factor], second: Sequence[Factor], reason: str) -> Axis:
    """Unify two axes; of every factor the one that says more: a leaf, positions, a constant."""
    unify(first, second, reason)
    left, right = list(resolve(first))[::-1], list(resolve(second))[::-1]
    result: list[Factor] = []
    while left and right:
        a, b = left.pop(), right.pop()
        size_a, size_b = size_of(a), size_of(b)
        if size_a == 1 or size_b == 1:
            result.extend(f for f, s in ((a, size_a), (b, size_b)) if s == 1)
            left.extend([a] if size_a != 1 else [])
            right.extend([b] if size_b != 1 else [])
        elif size_a == size_b:
            result.append(max((a, b), key=_says))
        else:
            larger, smaller, rest = (a, b, left) if size_a > size_b else (b, a, right)
            parts = _divided(larger, size_of(smaller)) if not isinstance(larger, Leaf) else None
            if parts is None:
                break  # what does not line up is frozen, so either axis will do
            rest.append(parts[1])
            result.append(max((parts[0], smaller), key=_says))
            continue
    else:
        return (*result, *left[::-1], *right[::-1])
    return max((resolve(first), resolve(second)), key=lambda axis: max(map(_says, axis)))


def _says(factor: Factor) -> int:
    if isinstance(factor, Leaf):
        return 3
    return 0 if isinstance(factor, Wild) else 2 if isinstance(factor, Pick) else 1


def _pop(factors: list[Factor]) -> Factor:
    """The next factor as it is now: a leaf may have been split or joined since it was listed."""
    while factors:
        factors.extend(resolve([factors.pop()])[::-1])
        if factors:
            return factors.pop()
    return 1


def _equate(a: Factor, b: Factor, reason: str) -> None:
    """Two factors of one size are the same."""
    if isinstance(a, Wild) or isinstance(b, Wild):
        return
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        if a is not b and a.pieces is not None and b.pieces is not None:
            _equate_pieces(a, b, reason)
        else:
            a.join(b)
    elif size_of(a) > 1:
        freeze((a, b), reason)


def _equate_pieces(a: Leaf, b: Leaf, reason: str) -> None:
    """Two leaves with pieces: cut both where either is cut, then equate piece by piece."""
    assert a.pieces is not None and b.pieces is not None
    ends = sorted({*_ends(a.pieces), *_ends(b.pieces)})[:-1]
    left, right = cut((a,), ends), cut((b,), ends)
    if left is None or right is None:
        return freeze((a, b), reason)
    for one, other in zip(left, right, strict=True):
        unify(one, other, reason)
    return None


def _ends(pieces: Sequence[Axis]) -> list[int]:
    return list(itertools.accumulate(axis_size(piece) for piece in pieces))


def _divided(factor: Factor, major: int) -> list[Factor] | None:
    """A factor as ``major`` times the rest; ``None`` where that cuts through something."""
    size = size_of(factor)
    if size % major:
        return None
    minor = size // major
    if isinstance(factor, int):
        return [major, minor]
    if isinstance(factor, Wild):
        return [Wild(major), Wild(minor)]
    if factor.pieces is None:
        parts: list[Factor] = [
            Leaf(f"{factor.name}.outer", major),
            Leaf(f"{factor.name}.inner", minor),
        ]
        factor.bind(parts=tuple(parts))
        return parts
    if any(axis_size(piece) % minor for piece in factor.pieces):
        return None
    # Pieces of whole rows: the rows are cut, what stands in a row is the same in all pieces.
    pieces, inner = factor.pieces, Leaf(f"{factor.name}.inner", minor)
    outer = Leaf(f"{factor.name}.outer", major)
    rows = tuple((Leaf(f"{outer.name}.{i}", axis_size(p) // minor),) for i, p in enumerate(pieces))
    for piece, row in zip(pieces, rows, strict=True):
        unify(piece, (*row, inner), "pieces that are reshaped together")
    outer.bind(pieces=rows)
    factor.pieces = None
    factor.bind(parts=(outer, inner))
    return [outer, inner]


def cut(axis: Sequence[Factor], ends: Sequence[int]) -> list[Axis] | None:
    """Cut an axis at indices.

    Args:
        axis: Any axis.
        ends: Where to cut, ascending, without 0 and the size.

    Returns:
        The pieces, or ``None`` when a cut would go through rows.
    """
    factors = resolve(axis)
    if not ends:
        return [factors]
    chosen = tuple(f for f in factors if isinstance(f, Pick) and f == 1)
    factors = factors[len(chosen) :]
    if not factors:
        return None
    if chosen:
        pieces = cut(factors, ends)
        return None if pieces is None else [(*chosen, *piece) for piece in pieces]
    first, rest = factors[0], factors[1:]
    row = axis_size(rest)
    if any(end % row for end in ends):
        return None
    sizes = [b - a for a, b in itertools.pairwise([0, *(e // row for e in ends), size_of(first)])]
    if isinstance(first, Wild):
        return [(Wild(size), *rest) for size in sizes]
    if isinstance(first, int):
        return [(size, *rest) for size in sizes]
    if first.pieces is None:
        first.bind(pieces=tuple((Leaf(f"{first.name}.{i}", s),) for i, s in enumerate(sizes)))
    elif not _refine(first, list(itertools.accumulate(sizes))):
        return None
    return [(*piece, *rest) for piece in _grouped(first, sizes)]


def _refine(leaf: Leaf, ends: Sequence[int]) -> bool:
    """Cut the pieces of a leaf further, so that all ``ends`` are ends of pieces."""
    assert leaf.pieces is not None
    pieces: list[Axis] = []
    start = 0
    for piece in leaf.pieces:
        size = axis_size(piece)
        inside = [end - start for end in ends if start < end < start + size]
        smaller = cut(piece, inside)
        if smaller is None:
            return False
        pieces.extend(smaller)
        start += size
    leaf.pieces = tuple(pieces)
    return True


def _grouped(leaf: Leaf, sizes: Sequence[int]) -> list[Axis]:
    """The pieces of a leaf, put together to the given sizes."""
    assert leaf.pieces is not None
    waiting = list(leaf.pieces)
    result: list[Axis] = []
    for size in sizes:
        have = [waiting.pop(0)]
        while sum(map(axis_size, have)) < size:
            have.append(waiting.pop(0))
        if len(have) == 1:
            result.append(have[0])
        else:
            together = Leaf(f"{leaf.name}.part", size)
            together.frozen = None
            together.bind(pieces=tuple(have))
            result.append((together,))
    return result


def split_rows(axis: Sequence[Factor], row: int) -> list[tuple[Axis, Axis]] | None:
    """An axis as rows of ``row`` indices; of a leaf with pieces, each piece by itself.

    Returns:
        Which rows, and what stands in them, for each piece; ``None`` where pieces share a row.
    """
    factors = resolve(axis)
    if len(factors) == 1 and isinstance(factors[0], Leaf) and factors[0].pieces is not None:
        pieces = factors[0].pieces
        if any(axis_size(piece) % row for piece in pieces):
            return None
        found = [split_rows(piece, row) for piece in pieces]
        return None if None in found else [pair for pairs in found for pair in pairs or ()]
    halves = regroup([axis], (axis_size(axis) // row, row), None)
    return None if halves is None else [(halves[0], halves[1])]


def regroup(
    axes: Sequence[Sequence[Factor]], shape: Sequence[int], site: object
) -> list[Axis] | None:
    """The axes after a reshape: factors are dealt to the new axes, leaves split where needed.

    Args:
        axes: Axes of the tensor before.
        shape: Shape after.
        site: What reshapes; noted on leaves that become major factors.

    Returns:
        One axis per entry of ``shape``, or ``None`` when an axis cuts through a factor.
    """
    factors = [f for axis in axes for f in resolve(axis)][::-1]
    result: list[Axis] = []
    for place, size in enumerate(shape):
        have: list[Factor] = []
        if size == 1 and factors and isinstance(factors[-1], Leaf) and factors[-1].size == 1:
            have.append(factors.pop())  # a single neuron keeps its axis
        while axis_size(have) < size or (factors and size_of(factors[-1]) == 1 and size != 1):
            if not factors:
                return None
            factor = _pop(factors)
            if size_of(factor) == 1 and not isinstance(factor, Pick):
                continue
            if size % axis_size(have):
                return None
            need = size // axis_size(have)
            if size_of(factor) > need:
                parts = _divided(factor, need)
                if parts is None:
                    return None
                if isinstance(parts[0], Leaf):
                    parts[0].site = (site, place)
                factors.append(parts[1])
                factor = parts[0]
            have.append(factor)
        if axis_size(have) != size:
            return None
        result.append(tuple(have))
    while factors:  # nothing but single indices can be left
        factor = factors.pop()
        if size_of(factor) != 1:
            return None
        if result and isinstance(factor, Leaf | Pick) and not result[-1]:
            result[-1] = (factor,)
    return result
