"""How readers of a neuron see its scale: through an even function signs vanish, a square doubles.

A neuron that is rescaled by q before its activation passes on ``q`` (ReLU, tanh), ``abs(q)`` (abs),
``1`` (cosine) or ``q ** 2`` (square). Capture has solved for all of these: they are read off the
factors that a drawn symmetry gives to the weights on both sides of the neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeBlock, EdgeKind, ParameterLayout, ScaleKind
from paramgraph.symmetry import Symmetry
from paramgraph.views import joined_axes, take_part

__all__ = ["Outgoing", "outgoing_scales"]

_NUM_DRAWS = 4


@dataclass(frozen=True)
class Outgoing:
    """What becomes of a factor q of a neuron group behind its activation.

    Attributes:
        is_even: Whether the sign of q is lost.
        power: Which power of a positive q is passed on.
    """

    is_even: bool = False
    power: float = 1.0


def outgoing_scales(graph: ParamGraph) -> list[Outgoing]:
    """One row per neuron group of a graph.

    Example:
        >>> import paramgraph as pg
        >>> class Even(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.last = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
        ...     def forward(self, x):
        ...         return self.last(self.first(x).square())
        >>> outgoing_scales(pg.capture(Even(), torch.randn(4, 2)))[1]
        Outgoing(is_even=True, power=2.0)
    """
    kinds = {group.scale for group in graph.neuron_groups}
    if kinds == {ScaleKind.NONE}:
        return [Outgoing()] * len(graph.neuron_groups)
    layouts = {layout.name: layout for layout in graph.parameters}
    generator = torch.Generator().manual_seed(0)
    # A factor of no neuron (two gains in a row) says nothing about readers.
    acting = {name for group in graph.neuron_groups for name, _ in group.scale_exponents}
    before: list[list[Tensor]] = [[] for _ in graph.neuron_groups]
    after: list[list[Tensor]] = [[] for _ in graph.neuron_groups]
    for _ in range(_NUM_DRAWS):
        symmetry = graph.sample_symmetry(generator, permute=False, scale=True)
        factors = {name: f for name, f in symmetry.factors.items() if name in acting}
        symmetry = replace(symmetry, factors=factors)
        scales = [symmetry.neuron_scale(number) for number in range(len(graph.neuron_groups))]
        seen: set[int] = set()
        for block in graph.blocks:
            is_linear = block.kind.has_parameters or block.kind is EdgeKind.SKIP
            if block.sender in seen or not is_linear or not block.num_edges:
                continue
            seen.add(block.sender)
            received = scales[block.receiver].reshape(block.num_blocks, block.num_receivers, 1)
            first, agree = _passed(received, *_factors(symmetry, layouts, block))
            before[block.sender].append(scales[block.sender][agree])
            after[block.sender].append(first[agree])
    return [
        _outgoing(torch.cat(b), torch.cat(a)) if b else Outgoing()
        for b, a in zip(before, after, strict=True)
    ]


def _passed(received: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factor that each sender passes on, and whether all its receivers say the same.

    Args:
        received: Factors of the receivers ``[blocks, receivers, 1]``.
        left: A factor of the weights ``[blocks, receivers, senders or 1]``.
        right: The other one ``[blocks, 1, senders]``.
    """
    passed = received / left
    first = passed[:, :1]
    # Where receivers disagree, their factors are not those of single neurons: no statement.
    agree = ((passed / first - 1).abs() < 1e-9).all(1, keepdim=True)
    first = first / right
    return first.reshape(-1), agree.expand_as(first).reshape(-1)


def _factors(
    symmetry: Symmetry, layouts: Mapping[str, ParameterLayout], block: EdgeBlock
) -> tuple[Tensor, Tensor]:
    """What the weights of a block are multiplied by at the first position, as a product.

    Returns:
        ``[blocks, receivers, senders or 1]`` and ``[blocks, 1, senders]``. A factor belongs to
        the receivers or to the senders, so neither has the size of the block, unless one belongs
        to both.
    """
    shape = block.shape
    left = torch.ones(shape[0], shape[1], 1, dtype=torch.float64)
    right = torch.ones(shape[0], 1, shape[2], dtype=torch.float64)
    if block.view is None:
        return left, right
    layout = layouts[block.view.parameter]
    part = layout.parts[block.view.part]
    like = torch.empty(layout.shape, device="meta")
    sizes = take_part(like, part.steps).shape
    order = block.view.order
    groups = joined_axes([sizes[axis] for axis in order], shape)
    for scale in part.scales:
        if scale.group not in symmetry.factors:
            continue
        factor = symmetry.part_scale(part, scale).double()
        factor = factor.reshape(factor.shape or (1,) * len(sizes)).permute(order)
        given = [any(factor.shape[axis] > 1 for axis in group) for group in groups]
        # Axes of which it knows nothing stay 1 long, all others get their own length.
        whole, found = [], []
        for number, group in enumerate(groups):
            is_kept = number == 0 or (number < 3 and given[number])
            for axis in group:
                size = sizes[order[axis]] if is_kept else 1
                whole.append(size)
                if number == 3:
                    factor = factor.narrow(axis, 0, 1)
            found.append(shape[number] if is_kept else 1)
        factor = factor.expand(whole).reshape(found)[..., 0]
        if given[1]:
            left = left * factor
        else:
            right = right * factor
    return left, right


def _outgoing(before: Tensor, after: Tensor) -> Outgoing:
    is_even = bool(((before < 0) & (after > 0)).any())
    known = before.abs().log().abs() > 0.1
    if not bool(known.any()):
        return Outgoing(is_even)
    power = (after.abs().log()[known] / before.abs().log()[known]).median()
    return Outgoing(is_even, round(float(power), 6))
