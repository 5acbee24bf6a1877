"""Which operations matter: those that the outputs depend on, and numbers that chose a branch.

A router picks experts by reading an index from a tensor (``item()``) and taking that row of a stack
of weights, or calling that module. The tape shows the reading, and afterwards a selection by that
number, or the parameters of the module; ``Reading`` keeps the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paramgraph.capture.tape import Tape, TapeEntry, TensorRef, entry_refs

__all__ = ["Reading", "choosing_reading", "find_readings", "live_entries"]

_PICKING = {
    f"aten.{name}"
    for name in ("select", "unbind", "index", "squeeze", "view", "detach", "alias", "slice")
}


@dataclass(frozen=True)
class Reading:
    """A whole number that was read from a tensor, and how long it may have been in use.

    Attributes:
        position: Of the reading on the tape.
        ref: The tensor.
        number: What it held.
        end: Position of the next reading from another tensor.
    """

    position: int
    ref: TensorRef
    number: int
    end: int


def find_readings(tape: Tape) -> list[Reading]:
    """All readings of one index out of several, in order."""
    made_by = {r.number: e.operation for e in tape.entries for r in e.outputs if r is not None}
    found: list[tuple[TapeEntry, TensorRef]] = []
    for entry in tape.entries:
        is_reading = entry.operation == "aten._local_scalar_dense"
        if is_reading and type(entry.number) is int:
            ref = entry_refs(entry.args)[0]
            if made_by.get(ref.number) in _PICKING:
                found.append((entry, ref))
    readings = []
    for place, (entry, ref) in enumerate(found):
        later = (e.position for e, other in found[place:] if other.number != ref.number)
        end = next(later, tape.start + len(tape.entries))
        readings.append(Reading(entry.position, ref, int(entry.number or 0), end))
    return readings


def choosing_reading(readings: Sequence[Reading], entry: TapeEntry) -> Reading | None:
    """The reading whose number a selection takes, if there is one."""
    if entry.operation != "aten.select":
        return None
    for reading in reversed(readings):
        if reading.position < entry.position <= reading.end:
            if reading.number == entry.args["index"]:
                return reading
    return None


def live_entries(tape: Tape, readings: Sequence[Reading]) -> list[TapeEntry]:
    """The operations that the outputs depend on, in order, with the readings that chose them."""
    needed = {ref.number for ref in tape.outputs}
    parameters = {tape.parameters[name].number for name in tape.leafy}
    depends = set(parameters)
    for entry in tape.entries:
        if not depends.isdisjoint(ref.number for ref in entry_refs(entry.args)):
            depends.update(ref.number for ref in entry.outputs if ref is not None)
    live: list[TapeEntry] = []
    for entry in reversed(tape.entries):
        refs = {ref.number for ref in entry_refs(entry.args)}
        # A number that leaves the tape may decide anything, so what it is read from counts.
        is_read = None in entry.outputs and not refs.isdisjoint(depends)
        if not is_read and not any(ref and ref.number in needed for ref in entry.outputs):
            continue
        live.append(entry)
        needed |= refs
        if (reading := choosing_reading(readings, entry)) is not None:
            needed.add(reading.ref.number)
        if refs & parameters:
            here = [r for r in readings if r.position < entry.position <= r.end]
            needed |= {reading.ref.number for reading in here}
    return live[::-1]
