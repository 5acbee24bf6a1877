"""The type of a tensor: its axes, or several blocks of them along one axis.

A tensor that is later taken apart along an axis (queries, keys and values in one product) is typed
as a bundle from the start: its blocks stand side by side on that axis, and their other axes have
nothing to do with each other until an operation brings them together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paramgraph.capture.axes import Axis, Leaf, axis_size, freeze, has_leaf, resolve
from paramgraph.capture.unification import unify

__all__ = ["Axes", "Bundle", "TensorType", "collapse", "contexts", "type_shape"]

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Bundle:
    """Blocks of a tensor along one axis.

    Attributes:
        axis: Where the blocks stand side by side.
        blocks: The axes of each block.
    """

    axis: int
    blocks: tuple[Axes, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of indices of each block on the bundled axis."""
        return tuple(axis_size(block[self.axis]) for block in self.blocks)


TensorType = Axes | Bundle


def type_shape(kind: TensorType) -> tuple[int, ...]:
    """Shape of a tensor of this type."""
    if isinstance(kind, Bundle):
        shape = list(map(axis_size, kind.blocks[0]))
        shape[kind.axis] = sum(kind.sizes)
        return tuple(shape)
    return tuple(map(axis_size, kind))


def collapse(kind: TensorType, reason: str) -> Axes:
    """One list of axes for all blocks: axes other than the bundled one become equal."""
    if not isinstance(kind, Bundle):
        return kind
    first = kind.blocks[0]
    for other in kind.blocks[1:]:
        for axis, (a, b) in enumerate(zip(first, other, strict=True)):
            if axis != kind.axis:
                unify(a, b, reason)
    axes = list(first)
    axes[kind.axis] = joined([block[kind.axis] for block in kind.blocks], "joined")
    return tuple(axes)


def joined(pieces: Sequence[Axis], name: str) -> Axis:
    """The axis on which pieces follow each other."""
    pieces = [resolve(piece) for piece in pieces if axis_size(piece)]
    size = sum(map(axis_size, pieces))
    if len(pieces) == 1:
        return pieces[0]
    # Single neurons that follow each other are an axis, too.
    if not any(isinstance(f, Leaf) for piece in pieces for f in piece):
        return (size,)
    leaf = Leaf(name, size)
    leaf.bind(pieces=tuple(pieces))
    return (leaf,)


def freeze_type(kind: TensorType, reason: str) -> None:
    """Freeze all axes of a tensor."""
    for axes in kind.blocks if isinstance(kind, Bundle) else (kind,):
        for axis in axes:
            freeze(axis, reason)


def contexts(kind: TensorType) -> Iterator[Axes]:
    """The type as blocks without pieces: every choice of one piece per leaf that has them."""
    for axes in kind.blocks if isinstance(kind, Bundle) else (kind,):
        yield from itertools.product(*(list(_choices(axis)) for axis in axes))


def _choices(axis: Axis) -> Iterator[Axis]:
    factors = resolve(axis)
    for place, factor in enumerate(factors):
        if isinstance(factor, Leaf) and factor.pieces is not None:
            for piece in factor.pieces:
                yield from _choices((*factors[:place], *piece, *factors[place + 1 :]))
            return
    yield factors


def num_entries(axes: Axes) -> int:
    """Number of entries of a block."""
    return math.prod(axis_size(axis) for axis in axes)


def any_leaf(kind: TensorType) -> bool:
    """Whether any axis might be permuted."""
    blocks = kind.blocks if isinstance(kind, Bundle) else (kind,)
    return any(has_leaf(axis) for axes in blocks for axis in axes)
