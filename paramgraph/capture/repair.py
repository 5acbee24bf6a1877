"""Self-repair: when a graph fails its check, find the groups at fault, freeze them, check again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paramgraph.capture.running import ExampleInputs
from paramgraph.capture.verify import Probe
from paramgraph.graph import ParamGraph
from paramgraph.structure import AxisGroup, ScaleGroup, ScaleKind

__all__ = ["repair"]

_NUM_DRAWS = 4
_FACTOR = 100
"""A wrong group changes outputs by far more than rounding, which this leaves room for."""


def repair(
    network: nn.Module,
    graph: ParamGraph,
    example_inputs: ExampleInputs | list[Any],
    *,
    seed: int = 0,
) -> ParamGraph:
    """Take out of a graph what does not hold on the network.

    Every free axis group is permuted by itself, and every scale group drawn by itself. A group that
    changes the outputs is first tried with one permutation for all indices of the groups it
    depends on, then frozen; its reason says so. Scale groups are removed.

    Args:
        network: The network that was captured; it is not changed.
        graph: Its graph.
        example_inputs: Inputs as for ``capture``.
        seed: Of the draws.

    Returns:
        The same graph when its check passes, else one whose check passes; what was taken out is
        named in ``repairs``.

    Raises:
        GraphError: The outputs are not finite, or there are no weights: nothing can be compared.

    Example:
        >>> import paramgraph as pg
        >>> network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> graph = pg.capture(network, torch.randn(4, 3))
        >>> pg.repair(network, graph, torch.randn(4, 3)) is graph
        True
    """
    several = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    probes = [Probe(network, graph, inputs, seed) for inputs in several]
    if _error(graph, probes, seed, _NUM_DRAWS) is None:
        return graph
    rows: list[AxisGroup] = []
    repairs: list[str] = []
    for group in graph.axis_groups:
        kept, note = _kept(graph, group, probes, seed)
        rows.append(kept)
        repairs += [note] if note else []
    bad = {row.name for row in graph.scale_groups if _breaks(graph, row, probes, seed)}
    repairs += [f"scale group {name} removed: it changes the outputs" for name in sorted(bad)]
    repaired = without_scales(replace(graph, axis_groups=tuple(rows)), bad)
    if _error(repaired, probes, seed, _NUM_DRAWS) is not None:
        # Each group holds by itself, but not all together: then nothing is claimed.
        reason = "changes the outputs together with other groups"
        rows = [replace(r, free=False, reason=r.reason or reason, given=()) for r in rows]
        every = {row.name for row in graph.scale_groups}
        repaired = without_scales(replace(graph, axis_groups=tuple(rows)), every)
        repairs = ["all groups frozen: they change the outputs when drawn together"]
    return replace(repaired, repairs=(*graph.repairs, *repairs))


def _error(graph: ParamGraph, probes: list[Probe], seed: int, num_draws: int) -> float | None:
    """The largest change over all inputs, or ``None`` when it is within rounding."""
    generator = torch.Generator().manual_seed(seed)
    for probe in probes:
        for draw in range(num_draws):
            is_scaled = draw % 2 == 1
            symmetry = graph.sample_symmetry(generator, scale=is_scaled, phase=is_scaled)
            error = probe.error(symmetry.apply(probe.state))
            if error > _FACTOR * probe.tolerance:
                return error
    return None


def _alone(graph: ParamGraph, group: AxisGroup) -> ParamGraph:
    """The graph with one group free, and no scales."""
    rows = [group if g.name == group.name else replace(g, free=False) for g in graph.axis_groups]
    return replace(
        without_scales(graph, {r.name for r in graph.scale_groups}), axis_groups=tuple(rows)
    )


def _kept(
    graph: ParamGraph, group: AxisGroup, probes: list[Probe], seed: int
) -> tuple[AxisGroup, str | None]:
    """What is left of a group, with a note where that is less than it was."""
    if not group.free:
        return group, None
    error = _error(_alone(graph, group), probes, seed, _NUM_DRAWS)
    if error is None:
        return group, None
    if group.given:
        tied = replace(group, given=())
        if _error(_alone(graph, tied), probes, seed, _NUM_DRAWS) is None:
            given = ", ".join(group.given)
            return tied, f"axis group {group.name} permuted alike for all of {given}"
    reason = f"changes the outputs (relative error {error:.1e})"
    return replace(group, free=False, reason=reason, given=()), f"axis group {group.name} {reason}"


def _breaks(graph: ParamGraph, group: ScaleGroup, probes: list[Probe], seed: int) -> bool:
    """Whether a scale group by itself changes the outputs."""
    others = {row.name for row in graph.scale_groups if row.name != group.name}
    rows = tuple(replace(g, free=False) for g in graph.axis_groups)
    alone = without_scales(replace(graph, axis_groups=rows), others)
    return _error(alone, probes, seed, _NUM_DRAWS) is not None


def without_scales(graph: ParamGraph, names: set[str]) -> ParamGraph:
    """The graph without some of its scale groups."""
    if not names:
        return graph
    kinds = {row.name: row.kind for row in graph.scale_groups}
    parameters = []
    for layout in graph.parameters:
        parts = tuple(
            replace(
                part,
                scales=tuple(s for s in part.scales if s.group not in names),
                shifts=tuple(s for s in part.shifts if s.group not in names),
            )
            for part in layout.parts
        )
        parameters.append(replace(layout, parts=parts))
    neurons = []
    for neuron in graph.neuron_groups:
        left = tuple((n, e) for n, e in neuron.scale_exponents if n not in names)
        have = {kinds[name] for name, _ in left}
        neurons.append(replace(neuron, scale_exponents=left, scale=_kind(have)))
    return replace(
        graph,
        scale_groups=tuple(row for row in graph.scale_groups if row.name not in names),
        parameters=tuple(parameters),
        neuron_groups=tuple(neurons),
    )


def _kind(have: set[ScaleKind]) -> ScaleKind:
    if {ScaleKind.SIGN, ScaleKind.POSITIVE} <= have:
        return ScaleKind.REAL
    return next((k for k in (ScaleKind.SIGN, ScaleKind.POSITIVE) if k in have), ScaleKind.NONE)
