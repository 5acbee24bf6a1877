"""Saying that two axes are the same, and cutting an axis into pieces.

Nothing here raises: what does not line up is frozen, which is always valid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from paramgraph.capture.axes import (
    Axis,
    Factor,
    Leaf,
    Pick,
    Wild,
    axis_size,
    freeze,
    resolve,
    size_of,
)

__all__ = ["cut", "divided", "merged", "pop", "unify"]


def unify(first: Sequence[Factor], second: Sequence[Factor], reason: str) -> None:
    """Declare two axes of one size to be the same axis, factor by factor.

    What does not line up is frozen, for the given reason.
    """
    if not axis_size(first) or not axis_size(second):
        return None  # no entries, so no order of them
    left, right = list(resolve(first))[::-1], list(resolve(second))[::-1]
    while left or right:
        a, b = pop(left), pop(right)
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
                return freeze([*left, *right], f"cut across by {reason}")
            continue
        parts = divided(a, size_b)
        if parts is None:
            return freeze([a, b, *left, *right], f"cut across by {reason}")
        left.extend(parts[::-1])
        right.append(b)
    return None


def merged(first: Sequence[Factor], second: Sequence[Factor], reason: str) -> Axis:
    """Unify two axes; of every factor the one that says more: a leaf, positions, a constant."""
    if not axis_size(first) or not axis_size(second):
        return resolve(first)
    unify(first, second, reason)
    left, right = list(resolve(first))[::-1], list(resolve(second))[::-1]
    result: list[Factor] = []
    while left and right:
        a, b = left.pop(), right.pop()
        size_a, size_b = size_of(a), size_of(b)
        if size_a == size_b == 1:
            result.append(max((a, b), key=_says))
        elif size_a == 1 or size_b == 1:
            result.extend(f for f, s in ((a, size_a), (b, size_b)) if s == 1)
            left.extend([a] if size_a != 1 else [])
            right.extend([b] if size_b != 1 else [])
        elif size_a == size_b:
            result.append(max((a, b), key=_says))
        else:
            larger, smaller, rest = (a, b, left) if size_a > size_b else (b, a, right)
            parts = divided(larger, size_of(smaller)) if not isinstance(larger, Leaf) else None
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


def pop(factors: list[Factor]) -> Factor:
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
        freeze((a, b), f"meets inputs or positions in {reason}")


def _equate_pieces(a: Leaf, b: Leaf, reason: str) -> None:
    """Two leaves with pieces: cut both where either is cut, then equate piece by piece."""
    assert a.pieces is not None
    assert b.pieces is not None
    ends = sorted({*_ends(a.pieces), *_ends(b.pieces)})[:-1]
    left, right = cut((a,), ends), cut((b,), ends)
    if left is None or right is None:
        return freeze((a, b), f"cut across by {reason}")
    for one, other in zip(left, right, strict=True):
        unify(one, other, reason)
    return None


def _ends(pieces: Sequence[Axis]) -> list[int]:
    return list(itertools.accumulate(axis_size(piece) for piece in pieces))


def divided(factor: Factor, major: int) -> list[Factor] | None:
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
