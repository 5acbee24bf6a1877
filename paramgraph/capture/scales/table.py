"""Solutions of the equations to scale groups: which are independent, and what they act on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

from paramgraph.capture.axes import Leaf
from paramgraph.capture.groups import Groups
from paramgraph.capture.inference import Inference
from paramgraph.capture.scales.boxes import Layout
from paramgraph.capture.scales.dependencies import Dependencies
from paramgraph.capture.scales.flow import Geometry
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
    """

    rows: tuple[ScaleGroup, ...] = ()
    parts: dict[PartName, tuple[PartScale, ...]] = field(default_factory=dict)
    shifts: dict[PartName, tuple[PartShift, ...]] = field(default_factory=dict)
    _readings: list[tuple[Reading, dict[int, str]]] = field(default_factory=list)

    def exponents(self, tensor: int, block: int) -> ScaleExponents:
        """How a block of a tensor scales.

        Args:
            tensor: Its number on the tape of the first run.
            block: Number of the block, in the order of ``Groups.blocks``.
        """
        total: dict[str, Fraction] = {}
        for reading, names in self._readings:
            values = reading.flows[0].values.get(tensor)
            here = values[block] if values is not None and block < len(values) else None
            for expression in here or ():
                for unknown, exponent in reading.system.reduced(expression).items():
                    if unknown in names:
                        name = names[unknown]
                        total[name] = total.get(name, Fraction(0)) + exponent
        return tuple((row.name, total[row.name]) for row in self.rows if total.get(row.name))

    def kind(self, tensor: int, block: int) -> ScaleKind:
        """How each neuron of a block may be rescaled by itself, apart from all others.

        A group that rescales several neurons of the block by one factor does not count.
        """
        found = dict(self.exponents(tensor, block))
        kinds = {
            row.kind
            for row in self.rows
            if row.name in found and set(row.axes) >= self._axes(tensor, block)
        }
        if {ScaleKind.POSITIVE, ScaleKind.SIGN} <= kinds:
            return ScaleKind.REAL
        own = kinds & {ScaleKind.POSITIVE, ScaleKind.SIGN}
        return own.pop() if own else ScaleKind.NONE

    def _axes(self, tensor: int, block: int) -> set[str]:
        geometry = self._readings[0][0].flows[0].geometry
        box = geometry.layouts[tensor].boxes[block]
        found = [f for d in box.digits if isinstance(f := d.factor, Leaf) and f.size > 1]
        return {geometry.groups.names.get(id(leaf), "") for leaf in found}


@dataclass(frozen=True)
class _Found:
    """One solution that becomes a scale group."""

    kind: ScaleKind
    leaf: Leaf | None
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
    """
    geometries = [Geometry(one, groups) for one in (run, *run.others)]
    layouts = parameter_layouts(groups)
    live = [layout for geometry in geometries for layout in live_layouts(geometry)]
    depends_on = Dependencies(groups, [*layouts.values(), *live])
    phases = find_phases(geometries, layouts, depends_on)
    scales = Scales()
    found: list[_Found] = []
    for is_sign in (False, True):
        reading = read_tapes(geometries, layouts, phases, is_sign=is_sign)
        found += _independent(reading, depends_on)
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


def _independent(reading: Reading, depends_on: Dependencies) -> list[_Found]:
    """A basis of the solutions, without those that are contained in finer ones.

    Heads may scale when their dimensions may, each in every head: that is nothing new.
    """
    system, unknowns = reading.system, reading.unknowns
    kind = ScaleKind.SIGN if system.is_sign else ScaleKind.POSITIVE
    by_leaf: dict[int, list[tuple[int, dict[int, Number]]]] = {}
    leaf_of: dict[int, Leaf | None] = {}
    found: list[_Found] = []
    for free, vector in system.basis().items():
        leaf = unknowns[free].leaf
        if any(unknowns[u].phase is not None for u in vector):
            found.append(_Found(ScaleKind.PHASE, leaf, free, vector, reading))
            continue
        leaf_of[id(leaf)] = leaf
        by_leaf.setdefault(id(leaf), []).append((free, vector))
    places: dict[tuple[str, int, int], list[int]] = {}
    for number, u in enumerate(unknowns):
        if u.phase is None:
            places.setdefault((u.parameter, u.part, id(u.leaf)), []).append(number)
    scopes = {key: _scope(leaf, depends_on) for key, leaf in leaf_of.items()}
    for key, solutions in by_leaf.items():
        finer = [
            vector
            for other, others in by_leaf.items()
            if scopes[key] < scopes[other]
            for _, vector in others
        ]
        span = Span((_moved(v, unknowns, places, key) for v in finer), is_sign=system.is_sign)
        found += [
            _Found(kind, leaf_of[key], free, vector, reading)
            for free, vector in solutions
            if span.add(vector)
        ]
    return found


def _scope(leaf: Leaf | None, depends_on: Dependencies) -> frozenset[int]:
    return frozenset() if leaf is None else frozenset({id(leaf), *map(id, depends_on(leaf))})


def _moved(
    vector: Expression,
    unknowns: list[Unknown],
    places: dict[tuple[str, int, int], list[int]],
    leaf: int,
) -> dict[int, Number]:
    """A solution with one factor per index of a coarser axis group, as a solution of that one."""
    result: dict[int, Number] = {}
    for number, exponent in vector.items():
        unknown = unknowns[number]
        several = places[unknown.parameter, unknown.part, leaf]
        # Of several the nearest one before it, as in ``Symmetry``; unknowns count along the axes.
        place = max((p for p in several if p < number), default=several[0])
        result[place] = result.get(place, 0) + exponent
    return {place: exponent for place, exponent in result.items() if exponent}


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
        name = self._row(found.kind, found.leaf, found.first.parameter)
        for reading, names in self.scales._readings:
            if reading is found.reading:
                names[found.free] = name
        for number, exponent in sorted(found.vector.items()):
            unknown = found.reading.unknowns[number]
            part = (unknown.parameter, unknown.part)
            if unknown.phase is not None:
                self._shift(part, name, math.pi / unknown.phase.omega, unknown)
                continue
            scale = PartScale(name, Fraction(exponent), self._axis(unknown))
            self.scales.parts[part] = (*self.scales.parts.get(part, ()), scale)

    def add_period(self, unknown: Unknown, phase: Phase) -> None:
        """Half a period is impossible, a whole one is not."""
        name = self._row(ScaleKind.PHASE, unknown.leaf, unknown.parameter)
        self._shift((unknown.parameter, unknown.part), name, 2 * math.pi / phase.omega, unknown)

    def _shift(self, part: PartName, name: str, amount: float, unknown: Unknown) -> None:
        shift = PartShift(name, amount, self._axis(unknown))
        self.scales.shifts[part] = (*self.scales.shifts.get(part, ()), shift)

    def _axis(self, unknown: Unknown) -> int:
        if unknown.occurrence is None:
            return -1
        return self.layouts[unknown.parameter].boxes[unknown.part].leaves[unknown.occurrence]

    def _row(self, kind: ScaleKind, leaf: Leaf | None, parameter: str) -> str:
        axes = () if leaf is None else (*self.depends_on(leaf), leaf)
        names = tuple(self.groups.names[id(axis)] for axis in axes)
        base = f"{names[-1] if names else parameter}:{kind.value}"
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base}#{count}"
        self.taken.add(name)
        size = math.prod(axis.size for axis in axes)
        self.rows.append(ScaleGroup(name, size, kind, names))
        return name
