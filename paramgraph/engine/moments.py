"""Four statistics of what arrives at each neuron, put together from the sums over each bucket."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paramgraph.batch import Bucket, GraphBatch

__all__ = ["STD_EPSILON", "BucketMoments", "Moments"]

STD_EPSILON = 1e-5
"""Added to variances, so that the root has a slope at 0."""


class BucketMoments(NamedTuple):
    """Statistics of the messages of one bucket, one row per neuron that receives.

    Attributes:
        sums: Sum of the messages ``[rows, dim]``.
        squares: Sum of their squares.
        lows: Smallest.
        highs: Largest.
    """

    sums: Tensor
    squares: Tensor
    lows: Tensor
    highs: Tensor

    @staticmethod
    def of(messages: Tensor, axis: int) -> BucketMoments:
        """Of messages ``[blocks, receivers, senders, dim]``, over senders (2) or receivers (1).

        Example:
            >>> BucketMoments.of(torch.ones(1, 2, 3, 1), 2).sums.tolist()
            [[3.0], [3.0]]
        """
        dim = messages.shape[-1]
        return BucketMoments(
            messages.sum(axis).reshape(-1, dim),
            messages.square().sum(axis).reshape(-1, dim),
            messages.amin(axis).reshape(-1, dim),
            messages.amax(axis).reshape(-1, dim),
        )


class Moments:
    """Mean, min, max and standard deviation of all messages that arrive at each neuron.

    Filled bucket by bucket, both directions, so that edges are read once.

    Args:
        batch: Whose neurons receive.
    """

    def __init__(self, batch: GraphBatch) -> None:
        self._batch = batch
        self._rows: list[Tensor] = []
        self._parts: list[BucketMoments] = []
        self._counts: list[Tensor] = []

    def add(self, bucket: Bucket, part: BucketMoments, *, to_senders: bool = False) -> None:
        """Add what the receivers (or the senders) of a bucket are sent."""
        _, receivers, senders = bucket.block_shape
        rows = bucket.senders if to_senders else bucket.receivers
        level = bucket.sender_depth if to_senders else bucket.receiver_depth
        numbers = rows.numbers(part.sums.device) + self._batch.levels[level][0]
        self._rows.append(numbers)
        num_messages = receivers if to_senders else senders
        self._counts.append(part.sums.new_full((rows.length,), num_messages))
        self._parts.append(part)

    def finish(self) -> tuple[Tensor, Tensor]:
        """``[N, 4 * dim]`` mean, min, max, std (0 without messages), and the counts ``[N, 1]``."""
        rows = torch.cat(self._rows)
        sums, squares, lows, highs = (
            torch.cat([part[i] for part in self._parts]) for i in range(4)
        )
        num, dim = self._batch.num_neurons, sums.shape[1]
        count = sums.new_zeros(num).index_add(0, rows, torch.cat(self._counts))[:, None]
        size = count.clamp(min=1)
        mean = sums.new_zeros(num, dim).index_add(0, rows, sums) / size
        square = sums.new_zeros(num, dim).index_add(0, rows, squares) / size
        index = rows[:, None].expand(-1, dim)
        low = sums.new_zeros(num, dim).scatter_reduce(0, index, lows, "amin", include_self=False)
        high = sums.new_zeros(num, dim).scatter_reduce(0, index, highs, "amax", include_self=False)
        std = ((square - mean.square()).clamp(min=0) + STD_EPSILON).sqrt() * (count > 0)
        return torch.cat([mean, low, high, std], dim=1), count
