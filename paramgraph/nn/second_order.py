"""Facts pushed through squared weights: how much of each neuron a reader hears."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.engine import add_rows
from paramgraph.nn.levels import Levels, is_pushed
from paramgraph.nn.pushes import Weights

__all__ = ["SecondOrder"]


class SecondOrder(nn.Module):
    """Invariant facts pushed through squared weights: how much of each neuron a reader hears.

    ``W * W`` is positive, so signs vanish; under positive factors it scales as their square, so
    this is used where those are not kept.
    """

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(context_dim, dim)
        self.down = nn.Linear(context_dim, dim)
        self.join = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), nn.Linear(dim, context_dim))

    def forward(self, batch: GraphBatch, levels: Levels, weights: Weights) -> list[Tensor]:
        """The context of each level, with what its neighbours say added."""
        facts = levels.context
        up = [self.up(c) for c in facts]
        down = [self.down(c) for c in facts]
        heard: list[Tensor | None] = [None] * len(facts)
        echoed: list[Tensor | None] = [None] * len(facts)
        for number, bucket in enumerate(batch.buckets):
            if not is_pushed(bucket):
                continue
            s, r = bucket.sender_depth, bucket.receiver_depth
            message = weights.push_squares(number, bucket.senders.take(up[s]))
            heard[r] = add_rows(heard[r], bucket.receivers, message, len(facts[r]))
            signal = bucket.receivers.take(down[r])
            message = weights.push_squares(number, signal, backward=True)
            echoed[s] = add_rows(echoed[s], bucket.senders, message, len(facts[s]))
        result = []
        for level, context in enumerate(facts):
            both = [
                torch.zeros_like(up[level]) if part is None else part
                for part in (heard[level], echoed[level])
            ]
            result.append(context + self.join(torch.cat(both, dim=1)))
        return result
