"""Heads: features of neurons and edges to outputs per neuron and per entry, and bounded targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paramgraph.batch import Entries, GraphBatch
from paramgraph.nn.metanetwork import mlp
from paramgraph.nn.positions import PositionFunctions
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["BoundedHead", "EntryHead"]


class EntryHead(nn.Module):
    """Features of edges and neurons to ``num_sets`` numbers per entry.

    One edge of a kernel stands for all its positions: its features become a few numbers, weighted
    by learned functions of the position, so that a kernel may have any size. Biases are read from
    the neurons they belong to (the published head reads them from others).

    Args:
        edge_dim: Width of edge features.
        neuron_dim: Width of neuron features.
        num_sets: Numbers per entry.
        hidden_dim: Width of the two MLPs, ``edge_dim`` when not given.
        num_functions: Functions of the position.

    References:
        Kofinas et al. 2024, appendix D (two-layer MLPs on edges and nodes).
    """

    def __init__(
        self,
        edge_dim: int,
        neuron_dim: int,
        num_sets: int = 1,
        *,
        hidden_dim: int | None = None,
        num_functions: int = 4,
    ) -> None:
        super().__init__()
        hidden_dim = edge_dim if hidden_dim is None else hidden_dim
        self.num_sets = num_sets
        self.num_functions = num_functions
        self.edges = mlp(edge_dim, hidden_dim, num_functions * num_sets)
        self.neurons = mlp(neuron_dim, hidden_dim, NUM_NEURON_CHANNELS * num_sets)
        self.positions = PositionFunctions(num_functions)

    def forward(self, batch: GraphBatch, edges: Sequence[Tensor], neurons: Tensor) -> Entries:
        """Outputs for every entry.

        Args:
            batch: The networks.
            edges: For each bucket ``[m * num_blocks, receivers, senders, edge_dim]``, as from
                ``batch.split_edges``.
            neurons: ``[N, neuron_dim]``.
        """
        found = []
        for bucket, features in zip(batch.buckets, edges, strict=True):
            parts = self.edges(features).unflatten(-1, (self.num_functions, self.num_sets))
            psi = self.positions(bucket.positions, features)  # [P, num_functions], or [1, 1]
            parts = torch.einsum("brsfk,pf->brspk", parts[..., : psi.shape[1], :], psi)
            found.append(parts.reshape(*bucket.values.shape, self.num_sets))
        rows = self.neurons(neurons).unflatten(-1, (NUM_NEURON_CHANNELS, self.num_sets))
        return Entries(tuple(found), rows)


class BoundedHead(nn.Module):
    """Any real number to one between two bounds: ``low + (high - low) sigmoid(x)``.

    Args:
        low: Smallest target.
        high: Largest target.

    Raises:
        ValueError: ``low`` is not below ``high``.

    Example:
        >>> BoundedHead(0.0, 2.0)(torch.zeros(1)).item()
        1.0
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}.")
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Squash ``x``, whatever its shape."""
        return self.low + (self.high - self.low) * x.sigmoid()
