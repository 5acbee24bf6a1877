"""One layer of ScaleGMN: messages along edges and against them, updates of neurons and edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.engine import add_rows
from paramgraph.nn.products import product_message
from paramgraph.nn.scale_layers import ScaleInvariant, ScaleMap
from paramgraph.nn.sweeps import Levels
from paramgraph.nn.typed import NeuronTypes

__all__ = ["ScaleLayer", "ScaleState", "Structure"]


class Structure:
    """What all layers need of a batch.

    Args:
        batch: The networks.
        levels: Their levels.
    """

    def __init__(self, batch: GraphBatch, levels: Levels) -> None:
        self.batch = batch
        self.levels = levels
        self.receiver_types: dict[int, NeuronTypes] = {}
        self.sender_types: dict[int, NeuronTypes] = {}
        for number in sorted(n for numbers in levels.incoming for n in numbers):
            bucket = batch.buckets[number]
            receivers = levels.before[bucket.receiver_depth].types[:, None]
            senders = levels.types[bucket.sender_depth].types[:, None]
            self.receiver_types[number] = NeuronTypes.from_tensor(
                bucket.receivers.take(receivers)[:, 0]
            )
            self.sender_types[number] = NeuronTypes.from_tensor(bucket.senders.take(senders)[:, 0])

    def before(self, state: ScaleState) -> list[Tensor]:
        """Features of each level as they scale before the activation."""
        result = []
        for arrival, x, arrived in zip(
            self.levels.arrivals, state.neurons, state.arrived, strict=True
        ):
            if arrival.is_plain:
                result.append(x)
                continue
            back = x if arrival.wave is None else x * arrival.wave
            result.append(torch.where(arrival.is_plain_or_wave(), back, arrived))
        return result


@dataclass
class ScaleState:
    """Features between layers.

    Attributes:
        neurons: As readers see them ``[n, dim]``, per level.
        arrived: The last messages before the activation ``[n, dim]``, per level.
        edges: Like weights ``[blocks, receivers, senders, dim]``, per bucket.
        back: Like reciprocals of weights, per bucket; empty in one direction.
    """

    neurons: list[Tensor]
    arrived: list[Tensor]
    edges: list[Tensor]
    back: list[Tensor]

    @staticmethod
    def start(
        levels: Levels, neurons: list[Tensor], edges: list[Tensor], back: list[Tensor]
    ) -> ScaleState:
        """Biases, as far as readers see them before anything arrived."""
        first, zeros = [], [torch.zeros_like(x) for x in neurons]
        for arrival, x, bias, zero in zip(
            levels.arrivals, neurons, levels.bias, zeros, strict=True
        ):
            first.append(x + arrival.bias(bias, arrival.gain(zero, bias)))
        return ScaleState(first, zeros, edges, back)


class ScaleLayer(nn.Module):
    """Messages and updates that keep types.

    Args:
        dim: Width of neurons and edges.
        context_dim: Width of facts.
        canon: See ``ScaleMap``.
        bidirectional: Whether receivers also send to senders.
        updates_edges: Whether anything reads the edges afterwards.
        updates_back: Whether anything reads the reciprocal edges afterwards.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        canon: str,
        bidirectional: bool,
        updates_edges: bool,
        updates_back: bool,
    ) -> None:
        super().__init__()
        self.along = _Messages(dim, canon)
        self.against = _Messages(dim, canon) if bidirectional else None
        parts = 4 if bidirectional else 3
        self.update = ScaleMap(parts * dim, dim, context_dim=context_dim, canon=canon)
        updates_back = updates_back and bidirectional
        self.invariant = (
            ScaleInvariant(dim, dim, context_dim) if updates_edges or updates_back else None
        )
        self.edges = _EdgeUpdate(dim) if updates_edges else None
        self.back = _EdgeUpdate(dim) if updates_back else None

    def forward(self, structure: Structure, state: ScaleState) -> ScaleState:
        """The features after the layer; those given are not changed."""
        levels = structure.levels
        arrived = self._along(structure, state)
        returned = None if self.against is None else self._against(structure, state)
        neurons = []
        for level, (x, message) in enumerate(zip(state.neurons, arrived, strict=True)):
            arrival, bias = levels.arrivals[level], levels.bias[level]
            gain = arrival.gain(message, bias)
            seen = message if gain is None else message * gain
            parts = [x, seen, arrival.bias(bias, gain)]
            if returned is not None:
                parts.append(returned[level])
            z = torch.cat(parts, dim=1)
            neurons.append(x + self.update(levels.types[level], z, levels.context[level]))
        edges, back = state.edges, state.back
        if self.invariant is not None:
            known = [
                self.invariant(types, x, facts)
                for types, x, facts in zip(levels.types, state.neurons, levels.context, strict=True)
            ]
            if self.edges is not None:
                edges = self.edges(structure, edges, known)
            if self.back is not None:
                back = self.back(structure, back, known)
        return ScaleState(neurons, arrived, edges, back)

    def _along(self, structure: Structure, state: ScaleState) -> list[Tensor]:
        levels, buckets = structure.levels, structure.batch.buckets
        sent = [self.along.neuron(x) for x in state.neurons]
        result = []
        for level, x in enumerate(state.neurons):
            total = torch.zeros_like(x)
            for number in levels.incoming[level]:
                bucket = buckets[number]
                rows = bucket.senders.take(sent[bucket.sender_depth])
                edge = state.edges[number]
                message = self.along(structure.receiver_types[number], edge, rows)
                total = add_rows(total, bucket.receivers, message, len(x))
            for product in levels.products[level]:
                message = product_message(product, sent, levels.is_free)
                after = len(x) - product.start - len(message)
                total = total + nn.functional.pad(message, (0, 0, product.start, after))
            result.append(total)
        return result

    def _against(self, structure: Structure, state: ScaleState) -> list[Tensor]:
        assert self.against is not None
        levels, buckets = structure.levels, structure.batch.buckets
        sent = [self.against.neuron(x) for x in structure.before(state)]
        result = []
        for level, x in enumerate(state.neurons):
            total = torch.zeros_like(x)
            for number in levels.outgoing[level]:
                bucket = buckets[number]
                rows = bucket.receivers.take(sent[bucket.receiver_depth])
                edge = state.back[number].transpose(1, 2)
                message = self.against(structure.sender_types[number], edge, rows)
                total = add_rows(total, bucket.senders, message, len(x))
            for product, number, factor in levels.factors[level]:
                # Back from a product leads the inverse of the other factors: only what has no
                # scale is sent.
                free = replace(product, is_typed=False)
                rows = sent[product.depth][product.start : product.start + product.length]
                message = product_message(free, sent, levels.is_free, rows, number)
                after = len(x) - factor.start - len(message)
                total = total + nn.functional.pad(message, (0, 0, factor.start, after))
            result.append(total)
        return result


