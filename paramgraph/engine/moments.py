"""Four statistics of what arrives at each neuron, from sums and extremes over all passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass

__all__ = ["STD_EPSILON", "MessageTotals", "message_statistics", "num_messages"]

STD_EPSILON = 1e-5
"""Added to variances, so that the root has a slope at 0."""


class MessageTotals(NamedTuple):
    """What arrives at each neuron, one row each.

    Attributes:
        sums: Sum of the messages ``[N, dim]``.
        squares: Sum of their squares.
        lows: Smallest, 0 without any.
        highs: Largest, 0 without any.
    """

    sums: Tensor
    squares: Tensor
    lows: Tensor
    highs: Tensor


def num_messages(passes: Sequence[EdgePass], like: Tensor) -> Tensor:
    """How many messages arrive at each neuron in some passes ``[N, 1]``.

    Args:
        passes: The passes.
        like: Any tensor with one row per neuron.
    """
    count = like.new_zeros(like.shape[0])
    for edges in passes:
        sources = edges.shape[2]
        if isinstance(edges.target_rows, slice):
            count[edges.target_rows] += sources
        else:
            rows = edges.target_rows
            count.index_add_(0, rows, count.new_full((len(rows),), sources))
    return count[:, None]


def message_statistics(totals: MessageTotals, count: Tensor) -> Tensor:
    """Mean, min, max and standard deviation ``[N, 4 * dim]``; 0 without messages.

    Args:
        totals: Of the messages.
        count: How many there are ``[N, 1]``.

    Example:
        >>> two = torch.tensor([[2.0]])
        >>> totals = MessageTotals(two, two, torch.zeros(1, 1), two)  # messages 0 and 2
        >>> message_statistics(totals, two).tolist()
        [[1.0, 0.0, 2.0, 0.0031...]]
    """
    size = count.clamp(min=1)
    mean = totals.sums / size
    spread = (totals.squares / size - mean.square()).clamp(min=0)
    std = (spread + STD_EPSILON).sqrt() * (count > 0)
    return torch.cat([mean, totals.lows, totals.highs, std], dim=1)
