"""Solutions of the equations to scale groups: which are independent, and what they act on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from paramgraph.capture.axes import Leaf
from paramgraph.capture.groups import Groups
from paramgraph.capture.inference import Inference
from paramgraph.capture.scales.boxes import Layout
from paramgraph.capture.scales.dependencies import Dependencies
from paramgraph.capture.scales.geometry import Geometry
from paramgraph.capture.scales.phases import Phase, find_phases
from paramgraph.capture.scales.reading import (
    Reading,
    Unknown,
    live_layouts,
    parameter_layouts,
    read_tapes,
)
from paramgraph.capture.scales.system import Expression, Number, Span
from paramgraph.structure import PartScale, PartShift, ScaleExponents, ScaleGroup, ScaleKind

__all__ = ["Scales", "find_scales"]

PartName = tuple[str, int]


@dataclass
class Scales:
    """The scale groups of a run.

    Attributes:
        rows: The table, in order of the parameters that they act on.
        parts: How each part of a parameter (by name and number) scales.
        shifts: How each part is shifted.

    Example:
        >>> Scales().exponents(tensor=0, block=0)
        ()
    """

    rows: tuple[ScaleGroup, ...] = ()
    parts: dict[PartName, tuple[PartScale, ...]] = field(default_factory=dict)
    shifts: dict[PartName, tuple[PartShift, ...]] = field(default_factory=dict)
    _readings: list[tuple[Reading, dict[int, str]]] = field(default_factory=list)

    def exponents(self, tensor: int, block: int, run: int = 0) -> ScaleExponents:
        """How a block of a tensor scales.

        Args:
            tensor: Its number on the tape of its run.
            block: Number of the block, in the order of ``Groups.blocks``.
            run: Which run, counted from the first.
        """
        total: dict[str, Fraction] = {}
        for reading, names in self._readings:
            values = reading.flows[run].values.get(tensor)
            here = values[block] if values is not None and block < len(values) else None
            for expression in here or ():
                for unknown, exponent in reading.system.reduced(expression).items():
                    if unknown in names:
                        name = names[unknown]
                        total[name] = total.get(name, Fraction(0)) + exponent
        return tuple((row.name, total[row.name]) for row in self.rows if total.get(row.name))


@dataclass(frozen=True)
class _Found:
    """One solution that becomes a scale group."""

    kind: ScaleKind
    leaves: tuple[Leaf, ...]
    free: int
    vector: Expression
    reading: Reading

    @property
    def first(self) -> Unknown:
        """The first parameter that it acts on."""
        return self.reading.unknowns[min(self.vector)]


def find_scales(run: Inference, groups: Groups) -> Scales:
    """All rescalings, sign flips and phase shifts that keep the function of a network.

    Args:
        run: Types of all tensors.
        groups: The axis groups.

    Example:
        >>> import torch
        >>> from paramgraph.capture.groups import find_groups
        >>> from paramgraph.capture.infer import infer
        >>> from paramgraph.capture.record import record
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU())
        >>> network.append(torch.nn.Linear(8, 1))  # doctest: +ELLIPSIS
        Sequential(...)
        >>> groups = find_groups(infer([record(network, torch.randn(4, 2))]))
        >>> scales = find_scales(groups.run, groups)
        >>> [(row.name, row.size) for row in scales.rows]
        [('0:positive', 8)]
        >>> scales.parts["2.weight", 0][0].exponent
        Fraction(-1, 1)
    """
    geometries = [Geometry(one, groups) for one in (run, *run.others)]
    layouts = parameter_layouts(groups)
    live = [layout for geometry in geometries for layout in live_layouts(geometry)]
    depends_on = Dependencies(groups, [*layouts.values(), *live])
    phases = find_phases(geometries, layouts, depends_on)
    scales = Scales()
    found: list[_Found] = []
    for is_sign in (False, True):
        reading = read_tapes(geometries, layouts, phases, depends_on, is_sign=is_sign)
        found += _independent(reading, layouts, depends_on)
        scales._readings.append((reading, {}))
    positions = {name: number for number, name in enumerate(groups.used)}
    kinds = list(ScaleKind)
    found.sort(
        key=lambda f: (positions[f.first.parameter], f.first.part, kinds.index(f.kind), f.free)
    )
    builder = _Builder(scales, groups, layouts, depends_on)
    for solution in found:
        builder.add(solution)
    signs = scales._readings[-1][0]
    for number, unknown in enumerate(signs.unknowns):
        if unknown.phase is not None and number in signs.system.solved:
            builder.add_period(unknown, unknown.phase)
    scales.rows = tuple(builder.rows)
    return scales


def _independent(
    reading: Reading, layouts: dict[str, Layout], depends_on: Dependencies
) -> list[_Found]:
    """A basis of the solutions, without those that are contained in finer ones.

    Heads may scale when their dimensions may, each in every head: that is nothing new.
    """
    system, unknowns = reading.system, reading.unknowns
    kind = ScaleKind.SIGN if system.is_sign else ScaleKind.POSITIVE
    by_scope: dict[frozenset[int], list[_Found]] = {}
    result: list[_Found] = []
    for free, vector in system.basis().items():
        leaves = unknowns[free].leaves
        if any(unknowns[u].phase is not None for u in vector):
            result.append(_Found(ScaleKind.PHASE, leaves, free, vector, reading))
            continue
        every = [*leaves, *(other for leaf in leaves for other in depends_on(leaf))]
        scope = frozenset(id(leaf) for leaf in every if leaf.size > 1)
        by_scope.setdefault(scope, []).append(_Found(kind, leaves, free, vector, reading))
    for scope, solutions in by_scope.items():
        coordinates = _Coordinates(unknowns, layouts, scope)
        finer = (f for other, others in by_scope.items() if scope < other for f in others)
        moved = (coordinates.of(solution.vector) for solution in finer)
        span = Span((vector for vector in moved if vector), is_sign=system.is_sign)
        # A single neuron tells more than a part as a whole.
        for solution in sorted(solutions, key=lambda f: not f.leaves):
            own = coordinates.of(solution.vector)
            if own is None or span.add(own):
                result.append(solution)
    return result


@dataclass
class _Coordinates:
    """Solutions as functions of the joint index of some axis groups.

    Attributes:
        unknowns: What the solutions are about.
        layouts: Blocks of the parameters.
        scope: The axis groups, by identity.
    """

    unknowns: list[Unknown]
    layouts: dict[str, Layout]
    scope: frozenset[int]
    numbers: dict[tuple[object, ...], int] = field(default_factory=dict)

    def of(self, vector: Expression) -> dict[int, Number] | None:
        """Exponents of a solution whose factors do not differ within a joint index."""
        result: dict[int, Number] = {}
        for number, exponent in vector.items():
            unknown = self.unknowns[number]
            places = self._places(unknown)
            if places is None:
                return None
            where = (unknown.parameter, unknown.part, places)
            place = self.numbers.setdefault(where, len(self.numbers))
            result[place] = result.get(place, 0) + exponent
        return {place: exponent for place, exponent in result.items() if exponent}

    def _places(self, unknown: Unknown) -> tuple[int, ...] | None:
        """The axes of a part that the groups are."""
        if not self.scope:
            return ()
        digits = self.layouts[unknown.parameter].boxes[unknown.part].digits
        own = {id(leaf): axis for axis, leaf in zip(unknown.axes, unknown.leaves, strict=True)}
        origins = {digits[axis].axis for axis in unknown.axes}
        found = []
        for key in sorted(self.scope):
            axes = [axis for axis, digit in enumerate(digits) if id(digit.factor) == key]
            if not axes:
                return None
            # Of several the one on the same axis of the parameter, as in ``Symmetry``.
            beside = [axis for axis in axes if digits[axis].axis in origins]
            found.append(own.get(key, (beside or axes)[0]))
        return tuple(found)


@dataclass
class _Builder:
    """Writes the table."""

    scales: Scales
    groups: Groups
    layouts: dict[str, Layout]
    depends_on: Dependencies
    rows: list[ScaleGroup] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def add(self, found: _Found) -> None:
        """A scale group for a solution."""
        name, last = self._row(found.kind, found.leaves, found.first.parameter)
        for reading, names in self.scales._readings:
            if reading is found.reading:
                names[found.free] = name
        for number, exponent in sorted(found.vector.items()):
            unknown = found.reading.unknowns[number]
            axis = _axis(unknown, last)
            if unknown.phase is not None:
                self._shift(unknown, PartShift(name, math.pi / unknown.phase.omega, axis))
            else:
                part = (unknown.parameter, unknown.part)
                scale = PartScale(name, Fraction(exponent), axis)
                self.scales.parts[part] = (*self.scales.parts.get(part, ()), scale)

    def add_period(self, unknown: Unknown, phase: Phase) -> None:
        """Half a period is impossible, a whole one is not."""
        name, last = self._row(ScaleKind.PHASE, unknown.leaves, unknown.parameter)
        self._shift(unknown, PartShift(name, 2 * math.pi / phase.omega, _axis(unknown, last)))

    def _shift(self, unknown: Unknown, shift: PartShift) -> None:
        part = (unknown.parameter, unknown.part)
        self.scales.shifts[part] = (*self.scales.shifts.get(part, ()), shift)

    def _row(
        self, kind: ScaleKind, leaves: Sequence[Leaf], parameter: str
    ) -> tuple[str, Leaf | None]:
        """A new row of the table: its name, and the axis group that numbers it in the end."""
        axes: list[Leaf] = []
        ordered = sorted(leaves, key=lambda leaf: leaf.order)
        for leaf in ordered:
            axes += [a for a in (*self.depends_on(leaf), leaf) if a not in axes]
        names = tuple(self.groups.names[id(axis)] for axis in axes)
        base = f"{names[-1] if names else parameter}:{kind.value}"
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base}#{count}"
        self.taken.add(name)
        size = math.prod(axis.size for axis in axes)
        self.rows.append(ScaleGroup(name, size, kind, names))
        return name, ordered[-1] if ordered else None


def _axis(unknown: Unknown, last: Leaf | None) -> int:
    """The axis of a part that numbers the factors in the end."""
    pairs = zip(unknown.axes, unknown.leaves, strict=True)
    return next((axis for axis, leaf in pairs if leaf is last), -1)
