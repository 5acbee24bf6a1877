"""What a sweep needs of each level: facts, types, and what is joined with what."""

from __future__ import annotations

from torch import Tensor

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.nn.arrival import Arrivals
from paramgraph.nn.neuron_types import FREE, NeuronTypes
from paramgraph.nn.per_layout import per_layout
from paramgraph.nn.products import Factor, Product, make_products
from paramgraph.structure import EdgeKind

__all__ = ["Levels", "is_pushed"]


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
