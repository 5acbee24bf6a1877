"""Elements of the symmetry group of a parameter graph: draw them, apply them.

An element acts on parameters (same function, other weights) and on neurons (renumbered, rescaled);
metanetworks must not tell the two networks apart. Scaling is applied first, then the permutation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.structure import (
    AxisGroup,
    Factor,
    NeuronGroup,
    ParameterLayout,
    ScaleExponents,
    ScaleGroup,
    ScaleKind,
)

__all__ = ["Symmetry", "draw_symmetry"]


@dataclass(frozen=True)
class Symmetry:
    """One element of the group that capture found.

    Attributes:
        orders: For each axis group ``[num_copies, size]``; index ``i`` of the result is index
            ``orders[k, i]`` of the input, in copy ``k`` of the group (see ``AxisGroup.given``).
        factors: For each scale group the factor of each neuron ``[size]``.
        axis_groups: The axis groups of the graph, by name.
        parameters: The layouts of the graph.
        neuron_groups: The neuron groups of the graph.

    Example:
        >>> Symmetry({}, {}, {}, (), ()).apply({})
        {}
    """

    orders: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]
    axis_groups: Mapping[str, AxisGroup]
    parameters: Sequence[ParameterLayout]
    neuron_groups: Sequence[NeuronGroup]

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of the equivalent network; the given ones are not changed.

        Args:
            state_dict: Parameters of one network. Entries that the graph does not know (unused
                parameters, counters) are passed on as they are.

        Returns:
            A new state dict. The network computes the same function with it.

        Raises:
            GraphError: A parameter is missing or has another shape.
        """
        result = dict(state_dict)
        for layout in self.parameters:
            if layout.name not in state_dict:
                raise GraphError(
                    f"cannot apply the symmetry: the state dict has no {layout.name!r}."
                )
            tensor = state_dict[layout.name]
            if tuple(tensor.shape) != layout.shape:
                raise GraphError(
                    f"cannot apply the symmetry: {layout.name!r} has shape {tuple(tensor.shape)}, "
                    f"expected {layout.shape}."
                )
            for axis, (factors, scales) in enumerate(zip(layout.axes, layout.scales, strict=True)):
                index = self._index(factors).to(tensor.device)
                scale = self._axis_scale(factors, scales, layout.num_scaled[axis])
                shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
                if scale is not None:
                    tensor = tensor * scale.to(tensor).reshape(shape)
                tensor = tensor.index_select(axis, index)
            for name in (layout.name, *layout.aliases):
                result[name] = tensor
        return result

    def neuron_order(self, group: int) -> Tensor:
        """Neuron ``i`` of the result is neuron ``neuron_order(group)[i]`` of the input."""
        return self._index(self.neuron_groups[group].axes)

    def neuron_scale(self, group: int) -> Tensor:
        """Factor q of each neuron of a group, in the numbering before the permutation."""
        row = self.neuron_groups[group]
        return self._scale(row.scale_exponents, row.size)

    def _index(self, factors: Sequence[Factor]) -> Tensor:
        """Flat gather index of an axis that is a product of factors."""
        sizes = [self.axis_groups[f].size if isinstance(f, str) else f for f in factors]
        grid = torch.meshgrid(*[torch.arange(s) for s in sizes], indexing="ij") if sizes else ()
        target: dict[str, Tensor] = {}
        flat = torch.zeros(sizes, dtype=torch.long)
        for place, (factor, size) in enumerate(zip(factors, sizes, strict=True)):
            moved = grid[place]
            if isinstance(factor, str):
                # A dependent group is moved within its own copy: the copy the data comes from.
                copy = torch.zeros_like(flat)
                for name in self.axis_groups[factor].given:
                    copy = copy * self.axis_groups[name].size + target[name]
                moved = self.orders[factor][copy, moved]
                target[factor] = moved
            flat = flat * size + moved
        return flat.reshape(-1)

    def _scale(self, exponents: ScaleExponents, size: int) -> Tensor:
        scale = torch.ones(size, dtype=torch.float64)
        for name, exponent in exponents:
            if name in self.factors:
                scale = scale * self.factors[name] ** float(exponent)
        return scale

    def _axis_scale(
        self, factors: Sequence[Factor], exponents: ScaleExponents, num_scaled: int
    ) -> Tensor | None:
        if not any(name in self.factors for name, _ in exponents):
            return None
        sizes = [self.axis_groups[f].size if isinstance(f, str) else f for f in factors]
        # Positions (fixed factors) share the scale of their neuron.
        shape = [s if isinstance(f, str) else 1 for f, s in zip(factors, sizes, strict=True)]
        scale = self._scale(exponents, num_scaled)
        return scale.reshape(shape).expand(sizes).reshape(-1)


def draw_symmetry(
    axis_groups: Sequence[AxisGroup],
    scale_groups: Sequence[ScaleGroup],
    parameters: Sequence[ParameterLayout],
    neuron_groups: Sequence[NeuronGroup],
    *,
    generator: torch.Generator | None = None,
    permute: bool = True,
    scale: bool = False,
    scale_range: float = 10.0,
) -> Symmetry:
    """Draw a random element of the group.

    Args:
        axis_groups: The permutations.
        scale_groups: The scales and signs.
        parameters: Layouts to act on.
        neuron_groups: Neuron groups to act on.
        generator: Source of randomness.
        permute: Draw permutations (the identity otherwise).
        scale: Draw scales and signs (1 otherwise).
        scale_range: Positive factors are log-uniform in ``[1 / scale_range, scale_range]``.

    Returns:
        An element; no free axis group of two or more indices gets the identity permutation.

    Example:
        >>> group = AxisGroup("a", 3, free=True)
        >>> draw_symmetry([group], [], [], []).orders["a"].shape
        torch.Size([1, 3])
    """
    by_name = {group.name: group for group in axis_groups}
    orders = {}
    for group in axis_groups:
        copies = math.prod(by_name[name].size for name in group.given)
        order = torch.arange(group.size).expand(copies, -1).clone()
        if group.free and permute:
            for row in range(copies):
                order[row] = _shuffle(group.size, generator)
        orders[group.name] = order
    factors = {}
    for scaled in scale_groups if scale else ():
        draw = torch.rand(scaled.size, generator=generator, dtype=torch.float64)
        if scaled.kind is ScaleKind.SIGN:
            factors[scaled.name] = torch.where(draw < 0.5, -1.0, 1.0).to(torch.float64)
        else:
            factors[scaled.name] = ((2 * draw - 1) * math.log(scale_range)).exp()
    return Symmetry(orders, factors, by_name, parameters, neuron_groups)


def _shuffle(size: int, generator: torch.Generator | None) -> Tensor:
    """A random permutation that is not the identity (where there is another one)."""
    order = torch.randperm(size, generator=generator)
    identity = torch.arange(size)
    return identity.roll(1) if size > 1 and torch.equal(order, identity) else order
