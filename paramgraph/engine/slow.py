"""Slow twins: the same primitives on an explicit edge list, with index operations.

They exist to check the fast forms against.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.engine.moments import STD_EPSILON

__all__ = ["edge_index", "slow_moments", "slow_push"]


def edge_index(batch: GraphBatch) -> Tensor:
    """The flat edge list ``[2, E]`` of a batch: row 0 senders, row 1 receivers."""
    device = batch.network.device
    columns = []
    for bucket in batch.buckets:
        blocks, receivers, senders = bucket.block_shape
        s = bucket.senders.numbers(device) + batch.levels[bucket.sender_depth][0]
        r = bucket.receivers.numbers(device) + batch.levels[bucket.receiver_depth][0]
        s = s.reshape(blocks, 1, senders).expand(-1, receivers, -1)
        r = r.reshape(blocks, receivers, 1).expand(-1, -1, senders)
        columns.append(torch.stack([s.reshape(-1), r.reshape(-1)]))
    return torch.cat(columns, dim=1)


def slow_push(
    batch: GraphBatch, weights: Sequence[Tensor], features: Tensor, *, backward: bool = False
) -> Tensor:
    """``push`` over all buckets of a batch, one edge at a time: ``[N, dim]``."""
    index = edge_index(batch)
    source, target = (index[1], index[0]) if backward else (index[0], index[1])
    operators = max(w.shape[-1] for w in weights)
    flat = torch.cat([w.expand(*w.shape[:-1], operators).reshape(-1, operators) for w in weights])
    cut = features.reshape(features.shape[0], operators, -1)[source] * flat[:, :, None]
    return torch.zeros_like(features).index_add(0, target, cut.reshape(len(source), -1))


def slow_moments(to_receivers: Tensor, to_senders: Tensor, index: Tensor, num: int) -> Tensor:
    """``moments`` by a loop over neurons; messages are flat ``[E, dim]``."""
    dim = to_receivers.shape[1]
    result = to_receivers.new_zeros(num, 4 * dim)
    for neuron in range(num):
        arrived = torch.cat([to_receivers[index[1] == neuron], to_senders[index[0] == neuron]])
        if len(arrived):
            variance = (arrived.square().mean(0) - arrived.mean(0).square()).clamp(min=0)
            result[neuron] = torch.cat(
                [
                    arrived.mean(0),
                    arrived.amin(0),
                    arrived.amax(0),
                    (variance + STD_EPSILON).sqrt(),
                ]
            )
    return result
