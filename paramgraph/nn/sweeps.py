"""Sweeps of the operator metanetwork: signals pushed through the weights, level by level."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.engine import add_rows
from paramgraph.nn.levels import Levels
from paramgraph.nn.positions import PositionFunctions
from paramgraph.nn.products import product_message
from paramgraph.nn.pushes import Weights
from paramgraph.nn.second_order import SecondOrder
from paramgraph.nn.signals import Filled, Signals
from paramgraph.nn.typed import TypedUpdate

__all__ = ["Filled", "Levels", "Round", "Signals"]


class Round(nn.Module):
    """One sweep forward and one back.

    Args:
        dim: Width of h and of g.
        num_operators: Position functions per kernel.
        context_dim: Width of facts.
        dropout: In the updates.
        kept: Names of the symmetries that are kept.
        second_order: Also push what has no scale through the squares of the weights.
    """

    def __init__(
        self,
        dim: int,
        num_operators: int,
        context_dim: int,
        dropout: float,
        *,
        kept: Collection[str],
        second_order: bool = False,
    ) -> None:
        super().__init__()
        self.forward_map = nn.Linear(dim, dim, bias=False)
        self.backward_map = nn.Linear(dim, dim, bias=False)
        for linear in (self.forward_map, self.backward_map):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(dim))
        self.forward_positions = PositionFunctions(num_operators)
        self.backward_positions = PositionFunctions(num_operators)
        self.primal = TypedUpdate(dim, context_dim, dropout, kept)
        self.dual = TypedUpdate(dim, context_dim, dropout, kept)
        self.second = SecondOrder(dim, context_dim) if second_order else None

    def forward(
        self, batch: GraphBatch, levels: Levels, weights: Weights, signals: Signals
    ) -> Signals:
        """The signals after both sweeps; those given are not changed."""
        context = levels.context
        if self.second is not None:
            context = self.second(batch, levels, weights)
        work = _Work(batch, levels, weights, signals)
        psi = _operators_of(self.forward_positions, levels)
        for level in range(len(batch.levels)):
            self._forward_level(work, context[level], psi, level)
        # On the way back only products need what was sent.
        work.sent = {level: sent for level, sent in work.sent.items() if levels.factors[level]}
        psi = _operators_of(self.backward_positions, levels)
        for level in reversed(range(len(batch.levels))):
            self._backward_level(work, context[level], psi, level)
        return Signals(work.h, work.g, work.arrived, work.returned, work.gains)

    def _forward_level(self, work: _Work, context: Tensor, psi: _Psi, level: int) -> None:
        levels, own = work.levels, work.h[level]
        message = work.forward_message(psi, level)
        fixed = levels.is_fixed[level]
        is_heard = message is not None
        if message is None and fixed is not None:
            message = torch.zeros_like(levels.bias[level])
        if message is not None:
            if work.arrived:
                work.arrived[level] = message
            gain = levels.arrivals[level].gain(message, levels.bias[level])
            work.gains[level] = gain
            bias = levels.arrivals[level].bias(levels.bias[level], gain)
            message = message if gain is None else message * gain
            update = self.primal(levels.types[level], own, message, bias, work.g[level], context)
            if not is_heard:  # a level of inputs: only what is fixed among them has a value
                update = update * fixed
            own = work.h[level] = update if own is None else own + update
        if levels.outgoing[level] or levels.factors[level]:
            own = torch.zeros_like(levels.bias[level]) if own is None else own
            work.sent[level] = self.forward_map(own)

    def _backward_level(self, work: _Work, context: Tensor, psi: _Psi, level: int) -> None:
        levels, own, gain = work.levels, work.g[level], work.gains[level]
        message = work.backward_message(psi, level)
        if message is not None:
            if work.returned:
                work.returned[level] = message
            bias = levels.arrivals[level].bias(levels.bias[level], gain)
            facts = bias, work.h[level], context
            update = self.dual(levels.types[level], own, message, *facts, is_dual=True)
            # Outputs that stand at the depth of others' hidden neurons get no message.
            is_read = levels.is_read[level]
            update = update if is_read is None else update * is_read
            own = work.g[level] = update if own is None else own + update
        if levels.incoming[level] or levels.products[level]:
            own = torch.zeros_like(levels.bias[level]) if own is None else own
            work.back[level] = self.backward_map(own if gain is None else own * gain)


_Psi = dict[tuple[tuple[float, float], ...], Tensor]


def _operators_of(functions: PositionFunctions, levels: Levels) -> _Psi:
    """Values of position functions for all kernels of a batch, found together."""
    if not levels.kernels:
        return {}
    together = functions(sum(levels.kernels, ()), levels.bias[0])
    sizes = [len(positions) for positions in levels.kernels]
    return dict(zip(levels.kernels, together.split(sizes), strict=True))


class _Work:
    """Signals in the middle of a round, and what levels have sent."""

    def __init__(
        self, batch: GraphBatch, levels: Levels, weights: Weights, signals: Signals
    ) -> None:
        self.batch, self.levels, self.weights = batch, levels, weights
        self.h, self.g = list(signals.primal), list(signals.dual)
        self.arrived, self.returned = list(signals.arrived), list(signals.returned)
        self.gains = list(signals.gain)
        self.sent: dict[int, Tensor] = {}  # mapped primal signals of the levels below
        self.back: dict[int, Tensor] = {}  # mapped dual signals of the levels above

    def forward_message(self, psi: _Psi, level: int) -> Tensor | None:
        """What arrives at a level ``[n, dim]``; ``None`` where nothing leads to it."""
        total, num_rows = None, len(self.levels.bias[level])
        for number in self.levels.incoming[level]:
            bucket = self.batch.buckets[number]
            signal = bucket.senders.take(self.sent[bucket.sender_depth])
            message = self.weights.push(number, signal, psi.get(bucket.positions))
            total = add_rows(total, bucket.receivers, message, num_rows)
        for product in self.levels.products[level]:
            message = product_message(product, self.sent, self.levels.is_free)
            total = _add_slice(total, product.start, message, num_rows)
        return total

    def backward_message(self, psi: _Psi, level: int) -> Tensor | None:
        """What comes back to a level ``[n, dim]``; ``None`` where nothing reads it."""
        total, num_rows = None, len(self.levels.bias[level])
        for number in self.levels.outgoing[level]:
            bucket = self.batch.buckets[number]
            signal = bucket.receivers.take(self.back[bucket.receiver_depth])
            message = self.weights.push(number, signal, psi.get(bucket.positions), backward=True)
            total = add_rows(total, bucket.senders, message, num_rows)
        for product, number, factor in self.levels.factors[level]:
            dual = self.back[product.depth][product.start : product.start + product.length]
            message = product_message(product, self.sent, self.levels.is_free, dual, number)
            total = _add_slice(total, factor.start, message, num_rows)
        return total


def _add_slice(total: Tensor | None, start: int, rows: Tensor, num_rows: int) -> Tensor:
    """Add rows at a place of a level (``None`` is a level of zeros)."""
    padded = nn.functional.pad(rows, (0, 0, start, num_rows - start - len(rows)))
    return padded if total is None else total + padded
