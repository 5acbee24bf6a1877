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


def slow_moments(messages: Tensor, targets: Tensor, num: int) -> Tensor:
    """Mean, min, max, std of what arrives at each neuron ``[num, 4 * dim]``, by a loop over them.

    Args:
        messages: ``[E, dim]``.
        targets: Which neuron each is sent to ``[E]``.
        num: Number of neurons.
    """
    result = messages.new_zeros(num, 4 * messages.shape[1])
    for neuron in range(num):
        arrived = messages[targets == neuron]
        if len(arrived):
            mean = arrived.mean(0)
            variance = (arrived.square().mean(0) - mean.square()).clamp(min=0)
            std = (variance + STD_EPSILON).sqrt()
            result[neuron] = torch.cat([mean, arrived.amin(0), arrived.amax(0), std])
    return result
