"""Random weights and random symmetries of one kind, always in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from paramgraph.graph import ParamGraph
from paramgraph.structure import NeuronRole, ScaleKind
from paramgraph.symmetry import Symmetry
from paramgraph.views import get_parameter, set_parameter

__all__ = ["double_state", "draw_scale", "other_weights"]

StateDict = Mapping[str, Tensor]


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


def draw_scale(
    graph: ParamGraph,
    kind: ScaleKind,
    generator: torch.Generator,
    *,
    scale_range: float = 100.0,
) -> Symmetry:
    """Draw signs only, or positive factors only; neurons keep their order.

    Args:
        graph: The architecture.
        kind: ``SIGN`` or ``POSITIVE``.
        generator: Source of randomness.
        scale_range: Positive factors are log-uniform in ``[1 / scale_range, scale_range]``.

    Returns:
        A symmetry in which every scale group of the kind has a neuron with a factor other than 1.
    """
    drawn = graph.sample_symmetry(generator, permute=False, scale=True, scale_range=scale_range)
    factors = {}
    for group in graph.neuron_scales(kind):
        factor = drawn.factors[group.name].clone()
        if bool((factor == 1).all()):
            factor[0] = -1.0 if kind is ScaleKind.SIGN else scale_range
        factors[group.name] = factor
    return replace(drawn, factors=factors)
