"""Reading the tape: unknowns for every part of every parameter, equations of every operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from paramgraph.capture.axes import Leaf, axis_size
from paramgraph.capture.groups import Groups
from paramgraph.capture.scales.boxes import Box, Layout, layout_of, row_major
from paramgraph.capture.scales.flow import Flow, Scaled, Values, is_factory
from paramgraph.capture.scales.geometry import Geometry
from paramgraph.capture.scales.phases import Phase
from paramgraph.capture.scales.registry import apply_scale_rule
from paramgraph.capture.scales.system import Expression, System
from paramgraph.capture.tape import TensorRef, entry_refs

__all__ = ["Reading", "Unknown", "live_layouts", "parameter_layouts", "read_tapes"]


@dataclass(frozen=True)
class Unknown:
    """What an unknown is the exponent of.

    Attributes:
        parameter: Name of a parameter.
        part: Which of its parts.
        axes: Along which of its axes; none for the part as a whole.
        leaves: The axis groups that stand there.
        phase: Set when it counts half periods by which the part, a bias, is shifted.
    """

    parameter: str
    part: int
    axes: tuple[int, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    phase: Phase | None = None


@dataclass
class Reading:
    """The equations of all runs of a network, with the meaning of their unknowns.

    Attributes:
        system: The equations.
        flows: How every tensor scales, one per run.
        unknowns: What each unknown is.
    """

    system: System
    flows: list[Flow] = field(default_factory=list)
    unknowns: list[Unknown] = field(default_factory=list)

    def make(self, unknown: Unknown) -> Expression:
        """A new unknown."""
        self.unknowns.append(unknown)
        return {self.system.unknown(): 1}


def parameter_layouts(groups: Groups) -> dict[str, Layout]:
    """Blocks of the parameters in use; those that are rows of one are one."""
    found = {}
    for name in groups.used:
        kind, shape, _ = groups.parameter(name)
        found[name] = layout_of(groups, kind, shape)
    return found


def live_layouts(geometry: Geometry) -> Iterator[Layout]:
    """Blocks of all tensors of a run that matter, and of what normalisations compute inside."""
    run = geometry.run
    for axes in run.reduced:
        yield layout_of(geometry.groups, axes, [axis_size(axis) for axis in axes])
    refs: list[TensorRef] = [ref for ref in run.tape.outputs]
    for entry in run.entries:
        refs += entry_refs(entry.args)
        refs += [ref for ref in entry.outputs if ref is not None]
    for ref in {ref.number: ref for ref in refs}.values():
        yield geometry.layout(ref)


def read_tapes(
    geometries: Sequence[Geometry],
    layouts: dict[str, Layout],
    phases: Sequence[Phase],
    depends_on: Callable[[Leaf], tuple[Leaf, ...]],
    *,
    is_sign: bool,
) -> Reading:
    """Set up all equations, for positive factors or for signs.

    Args:
        geometries: Where blocks lie, one per run.
        layouts: Blocks of the parameters.
        phases: Biases that shift sines by half periods; matters to signs.
        depends_on: The leaves that a leaf depends on.
        is_sign: Which of the two.
    """
    reading = Reading(System(is_sign=is_sign))
    reading.flows = [Flow(geometry, reading.system, depends_on) for geometry in geometries]
    # Older unknowns stay free: phases first, then parameters from the first one on.
    for phase in phases if is_sign else ():
        name, part = phase.part
        box = layouts[name].boxes[part]
        axes = box.occurrences[phase.occurrence]
        expression = reading.make(Unknown(name, part, axes, _leaves(box, axes), phase))
        for run, wave, block, occurrence in phase.waves:
            known = reading.flows[run].phases.setdefault((wave, block), [])
            known.append((occurrence, expression))
    parameters = {
        name: _parameter(reading, name, layout, depends_on) for name, layout in layouts.items()
    }
    for flow in reading.flows:
        for name, scaled in parameters.items():
            _place(flow, name, scaled)
        _read(flow)
    return reading


def _parameter(
    reading: Reading,
    name: str,
    layout: Layout,
    depends_on: Callable[[Leaf], tuple[Leaf, ...]],
) -> Scaled:
    """Unknowns for all parts of a parameter."""
    values: Values = []
    for number, box in enumerate(layout.boxes):
        block: list[Expression] = [reading.make(Unknown(name, number))]
        for axes in box.occurrences:
            leaves = _leaves(box, axes)
            # A group with one it depends on says what the group says by itself.
            is_new = not any(a in depends_on(b) for a in leaves for b in leaves)
            block.append(reading.make(Unknown(name, number, axes, leaves)) if is_new else {})
        values.append(block)
    return Scaled(layout, values)


def _leaves(box: Box, axes: Sequence[int]) -> tuple[Leaf, ...]:
    found = (box.digits[axis].factor for axis in axes)
    return tuple(factor for factor in found if isinstance(factor, Leaf))


def _place(flow: Flow, name: str, scaled: Scaled) -> None:
    """Give a parameter of a run its unknowns; rows of a stack take theirs from the stack."""
    tape, members = flow.run.tape, flow.geometry.groups.parameter(name)[2]
    if not members:
        ref = tape.parameters[name]
        flow.geometry.layouts[ref.number] = scaled.layout
        flow.values[ref.number] = scaled.values
    for number, member in enumerate(members):
        ref = tape.parameters[member]
        strides = row_major(ref.shape)
        offset = number * scaled.layout.num_entries // len(members)
        flow.values[ref.number] = flow.read(scaled, flow.layout(ref), strides, offset)


def _read(flow: Flow) -> None:
    run = flow.run
    for entry in run.entries:
        outputs = [ref for ref in entry.outputs if ref is not None]
        is_fixed = all(ref.number in run.constants or ref.number in run.data for ref in outputs)
        if is_fixed and outputs:
            continue
        if is_factory(entry):
            for ref in outputs:
                flow.factory(entry, ref)
        else:
            apply_scale_rule(flow, entry)
    for ref in run.tape.outputs:
        flow.forbid(flow.of(ref).values)