class _Messages(nn.Module):
    """``sum_j S((U e_ij) * (V x_j))``, one direction."""

    def __init__(self, dim: int, canon: str) -> None:
        super().__init__()
        self.edge = nn.Linear(dim, dim, bias=False)
        self.neuron = nn.Linear(dim, dim, bias=False)
        for linear in (self.edge, self.neuron):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(dim))
        self.scale = ScaleMap(dim, dim, canon=canon)

    def forward(self, types: NeuronTypes, edges: Tensor, rows: Tensor) -> Tensor:
        """Messages ``[blocks * targets, dim]``.

        Args:
            types: Of the targets.
            edges: ``[blocks, targets, sources, dim]``.
            rows: ``V x`` of the sources ``[blocks * sources, dim]``.
        """
        blocks, _, sources, dim = edges.shape
        z = self.edge(edges) * rows.reshape(blocks, 1, sources, dim)
        return self.scale(types, z.flatten(0, 1)).sum(1) / math.sqrt(sources)


class _EdgeUpdate(nn.Module):
    """``e_ij <- (W e_ij) * phi(invariants of i and j)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.map.weight, std=1 / math.sqrt(dim))
        self.receiver = nn.Linear(dim, dim)
        self.sender = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Linear(dim, dim)
        nn.init.ones_(self.last.bias)

    def forward(
        self, structure: Structure, edges: list[Tensor], known: list[Tensor]
    ) -> list[Tensor]:
        """New edges of all buckets that are pushed; others stay."""
        receivers = [self.receiver(row) for row in known]
        senders = [self.sender(row) for row in known]
        result = list(edges)
        for number in structure.receiver_types:
            bucket, edge = structure.batch.buckets[number], edges[number]
            blocks, num_receivers, num_senders, dim = edge.shape
            i = bucket.receivers.take(receivers[bucket.receiver_depth])
            j = bucket.senders.take(senders[bucket.sender_depth])
            both = i.reshape(blocks, num_receivers, 1, dim) + j.reshape(blocks, 1, num_senders, dim)
            gate = self.last(nn.functional.silu(self.norm(both)))
            result[number] = self.map(edge) * gate
        return result
