"""How every tensor of a run scales, block by block, while the operations are read in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from paramgraph.capture.axes import Leaf
from paramgraph.capture.axis_rules.registry import operand
from paramgraph.capture.inference import Inference
from paramgraph.capture.scales.boxes import (
    Layout,
    MisfitError,
    row_major,
)
from paramgraph.capture.scales.geometry import Geometry
from paramgraph.capture.scales.system import Expression, Number, System
from paramgraph.capture.tape import FACTORIES, TapeEntry, TensorRef

__all__ = ["Flow", "Scaled", "Values", "is_factory"]

Values = list[list[Expression] | None]
"""For each block of a tensor how it scales as a whole and along each of its occurrences (see
``Box.occurrences``); ``None`` for a block of zeros, which scales in every way."""

_LARGEST_CONSTANT = 10_000_000  # entries; a larger one is taken not to be zero
_EMPTY = {f"aten.{n}" for n in ("empty", "empty_like", "new_empty", "empty_strided")}


@dataclass
class Scaled:
    """A tensor with how it scales."""

    layout: Layout
    values: Values


@dataclass
class Flow:
    """One reading of the tape, for positive factors or for signs.

    Attributes:
        geometry: Where blocks lie.
        system: The equations.
        depends_on: The leaves that a leaf depends on: its factors may differ along these, too.
        values: How each tensor scales, by its number.
        phases: Unknowns of sines whose sign follows from a shift: by tensor and block, the
            occurrence and its unknown (see ``phases``).
    """

    geometry: Geometry
    system: System
    depends_on: Callable[[Leaf], tuple[Leaf, ...]]
    values: dict[int, Values] = field(default_factory=dict)
    phases: dict[tuple[int, int], list[tuple[int, Expression]]] = field(default_factory=dict)

    @property
    def is_sign(self) -> bool:
        """Whether signs are asked for."""
        return self.system.is_sign

    @property
    def run(self) -> Inference:
        """The types of the run."""
        return self.geometry.run

    def layout(self, ref: TensorRef) -> Layout:
        """The blocks of a tensor."""
        return self.geometry.layout(ref)

    def of(self, ref: TensorRef) -> Scaled:
        """A tensor with how it scales; constants do not."""
        layout = self.layout(ref)
        known = self.values.get(ref.number)
        if known is None:
            known = [None] * len(layout.boxes) if self._is_zero(ref) else self.none(layout)
            self.values[ref.number] = known
        return Scaled(layout, known)

    def argument(self, entry: TapeEntry, *names: str) -> Scaled:
        """An argument of an operation."""
        return self.of(operand(entry, *names))

    def _is_zero(self, ref: TensorRef) -> bool:
        """Whether a constant is all zeros, in every network."""
        run = self.run
        if ref.number not in run.constants or ref.number in run.stored:
            return False
        if any(ref.number == stored.number for stored in run.tape.parameters.values()):
            return False
        return _all_zero(run.tape.tensors.get(ref.number))

    def factory(self, entry: TapeEntry, ref: TensorRef) -> None:
        """A constant that is written later: zeros, and memory that holds nothing yet, fit all."""
        layout = self.layout(ref)
        name = entry.operation
        is_free = name in _EMPTY or "zeros" in name
        is_free = is_free or _all_zero(self.run.tape.tensors.get(ref.number))
        self.values[ref.number] = [None] * len(layout.boxes) if is_free else self.none(layout)

    def none(self, layout: Layout) -> Values:
        """Nothing scales."""
        return [[{} for _ in range(1 + len(box.occurrences))] for box in layout.boxes]

    def read(
        self,
        source: Scaled,
        layout: Layout,
        strides: Sequence[int],
        offset: int = 0,
        *,
        unread: Collection[int] = (),
    ) -> Values:
        """How a tensor scales that takes its entries from another one.

        Entry ``i`` of the new tensor is entry ``offset + sum(i * strides)`` of the source. What
        the source lacks does not scale, nor does what is lost; blocks that are ``unread`` are zero.
        """
        found: Values = [None] * len(layout.boxes)
        for meeting in self.geometry.meetings(layout, source.layout, strides, offset):
            theirs = source.values[meeting.whole]
            if theirs is None or meeting.view in unread:
                continue
            for occurrence in meeting.whole_only:
                self.system.demand_none(theirs[1 + occurrence])
            box = layout.boxes[meeting.view]
            mine: list[Expression] = [{} for _ in range(1 + len(box.occurrences))]
            mine[0] = theirs[0]
            for a, b in meeting.pairs:
                mine[1 + a] = theirs[1 + b]
            found[meeting.view] = self._same(found[meeting.view], mine)
        return found

    def products(self, layout: Layout, *factors: tuple[Scaled, Sequence[int]]) -> Values:
        """How the products of entries of several tensors scale, each read with its strides.

        What is multiplied with zeros does not count.
        """
        zeros = {
            meeting.view
            for source, strides in factors
            for meeting in self.geometry.meetings(layout, source.layout, strides, 0)
            if source.values[meeting.whole] is None
        }
        values = [self.read(source, layout, steps, unread=zeros) for source, steps in factors]
        return functools.reduce(self.product, values)

    def write(
        self, source: Scaled, layout: Layout, strides: Sequence[int], offset: int = 0
    ) -> Values:
        """How a tensor scales to which all entries of another one are written or added.

        Entry ``i`` of the source goes to entry ``offset + sum(i * strides)`` of the new tensor.
        Blocks that get nothing are zero.
        """
        found: Values = [None] * len(layout.boxes)
        for meeting in self.geometry.meetings(source.layout, layout, strides, offset):
            mine = source.values[meeting.view]
            if mine is None:
                continue
            for occurrence in meeting.view_only:
                self.system.demand_none(mine[1 + occurrence])
            box = layout.boxes[meeting.whole]
            theirs: list[Expression] = [{} for _ in range(1 + len(box.occurrences))]
            theirs[0] = mine[0]
            for a, b in meeting.pairs:
                theirs[1 + b] = mine[1 + a]
            found[meeting.whole] = self._same(found[meeting.whole], theirs)
        return found

    def onto(self, source: Scaled, layout: Layout) -> Values:
        """A tensor, broadcast to the shape of another one."""
        shape, target = source.layout.shape, layout.shape
        if len(shape) > len(target):
            raise MisfitError
        strides = [
            0 if size == 1 else stride for size, stride in zip(shape, row_major(shape), strict=True)
        ]
        return self.read(source, layout, [0] * (len(target) - len(shape)) + strides)

    def _same(
        self, first: list[Expression] | None, second: list[Expression] | None
    ) -> list[Expression] | None:
        """Two ways in which one block scales are one and the same."""
        if first is None or second is None:
            return second if first is None else first
        for a, b in zip(first, second, strict=True):
            if a is not b:
                self.system.demand_none(self.system.plus(a, b, -1))
        return first

    def equal(self, *several: Values) -> Values:
        """Terms of a sum scale alike; zeros do not count.

        Raises:
            MisfitError: There are no terms, because all tensors are empty.
        """
        if not several:
            raise MisfitError
        result = list(several[0])
        for values in several[1:]:
            result = [self._same(a, b) for a, b in zip(result, values, strict=True)]
        return result

    def product(self, first: Values, second: Values, times: Number = 1) -> Values:
        """Factors of a product scale one by one; ``times=-1`` divides by the second one."""
        plus = self.system.plus
        return [
            None
            if a is None or b is None
            else [plus(x, y, times) for x, y in zip(a, b, strict=True)]
            for a, b in zip(first, second, strict=True)
        ]

    def power(self, values: Values, exponent: Number) -> Values:
        """A power of a tensor."""
        plus = self.system.plus
        return [v and [plus({}, x, exponent) for x in v] for v in values]

    def forbid(self, values: Values) -> None:
        """Nothing of a tensor may scale."""
        for block in values:
            for expression in block or ():
                self.system.demand_none(expression)

    def alike(self, scaled: Scaled, axes: set[int]) -> None:
        """All entries along some axes must scale alike, as for a sum over these."""
        shape = scaled.layout.shape
        kept = [axis for axis in range(len(shape)) if axis not in axes]
        steps = dict(zip(kept, row_major([shape[axis] for axis in kept]), strict=True))
        key = ("along", scaled.layout, tuple(kept))
        layout = self.geometry.made(key, lambda: scaled.layout.along(kept))
        self.write(scaled, layout, [steps.get(axis, 0) for axis in range(len(shape))])
        for box, block in zip(scaled.layout.boxes, scaled.values, strict=True):
            lost = [d.factor for d in box.digits if d.axis in axes]
            for places, expression in zip(box.occurrences, (block or [])[1:], strict=False):
                leaves = [f for p in places if isinstance(f := box.digits[p].factor, Leaf)]
                if any(other in lost for leaf in leaves for other in self.depends_on(leaf)):
                    self.system.demand_none(expression)


def is_factory(entry: TapeEntry) -> bool:
    """Whether an operation makes a tensor from nothing."""
    return entry.operation.removeprefix("aten.") in FACTORIES


def _all_zero(tensor: torch.Tensor | None) -> bool:
    if tensor is None or tensor.is_meta or not 0 < tensor.numel() <= _LARGEST_CONSTANT:
        return False
    return not bool(tensor.count_nonzero())
