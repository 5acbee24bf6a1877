"""Where the blocks of a tensor lie.

A block (see ``Groups.blocks``) is a box of entries: it starts somewhere and has one digit per
factor, each with a step along its axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from paramgraph.capture.axes import Axis, Factor, Leaf, axis_size, resolve, size_of
from paramgraph.capture.groups import Groups
from paramgraph.capture.tensor_types import Bundle, TensorType

__all__ = ["Box", "Digit", "Layout", "MisfitError", "layout_of", "row_major"]


class MisfitError(Exception):
    """Axes do not line up with what an operation does: no rescaling of these tensors is known."""


class Digit(NamedTuple):
    """One factor of a block: index ``i`` lies ``i * step`` along ``axis``."""

    axis: int
    step: int
    size: int
    factor: Factor


@dataclass(frozen=True)
class Box:
    """One block of a tensor.

    Attributes:
        start: Index of its first entry, per axis.
        digits: Its factors, in the order of ``ParameterPart.factors``.
    """

    start: tuple[int, ...]
    digits: tuple[Digit, ...]

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Which digits are neurons."""
        return tuple(i for i, d in enumerate(self.digits) if isinstance(d.factor, Leaf))

    @cached_property
    def occurrences(self) -> tuple[tuple[int, ...], ...]:
        """What a factor can be chosen for: each digit of neurons, and each pair of these."""
        leaves = [self.digits[place].factor for place in self.leaves]
        wide = [
            place
            for place, leaf in zip(self.leaves, leaves, strict=True)
            if size_of(leaf) > 1 and leaves.count(leaf) == 1
        ]
        return (*((place,) for place in self.leaves), *itertools.combinations(wide, 2))


@dataclass(eq=False)
class Layout:
    """All blocks of a tensor, in the order of ``Groups.blocks``."""

    shape: tuple[int, ...]
    boxes: list[Box]
    flat: list[tuple[int, tuple[tuple[int, int], ...]]] = field(init=False)

    def __post_init__(self) -> None:
        strides = row_major(self.shape)
        self.flat = [
            (
                sum(c * s for c, s in zip(box.start, strides, strict=True)),
                tuple((d.step * strides[d.axis], d.size) for d in box.digits),
            )
            for box in self.boxes
        ]

    @property
    def num_entries(self) -> int:
        """Number of entries of the tensor."""
        return math.prod(self.shape)

    def reshaped(self, shape: Sequence[int]) -> Layout:
        """The same boxes in another shape; raises ``MisfitError`` where an axis is cut across."""
        strides = row_major(shape)
        boxes = []
        for box, (start, flat) in zip(self.boxes, self.flat, strict=True):
            coordinates = []
            for stride, size in zip(strides, shape, strict=True):
                coordinates.append(start // stride % max(size, 1))
            digits: list[Digit] = []
            for digit, (stride, size) in zip(box.digits, flat, strict=True):
                digits += _dealt(digit.factor, stride, size, shape, strides)
            for axis, length in enumerate(shape):
                spans = [(d.size - 1) * d.step for d in digits if d.axis == axis]
                if coordinates[axis] + sum(spans) >= max(length, 1):
                    raise MisfitError
            boxes.append(Box(tuple(coordinates), tuple(digits)))
        return Layout(tuple(shape), boxes)

    def along(self, kept: Sequence[int]) -> Layout:
        """The same blocks seen along some axes only."""
        new = {axis: place for place, axis in enumerate(kept)}
        boxes = [
            Box(
                tuple(box.start[axis] for axis in kept),
                tuple(d._replace(axis=new[d.axis]) for d in box.digits if d.axis in new),
            )
            for box in self.boxes
        ]
        return Layout(tuple(self.shape[axis] for axis in kept), list(dict.fromkeys(boxes)))

    def find(self, entry: int) -> tuple[int, tuple[int, ...]] | None:
        """The box that an entry (by its number in row-major order) lies in, and its digits."""
        for number in range(len(self.boxes)):
            digits = self.inside(number, entry)
            if digits is not None:
                return number, digits
        return None

    def inside(self, number: int, entry: int) -> tuple[int, ...] | None:
        """The digits of an entry within a box; ``None`` when it lies elsewhere."""
        start, digits = self.flat[number]
        rest = entry - start
        if rest < 0:
            return None
        found = [0] * len(digits)
        for place, (stride, size) in self._descending(number):
            found[place] = rest // stride
            if found[place] >= size:
                return None
            rest -= found[place] * stride
        return tuple(found) if rest == 0 else None

    def _descending(self, number: int) -> list[tuple[int, tuple[int, int]]]:
        return sorted(enumerate(self.flat[number][1]), key=lambda item: -item[1][0])


def _dealt(
    factor: Factor, stride: int, size: int, shape: Sequence[int], strides: Sequence[int]
) -> list[Digit]:
    """A digit on the axes of a new shape; positions may lie on several of them."""
    for axis, (length, step) in enumerate(zip(shape, strides, strict=True)):
        if stride % step or stride >= step * length:
            continue
        if size * stride <= step * length:
            return [Digit(axis, stride // step, size, factor)]
        here = step * length // stride
        if isinstance(factor, Leaf) or size % here:
            raise MisfitError
        outer = _dealt(size // here, step * length, size // here, shape, strides)
        return [*outer, Digit(axis, stride // step, here, here)]
    if size == 1:
        return [Digit(0, 1, 1, factor)] if shape else []
    raise MisfitError


def row_major(shape: Sequence[int]) -> list[int]:
    """Distance between neighbours along each axis.

    Example:
        >>> row_major((2, 3, 4))
        [12, 4, 1]
    """
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def layout_of(groups: Groups, kind: TensorType, shape: Sequence[int]) -> Layout:
    """The boxes of a tensor of this type."""
    boxes = []
    begin = 0
    for axes in kind.blocks if isinstance(kind, Bundle) else (kind,):
        ways = [list(_ways(axis)) for axis in axes]
        for choice in itertools.product(*ways):
            start = [offset for offset, _ in choice]
            if isinstance(kind, Bundle):
                start[kind.axis] += begin
            digits = [
                Digit(axis, step, size_of(factor), factor)
                for axis, (_, found) in enumerate(choice)
                for step, factor in found
            ]
            boxes.append(Box(tuple(start), tuple(digits)))
        if isinstance(kind, Bundle):
            begin += axis_size(axes[kind.axis])
    return Layout(tuple(shape), boxes)


_Steps = list[tuple[int, Factor]]


def _ways(axis: Axis, stride: int = 1) -> Iterator[tuple[int, _Steps]]:
    """Every choice of pieces on an axis: where it starts, and the step of each factor."""
    factors = resolve(axis)
    ways: list[list[tuple[int, _Steps]]] = []
    for factor in reversed(factors):
        if isinstance(factor, Leaf) and factor.pieces is not None:
            here: list[tuple[int, _Steps]] = []
            begin = 0
            for piece in factor.pieces:
                here += [(begin * stride + start, steps) for start, steps in _ways(piece, stride)]
                begin += axis_size(piece)
            ways.append(here)
        else:
            ways.append([(0, [(stride, factor)])])
        stride *= size_of(factor)
    for choice in itertools.product(*reversed(ways)):
        yield sum(start for start, _ in choice), [step for _, steps in choice for step in steps]
