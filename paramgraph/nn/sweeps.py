"""Sweeps of the operator metanetwork: signals pushed through the weights, level by level."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.engine import add_rows, push
from paramgraph.nn.arrival import Arrivals
from paramgraph.nn.positions import PositionFunctions
from paramgraph.nn.products import Factor, Product, make_products, product_message
from paramgraph.nn.typed import FREE, NeuronTypes, TypedUpdate
from paramgraph.structure import EdgeKind

__all__ = ["Levels", "Round", "Signals", "operators"]


@dataclass
class Signals:
    """Features of all neurons, one tensor ``[n, dim]`` per level.

    Attributes:
        primal: h, scales like what readers see of a neuron.
        dual: g, scales like the gradient with respect to it.
        arrived: What last arrived forwards, before the activation (zeros where nothing did).
        returned: What last came back (zeros where nothing did).
        gain: Of ``Arrivals``, in the last sweep; ``None`` for 1.
    """

    primal: list[Tensor]
    dual: list[Tensor]
    arrived: list[Tensor]
    returned: list[Tensor]
    gain: list[Tensor | None]

    @staticmethod
    def start(primal: list[Tensor], dual: list[Tensor]) -> Signals:
        """Nothing has arrived yet."""
        zeros = [torch.zeros_like(h) for h in primal]
        return Signals(list(primal), list(dual), list(zeros), list(zeros), [None] * len(primal))


class Levels:
    """What an update needs of each level, cut once per batch.

    Args:
        batch: The networks.
        before: Types of neurons before their activation.
        arrivals: For each level.
        phase: Whether phases of waves are kept.
        context: Facts that no symmetry changes ``[N, context_dim]``.
        bias: Signal of the biases ``[N, dim]``.
    """

    def __init__(
        self,
        batch: GraphBatch,
        before: NeuronTypes,
        arrivals: list[Arrivals],
        context: Tensor,
        bias: Tensor,
        *,
        phase: bool,
    ) -> None:
        self.context = batch.split(context)
        self.bias = batch.split(bias)
        self.arrivals = arrivals
        behind = before.behind(batch, phase=phase)
        self.is_read = [rows.to(batch.dtype)[:, None] for rows in batch.split(batch.is_read)]
        fixed = batch.split((batch.kind == 3).to(batch.dtype)[:, None])
        self.is_fixed = [rows if bool(rows.any()) else None for rows in fixed]
        self.before = [before.rows(start, end) for start, end in batch.levels]
        self.types = [behind.rows(start, end) for start, end in batch.levels]
        # Factors of products are seen as readers see them, but are the neurons that receive.
        self.is_free = [
            ((t.types == FREE) & (b.types == FREE)).to(batch.dtype)[:, None]
            for t, b in zip(self.types, self.before, strict=True)
        ]
        depth = len(batch.levels)
        self.incoming: list[list[int]] = [[] for _ in range(depth)]
        self.outgoing: list[list[int]] = [[] for _ in range(depth)]
        for number, bucket in enumerate(batch.buckets):
            if is_pushed(bucket):
                self.incoming[bucket.receiver_depth].append(number)
                self.outgoing[bucket.sender_depth].append(number)
        self.products: list[list[Product]] = [[] for _ in range(depth)]
        self.factors: list[list[tuple[Product, int, Factor]]] = [[] for _ in range(depth)]
        for product in make_products(batch):
            self.products[product.depth].append(product)
            for number, factor in enumerate(product.factors):
                self.factors[factor.depth].append((product, number, factor))


def is_pushed(bucket: Bucket) -> bool:
    """Whether signals go through its values (otherwise it is part of a product)."""
    return bucket.kind.has_parameters or bucket.kind is EdgeKind.SKIP


def operators(weights: Tensor, psi: Tensor) -> Tensor:
    """``[..., num_positions]`` times ``[num_positions, operators]``."""
    return weights if psi.shape[0] == 1 else weights @ psi


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
        self.second = _SecondOrder(dim, context_dim) if second_order else None

    def forward(
        self, batch: GraphBatch, levels: Levels, weights: list[Tensor], signals: Signals
    ) -> Signals:
        """The signals after both sweeps; those given are not changed."""
        h, g = list(signals.primal), list(signals.dual)
        arrived, returned = list(signals.arrived), list(signals.returned)
        gains = list(signals.gain)
        context = levels.context
        if self.second is not None:
            context = self.second(batch, levels, weights)
        sent: list[Tensor] = []  # mapped signals of the levels below
        for level in range(len(h)):
            message = self._forward_message(batch, levels, weights, sent, level, len(h[level]))
            fixed = levels.is_fixed[level]
            is_heard = message is not None
            if message is None and fixed is not None:
                message = torch.zeros_like(h[level])
            if message is not None:
                arrived[level] = message
                gain = levels.arrivals[level].gain(message, levels.bias[level])
                gains[level] = gain
                bias = levels.arrivals[level].bias(levels.bias[level], gain)
                message = message if gain is None else message * gain
                facts = bias, g[level], context[level]
                update = self.primal(levels.types[level], h[level], message, *facts)
                if not is_heard:  # a level of inputs: only what is fixed among them has a value
                    update = update * fixed
                h[level] = h[level] + update
            sent.append(self.forward_map(h[level]))
        back: dict[int, Tensor] = {}  # mapped signals of the levels above
        for level in range(len(g) - 1, -1, -1):
            message = self._backward_message(
                batch, levels, weights, sent, back, level, len(g[level])
            )
            if message is not None:
                returned[level] = message
                bias = levels.arrivals[level].bias(levels.bias[level], gains[level])
                facts = bias, h[level], context[level]
                types = levels.types[level]
                update = self.dual(types, g[level], message, *facts, is_dual=True)
                # Outputs that stand at the depth of others' hidden neurons get no message.
                g[level] = g[level] + update * levels.is_read[level]
            gain = gains[level]
            back[level] = self.backward_map(g[level] if gain is None else g[level] * gain)
        return Signals(h, g, arrived, returned, gains)

    def _forward_message(
        self,
        batch: GraphBatch,
        levels: Levels,
        weights: list[Tensor],
        sent: list[Tensor],
        level: int,
        num_rows: int,
    ) -> Tensor | None:
        total = None
        for number in levels.incoming[level]:
            bucket, weight = batch.buckets[number], weights[number]
            operator = operators(weight, self.forward_positions(bucket.positions, weight))
            signal = bucket.senders.take(sent[bucket.sender_depth])
            fan = weight.shape[3] * weight.shape[4]
            message = push(bucket, operator, signal) / math.sqrt(fan)
            total = add_rows(total, bucket.receivers, message, num_rows)
        for product in levels.products[level]:
            message = product_message(product, sent, levels.is_free)
            total = _add_slice(total, product.start, message, num_rows)
        return total

    def _backward_message(
        self,
        batch: GraphBatch,
        levels: Levels,
        weights: list[Tensor],
        sent: list[Tensor],
        back: dict[int, Tensor],
        level: int,
        num_rows: int,
    ) -> Tensor | None:
        total = None
        for number in levels.outgoing[level]:
            bucket, weight = batch.buckets[number], weights[number]
            operator = operators(weight, self.backward_positions(bucket.positions, weight))
            signal = bucket.receivers.take(back[bucket.receiver_depth])
            fan = weight.shape[2] * weight.shape[4]
            message = push(bucket, operator, signal, backward=True) / math.sqrt(fan)
            total = add_rows(total, bucket.senders, message, num_rows)
        for product, number, factor in levels.factors[level]:
            dual = back[product.depth][product.start : product.start + product.length]
            message = product_message(product, sent, levels.is_free, dual, number)
            total = _add_slice(total, factor.start, message, num_rows)
        return total


def _add_slice(total: Tensor | None, start: int, rows: Tensor, num_rows: int) -> Tensor:
    """Add rows at a place of a level (``None`` is a level of zeros)."""
    padded = nn.functional.pad(rows, (0, 0, start, num_rows - start - len(rows)))
    return padded if total is None else total + padded


class _SecondOrder(nn.Module):
    """Invariant facts pushed through squared weights: how much of each neuron a reader hears.

    ``W * W`` is positive, so signs vanish; under positive factors it scales as their square, so
    this is used where those are not kept.
    """

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(context_dim, dim)
        self.down = nn.Linear(context_dim, dim)
        self.join = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), nn.Linear(dim, context_dim))

    def forward(self, batch: GraphBatch, levels: Levels, weights: list[Tensor]) -> list[Tensor]:
        """The context of each level, with what its neighbours say added."""
        facts = levels.context
        up = [self.up(c) for c in facts]
        down = [self.down(c) for c in facts]
        heard: list[Tensor | None] = [None] * len(facts)
        echoed: list[Tensor | None] = [None] * len(facts)
        for bucket, weight in zip(batch.buckets, weights, strict=True):
            if not is_pushed(bucket):
                continue
            s, r = bucket.sender_depth, bucket.receiver_depth
            square = weight.square().mean(-1, keepdim=True)
            message = push(bucket, square, bucket.senders.take(up[s])) / weight.shape[3]
            heard[r] = add_rows(heard[r], bucket.receivers, message, len(facts[r]))
            message = push(bucket, square, bucket.receivers.take(down[r]), backward=True)
            message = message / weight.shape[2]
            echoed[s] = add_rows(echoed[s], bucket.senders, message, len(facts[s]))
        result = []
        for level, context in enumerate(facts):
            both = [
                torch.zeros_like(up[level]) if part is None else part
                for part in (heard[level], echoed[level])
            ]
            result.append(context + self.join(torch.cat(both, dim=1)))
        return result
