"""How large the weights of each neuron are: what norms tell about training."""

from __future__ import annotations

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch

__all__ = ["log_magnitudes"]


def log_magnitudes(batch: GraphBatch, weights: list[Tensor]) -> Tensor:
    """Logarithms of the mean and largest square of each neuron's weights ``[N, 4]``.

    Columns: mean and largest over incoming weights, then over outgoing ones; 0 where there are
    none. A change of sign does not change them.
    """
    result = batch.neuron_values.new_zeros(batch.num_neurons, 4)
    for column, to_senders in ((0, False), (2, True)):
        rows, total, largest, count = [], [], [], []
        for bucket, weight in zip(batch.buckets, weights, strict=True):
            blocks, receivers, senders = bucket.block_shape
            square = weight.square().reshape(blocks, receivers, senders, -1)
            axes = (1, 3) if to_senders else (2, 3)
            which = bucket.senders if to_senders else bucket.receivers
            depth = bucket.sender_depth if to_senders else bucket.receiver_depth
            rows.append(which.numbers(square.device) + batch.levels[depth][0])
            total.append(square.sum(axes).reshape(-1))
            largest.append(square.amax(axes).reshape(-1))
            count.append(torch.full_like(total[-1], square.numel() // total[-1].numel()))
        index = torch.cat(rows)
        zero = result.new_zeros(batch.num_neurons)
        size = zero.index_add(0, index, torch.cat(count))
        mean = zero.index_add(0, index, torch.cat(total)) / size.clamp(min=1)
        high = zero.scatter_reduce(0, index, torch.cat(largest), "amax")
        logs = torch.stack([(mean + 1e-4).log(), (high + 1e-4).log()], dim=1)
        result[:, column : column + 2] = logs * (size > 0)[:, None]
    return result
