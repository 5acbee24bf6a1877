"""Elements of the symmetry group of a parameter graph: draw them, apply them.

An element acts on parameters (same function, other weights) and on neurons (renumbered, rescaled);
metanetworks must not tell the two networks apart. Scaling is applied first, then shifts, then the
permutation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.structure import (
    AxisGroup,
    Factor,
    NeuronGroup,
    ParameterLayout,
    ParameterPart,
    PartScale,
    ScaleGroup,
    ScaleKind,
    Split,
)
from paramgraph.views import get_parameter, set_parameter, take_part

__all__ = ["Symmetry", "draw_symmetry"]


@dataclass(frozen=True)
class Symmetry:
    """One element of the group that capture found.

    Attributes:
        orders: For each axis group ``[num_copies, size]``; index ``i`` of the result is index
            ``orders[k, i]`` of the input, in copy ``k`` of the group (see ``AxisGroup.given``).
        factors: For each scale group the factor of each neuron ``[size]``; for a group of kind
            ``PHASE`` the number of half periods.
        axis_groups: The axis groups of the graph, by name.
        parameters: The layouts of the graph.
        neuron_groups: The neuron groups of the graph.
        scale_groups: The scale groups of the graph, by name.

    Example:
        >>> Symmetry({}, {}, {}, (), (), {}).apply({})
        {}
    """

    orders: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]
    axis_groups: Mapping[str, AxisGroup]
    parameters: Sequence[ParameterLayout]
    neuron_groups: Sequence[NeuronGroup]
    scale_groups: Mapping[str, ScaleGroup]

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
            tensor = get_parameter(state_dict, layout)
            if tuple(tensor.shape) != layout.shape:
                raise GraphError(
                    f"cannot apply the symmetry: {layout.name!r} has shape {tuple(tensor.shape)}, "
                    f"expected {layout.shape}."
                )
            set_parameter(result, layout, self._moved(tensor, layout))
        return result

    def _moved(self, tensor: Tensor, layout: ParameterLayout) -> Tensor:
        """A parameter after scaling and permutation, part by part."""
        moved = tensor.new_empty(tensor.shape)
        for part in layout.parts:
            here = take_part(tensor, part.steps)
            for scale in part.scales:
                if scale.group in self.factors:
                    here = here * self.part_scale(part, scale).to(here)
            for shift in part.shifts:
                if shift.group in self.factors:
                    count = self._on_part(part, shift.group, self.factors[shift.group], shift.axis)
                    here = here + (shift.amount * count.double()).to(here)
            # Groups that depend on others are moved first, within the copy the data comes from.
            axes = [axis for axis, f in enumerate(part.factors) if isinstance(f, str)]
            for axis in sorted(axes, key=lambda a: -len(self._given(part.factors[a]))):
                here = self._permuted(here, part, axis)
            take_part(moved, part.steps).copy_(here)
        return moved

    def _given(self, factor: Factor) -> tuple[str, ...]:
        return self.axis_groups[factor].given if isinstance(factor, str) else ()

    def _permuted(self, tensor: Tensor, part: ParameterPart, axis: int) -> Tensor:
        """One axis of a part in its new order."""
        name = part.factors[axis]
        assert isinstance(name, str)
        group = self.axis_groups[name]
        if not group.free:
            return tensor
        order = self.orders[name].to(tensor.device)
        if not group.given:
            return tensor.index_select(axis, order[0])
        names = [*group.given, name]
        sizes = [self.axis_groups[n].size for n in names]
        places = [*(_place_of(part, n, axis) for n in group.given), axis]
        index = _placed(order.reshape(sizes), places, tensor.ndim).expand(tensor.shape)
        return tensor.gather(axis, index)

    def part_scale(self, part: ParameterPart, scale: PartScale) -> Tensor:
        """Factors of a scale group, along the axes of a part."""
        factor = self._power(scale.group, scale.exponent)
        return self._on_part(part, scale.group, factor, scale.axis)

    def _on_part(self, part: ParameterPart, name: str, values: Tensor, axis: int) -> Tensor:
        """One value per index of a scale group, along the axes of a part."""
        axes = self.scale_groups[name].axes
        if not axes:
            return values.reshape(())
        sizes = [self.axis_groups[name].size for name in axes]
        places = [*(_place_of(part, n, axis) for n in axes[:-1]), axis]
        return _placed(values.reshape(sizes), places, len(part.factors))

    def _power(self, name: str, exponent: Fraction) -> Tensor:
        """The factor of each neuron, to a power; a shift by half a period flips the sign."""
        values = self.factors[name]
        if self.scale_groups[name].kind is ScaleKind.PHASE:
            return 1.0 - 2.0 * ((values.double() * float(exponent)) % 2)
        return values ** float(exponent)

    def neuron_order(self, group: int) -> Tensor:
        """Neuron ``i`` of the result is neuron ``neuron_order(group)[i]`` of the input."""
        return self._index(self.neuron_groups[group].axes)

    def neuron_scale(self, group: int) -> Tensor:
        """Factor q of each neuron of a group, in the numbering before the permutation."""
        row = self.neuron_groups[group]
        sizes = [self.axis_groups[f].size if isinstance(f, str) else f for f in row.axes]
        scale = torch.ones(sizes, dtype=torch.float64, device="cpu")
        for name, exponent in row.scale_exponents:
            if name in self.factors:
                names = self.scale_groups[name].axes
                factor = self._power(name, exponent)
                factor = factor.reshape([self.axis_groups[n].size for n in names])
                scale = scale * _placed(factor, [row.axes.index(n) for n in names], len(sizes))
        return scale.reshape(-1)

    def _index(self, factors: Sequence[Factor]) -> Tensor:
        """Flat gather index of an axis that is a product of factors."""
        sizes = [self.axis_groups[f].size if isinstance(f, str) else f for f in factors]
        grid = (
            torch.meshgrid(*[torch.arange(s, device="cpu") for s in sizes], indexing="ij")
            if sizes
            else ()
        )
        target: dict[str, Tensor] = {}
        flat = torch.zeros(sizes, dtype=torch.long, device="cpu")
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


def _place_of(part: ParameterPart, name: str, axis: int) -> int:
    """Which axis of a part is the group that another one, on ``axis``, depends on.

    Of several the one that stands on the same axis of the parameter.
    """
    places = [place for place, factor in enumerate(part.factors) if factor == name]
    if len(places) == 1:
        return places[0]
    origin = _origins(part)
    same = [place for place in places if origin[place] == origin[axis]]
    return same[0] if same else max((p for p in places if p < axis), default=places[0])


def _origins(part: ParameterPart) -> list[int]:
    """For each axis of a part the axis of the parameter that it was."""
    splits = [step for step in part.steps if isinstance(step, Split)]
    rank = len(part.factors) - sum(len(step.sizes) - 1 for step in splits)
    origin = list(range(rank))
    for step in splits:
        origin[step.axis : step.axis + 1] = [origin[step.axis]] * len(step.sizes)
    return origin


def _placed(tensor: Tensor, places: Sequence[int], rank: int) -> Tensor:
    """A tensor of ``rank`` axes with the given ones at ``places`` and length 1 elsewhere."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    shape = [1] * rank
    for axis, place in enumerate(places):
        shape[place] = tensor.shape[axis]
    return tensor.permute(order).reshape(shape)


