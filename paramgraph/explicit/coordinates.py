"""Coordinates of edges: offsets in a kernel, places in a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from paramgraph.explicit.kinds import Structure
from paramgraph.structure import EdgeBlock, EdgeKind, NeuronGroup, NeuronKind

__all__ = ["is_fixed", "slot_coordinates"]


def slot_coordinates(graph: Structure, block: EdgeBlock) -> Tensor:
    """``[slots, 3]`` of a block: kernel offsets, or where the senders lie in a grid."""
    is_table = block.kind is EdgeKind.EMBEDDING
    grid = _grid(graph, graph.neuron_groups[block.sender]) if is_table else None
    if grid is not None:
        rows = grid.reshape(block.num_blocks, 1, block.num_senders, 1, 3)
        return rows.expand(*block.shape, 3).reshape(-1, 3)
    offsets = torch.tensor(block.positions)
    places = torch.zeros(block.num_positions, 3)
    places[:, 3 - offsets.shape[1] :] = offsets
    return places.expand(block.num_edges, -1, 3).reshape(-1, 3)


def _grid(graph: Structure, group: NeuronGroup) -> Tensor | None:
    """Coordinates of the rows of a table with several axes, each from -1 to 1."""
    sizes = {axis.name: axis.size for axis in graph.axis_groups}
    axes = [sizes[f] if isinstance(f, str) else f for f in group.axes]
    if group.kind is not NeuronKind.FIXED or not is_fixed(graph, group) or len(axes) < 2:
        return None
    lines = [torch.linspace(-1, 1, size) for size in axes[-3:]]
    grid = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).reshape(-1, len(lines))
    padded = torch.zeros(len(grid), 3)
    padded[:, 3 - len(lines) :] = grid
    return padded.repeat(group.size // len(padded), 1)


def is_fixed(graph: Structure, group: NeuronGroup) -> bool:
    """Whether no symmetry permutes the neurons of a group."""
    free = {axis.name for axis in graph.axis_groups if axis.free}
    return not any(factor in free for factor in group.axes)
