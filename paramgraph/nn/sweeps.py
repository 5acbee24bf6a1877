"""Sweeps of the operator metanetwork: signals pushed through the weights, level by level."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.engine import add_rows
from paramgraph.nn.arrival import Arrivals
from paramgraph.nn.per_layout import per_layout
from paramgraph.nn.positions import PositionFunctions
from paramgraph.nn.products import Factor, Product, make_products, product_message
from paramgraph.nn.pushes import Weights
from paramgraph.nn.typed import FREE, NeuronTypes, TypedUpdate
from paramgraph.structure import EdgeKind

__all__ = ["Filled", "Levels", "Round", "Signals"]


@dataclass
class Signals:
    """Features of all neurons, one tensor ``[n, dim]`` per level; ``None`` for zeros.

    Attributes:
        primal: h, scales like what readers see of a neuron.
        dual: g, scales like the gradient with respect to it.
        arrived: What last arrived forwards, before the activation; empty where it is not wanted.
        returned: What last came back; empty where it is not wanted.
        gain: Of ``Arrivals``, in the last sweep; ``None`` for 1.
    """

    primal: Sequence[Tensor | None]
    dual: Sequence[Tensor | None]
    arrived: Sequence[Tensor | None]
    returned: Sequence[Tensor | None]
    gain: Sequence[Tensor | None]

    @staticmethod
    def start(
        primal: Sequence[Tensor | None],
        dual: Sequence[Tensor | None],
        *,
        keeps_messages: bool = True,
    ) -> Signals:
        """Nothing has arrived yet; messages are kept where they are wanted."""
        none = [None] * len(primal)
        messages = none if keeps_messages else []
        return Signals(primal, dual, messages, messages, none)

    def filled(self, like: Sequence[Tensor]) -> Filled:
        """With zeros in place of ``None``; ``like`` has the shape of each level."""

        def fill(rows: Sequence[Tensor | None]) -> list[Tensor]:
            return [
                torch.zeros_like(known) if row is None else row
                for row, known in zip(rows, like, strict=False)
            ]

        return Filled(
            fill(self.primal), fill(self.dual), fill(self.arrived), fill(self.returned), self.gain
        )


@dataclass
class Filled:
    """``Signals`` without ``None`` (but for gains)."""

    primal: list[Tensor]
    dual: list[Tensor]
    arrived: list[Tensor]
    returned: list[Tensor]
    gain: Sequence[Tensor | None]


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
        self.before = before.by_level(batch)
        self.types = behind.by_level(batch)
        # Factors of products are seen as readers see them, but are the neurons that receive.
        self.is_free = behind.kept(
            batch,
            ("free",),
            lambda: [
                ((t.types == FREE) & (b.types == FREE)).to(batch.dtype)[:, None]
                for t, b in zip(self.types, self.before, strict=True)
            ],
        )
        known = per_layout(batch, "wiring", lambda: _Wiring(batch))
        self.is_read = known.is_read
        self.is_fixed = known.is_fixed
        self.incoming, self.outgoing = known.incoming, known.outgoing
        self.products, self.factors = known.products, known.factors
        self.kernels = known.kernels


class _Wiring:
    """What is joined with what, by level.

    Attributes:
        is_read: ``[n, 1]``; ``None`` where all neurons are.
        is_fixed: ``[n, 1]`` whether neurons are rows of a table and the like; ``None`` for none.
        incoming: Numbers of the buckets that lead to a level.
        outgoing: Numbers of the buckets that start from a level.
        products: What is multiplied at a level.
        factors: Products with a factor at a level, and which.
        kernels: All different positions of kernels.
    """

    def __init__(self, batch: GraphBatch) -> None:
        depth, dtype = len(batch.levels), batch.dtype
        is_read = batch.split(batch.is_read)
        self.is_read = [None if bool(r.all()) else r.to(dtype)[:, None] for r in is_read]
        fixed = batch.split(batch.kind == 3)
        self.is_fixed = [r.to(dtype)[:, None] if bool(r.any()) else None for r in fixed]
        self.incoming: list[list[int]] = [[] for _ in range(depth)]
        self.outgoing: list[list[int]] = [[] for _ in range(depth)]
        kernels: dict[tuple[tuple[float, float], ...], None] = {}
        for number, bucket in enumerate(batch.buckets):
            if is_pushed(bucket):
                self.incoming[bucket.receiver_depth].append(number)
                self.outgoing[bucket.sender_depth].append(number)
                if len(bucket.positions) > 1:
                    kernels[bucket.positions] = None
        self.kernels = tuple(kernels)
        self.products: list[list[Product]] = [[] for _ in range(depth)]
        self.factors: list[list[tuple[Product, int, Factor]]] = [[] for _ in range(depth)]
        for product in make_products(batch):
            self.products[product.depth].append(product)
            for number, factor in enumerate(product.factors):
                self.factors[factor.depth].append((product, number, factor))


def is_pushed(bucket: Bucket) -> bool:
    """Whether signals go through its values (otherwise it is part of a product)."""
    return bucket.kind.has_parameters or bucket.kind is EdgeKind.SKIP


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
