"""Products of neurons: gates, attention, and what flows without a parameter.

A neuron that is the product of others (a gated unit, a cell of an LSTM, a score ``q . k``, a
mixture of values) has no weight to push signals through. Signals of its factors are multiplied,
which is what the network does: if one factor is rescaled by a and another by b, the product of
their signals is rescaled by a b, exactly as capture says of the neuron. Backwards a factor
receives the dual signal times the signals of the other factors (the product rule).

Where the scales of the factors do not multiply to those of the neuron, or lie on other axes, only
signals without any scale pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from torch import Tensor

from paramgraph.batch import GraphBatch, NeuronSlot
from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeBlock, EdgeKind, ScaleKind

__all__ = ["Factor", "Product", "make_products", "product_message"]


@dataclass(frozen=True)
class Factor:
    """One of the neuron groups that are multiplied.

    Attributes:
        depth: Level of the senders.
        start: First row within the level.
        shape: ``(B * num_blocks, receivers, senders)``.
        constant: Number that the product is multiplied by.
        partner: Factors with the same partner are multiplied neuron by neuron before they are
            summed over senders (queries and keys).
    """

    depth: int
    start: int
    shape: tuple[int, int, int]
    constant: float
    partner: int


@dataclass(frozen=True)
class Product:
    """The neurons of one group of one architecture, and what is multiplied to give them.

    Attributes:
        depth: Level of the receivers.
        start: First row within the level.
        length: Number of rows.
        factors: At least one.
        is_typed: Whether the scales of the factors multiply to those of the receivers.
    """

    depth: int
    start: int
    length: int
    factors: tuple[Factor, ...]
    is_typed: bool


def make_products(batch: GraphBatch) -> list[Product]:
    """All products of a batch, in order of their depth.

    Example:
        >>> import paramgraph as pg
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 1))
        >>> graph = pg.capture(network, torch.randn(4, 3))
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))])
        >>> [len(product.factors) for product in make_products(batch)]
        [2]
    """
    slots = {(slot.part, slot.group): slot for slot in batch.neuron_slots}
    found = []
    for number, part in enumerate(batch.parts):
        for row in _products_of(part.graph.signature, _Unhashed(part.graph)):
            found.append(_placed(batch, slots, number, part.graph, row))
    return sorted(found, key=lambda product: product.depth)


class _Unhashed:
    """A graph that takes no part in a cache key (its signature does)."""

    def __init__(self, graph: ParamGraph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)


@dataclass(frozen=True)
class _Row:
    receiver: int
    blocks: tuple[int, ...]
    partners: tuple[int, ...]
    is_typed: bool


@lru_cache(maxsize=512)
def _products_of(signature: str, key: _Unhashed) -> tuple[_Row, ...]:
    """Which blocks of a graph are factors of one product."""
    graph = key.graph
    by_receiver: dict[int, list[int]] = {}
    for number, block in enumerate(graph.blocks):
        if not block.kind.has_parameters and block.kind is not EdgeKind.SKIP:
            by_receiver.setdefault(block.receiver, []).append(number)
    rows = []
    for receiver, numbers in by_receiver.items():
        kinds = {graph.blocks[n].kind for n in numbers}
        # What flows from several places without a gate is added, not multiplied.
        together = [numbers] if kinds - {EdgeKind.FLOW} else [[n] for n in numbers]
        for blocks in together:
            partners = _partners(graph, blocks)
            is_typed = _is_typed(graph, receiver, blocks, partners)
            rows.append(_Row(receiver, tuple(blocks), tuple(partners), is_typed))
    return tuple(rows)


def _partners(graph: ParamGraph, blocks: Sequence[int]) -> list[int]:
    """Factors that are contracted with each other get one number."""
    first: dict[object, int] = {}
    result = []
    for position, number in enumerate(blocks):
        block = graph.blocks[number]
        axes = graph.neuron_groups[block.sender].axes
        key = (block.shape, axes) if block.num_senders > 1 else position
        result.append(first.setdefault(key, position))
    return result


Exponents = dict[str, Fraction]


def _exponents(graph: ParamGraph, group: int) -> Exponents:
    """How single neurons of a group scale; signs modulo 2."""
    fine = {r.name for kind in _KINDS for r in graph.neuron_scales(kind)}
    signs = {row.name for row in graph.scale_groups if row.kind is ScaleKind.SIGN}
    known = {}
    for name, exponent in graph.neuron_groups[group].scale_exponents:
        if name in fine:
            value = exponent % 2 if name in signs else exponent
            if value:
                known[name] = value
    return known


_KINDS = (ScaleKind.SIGN, ScaleKind.POSITIVE)


def _is_typed(
    graph: ParamGraph, receiver: int, blocks: Sequence[int], partners: Sequence[int]
) -> bool:
    signs = {row.name for row in graph.scale_groups if row.kind is ScaleKind.SIGN}
    total: Exponents = {}
    for part in sorted(set(partners)):
        members = [graph.blocks[n] for n, p in zip(blocks, partners, strict=True) if p == part]
        scaled: Exponents = {}
        for block in members:
            for name, exponent in _exponents(graph, block.sender).items():
                scaled[name] = scaled.get(name, Fraction(0)) + exponent
        scaled = _reduced(scaled, signs)
        if scaled and not _is_elementwise(graph, members[0]):
            return False
        for name, exponent in scaled.items():
            total[name] = total.get(name, Fraction(0)) + exponent
    return _reduced(total, signs) == _exponents(graph, receiver)


def _is_elementwise(graph: ParamGraph, block: EdgeBlock) -> bool:
    """Whether neuron i reads neuron i, and both are numbered alike."""
    sender, receiver = graph.neuron_groups[block.sender], graph.neuron_groups[block.receiver]
    return block.num_receivers == block.num_senders == 1 and sender.axes == receiver.axes


def _reduced(exponents: Exponents, signs: set[str]) -> Exponents:
    return {
        name: value
        for name, exponent in exponents.items()
        if (value := exponent % 2 if name in signs else exponent)
    }


def _placed(
    batch: GraphBatch,
    slots: dict[tuple[int, int], NeuronSlot],
    part: int,
    graph: ParamGraph,
    row: _Row,
) -> Product:
    receiver = slots[part, row.receiver]
    depth = graph.neuron_groups[row.receiver].depth
    factors = []
    for number, partner in zip(row.blocks, row.partners, strict=True):
        block = graph.blocks[number]
        sender = slots[part, block.sender]
        level = graph.neuron_groups[block.sender].depth
        shape = (sender.copies * block.num_blocks, block.num_receivers, block.num_senders)
        start = sender.start - batch.levels[level][0]
        factors.append(Factor(level, start, shape, block.constant, partner))
    return Product(
        depth,
        receiver.start - batch.levels[depth][0],
        receiver.end - receiver.start,
        tuple(factors),
        row.is_typed,
    )


def product_message(
    product: Product,
    signals: Sequence[Tensor] | Mapping[int, Tensor],
    is_free: Sequence[Tensor],
    dual: Tensor | None = None,
    target: int | None = None,
) -> Tensor:
    """The signal of a product, or (with ``dual``) what it sends back to one of its factors.

    Args:
        product: What is multiplied.
        signals: Primal signals of each level ``[n, dim]``, already mapped.
        is_free: For each level ``[n, 1]``, 1 where a neuron has no scale.
        dual: Dual signal of the receivers ``[length, dim]``.
        target: Number of the factor that receives.

    Returns:
        ``[length, dim]``, or the rows of the factor.
    """
    many = len(product.factors) > 1
    groups: dict[int, Tensor] = {}
    own: list[Tensor] = []
    for factor in product.factors:
        blocks, _, senders = factor.shape
        rows = slice(factor.start, factor.start + blocks * senders)
        signal, free = signals[factor.depth][rows], is_free[factor.depth][rows]
        if not product.is_typed:
            signal = signal * free
        if many:
            signal = signal + free  # a gate is open before anything is known of it
        own.append(factor.constant * signal.reshape(blocks, senders, -1))
    for number, factor in enumerate(product.factors):
        if number != target:
            known = groups.get(factor.partner)
            groups[factor.partner] = own[number] if known is None else known * own[number]
    open_to = is_free[product.depth][product.start : product.start + product.length]
    if dual is None:
        total = None
        for partner, signal in groups.items():
            blocks, receivers, senders = product.factors[partner].shape
            part = signal.sum(1, keepdim=True) / math.sqrt(senders)
            part = part.expand(-1, receivers, -1).reshape(product.length, -1)
            total = part if total is None else total * part
        assert total is not None
        return total if product.is_typed else total * open_to
    assert target is not None
    factor = product.factors[target]
    blocks, receivers, senders = factor.shape
    back = dual if product.is_typed else dual * open_to
    beside = groups.pop(factor.partner, None)  # partners: neuron by neuron, behind the sum
    for partner, signal in groups.items():
        _, across, summed = product.factors[partner].shape
        part = signal.sum(1, keepdim=True) / math.sqrt(summed)
        back = back * part.expand(-1, across, -1).reshape(product.length, -1)
    back = back.reshape(blocks, receivers, -1).sum(1, keepdim=True) / math.sqrt(receivers)
    back = back.expand(-1, senders, -1)
    if beside is not None:
        back = back * beside
    back = (factor.constant * back).reshape(blocks * senders, -1)
    if not product.is_typed:
        back = back * is_free[factor.depth][factor.start : factor.start + blocks * senders]
    return back
