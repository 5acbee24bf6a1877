"""How outputs must move when a symmetry is applied to the network: an index and a factor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paramgraph.graph import ParamGraph
from paramgraph.nn.metanetwork import Level
from paramgraph.structure import ParameterLayout
from paramgraph.symmetry import Symmetry
from paramgraph.testing.draws import linear_part
from paramgraph.views import get_parameter, set_parameter

__all__ = ["Move", "move_of", "segments", "trained"]


def trained(graph: ParamGraph) -> list[ParameterLayout]:
    """The parameters that outputs at level "parameter" are about; statistics are measured."""
    return [layout for layout in graph.parameters if not layout.is_buffer]


def segments(graph: ParamGraph, level: Level) -> list[int]:
    """Lengths of the pieces of the outputs for one network that have a scale of their own.

    Args:
        graph: The architecture.
        level: All outputs of a network; each neuron group; or each parameter.
    """
    if level == "graph":
        return [1]
    if level == "neuron":
        return [group.size for group in graph.neuron_groups]
    return [layout.num_entries for layout in trained(graph)]


@dataclass(frozen=True)
class Move:
    """Place i of the outputs is what was at ``index[i]``, times ``factor[i]``.

    Attributes:
        index: ``[places]``.
        factor: ``[places, 1]``, 1 except for parameters.

    Example:
        >>> Move(torch.tensor([1, 0]), torch.ones(2, 1))(torch.tensor([[3.0], [4.0]])).tolist()
        [[4.0], [3.0]]
    """

    index: Tensor
    factor: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Outputs ``[places, out_dim]`` after the symmetry."""
        return self.factor * rows[self.index]


def move_of(symmetry: Symmetry, graph: ParamGraph, level: Level) -> Move:
    """How outputs for one network move.

    Outputs per network stay, those per neuron go with the neurons, and those per entry of a
    parameter transform as changes of the parameters do: linearly, so without shifts.

    Args:
        symmetry: Applied to the network.
        graph: The architecture.
        level: What the outputs are about.
    """
    if level == "graph":
        return _still(torch.zeros(1, dtype=torch.long))
    if level == "neuron":
        orders, start = [], 0
        for number, group in enumerate(graph.neuron_groups):
            orders.append(start + symmetry.neuron_order(number))
            start += group.size
        return _still(torch.cat(orders))
    change = linear_part(symmetry)
    places: dict[str, Tensor] = {}
    ones: dict[str, Tensor] = {}
    start = 0
    for layout in graph.parameters:
        # Whole numbers below 2^53 are exact in float64.
        numbers = torch.arange(start, start + layout.num_entries, dtype=torch.float64)
        set_parameter(places, layout, numbers.reshape(layout.shape))
        set_parameter(ones, layout, torch.ones(layout.shape, dtype=torch.float64))
        start += 0 if layout.is_buffer else layout.num_entries
    index = _flat(graph, replace(change, factors={}).apply(places))
    return Move(index.long(), _flat(graph, change.apply(ones))[:, None])


def _still(index: Tensor) -> Move:
    return Move(index, torch.ones(len(index), 1, dtype=torch.float64))


def _flat(graph: ParamGraph, state: dict[str, Tensor]) -> Tensor:
    return torch.cat([get_parameter(state, layout).reshape(-1) for layout in trained(graph)])
