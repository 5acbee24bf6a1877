"""Dimension types: which axes of which tensors are the same axis.

Every axis of a tensor is a product of factors, major to minor. A factor is an ``int`` (positions:
batch, pixels, anything that cannot be permuted) or a ``Leaf``, an unknown axis group. Operations
unify axes; a leaf that meets a fixed size is frozen, a leaf that is reshaped is split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from paramgraph.errors import CaptureError

__all__ = ["Axis", "Leaf", "axis_size", "regroup", "resolve", "unify"]


class Leaf:
    """One unknown axis group; equal leaves are joined (union-find), split leaves hold their parts.

    Attributes:
        name: Taken from the parameter that introduced it.
        size: Number of indices.
        frozen: Why it may not be permuted, or ``None``.
        parts: The factors it was split into, or ``None``.
        order: Count at creation; of joined leaves the oldest gives the name.
    """

    _count = itertools.count()

    def __init__(self, name: str, size: int) -> None:
        self.order = next(Leaf._count)
        self.name = name
        self.size = size
        self.frozen: str | None = None
        self.parts: tuple[Leaf | int, ...] | None = None
        self._joined: Leaf | None = None

    def root(self) -> Leaf:
        """The leaf that stands for all leaves joined with this one."""
        leaf = self
        while leaf._joined is not None:
            leaf = leaf._joined
        return leaf

    def join(self, other: Leaf) -> None:
        """Declare two leaves to be the same axis group."""
        a, b = sorted((self.root(), other.root()), key=lambda leaf: leaf.order)
        if a is not b:
            b._joined = a
            a.frozen = a.frozen or b.frozen

    def freeze(self, reason: str) -> None:
        """Forbid permutations; the first reason is kept."""
        root = self.root()
        root.frozen = root.frozen or reason

    def __repr__(self) -> str:
        return f"{self.root().name}[{self.size}]"


Axis = tuple[Leaf | int, ...]


def resolve(axis: Sequence[Leaf | int]) -> Axis:
    """The factors of an axis with joined leaves replaced by their root and split ones by parts."""
    factors: list[Leaf | int] = []
    for factor in axis:
        if isinstance(factor, int):
            if factor != 1:
                factors.append(factor)
            continue
        root = factor.root()
        factors.extend(resolve(root.parts) if root.parts is not None else (root,))
    return tuple(factors)


def axis_size(axis: Sequence[Leaf | int]) -> int:
    """Number of indices of an axis."""
    return math.prod(f if isinstance(f, int) else f.size for f in axis)


def unify(first: Sequence[Leaf | int], second: Sequence[Leaf | int], reason: str) -> None:
    """Declare two axes to be the same axis, factor by factor.

    Args:
        first: One axis.
        second: The other one, of the same total size.
        reason: Recorded where a leaf meets a fixed size and is frozen.

    Raises:
        CaptureError: The factors do not divide each other.
    """
    left, right = list(resolve(first))[::-1], list(resolve(second))[::-1]
    while left or right:
        a, b = _pop(left), _pop(right)
        size_a, size_b = _size(a), _size(b)
        if size_a == size_b:
            if isinstance(a, Leaf) and isinstance(b, Leaf):
                a.join(b)
            elif size_a > 1:
                _freeze(a, reason)
                _freeze(b, reason)
        elif size_a > size_b:
            left.extend(_rest(a, size_b, bool(right), first, second, reason))
            right.extend([b] if size_b > 1 else [])
        else:
            right.extend(_rest(b, size_a, bool(left), first, second, reason))
            left.extend([a] if size_a > 1 else [])


def _pop(factors: list[Leaf | int]) -> Leaf | int:
    """The next factor as it is now: a leaf may have been split or joined since it was listed."""
    if not factors:
        return 1
    factors.extend(resolve([factors.pop()])[::-1])
    return factors.pop() if factors else 1


def _rest(
    larger: Leaf | int, size: int, is_more: bool, first: object, second: object, reason: str
) -> list[Leaf | int]:
    """The larger of two factors, split after ``size``; next factor last."""
    if size > 1:
        return _split(larger, size, first, second, reason)[::-1]
    if not is_more:
        raise _misaligned(first, second, reason)
    return [larger]  # a single index says nothing: compare with the next factor


def regroup(
    axes: Sequence[Sequence[Leaf | int]], shape: Sequence[int], operation: str
) -> list[Axis]:
    """The axes after a reshape: factors are dealt to the new axes, leaves split where needed.

    Args:
        axes: Axes of the tensor before.
        shape: Shape after.
        operation: For the error message.

    Raises:
        CaptureError: A new axis cuts through a factor whose size it does not divide.
    """
    factors = [f for axis in axes for f in resolve(axis)][::-1]
    result: list[Axis] = []
    for size in shape:
        have: list[Leaf | int] = []
        if size == 1 and factors and isinstance(factors[-1], Leaf) and factors[-1].size == 1:
            have.append(factors.pop())  # a single neuron keeps its axis
        while axis_size(have) < size:
            if not factors:
                raise CaptureError(f"{operation} to {tuple(shape)} does not keep the size.")
            factor = factors.pop()
            if size % axis_size(have):
                raise _misaligned(tuple(have), (size,), operation)
            need = size // axis_size(have)
            if _size(factor) > need:
                head, tail = _split(factor, need, (*have, factor), tuple(shape), operation)
                factors.append(tail)
                factor = head
            have.append(factor)
        if axis_size(have) != size:
            raise _misaligned(tuple(have), (size,), operation)
        result.append(tuple(have))
    return result


def _size(factor: Leaf | int) -> int:
    return factor if isinstance(factor, int) else factor.size


def _freeze(factor: Leaf | int, reason: str) -> None:
    if isinstance(factor, Leaf):
        factor.freeze(reason)


def _split(
    factor: Leaf | int, major: int, first: object, second: object, reason: str
) -> list[Leaf | int]:
    """Split a factor into ``major`` and the rest."""
    size = _size(factor)
    if size % major:
        raise _misaligned(first, second, reason)
    if isinstance(factor, int):
        return [major, size // major]
    parts = (Leaf(f"{factor.name}.outer", major), Leaf(f"{factor.name}.inner", size // major))
    for part in parts:
        part.frozen = factor.frozen
    factor.parts = parts
    return list(parts)


def _misaligned(first: object, second: object, reason: str) -> CaptureError:
    return CaptureError(
        f"axes {first} and {second} do not line up ({reason}): one cuts through the other, so "
        "which neurons belong together is unknown. Rewrite the reshape so that whole axes are "
        "merged or split."
    )
