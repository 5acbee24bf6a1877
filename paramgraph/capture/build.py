"""Flow to ParamGraph: number the groups, name the axis groups, find dependencies and scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from paramgraph.capture.activations import name_activation
from paramgraph.capture.axes import Leaf, resolve
from paramgraph.capture.flow import Flow
from paramgraph.capture.records import FlowBlock, FlowGroup, Hidden
from paramgraph.capture.tape import Tape
from paramgraph.graph import ParamGraph
from paramgraph.structure import (
    AxisGroup,
    EdgeBlock,
    Factor,
    NeuronFeature,
    NeuronGroup,
    NeuronRole,
    ParameterLayout,
    ScaleExponents,
    ScaleGroup,
    ScaleKind,
)

__all__ = ["build_graph"]


def build_graph(flow: Flow, tape: Tape, name: str) -> ParamGraph:
    """Assemble the graph.

    Args:
        flow: What the rules found.
        tape: The run, for aliases and buffers.
        name: Of the network.
    """
    groups, depths = _ordered(flow)
    position = {id(group): number for number, group in enumerate(groups)}
    used = {block.view.parameter for block in flow.blocks if block.view is not None}
    used |= {f.view.parameter for group in groups for f in group.features.values()}
    leaves = _neuron_leaves(groups)
    axis_groups, names = _axis_groups(flow, leaves, used)
    sizes = {group.name: group.size for group in axis_groups}

    def factors(axis: Sequence[Leaf | int]) -> tuple[Factor, ...]:
        return tuple(names.get(id(f), f.size) if isinstance(f, Leaf) else f for f in resolve(axis))

    scale_groups, exponents, kinds = _scales(groups)
    axis_scales = _parameter_scales(flow, groups, exponents)
    layouts = []
    for parameter, ref in tape.parameters.items():
        if parameter not in used:
            continue
        axes = tuple(factors(axis) for axis in flow.parameter_axes[parameter])
        scales = axis_scales.get(parameter, {})
        layouts.append(
            ParameterLayout(
                name=parameter,
                shape=ref.shape,
                axes=axes,
                scales=tuple(scales.get(i, ()) for i in range(len(axes))),
                num_scaled=tuple(
                    math.prod(sizes[f] for f in axis if isinstance(f, str)) for axis in axes
                ),
                aliases=tape.aliases.get(parameter, ()),
                is_buffer=parameter in tape.buffers,
            )
        )
    neuron_groups = []
    for number, group in enumerate(groups):
        activation, omega = name_activation(group.chain or ())
        neuron_groups.append(
            NeuronGroup(
                name=group.name,
                size=group.size,
                kind=group.kind,
                activation=activation,
                activation_text=" ".join(group.chain or ()),
                omega=omega,
                depth=depths[number],
                axes=factors(group.axis),
                scale=kinds[id(group)],
                scale_exponents=exponents[id(group)],
                features=tuple(NeuronFeature(r, f.view) for r, f in group.features.items()),
            )
        )
    blocks = []
    for block in sorted(flow.blocks, key=lambda b: position[id(b.receiver)]):
        blocks.append(
            EdgeBlock(
                name=block.name,
                kind=block.kind,
                sender=position[id(block.sender)],
                receiver=position[id(block.receiver)],
                num_blocks=block.shape[0],
                num_receivers=block.shape[1],
                num_senders=block.shape[2],
                positions=block.positions,
                view=block.view,
                constant=block.constant,
            )
        )
    unused = [n for n in tape.parameters if n not in used and n not in tape.buffers]
    return ParamGraph(
        name=name,
        neuron_groups=tuple(neuron_groups),
        blocks=tuple(blocks),
        axis_groups=tuple(axis_groups),
        scale_groups=tuple(scale_groups),
        parameters=tuple(layouts),
        unused_parameters=tuple(unused),
    )


def _ordered(flow: Flow) -> tuple[list[FlowGroup], list[int]]:
    """Groups by depth (longest path from an input), with their depths."""
    depth = {id(group): 0 for group in flow.groups}
    incoming: dict[int, list[FlowBlock]] = {}
    for block in flow.blocks:
        incoming.setdefault(id(block.receiver), []).append(block)
    # A skip can join a group that was made before its sender, so relax until nothing changes;
    # the graph is acyclic, so this ends after at most one round per group.
    changed = True
    while changed:
        changed = False
        for group in flow.groups:
            new = max((depth[id(b.sender)] + 1 for b in incoming.get(id(group), ())), default=0)
            if new != depth[id(group)]:
                depth[id(group)] = new
                changed = True
    ordered = sorted(flow.groups, key=lambda group: depth[id(group)])
    return ordered, [depth[id(group)] for group in ordered]


def _neuron_leaves(groups: Sequence[FlowGroup]) -> set[int]:
    """Leaves that number neurons (others, such as kernel positions, are no axis groups)."""
    return {
        id(factor) for group in groups for factor in resolve(group.axis) if isinstance(factor, Leaf)
    }


def _axis_groups(
    flow: Flow, leaves: set[int], used: set[str]
) -> tuple[list[AxisGroup], dict[int, str]]:
    """One axis group per leaf that numbers neurons, with the groups it depends on."""
    found: dict[int, Leaf] = {}
    numbered = [axes for name, axes in flow.parameter_axes.items() if name in used]
    for axes in [*numbered, *((group.axis,) for group in flow.groups)]:
        for axis in axes:
            for factor in resolve(axis):
                if isinstance(factor, Leaf) and id(factor) in leaves:
                    found.setdefault(id(factor), factor)
    names: dict[int, str] = {}
    for key, leaf in found.items():
        name, number = leaf.name, 2
        while name in names.values():
            name, number = f"{leaf.name}#{number}", number + 1
        names[key] = name
    rows = []
    for key, leaf in found.items():
        reason = leaf.frozen or ("only one neuron" if leaf.size == 1 else None)
        rows.append(AxisGroup(names[key], leaf.size, reason is None, reason))
    major = _majors(flow, used, found)
    with_given: list[AxisGroup] = []
    for key, row in zip(found, rows, strict=True):
        given: list[str] = []
        above = major.get(key)
        while above is not None:
            given.insert(0, names[above])
            above = major.get(above)
        with_given.append(replace(row, given=tuple(given)) if row.free else row)
    return with_given, names


def _majors(flow: Flow, used: set[str], found: dict[int, Leaf]) -> dict[int, int]:
    """For each leaf the leaf that stands just before it on every axis of every tensor, if any.

    Where ``b`` always occurs together with ``a``, no operation mixes different indices of ``b``,
    so ``a`` may be permuted differently for each of them (a wreath product).
    """
    before: dict[int, set[int | None]] = {}
    tensors = [axes for name, axes in flow.parameter_axes.items() if name in used]
    tensors += [value.axes for value in flow.values.values() if isinstance(value, Hidden)]
    for axes in tensors:
        for axis in axes:
            previous: int | None = None
            for factor in resolve(axis):
                key = id(factor) if isinstance(factor, Leaf) and id(factor) in found else None
                if key is not None:
                    before.setdefault(key, set()).add(previous)
                previous = key
    return {
        key: only
        for key, several in before.items()
        if len(several) == 1 and (only := next(iter(several))) is not None
    }


def _scales(
    groups: Sequence[FlowGroup],
) -> tuple[list[ScaleGroup], dict[int, ScaleExponents], dict[int, ScaleKind]]:
    """Scale groups, and for each neuron group how it scales."""
    rows: list[ScaleGroup] = []
    made: dict[int, ScaleExponents] = {}
    exponents: dict[int, ScaleExponents] = {}
    kinds: dict[int, ScaleKind] = {}
    for group in groups:
        root = group.scale_root()
        if id(root) not in made:
            mine: list[tuple[str, Fraction]] = []
            for kind, excluded in (
                (ScaleKind.POSITIVE, root.no_positive),
                (ScaleKind.SIGN, root.no_sign),
            ):
                if not excluded:
                    name = f"{root.name}:{kind.value}"
                    rows.append(ScaleGroup(name, root.size, kind))
                    mine.append((name, Fraction(1)))
            made[id(root)] = tuple(mine)
        exponents[id(group)] = made[id(root)]
        kinds[id(group)] = {
            (True, True): ScaleKind.NONE,
            (True, False): ScaleKind.SIGN,
            (False, True): ScaleKind.POSITIVE,
            (False, False): ScaleKind.REAL,
        }[(root.no_positive, root.no_sign)]
    return rows, exponents, kinds


def _parameter_scales(
    flow: Flow, groups: Sequence[FlowGroup], exponents: dict[int, ScaleExponents]
) -> dict[str, dict[int, ScaleExponents]]:
    """How each axis of each parameter scales: + like its receivers, - like its senders."""
    result: dict[str, dict[int, ScaleExponents]] = {}
    for block in flow.blocks:
        if block.view is None:
            continue
        plus, minus = exponents[id(block.receiver)], exponents[id(block.sender)]
        scales = result.setdefault(block.view.parameter, {})
        receivers, senders = block.axes
        if receivers == senders:
            scales[receivers] = _combined(plus, minus)
        else:
            scales[receivers] = plus
            scales[senders] = _combined((), minus)
    for group in groups:
        for role, feature in group.features.items():
            # Only a sign can pass through stored statistics, and a variance loses it.
            if role is not NeuronRole.VARIANCE:
                scales = result.setdefault(feature.view.parameter, {})
                scales[feature.axis] = exponents[id(group)]
    return result


def _combined(plus: ScaleExponents, minus: ScaleExponents) -> ScaleExponents:
    """Exponents of a product of two factors, zeros dropped."""
    total: dict[str, Fraction] = dict(plus)
    for name, exponent in minus:
        total[name] = total.get(name, Fraction(0)) - exponent
    return tuple((name, exponent) for name, exponent in total.items() if exponent)
