"""Numbers for every neuron and every entry of the networks of a batch, and back to architectures.

A batch mixes architectures; an edited network needs its own tensors again. ``Entries`` holds what a
metanetwork says of each entry of each parameter, in the order of the batch; the functions here cut
flat tensors into parts (one architecture) and put them together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch.records import GraphBatch
from paramgraph.errors import BatchError
from paramgraph.values import NUM_NEURON_CHANNELS, Values

__all__ = ["Entries", "edges_by_part", "edges_from_parts", "neurons_by_part", "neurons_from_parts"]


def neurons_by_part(batch: GraphBatch, neurons: Tensor) -> list[list[Tensor]]:
    """Cut ``[N, ...]`` into ``[B, size, ...]`` for each part and each of its neuron groups.

    Args:
        batch: Whose neurons they are.
        neurons: One row per neuron.

    Returns:
        ``result[part][group]``, views in the order of ``ParamGraph.neuron_groups``; networks in the
        order of ``Part.rows``.
    """
    result: list[list[Tensor]] = [[neurons] * len(p.graph.neuron_groups) for p in batch.parts]
    sizes = [slot.end - slot.start for slot in batch.neuron_slots]
    for slot, rows in zip(batch.neuron_slots, neurons.split(sizes), strict=True):
        result[slot.part][slot.group] = rows.reshape(slot.copies, -1, *rows.shape[1:])
    return result


def neurons_from_parts(batch: GraphBatch, parts: Sequence[Sequence[Tensor]]) -> Tensor:
    """The inverse of ``neurons_by_part``: ``[B, size, ...]`` by part and group to ``[N, ...]``."""
    return torch.cat([parts[slot.part][slot.group].flatten(0, 1) for slot in batch.neuron_slots])


def edges_by_part(batch: GraphBatch, edges: Sequence[Tensor]) -> list[list[Tensor]]:
    """Cut one tensor per bucket ``[m, ...]`` into ``[B, ...]`` per part and edge block.

    Args:
        batch: Whose edges they are.
        edges: For each bucket a tensor whose first axis is that of ``Bucket.values``.

    Returns:
        ``result[part][block]``, views in the order of ``ParamGraph.blocks``.
    """
    result: list[list[Tensor]] = [[batch.neuron_values] * len(p.graph.blocks) for p in batch.parts]
    for bucket, values in zip(batch.buckets, edges, strict=True):
        pieces = values.split([slot.copies for slot in bucket.slots])
        for slot, piece in zip(bucket.slots, pieces, strict=True):
            result[slot.part][slot.block] = piece
    return result


def edges_from_parts(batch: GraphBatch, parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The inverse of ``edges_by_part``: one tensor per bucket."""
    return [torch.cat([parts[s.part][s.block] for s in bucket.slots]) for bucket in batch.buckets]


@dataclass(frozen=True)
class Entries:
    """What a metanetwork says of every entry: K numbers each, in the order of a batch.

    Attributes:
        edges: For each bucket ``[m, num_blocks, receivers, senders, positions, K]``.
        neurons: ``[N, 3, K]`` for bias, running mean, running variance.

    Example:
        >>> import paramgraph as pg
        >>> network = torch.nn.Linear(2, 3)
        >>> graph = pg.capture(network, torch.randn(4, 2))
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))])
        >>> entries = Entries.zeros(batch, num_sets=2)
        >>> ((values, _),) = entries.values(batch)
        >>> sorted(graph.write_back(values))
        ['bias', 'weight']
    """

    edges: tuple[Tensor, ...]
    neurons: Tensor

    @property
    def num_sets(self) -> int:
        """K."""
        return self.neurons.shape[-1]

    @staticmethod
    def zeros(batch: GraphBatch, num_sets: int = 1) -> Entries:
        """All entries 0."""
        like = batch.neuron_values
        return Entries(
            tuple(like.new_zeros(*bucket.values.shape, num_sets) for bucket in batch.buckets),
            like.new_zeros(batch.num_neurons, NUM_NEURON_CHANNELS, num_sets),
        )

    def values(self, batch: GraphBatch) -> list[tuple[Values, ...]]:
        """For each part K ``Values``, which ``ParamGraph.write_back`` turns into parameters.

        Raises:
            BatchError: The entries have other shapes than those of the batch.
        """
        for bucket, entries in zip(batch.buckets, self.edges, strict=True):
            expected = (*bucket.values.shape, self.num_sets)
            if tuple(entries.shape) != expected:
                raise BatchError(
                    f"entries of a {bucket.kind.value} bucket have shape {tuple(entries.shape)}, "
                    f"expected {expected}: they belong to another batch."
                )
        neurons = neurons_by_part(batch, self.neurons)
        edges = edges_by_part(batch, self.edges)
        return [
            tuple(
                Values(tuple(e[..., k] for e in edges[p]), tuple(n[..., k] for n in neurons[p]))
                for k in range(self.num_sets)
            )
            for p in range(len(batch.parts))
        ]
