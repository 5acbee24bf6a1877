"""How large the weights of each neuron are: what norms tell about training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.nn.per_layout import per_layout

__all__ = ["Squares", "log_magnitudes", "log_magnitudes_of", "squares_of"]


@dataclass(frozen=True)
class Squares:
    """Sums and maxima of the squared weights of a bucket, per neuron.

    Attributes:
        to_receivers: Sum and largest over all weights that come in, ``[blocks * receivers]`` each.
        to_senders: Sum and largest over all weights that go out, ``[blocks * senders]`` each.
    """

    to_receivers: tuple[Tensor, Tensor]
    to_senders: tuple[Tensor, Tensor]

    def scaled(self, factor: float) -> Squares:
        """Those of the weights times ``sqrt(factor)``."""
        if factor == 1:
            return self
        (a, b), (c, d) = self.to_receivers, self.to_senders
        return Squares((a * factor, b * factor), (c * factor, d * factor))


def squares_of(weights: Tensor) -> Squares:
    """Of ``[blocks, receivers, senders, positions]``.

    Example:
        >>> found = squares_of(torch.tensor([[[[1.0], [2.0]]]]))
        >>> [part.tolist() for part in (*found.to_receivers, *found.to_senders)]
        [[5.0], [4.0], [1.0, 4.0], [1.0, 4.0]]
    """
    square = weights.square()
    if square.shape[1] == square.shape[2] == square.shape[3] == 1:
        only = square.reshape(-1)
        return Squares((only, only), (only, only))
    if square.shape[3] == 1:
        total = high = square[..., 0]
    else:
        total, high = square.sum(3), square.amax(3)
    return Squares(
        (total.sum(2).reshape(-1), high.amax(2).reshape(-1)),
        (total.sum(1).reshape(-1), high.amax(1).reshape(-1)),
    )


def log_magnitudes(batch: GraphBatch, weights: Sequence[Tensor]) -> Tensor:
    """Logarithms of the mean and largest square of each neuron's weights ``[N, 4]``.

    Columns: mean and largest over incoming weights, then over outgoing ones; 0 where there are
    none. A change of sign does not change them.
    """
    found = [
        squares_of(weight.reshape(*bucket.block_shape, -1))
        for bucket, weight in zip(batch.buckets, weights, strict=True)
    ]
    return log_magnitudes_of(batch, found)


def log_magnitudes_of(batch: GraphBatch, found: Sequence[Squares]) -> Tensor:
    """``log_magnitudes`` of weights whose squares are summed already, one item per bucket."""
    columns = []
    for to_senders in (False, True):
        index, size, has = per_layout(
            batch, ("magnitudes", to_senders), partial(_places, batch, to_senders=to_senders)
        )
        parts = [row.to_senders if to_senders else row.to_receivers for row in found]
        zero = batch.neuron_values.new_zeros(batch.num_neurons)
        mean = zero.index_add(0, index, torch.cat([total for total, _ in parts])) / size
        high = zero.scatter_reduce(0, index, torch.cat([top for _, top in parts]), "amax")
        columns += [(mean + 1e-4).log() * has, (high + 1e-4).log() * has]
    return torch.stack(columns, dim=1)


def _places(batch: GraphBatch, *, to_senders: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Neurons of the bucket rows, number of weights of each neuron, 1 where there are any."""
    rows, count = [], []
    for bucket in batch.buckets:
        _, receivers, senders = bucket.block_shape
        which = bucket.senders if to_senders else bucket.receivers
        depth = bucket.sender_depth if to_senders else bucket.receiver_depth
        rows.append(which.numbers(batch.network.device) + batch.levels[depth][0])
        per_row = (receivers if to_senders else senders) * bucket.values.shape[4]
        count.append(batch.neuron_values.new_full((which.length,), per_row))
    index = torch.cat(rows)
    zero = batch.neuron_values.new_zeros(batch.num_neurons)
    size = zero.index_add(0, index, torch.cat(count))
    return index, size.clamp(min=1), (size > 0).to(batch.dtype)
