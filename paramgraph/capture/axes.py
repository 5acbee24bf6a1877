"""Axis types: which axes of which tensors are the same axis.

Every axis of a tensor is a product of factors, major to minor:

| factor   | meaning                                                                        |
|----------|--------------------------------------------------------------------------------|
| ``int``  | positions: batch, pixels, anything that cannot be permuted                     |
| ``Pick`` | positions that were chosen by an index into a leaf (the experts of a token)    |
| ``Wild`` | the tensor is constant along it (expanded, or zeros): fits every other factor  |
| ``Leaf`` | an unknown axis group: free, or bound to a product of factors (``parts``) or to |
|          | pieces that follow each other (``pieces``)                                     |

Operations unify axes (``unification``). A leaf that meets positions is frozen, one that is reshaped
is split, one that is sliced is cut.
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
    "freeze",
    "has_leaf",
    "leaves",
    "resolve",
    "size_of",
    "to_positions",
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

    def __new__(cls, size: int, leaf: Leaf) -> Pick:  # noqa: D102  (as of int)
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
