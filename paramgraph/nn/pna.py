"""Layers of message passing with four statistics of the messages (PNA), FiLM and edge updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.engine import moments, receivers_of, senders_of
from paramgraph.nn.metanetwork import network_mean

__all__ = ["Edges", "NetworkNorm", "PNALayer", "edge_mean", "in_degrees"]


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
        center = network_mean(x, batch.network, batch.num_networks).mean(1, keepdim=True)
        x = x - center[batch.network]
        square = network_mean(x.square(), batch.network, batch.num_networks).mean(1, keepdim=True)
        return x * (square + 1e-5).rsqrt()[batch.network] * self.weight + self.bias


@dataclass(frozen=True)
class Edges:
    """Edge features and a linear map that is still to be applied to them.

    Readers of edges are linear maps too, so both are multiplied first: one map of small matrices
    instead of one over all edges.

    Attributes:
        features: ``[E, dim]``.
        pending: The map, if one is left.
    """

    features: Tensor
    pending: nn.Linear | None = None

    def through(self, linear: nn.Linear) -> Tensor:
        """The features after the pending map and ``linear``."""
        if self.pending is None:
            return linear(self.features)
        weight = linear.weight @ self.pending.weight
        bias = linear.weight @ self.pending.bias + linear.bias
        return nn.functional.linear(self.features, weight, bias)

    def value(self) -> Tensor:
        """The features after the pending map."""
        return self.features if self.pending is None else self.pending(self.features)


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
            self.dropout = nn.Dropout(dropout)
        if updates_edges:
            self.edge_own = nn.Linear(dim, dim)
            self.edge_source = nn.Linear(dim, dim)
            self.edge_target = nn.Linear(dim, dim)
            self.edge_out = nn.Linear(dim, dim)

    def forward(
        self,
        batch: GraphBatch,
        neurons: Tensor,
        forward: Edges,
        backward: Edges | None,
        log_degree: Tensor,
        wanted: tuple[list[bool], list[bool]],
    ) -> tuple[Tensor, Edges, Edges | None]:
        """One layer.

        Args:
            batch: The networks.
            neurons: ``[N, dim]``.
            forward: Features of the edges.
            backward: Of the reversed edges, if messages go both ways.
            log_degree: The paper's delta.
            wanted: For each bucket whether somebody reads what it sends to its receivers, and to
                its senders.
        """
        neurons = self.update_neurons(batch, neurons, forward, backward, log_degree, wanted)
        if self.norm is not None:
            is_graph = isinstance(self.norm, NetworkNorm)
            normal = self.norm(batch, neurons) if is_graph else self.norm(neurons)
            neurons = self.dropout(nn.functional.silu(normal))
        if not self.updates_edges:
            return neurons, forward, backward
        ends = batch.split(self.edge_source(neurons)), batch.split(self.edge_target(neurons))
        forward = self._update_edges(batch, forward, *ends)
        if backward is not None:
            backward = self._update_edges(batch, backward, *ends, reverse=True)
        return neurons, forward, backward

    def update_neurons(
        self,
        batch: GraphBatch,
        neurons: Tensor,
        forward: Edges,
        backward: Edges | None,
        log_degree: Tensor,
        wanted: tuple[list[bool], list[bool]],
    ) -> Tensor:
        """All neurons at once, from messages between their old features; see ``forward``."""
        target = batch.split(self.message_target(neurons))
        source = batch.split(self.message_source(neurons))
        film = self.film_of(batch, forward, wanted[0]), self.film_of(batch, backward, wanted[1])

        def messages(number: int) -> tuple[Tensor | None, Tensor | None]:
            bucket = batch.buckets[number]
            up = to_receivers(film[0][number], bucket, source, target)
            return up, to_senders(film[1][number], bucket, source, target)

        statistics, degree = moments(batch, messages)
        return self.summary(neurons, statistics, degree, log_degree)

    def summary(
        self, neurons: Tensor, statistics: Tensor, degree: Tensor, log_degree: Tensor
    ) -> Tensor:
        """``C P [x; M; log(d + 1) / delta M]``."""
        amplified = statistics * ((degree + 1).log() / log_degree.to(neurons.dtype))
        features: Tensor = self.out(self.post(torch.cat([neurons, statistics, amplified], dim=1)))
        return features

    def film_of(
        self, batch: GraphBatch, edges: Edges | None, wanted: list[bool]
    ) -> list[Tensor | None]:
        """Scale and shift per edge, by bucket; ``None`` where nobody reads the messages."""
        if edges is None or not any(wanted):
            return [None] * len(batch.buckets)
        if all(wanted):
            return list(batch.split_edges(edges.through(self.film)))
        parts = batch.split_edges(edges.features)
        return [
            Edges(part, edges.pending).through(self.film) if want else None
            for part, want in zip(parts, wanted, strict=True)
        ]

    def _update_edges(
        self,
        batch: GraphBatch,
        edges: Edges,
        source: list[Tensor],
        target: list[Tensor],
        *,
        reverse: bool = False,
    ) -> Edges:
        """``L1 silu(L_e e + L_s x_source + L_t x_target)``; ``L1`` is left for the reader."""
        own = edges.through(self.edge_own)
        ends = []
        for bucket in batch.buckets:
            s, r = bucket.sender_depth, bucket.receiver_depth
            if reverse:
                both = receivers_of(source[r], bucket) + senders_of(target[s], bucket)
            else:
                both = senders_of(source[s], bucket) + receivers_of(target[r], bucket)
            ends.append(both.reshape(-1, own.shape[1]))
        return Edges(nn.functional.silu(own + torch.cat(ends)), self.edge_out)


def to_receivers(
    film: Tensor | None, bucket: Bucket, source: list[Tensor], target: list[Tensor]
) -> Tensor | None:
    """Messages of a bucket to its receivers; ``source`` and ``target`` hold ``A[x]`` by level."""
    if film is None:
        return None
    receivers = receivers_of(target[bucket.receiver_depth], bucket)
    return _modulate(film, receivers + senders_of(source[bucket.sender_depth], bucket))


def to_senders(
    film: Tensor | None, bucket: Bucket, source: list[Tensor], target: list[Tensor]
) -> Tensor | None:
    """Messages of a bucket to its senders, along the reversed edges."""
    if film is None:
        return None
    senders = senders_of(target[bucket.sender_depth], bucket)
    return _modulate(film, senders + receivers_of(source[bucket.receiver_depth], bucket))


def _modulate(film: Tensor, values: Tensor) -> Tensor:
    """Scale and shift messages by what the edge says."""
    scale, shift = film.chunk(2, dim=-1)
    return torch.addcmul(shift, scale, values)


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
