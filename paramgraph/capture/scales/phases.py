"""Which biases are the phase of a sine, and nothing else.

``sin(omega * (x + b))`` changes its sign when ``pi / omega`` is added to ``b``. A bias is followed
through sums, constant factors and views; it counts when all that it reaches is sines and cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from paramgraph.capture.axes import Leaf
from paramgraph.capture.axis_rules.registry import operand, output
from paramgraph.capture.scales.boxes import Layout, MisfitError, row_major
from paramgraph.capture.scales.geometry import Geometry
from paramgraph.capture.tape import TapeEntry, TensorRef, entry_refs

__all__ = ["Phase", "find_phases"]

PartKey = tuple[str, int]
"""Name of a parameter, and which of its blocks."""

Shift = tuple[float, tuple[tuple[int, int], ...]]
"""Change of a tensor per unit of change of a bias; which occurrences are those of the bias."""


@dataclass(frozen=True)
class Phase:
    """A bias block that only shifts the argument of sines.

    Attributes:
        part: The parameter and block.
        occurrence: Which of its occurrences numbers the neurons.
        omega: Factor between the bias and the argument.
        waves: Run, output, block and occurrence of each sine.
    """

    part: PartKey
    occurrence: int
    omega: float
    waves: tuple[tuple[int, int, int, int], ...]


Wave = tuple[int, int, int, Shift]
"""Run, output and block of a sine, with the shift of its argument."""


@dataclass
class _Tracker:
    """Shifts of every block of every tensor of a run, by the bias that causes them."""

    number: int
    geometry: Geometry
    alive: set[PartKey]
    waves: dict[PartKey, list[Wave]]
    shifts: dict[int, list[dict[PartKey, Shift]]] = field(default_factory=dict)

    def of(self, ref: TensorRef) -> list[dict[PartKey, Shift]]:
        return self.shifts.get(ref.number) or [{} for _ in self.geometry.layout(ref).boxes]

    def kill(self, ref: TensorRef) -> None:
        for block in self.shifts.get(ref.number, ()):
            self.alive.difference_update(block)

    def carry(self, ref: TensorRef, out: TensorRef, strides: list[int], times: float) -> None:
        """The output changes by ``times`` what a term changes."""
        if not any(self.of(ref)):
            return
        layout, source = self.geometry.layout(out), self.geometry.layout(ref)
        mine = self.shifts.setdefault(out.number, [{} for _ in layout.boxes])
        try:
            met = self.geometry.meetings(layout, source, strides, 0)
        except MisfitError:
            self.kill(ref)
            return
        for meeting in met:
            back = {b: a for a, b in meeting.pairs}
            for part, (size, occurrences) in self.of(ref)[meeting.whole].items():
                moved = tuple((k, back[o]) for k, o in occurrences if o in back)
                if len(moved) < len(occurrences) or part in mine[meeting.view]:
                    self.alive.discard(part)
                mine[meeting.view][part] = (size * times, moved)


def find_phases(
    geometries: Sequence[Geometry],
    layouts: Mapping[str, Layout],
    depends_on: Callable[[Leaf], tuple[Leaf, ...]],
) -> list[Phase]:
    """The phases of all runs of a network.

    Args:
        geometries: Where blocks lie, one per run.
        layouts: Blocks of the parameters.
        depends_on: The leaves that a leaf depends on.
    """
    groups = geometries[0].groups
    chosen: dict[PartKey, int] = {}
    for name, layout in layouts.items():
        is_stack = bool(groups.parameter(name)[2])
        if is_stack or name in groups.run.tape.buffers:
            continue
        for number in range(len(layout.boxes)):
            occurrence = _numbering(layout, number, depends_on)
            if occurrence is not None:
                chosen[name, number] = occurrence
    alive, waves = set(chosen), dict[PartKey, list[Wave]]()
    for number, geometry in enumerate(geometries):
        _follow_run(_Tracker(number, geometry, alive, waves), layouts)
    phases = [_phase(part, chosen[part], waves.get(part, [])) for part in chosen if part in alive]
    return [phase for phase in phases if phase is not None]


def _follow_run(tracker: _Tracker, layouts: Mapping[str, Layout]) -> None:
    run = tracker.geometry.run
    for part in tracker.alive:
        name, number = part
        layout, ref = layouts[name], run.tape.parameters[name]
        blocks = tracker.shifts.setdefault(ref.number, [{} for _ in layout.boxes])
        occurrences = range(len(layout.boxes[number].occurrences))
        blocks[number][part] = (1.0, tuple((k, k) for k in occurrences))
    for entry in run.entries:
        _follow(tracker, entry)
    for ref in run.tape.outputs:
        tracker.kill(ref)


def _numbering(
    layout: Layout, number: int, depends_on: Callable[[Leaf], tuple[Leaf, ...]]
) -> int | None:
    """The occurrence that, with what it depends on, numbers all neurons of a block."""
    box = layout.boxes[number]
    wide = {id(box.digits[place].factor) for place in box.leaves if box.digits[place].size > 1}
    for occurrence, places in enumerate(box.occurrences):
        leaves = [f for place in places if isinstance(f := box.digits[place].factor, Leaf)]
        reach = {id(other) for leaf in leaves for other in (leaf, *depends_on(leaf))}
        if reach >= wide and len(wide) == sum(box.digits[p].size > 1 for p in box.leaves):
            return occurrence
    return None


def _phase(part: PartKey, occurrence: int, waves: list[Wave]) -> Phase | None:
    """The phase of a bias, if all sines see it with one frequency."""
    sizes = {abs(size) for *_, (size, _) in waves}
    if len(sizes) != 1 or 0 in sizes:
        return None
    places = tuple((*where, dict(moved)[occurrence]) for *where, (_, moved) in waves)
    return Phase(part, occurrence, sizes.pop(), places)  # type: ignore[arg-type]


def _follow(tracker: _Tracker, entry: TapeEntry) -> None:
    """Shifts through one operation; what it does otherwise with a bias rules that bias out."""
    refs = entry_refs(entry.args)
    if not any(any(tracker.of(ref)) for ref in refs):
        return
    name = entry.operation.removeprefix("aten.")
    terms = _terms(entry, name)
    for ref in refs:
        if not any(ref is term for term, _ in terms) and name not in ("sin", "cos"):
            tracker.kill(ref)
    if name in ("sin", "cos"):
        number = output(entry).number
        for block, found in enumerate(tracker.of(operand(entry, "self"))):
            for part, shift in found.items():
                wave = (tracker.number, number, block, shift)
                tracker.waves.setdefault(part, []).append(wave)
        return
    for ref, times in terms:
        out = output(entry)
        tracker.carry(ref, out, _placed(entry, name, ref, out), times)


_REORDERED = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias"}
_COPIED = {"clone", "detach", "alias", "contiguous", "expand"}


def _terms(entry: TapeEntry, name: str) -> list[tuple[TensorRef, float]]:
    """Tensors that an operation adds up, with their coefficients."""
    args = entry.args
    other, alpha = args.get("other"), args.get("alpha", 1)
    if name in ("add", "sub"):
        sign = 1.0 if name == "add" else -1.0
        pairs = [(args["self"], 1.0), (other, sign * alpha)]
    elif name in ("mul", "div") and isinstance(other, int | float):
        pairs = [(args["self"], float(other) if name == "mul" else 1 / (other or 1))]
    elif name == "addmm":
        pairs = [(args["self"], float(args.get("beta", 1)))]
    elif name in ("convolution", "linear"):
        pairs = [(args.get("bias"), 1.0)]
    elif name in _REORDERED | _COPIED:
        pairs = [(args["self"], 1.0)]
    else:
        pairs = []
    return [(ref, times) for ref, times in pairs if isinstance(ref, TensorRef)]


def _placed(entry: TapeEntry, name: str, ref: TensorRef, out: TensorRef) -> list[int]:
    """Where the entries of the output stand in a term."""
    if name in _REORDERED:
        return row_major(out.shape)
    if name == "convolution":
        return [int(axis == 1) for axis in range(len(out.shape))]
    strides = [
        0 if size == 1 else s for size, s in zip(ref.shape, row_major(ref.shape), strict=True)
    ]
    return [0] * (len(out.shape) - len(ref.shape)) + strides
