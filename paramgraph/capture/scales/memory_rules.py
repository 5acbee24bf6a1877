"""Scale rule for tensors that changed because memory that they share was written.

Which of their entries were overwritten follows from where both lie in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paramgraph.capture.axis_rules.registry import operand, output
from paramgraph.capture.scales.boxes import row_major
from paramgraph.capture.scales.flow import Flow, Values
from paramgraph.capture.scales.registry import SCALE_RULES
from paramgraph.capture.scales.system import Expression
from paramgraph.capture.tape import ALIASED, TapeEntry, TensorRef

__all__: list[str] = []

_LARGEST_COMPARED = 1_000_000  # entries; larger tensors are taken to overlap


@dataclass(frozen=True)
class _Window:
    """Where the entries of a tensor lie in memory."""

    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @classmethod
    def of(cls, flow: Flow, ref: TensorRef) -> _Window:
        return cls(ref.shape, *flow.run.tape.windows[ref.number])

    def addresses(self) -> torch.Tensor:
        """Address of every entry."""
        result = torch.tensor([self.offset])
        for size, stride in zip(self.shape, self.strides, strict=True):
            result = (result[:, None] + stride * torch.arange(size, device="cpu")).reshape(-1)
        return result

    def index(self, address: int) -> int | None:
        """The entry, in row-major order, that lies at an address."""
        rest, found = address - self.offset, 0
        axes = sorted(
            zip(self.strides, self.shape, row_major(self.shape), strict=True), reverse=True
        )
        for stride, size, step in axes:
            if size == 1:
                continue
            here = rest // stride if stride else size
            if not 0 <= here < size:
                return None
            rest -= here * stride
            found += here * step
        return found if rest == 0 else None

    def steps(self, other: _Window) -> tuple[list[int], int] | None:
        """How the entries of another window stand in this one: their steps, and the first one."""
        start = self.index(other.offset)
        if start is None:
            return None
        steps = []
        last = other.offset
        for size, stride in zip(other.shape, other.strides, strict=True):
            following = self.index(other.offset + stride)
            if size > 1 and following is None:
                return None
            steps.append(0 if size == 1 or following is None else following - start)
            last += (size - 1) * stride
        # Linear from the first to the last entry, or not a window of this one.
        reached = start + sum((n - 1) * s for n, s in zip(other.shape, steps, strict=True))
        return (steps, start) if self.index(last) == reached else None


def _aliased(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Old and new entries of a block scale alike."""
    ref, source, out = operand(entry, "self"), operand(entry, "source"), output(entry)
    old, new = _Window.of(flow, out), _Window.of(flow, source)
    layout = flow.layout(out)
    same = flow.onto(flow.of(ref), layout)
    is_readable = flow.run.tape.dtypes[out.number] == flow.run.tape.dtypes[source.number]
    if is_readable and _are_apart(old, new):
        return [same]
    if is_readable and (whole := new.steps(old)) is not None:
        return [flow.read(flow.of(source), layout, *whole)]
    if is_readable and (part := old.steps(new)) is not None:
        return [flow.equal(same, flow.write(flow.of(source), layout, *part))]
    return [_by_name(flow, source, out, same)]


def _are_apart(first: _Window, second: _Window) -> bool:
    if max(map(_num_entries, (first, second))) > _LARGEST_COMPARED:
        return False
    return not bool(torch.isin(first.addresses(), second.addresses()).any())


def _num_entries(window: _Window) -> int:
    return torch.Size(window.shape).numel()


def _by_name(flow: Flow, source: TensorRef, out: TensorRef, found: Values) -> Values:
    """Each block takes what it has in common with any new entries."""
    layout, new = flow.layout(out), flow.of(source)
    for box, block in zip(new.layout.boxes, new.values, strict=True):
        if block is None:
            continue
        written: Values = []
        used: set[int] = set()
        for target in layout.boxes:
            mine: list[Expression] = [block[0]]
            for place in target.leaves:
                leaf = target.digits[place].factor
                same = [k for k, p in enumerate(box.leaves) if box.digits[p].factor is leaf]
                mine.append(block[1 + same[0]] if len(same) == 1 else {})
                used.update(same if len(same) == 1 else ())
            written.append(mine)
        for occurrence in set(range(len(box.leaves))) - used:
            flow.system.demand_none(block[1 + occurrence])
        found = flow.equal(found, written)
    return found


SCALE_RULES[ALIASED] = _aliased
