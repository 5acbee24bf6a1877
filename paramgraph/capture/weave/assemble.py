"""The loom to a ``ParamGraph``: depths, order, layouts, scales."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from paramgraph.capture.activations import name_activation
from paramgraph.capture.axes import Leaf, size_of
from paramgraph.capture.tape import Tape, entry_refs
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.records import Group, Link
from paramgraph.graph import ParamGraph
from paramgraph.structure import (
    EdgeBlock,
    EntryView,
    Factor,
    NeuronFeature,
    NeuronGroup,
    NeuronKind,
    NeuronRole,
    ParameterLayout,
    ParameterPart,
    ScaleExponents,
    ScaleKind,
)

__all__ = ["assemble", "by_depth"]


def assemble(loom: Loom, tape: Tape, scales: Any, name: str) -> ParamGraph:
    """Number the groups and write the tables of a graph."""
    groups, depths = by_depth(loom)
    position = {id(group): number for number, group in enumerate(groups)}
    rows = {row.name: row for row in scales.rows} if scales is not None else {}
    sizes = {row.name: row.size for row in loom.axis_groups.rows}
    neuron_groups = []
    for group, depth in zip(groups, depths, strict=True):
        activation, omega = name_activation(group.chain or ())
        axes = _factors(loom, group)
        exponents = _exponents(loom, group, scales) or _as_readers_say(loom, group, scales)
        # Neurons are rescaled as far as their own numbers say by how much.
        exponents = tuple(pair for pair in exponents if set(rows[pair[0]].axes) <= set(axes))
        own = {f for f in axes if isinstance(f, str) and sizes[f] > 1}
        neuron_groups.append(
            NeuronGroup(
                name=group.name,
                size=group.size,
                kind=group.kind,
                activation=activation,
                activation_text=" ".join(group.chain or ()),
                omega=omega,
                depth=depth,
                axes=axes,
                scale=_kind({rows[n].kind for n, _ in exponents if set(rows[n].axes) >= own}),
                scale_exponents=exponents,
                features=tuple(NeuronFeature(r, view) for r, view in group.features.items()),
                norm=group.norm,
            )
        )
    blocks = []
    for link in sorted(loom.links, key=lambda link: position[id(link.receiver)]):
        blocks.append(
            EdgeBlock(
                link.name,
                link.kind,
                position[id(link.sender)],
                position[id(link.receiver)],
                *link.shape,
                positions=link.positions,
                view=link.view,
                constant=link.constant,
            )
        )
    used = loom.axis_groups.used
    held = {n for name in used for n in loom.axis_groups.parameter(name)[2] or (name,)}
    read = {ref.number for run in loom.runs for e in run.entries for ref in entry_refs(e.args)}
    read |= {ref.number for run in loom.runs for ref in run.tape.outputs}
    constant = [
        n
        for n, ref in tape.parameters.items()
        if n not in tape.buffers and n not in tape.leafy and ref.number in read
    ]
    return ParamGraph(
        name=name,
        neuron_groups=tuple(neuron_groups),
        blocks=tuple(blocks),
        axis_groups=tuple(loom.axis_groups.rows),
        scale_groups=tuple(scales.rows) if scales is not None else (),
        parameters=tuple(_layout(loom, tape, n, scales) for n in used),
        unused_parameters=tuple(
            n for n in tape.parameters if n not in {*held, *constant} and n not in tape.buffers
        ),
        constant_parameters=tuple(constant),
        unknown_operations=tuple(sorted({name for run in loom.runs for name in run.unknown})),
    )


def _exponents(loom: Loom, group: Group, scales: Any) -> ScaleExponents:
    """How neurons scale: like the tensor that they stand for, or like the parameter they are."""
    if scales is None:
        return ()
    if group.origin is not None:
        run, tensor = divmod(group.origin[0], loom.span)
        return tuple(scales.exponents(tensor, group.origin[1], run=run))
    view = group.features.get(NeuronRole.BIAS)
    known = scales.parts.get((view.parameter, view.part), ()) if view is not None else ()
    return tuple((scale.group, scale.exponent) for scale in known)


def _as_readers_say(loom: Loom, group: Group, scales: Any) -> ScaleExponents:
    """How constants scale (zeros that a recurrence starts from): the weights that read them know.

    Zeros stay zeros whatever they are multiplied by, so they take the inverse of what the weights
    that read them are multiplied by: those read other neurons as well.
    """
    if scales is None or group.kind is not NeuronKind.FIXED or group.features:
        return ()
    kinds = {row.name: row.kind for row in scales.rows}
    found = set()
    for link in loom.links:
        if link.sender is not group or link.view is None:
            continue
        senders = _sender_axes(loom, link.view, link.shape)
        exponents: dict[str, Fraction] = {}
        for scale in scales.parts.get((link.view.parameter, link.view.part), ()):
            if scale.axis in senders:
                inverse = exponents.get(scale.group, Fraction(0)) - scale.exponent
                is_sign = kinds[scale.group] is ScaleKind.SIGN
                exponents[scale.group] = inverse % 2 if is_sign else inverse
        found.add(tuple(pair for pair in exponents.items() if pair[1]))
    return found.pop() if len(found) == 1 else ()


def _sender_axes(loom: Loom, view: EntryView, shape: tuple[int, int, int]) -> set[int]:
    """Axes of a part of a parameter that number the senders of a block."""
    kind, sizes, _ = loom.axis_groups.parameter(view.parameter)
    part = loom.axis_groups.parts(kind, sizes)[view.part]
    numbers = {row.name: row.size for row in loom.axis_groups.rows}
    blocks, receivers, senders = shape
    position, axes = 1, set()
    for axis in view.order:
        factor = part.factors[axis]
        size = numbers[factor] if isinstance(factor, str) else factor
        if blocks * receivers <= position < blocks * receivers * senders and size > 1:
            axes.add(axis)
        position *= size
    return axes


def _layout(loom: Loom, tape: Tape, name: str, scales: Any) -> ParameterLayout:
    kind, shape, members = loom.axis_groups.parameter(name)
    parts: list[ParameterPart] = loom.axis_groups.parts(kind, shape)
    if scales is not None:
        parts = [
            replace(
                part,
                scales=tuple(scales.parts.get((name, number), ())),
                shifts=tuple(scales.shifts.get((name, number), ())),
            )
            for number, part in enumerate(parts)
        ]
    return ParameterLayout(
        name, shape, tuple(parts), tape.aliases.get(name, ()), name in tape.buffers, members
    )


def _factors(loom: Loom, group: Group) -> tuple[Factor, ...]:
    names = loom.axis_groups.names
    return tuple(
        names.get(id(f), f.size) if isinstance(f, Leaf) else size_of(f) for f in group.factors
    )


def _kind(kinds: set[ScaleKind]) -> ScaleKind:
    """All that the scale groups of some neurons allow together."""
    signs = any(kind.has_sign for kind in kinds)
    positives = any(kind.has_positive for kind in kinds)
    if signs and positives:
        return ScaleKind.REAL
    return ScaleKind.SIGN if signs else ScaleKind.POSITIVE if positives else ScaleKind.NONE


def by_depth(loom: Loom) -> tuple[list[Group], list[int]]:
    """Groups by depth (longest path from a group without senders), with their depths."""
    incoming: dict[int, list[Link]] = {}
    outgoing: dict[int, list[Link]] = {}
    for link in loom.links:
        incoming.setdefault(id(link.receiver), []).append(link)
        outgoing.setdefault(id(link.sender), []).append(link)
    waiting = {id(group): len(incoming.get(id(group), ())) for group in loom.groups}
    ready = [group for group in loom.groups if not waiting[id(group)]]
    depth = {id(group): 0 for group in loom.groups}
    done = 0
    while ready:
        group = ready.pop()
        done += 1
        for link in outgoing.get(id(group), ()):
            target = id(link.receiver)
            depth[target] = max(depth[target], depth[id(group)] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(link.receiver)
    assert done == len(loom.groups), "edges lead in a circle"
    ordered = sorted(loom.groups, key=lambda group: depth[id(group)])
    return ordered, [depth[id(group)] for group in ordered]
