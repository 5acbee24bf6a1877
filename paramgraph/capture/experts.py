"""Experts that are modules of their own: a choice picks the module, so their parameters are rows.

When the number that a router's choice holds is read, and then parameters are used that no other
choice uses, these parameters belong to that choice. Where all choices have matching lists of them,
the i-th parameters of all choices are the rows of one stacked tensor, and the axis along which they
are stacked is the one that the router chooses from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paramgraph.capture.axes import Axis, Leaf, Pick, freeze
from paramgraph.capture.liveness import Reading
from paramgraph.capture.tape import Tape, TapeEntry, entry_refs

__all__ = ["Stack", "find_stacks"]


@dataclass(frozen=True)
class Stack:
    """Parameters of one shape that stand side by side.

    Attributes:
        members: Their names, in order of the choices.
        shape: Shape of each.
        leaf: The axis along which they are stacked.
        axes: Their axes.
        position: Of the first reading that chose between them.
    """

    members: tuple[str, ...]
    shape: tuple[int, ...]
    leaf: Leaf
    axes: tuple[Axis, ...]
    position: int

    @classmethod
    def of(cls, members: tuple[str, ...], shape: tuple[int, ...], position: int) -> Stack:
        """A stack with new leaves."""
        name = members[0].removesuffix(".weight").removesuffix(".bias")
        axes = tuple(
            (Leaf(f"{members[0]}.{axis}" if axis else name, size),)
            for axis, size in enumerate(shape)
        )
        return cls(members, shape, Leaf(f"{name}.choice", len(members)), axes, position)

    def renewed(self) -> Stack:
        """The same stack with new leaves, for a new pass."""
        return Stack.of(self.members, self.shape, self.position)

    def member_type(self) -> tuple[Axis, ...]:
        """The type of one member: its axes, marked as belonging to a choice."""
        if not self.axes:
            return ()
        return ((Pick(1, self.leaf), *self.axes[0]), *self.axes[1:])

    @property
    def type(self) -> tuple[Axis, ...]:
        """The type of all members stacked."""
        return ((self.leaf,), *self.axes)


def find_stacks(
    tape: Tape,
    entries: Sequence[TapeEntry],
    choices: Sequence[tuple[Reading, Leaf]],
    known: Sequence[Stack],
) -> list[Stack]:
    """New stacks; the leaf of choices that pick modules in another way is frozen.

    Args:
        tape: The run.
        entries: Its live operations.
        choices: Readings of indices into a leaf.
        known: Stacks found before.
    """
    names = {tape.parameters[name].number: name for name in tape.leafy}
    reads: dict[str, list[int]] = {}
    for entry in entries:
        for ref in entry_refs(entry.args):
            if ref.number in names:
                reads.setdefault(names[ref.number], []).append(entry.position)
    leaves = {id(leaf.root()): leaf.root() for _, leaf in choices}
    found: list[Stack] = []
    have = {name for stack in known for name in stack.members}
    for leaf in leaves.values():
        readings = [reading for reading, other in choices if other.root() is leaf]
        windows: dict[int, list[tuple[int, int]]] = {}
        for reading in readings:
            windows.setdefault(reading.number, []).append((reading.position, reading.end))
        own = {number: _own_parameters(reads, spans) for number, spans in windows.items()}
        lists = [own[number] for number in sorted(own)]
        lengths = sorted(map(len, lists))
        # Behind the last choice the run goes on, so its list may be longer.
        num = lengths[0]
        if not num and (len(lengths) < 2 or not lengths[-2]):
            continue
        rows = [tuple(names[:num]) for names in lists]
        shapes = [[tape.parameters[name].shape for name in row] for row in rows]
        is_even = len(lengths) > 1 and lengths[-2] == num
        is_all = sorted(own) == list(range(len(own))) and len(own) > 1
        if not (is_even and is_all and all(shape == shapes[0] for shape in shapes)):
            freeze((leaf,), "its indices choose between modules that do not match, or not all ran")
            continue
        members = list(zip(*rows, strict=True))
        if all(name in have for column in members for name in column):
            continue
        position = min(reading.position for reading in readings)
        found += [
            Stack.of(column, shape, position)
            for column, shape in zip(members, shapes[0], strict=True)
        ]
    return found


def _own_parameters(reads: dict[str, list[int]], spans: Sequence[tuple[int, int]]) -> list[str]:
    """Parameters that are read within the spans and nowhere else, in order."""
    own = [
        (positions[0], name)
        for name, positions in reads.items()
        if all(any(a < p <= b for a, b in spans) for p in positions)
    ]
    return [name for _, name in sorted(own)]
