"""How readers of a neuron see its scale: through an even function signs vanish, a square doubles.

A neuron that is rescaled by q before its activation passes on ``q`` (ReLU, tanh), ``abs(q)`` (abs),
``1`` (cosine) or ``q ** 2`` (square). Capture has solved for all of these: they are read off the
factors that a drawn symmetry gives to the weights on both sides of the neuron.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeKind, ScaleKind
from paramgraph.views import set_parameter

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
    ones: dict[str, Tensor] = {}
    for layout in graph.parameters:
        set_parameter(ones, layout, torch.ones(layout.shape, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    # A factor of no neuron (two gains in a row) says nothing about readers.
    acting = {name for group in graph.neuron_groups for name, _ in group.scale_exponents}
    before: list[list[Tensor]] = [[] for _ in graph.neuron_groups]
    after: list[list[Tensor]] = [[] for _ in graph.neuron_groups]
    for _ in range(_NUM_DRAWS):
        symmetry = graph.sample_symmetry(generator, permute=False, scale=True)
        factors = {name: f for name, f in symmetry.factors.items() if name in acting}
        symmetry = replace(symmetry, factors=factors)
        values = graph.features(symmetry.apply(ones))
        scales = [symmetry.neuron_scale(number) for number in range(len(graph.neuron_groups))]
        seen: set[int] = set()
        for block, entries in zip(graph.blocks, values.blocks, strict=True):
            is_linear = block.kind.has_parameters or block.kind is EdgeKind.SKIP
            if block.sender in seen or not is_linear or not block.num_edges:
                continue
            seen.add(block.sender)
            received = scales[block.receiver].reshape(block.num_blocks, block.num_receivers, 1)
            entry = entries[0, ..., 0] / (1.0 if block.view else block.constant)
            passed = received / entry  # [blocks, receivers, senders]
            first = passed[:, :1]
            # Where receivers disagree, their factors are not those of single neurons: no statement.
            agree = ((passed / first - 1).abs() < 1e-9).all(1).reshape(-1)
            before[block.sender].append(scales[block.sender][agree])
            after[block.sender].append(first.reshape(-1)[agree])
    return [
        _outgoing(torch.cat(b), torch.cat(a)) if b else Outgoing()
        for b, a in zip(before, after, strict=True)
    ]


def _outgoing(before: Tensor, after: Tensor) -> Outgoing:
    is_even = bool(((before < 0) & (after > 0)).any())
    known = before.abs().log().abs() > 0.1
    if not bool(known.any()):
        return Outgoing(is_even)
    power = (after.abs().log()[known] / before.abs().log()[known]).median()
    return Outgoing(is_even, round(float(power), 6))
