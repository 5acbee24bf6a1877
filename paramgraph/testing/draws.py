"""Random weights and random symmetries of some kinds, always in float64."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from paramgraph.graph import ParamGraph
from paramgraph.structure import NeuronRole, ScaleGroup, ScaleKind
from paramgraph.symmetry import Symmetry
from paramgraph.views import get_parameter, set_parameter

__all__ = [
    "SCALE_KINDS",
    "double_state",
    "draw_kinds",
    "groups_of_kind",
    "linear_part",
    "other_weights",
]

StateDict = Mapping[str, Tensor]

SCALE_KINDS = {"sign": ScaleKind.SIGN, "scale": ScaleKind.POSITIVE, "phase": ScaleKind.PHASE}
"""Promise of a metanetwork to kind of scale group."""


def double_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU, floating point tensors in float64.

    Args:
        network: Any module.

    Returns:
        A new state dict.

    Example:
        >>> double_state(nn.Linear(1, 1))["weight"].dtype
        torch.float64
    """
    return {
        name: value.detach().cpu().to(torch.float64 if value.is_floating_point() else None).clone()
        for name, value in network.state_dict().items()
    }


def other_weights(
    graph: ParamGraph, state: StateDict, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights of another network of the architecture: noise as large as the weights themselves.

    Args:
        graph: The architecture.
        state: Weights that give the sizes.
        generator: Source of randomness.

    Returns:
        A new state dict; variances stay positive, and tied parameters tied.
    """
    variances = {
        feature.view.parameter
        for group in graph.neuron_groups
        for feature in group.features
        if feature.role is NeuronRole.VARIANCE
    }
    result = dict(state)
    for layout in graph.parameters:
        value = get_parameter(state, layout)
        noise = torch.randn(layout.shape, generator=generator, dtype=torch.float64)
        if layout.name in variances:
            value = value * (0.5 * noise).exp()
        else:
            value = value + noise * (value.square().mean().sqrt() + 0.1)
        set_parameter(result, layout, value)
    return result


def groups_of_kind(graph: ParamGraph, promise: str) -> list[ScaleGroup]:
    """The scale groups that a promise is about.

    Args:
        graph: The architecture.
        promise: ``"sign"``, ``"scale"`` or ``"phase"``.

    Returns:
        Groups that act on neurons one by one; for phases those of biases, which are all that a
        batch says of phases.
    """
    kind = SCALE_KINDS[promise]
    if kind is not ScaleKind.PHASE:
        return graph.neuron_scales(kind)
    biases = {
        (feature.view.parameter, feature.view.part)
        for group in graph.neuron_groups
        for feature in group.features
        if feature.role is NeuronRole.BIAS
    }
    elsewhere = {
        shift.group
        for layout in graph.parameters
        for number, part in enumerate(layout.parts)
        for shift in part.shifts
        if (layout.name, number) not in biases
    }
    return [row for row in graph.scale_groups if row.kind is kind and row.name not in elsewhere]


def draw_kinds(
    graph: ParamGraph,
    kinds: Collection[str],
    generator: torch.Generator,
    *,
    scale_range: float = 100.0,
) -> Symmetry:
    """Draw a symmetry of some kinds.

    Args:
        graph: The architecture.
        kinds: Of ``"permutation"``, ``"sign"``, ``"scale"`` (positive factors) and ``"phase"``.
        generator: Source of randomness.
        scale_range: Positive factors are log-uniform in ``[1 / scale_range, scale_range]``.

    Returns:
        A symmetry in which every scale group of these kinds has an index that is changed.
    """
    drawn = graph.sample_symmetry(
        generator,
        permute="permutation" in kinds,
        scale=True,
        phase="phase" in kinds,
        scale_range=scale_range,
    )
    changed = {"sign": -1.0, "scale": scale_range, "phase": 1.0}
    factors = {}
    for promise in changed:
        for group in groups_of_kind(graph, promise) if promise in kinds else ():
            factor = drawn.factors[group.name].clone()
            if bool((factor == (0 if promise == "phase" else 1)).all()):
                factor[0] = changed[promise]
            factors[group.name] = factor
    return replace(drawn, factors=factors)


def linear_part(symmetry: Symmetry) -> Symmetry:
    """How changes of parameters transform: a symmetry without what it adds to biases of sines.

    Args:
        symmetry: Acts on parameters as ``theta -> L theta + shift``.

    Returns:
        ``L``.

    Example:
        >>> import paramgraph as pg
        >>> network = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> drawn = pg.capture(network, torch.randn(3, 1)).sample_symmetry(phase=True)
        >>> any(part.shifts for row in linear_part(drawn).parameters for part in row.parts)
        False
    """
    parameters = tuple(
        replace(row, parts=tuple(replace(part, shifts=()) for part in row.parts))
        for row in symmetry.parameters
    )
    return replace(symmetry, parameters=parameters)
