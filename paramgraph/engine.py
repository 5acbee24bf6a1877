"""Block primitives: what message passing is made of, each with a slow twin.

The fast form works on dense blocks ``[m, num_blocks, receivers, senders, dim]`` without edge-wise
gathers; the slow twin (``slow_*``) works on an explicit edge list with index operations and exists
to check the fast form against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paramgraph.batch import Bucket, GraphBatch, Rows

__all__ = [
    "Moments",
    "add_rows",
    "edge_index",
    "moments",
    "push",
    "receivers_of",
    "senders_of",
    "slow_moments",
    "slow_push",
]


def senders_of(level: Tensor, bucket: Bucket) -> Tensor:
    """Sender features of a bucket, ready to broadcast: ``[m * num_blocks, 1, senders, dim]``."""
    blocks, _, senders = bucket.block_shape
    return bucket.senders.take(level).reshape(blocks, 1, senders, -1)


def receivers_of(level: Tensor, bucket: Bucket) -> Tensor:
    """Receiver features of a bucket: ``[m * num_blocks, receivers, 1, dim]``."""
    blocks, receivers, _ = bucket.block_shape
    return bucket.receivers.take(level).reshape(blocks, receivers, 1, -1)


def add_rows(level: Tensor | None, rows: Rows, values: Tensor, num_rows: int) -> Tensor:
    """Add ``values [length, dim]`` to some rows of a level (``None`` is a level of zeros)."""
    if level is None:
        if rows.index is None and rows.length == num_rows:
            return values
        level = values.new_zeros(num_rows, values.shape[1])
    elif rows.index is None and rows.length == num_rows:
        return level + values
    return level.index_add(0, rows.numbers(values.device), values)


def push(bucket: Bucket, weights: Tensor, features: Tensor, *, backward: bool = False) -> Tensor:
    """Multiply features by the networks' own weights: ``f_r = sum_s W_rs h_s``.

    The features are cut into as many equal parts as there are operators, and operator c acts on
    part c (a kernel has several, one per position function).

    Args:
        bucket: For the shapes.
        weights: ``[m, num_blocks, receivers, senders, operators]``.
        features: Rows of the senders ``[m * num_blocks * senders, dim]``, or of the receivers when
            ``backward``.
        backward: Multiply by the transpose.

    Returns:
        ``[m * num_blocks * receivers, dim]``, or with the number of senders when ``backward``.
    """
    blocks, receivers, senders = bucket.block_shape
    operators = weights.shape[-1]
    dim = features.shape[-1]
    if receivers == senders == 1:
        cut = features.reshape(-1, operators, dim // operators)
        return (cut * weights.reshape(-1, operators, 1)).reshape(-1, dim)
    source, target = (receivers, senders) if backward else (senders, receivers)
    if operators == 1:
        matrix = weights.reshape(blocks, receivers, senders)
        matrix = matrix.transpose(1, 2) if backward else matrix
        return torch.bmm(matrix, features.reshape(blocks, source, dim)).reshape(-1, dim)
    matrix = weights.reshape(blocks, receivers, senders, operators).permute(0, 3, 1, 2)
    matrix = matrix.transpose(2, 3) if backward else matrix
    cut = features.reshape(blocks, source, operators, -1).transpose(1, 2)
    return torch.matmul(matrix, cut).transpose(1, 2).reshape(blocks * target, dim)


class Moments:
    """Mean, min, max and standard deviation of all messages that arrive at each neuron.

    Filled bucket by bucket, both directions, so that edges are read once.
    """

    def __init__(self, batch: GraphBatch) -> None:
        self._batch = batch
        self._rows: list[Tensor] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._counts: list[Tensor] = []

    def add(self, bucket: Bucket, messages: Tensor, *, to_senders: bool = False) -> None:
        """Add messages ``[m * num_blocks, receivers, senders, dim]``."""
        axis = 1 if to_senders else 2
        rows = bucket.senders if to_senders else bucket.receivers
        level = bucket.sender_depth if to_senders else bucket.receiver_depth
        numbers = rows.numbers(messages.device) + self._batch.levels[level][0]
        dim = messages.shape[-1]
        self._rows.append(numbers)
        self._counts.append(messages.new_full((rows.length,), messages.shape[axis]))
        self._parts.append(
            (
                messages.sum(axis).reshape(-1, dim),
                messages.square().sum(axis).reshape(-1, dim),
                messages.amin(axis).reshape(-1, dim),
                messages.amax(axis).reshape(-1, dim),
            )
        )

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
        std = ((square - mean.square()).clamp(min=0) + _STD_EPSILON).sqrt() * (count > 0)
        return torch.cat([mean, low, high, std], dim=1), count


_STD_EPSILON = 1e-5


def moments(
    batch: GraphBatch, messages: Callable[[int], tuple[Tensor | None, Tensor | None]]
) -> tuple[Tensor, Tensor]:
    """``Moments`` of all buckets; ``messages(number)`` gives those to receivers and to senders."""
    total = Moments(batch)
    for number, bucket in enumerate(batch.buckets):
        to_receivers, to_senders = messages(number)
        if to_receivers is not None:
            total.add(bucket, to_receivers)
        if to_senders is not None:
            total.add(bucket, to_senders, to_senders=True)
    return total.finish()


# -------------------------------------------------------------------------------------- slow twins


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
                    (variance + _STD_EPSILON).sqrt(),
                ]
            )
    return result
