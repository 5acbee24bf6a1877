"""Layers of message passing with four statistics of the messages (PNA), FiLM and edge updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from paramgraph.batch import GraphBatch
from paramgraph.nn.edge_chain import EdgeChain
from paramgraph.nn.fast_dropout import FastDropout
from paramgraph.nn.metanetwork import network_mean

__all__ = ["NetworkNorm", "PNALayer", "edge_mean", "in_degrees"]


class NetworkNorm(nn.Module):
    """Layer norm over all neurons and channels of one network, never over the batch.

    Args:
        dim: Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, batch: GraphBatch, x: Tensor) -> Tensor:
        """Normalise ``[N, dim]``."""
        # Means over channels first: what is gathered per network is one number per neuron.
        x = x - self._mean(batch, x)
        square = self._mean(batch, x.square())
        return x * (square + 1e-5).rsqrt() * self.weight + self.bias

    def _mean(self, batch: GraphBatch, x: Tensor) -> Tensor:
        """Mean over the neurons and channels of its network, for each neuron ``[N, 1]``."""
        rows = x.mean(1, keepdim=True)
        return network_mean(rows, batch.network, batch.num_networks)[batch.network]


class PNALayer(nn.Module):
    """One layer: ``x_i <- C P [x_i; M_i; log(d_i + 1) / delta * M_i]``.

    ``M_i`` is the mean, smallest, largest and standard deviation of the messages
    ``m_ij = s(e_ij) * A[x_i, x_j] + t(e_ij)``. All but the last layer end in norm, SiLU, dropout
    and an update of the edges, ``e_ij <- L1 silu(L_e e_ij + L_s x_j + L_t x_i)``.

    Args:
        dim: Width of neurons and edges.
        dropout: After the norm.
        norm: ``"graph"`` or ``"neuron"``; ``None`` for a subclass that needs none.
        is_last: Neither norm nor activation.
        updates_edges: Whether edges are updated; the last layer need not if none is read.

    References:
        Kofinas et al. 2024, eqs. 3 and 4.
    """

    def __init__(
        self, dim: int, dropout: float, norm: str | None, *, is_last: bool, updates_edges: bool
    ) -> None:
        super().__init__()
        self.film = nn.Linear(dim, 2 * dim)
        self.message_target = nn.Linear(dim, dim)
        self.message_source = nn.Linear(dim, dim, bias=False)
        self.post = nn.Linear(9 * dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm: nn.Module | None = None
        self.updates_edges = updates_edges
        if not is_last:
            if norm is not None:
                self.norm = nn.LayerNorm(dim) if norm == "neuron" else NetworkNorm(dim)
            self.dropout = FastDropout(dropout)
        if updates_edges:
            self.edge_own = nn.Linear(dim, dim)
            self.edge_source = nn.Linear(dim, dim)
            self.edge_target = nn.Linear(dim, dim)
            self.edge_out = nn.Linear(dim, dim)

    def forward(
        self,
        batch: GraphBatch,
        neurons: Tensor,
        edges: EdgeChain,
        log_degree: Tensor,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, EdgeChain]:
        """One layer.

        Args:
            batch: The networks.
            neurons: ``[N, dim]``.
            edges: Their edges, both ways if messages go both ways.
            log_degree: The paper's delta.
            wanted: For each pass over the edges whether somebody reads the messages.
        """
        neurons, edges = self.update_neurons(batch, neurons, edges, log_degree, wanted)
        if self.norm is not None:
            is_graph = isinstance(self.norm, NetworkNorm)
            normal = self.norm(batch, neurons) if is_graph else self.norm(neurons)
            neurons = self.dropout(nn.functional.silu(normal))
        if self.updates_edges:
            ends = joined(neurons, self.edge_target, self.edge_source)
            edges = edges.updated(self.edge_own, ends, self.edge_out)
        return neurons, edges

    def update_neurons(
        self,
        batch: GraphBatch,
        neurons: Tensor,
        edges: EdgeChain,
        log_degree: Tensor,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, EdgeChain]:
        """All neurons at once, from messages between their old features; see ``forward``."""
        ends = joined(neurons, self.message_target, self.message_source)
        statistics, degree, edges = edges.messages(self.film, ends, wanted)
        return self.summary(neurons, statistics, degree, log_degree), edges

    def summary(
        self, neurons: Tensor, statistics: Tensor, degree: Tensor, log_degree: Tensor
    ) -> Tensor:
        """``C P [x; M; log(d + 1) / delta M]``; C and P, and the parts of P, act on their own."""
        dim = neurons.shape[1]
        weight, bias = self.out.weight @ self.post.weight, self.out.bias
        own, plain, amplified = weight.split([dim, 4 * dim, 4 * dim], dim=1)
        heard = linear(statistics, torch.cat([plain, amplified]))
        amplifier = (degree + 1).log() / log_degree.to(neurons.dtype)
        features = linear(neurons, own, linear(self.post.bias, self.out.weight, bias))
        return torch.addcmul(features + heard[:, :dim], heard[:, dim:], amplifier)


def joined(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Two linear maps of the same features side by side, one product."""
    biases: list[Tensor] = [
        weight.new_zeros(len(weight)) if bias is None else bias
        for weight, bias in ((first.weight, first.bias), (second.weight, second.bias))
    ]
    return linear(x, torch.cat((first.weight, second.weight)), torch.cat(biases))


def edge_mean(batch: GraphBatch, edges: Tensor) -> Tensor:
    """Mean of edge features ``[E, dim]`` per network ``[num_networks, dim]``."""
    total = edges.new_zeros(batch.num_networks, edges.shape[1])
    count = edges.new_zeros(batch.num_networks, 1)
    for bucket, part in zip(batch.buckets, batch.split_edges(edges), strict=True):
        copies = bucket.values.shape[0]
        first = bucket.receivers.numbers(edges.device).reshape(copies, -1)[:, 0]
        network = batch.network[first + batch.levels[bucket.receiver_depth][0]]
        flat = part.reshape(copies, -1, edges.shape[1])
        total = total.index_add(0, network, flat.sum(1))
        count = count.index_add(0, network, count.new_full((copies, 1), flat.shape[1]))
    return total / count.clamp(min=1)


def in_degrees(batch: GraphBatch) -> Tensor:
    """Number of edges that end at each neuron ``[N]``."""
    degree = batch.neuron_values.new_zeros(batch.num_neurons)
    for bucket in batch.buckets:
        _, _, senders = bucket.block_shape
        rows = bucket.receivers.numbers(degree.device) + batch.levels[bucket.receiver_depth][0]
        degree.index_add_(0, rows, degree.new_full((bucket.receivers.length,), senders))
    return degree