def draw_symmetry(
    axis_groups: Sequence[AxisGroup],
    scale_groups: Sequence[ScaleGroup],
    parameters: Sequence[ParameterLayout],
    neuron_groups: Sequence[NeuronGroup],
    *,
    generator: torch.Generator | None = None,
    permute: bool = True,
    scale: bool = False,
    phase: bool = False,
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
        phase: Draw phase shifts of -2 to 2 half periods (none otherwise). These act on parameters;
            neurons cannot express them, so that no metanetwork is equivariant to them.
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
        if group.free and permute:
            orders[group.name] = _shuffles(group.size, copies, generator)
        else:
            orders[group.name] = torch.arange(group.size, device="cpu").expand(copies, -1)
    factors = {}
    for scaled in scale_groups:
        if not (phase if scaled.kind is ScaleKind.PHASE else scale):
            continue
        draw = torch.rand(scaled.size, generator=generator, dtype=torch.float64, device="cpu")
        if scaled.kind is ScaleKind.PHASE:
            factors[scaled.name] = (5 * draw).floor() - 2
        elif scaled.kind is ScaleKind.SIGN:
            factors[scaled.name] = torch.where(draw < 0.5, -1.0, 1.0).to(torch.float64)
        else:
            factors[scaled.name] = ((2 * draw - 1) * math.log(scale_range)).exp()
    scales = {group.name: group for group in scale_groups}
    return Symmetry(orders, factors, by_name, parameters, neuron_groups, scales)


def _shuffles(size: int, copies: int, generator: torch.Generator | None) -> Tensor:
    """A random permutation for each copy; not the same one for all."""
    if copies == 1:
        return _shuffle(size, generator)[None]
    rows = [torch.randperm(size, generator=generator, device="cpu") for _ in range(copies)]
    if all(torch.equal(row, rows[0]) for row in rows):
        rows[-1] = rows[-1].roll(1)
    return torch.stack(rows)


def _shuffle(size: int, generator: torch.Generator | None) -> Tensor:
    """A random permutation that is not the identity (where there is another one)."""
    order = torch.randperm(size, generator=generator, device="cpu")
    identity = torch.arange(size, device="cpu")
    return identity.roll(1) if size > 1 and torch.equal(order, identity) else order
