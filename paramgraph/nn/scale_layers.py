"""Parts of ScaleGMN: maps that keep the type of a neuron, edges, reciprocal edges for the way back.

A weight from neuron j to neuron i scales like ``q_i / q_j``. Messages against its direction need
``q_j / q_i``: the paper takes ``1 / w``, which has no value at 0. Here it is
``w / (w^2 + s_i^2 / s_j^2)``, where the size ``s`` of a neuron is what unit signals become on their
way to it: positive, and rescaled like the neuron. That is of the same type exactly, finite, and
close to ``1 / w`` for large weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.engine import add_rows
from paramgraph.nn.metanetwork import mlp
from paramgraph.nn.positions import PositionFunctions
from paramgraph.nn.products import product_message
from paramgraph.nn.sweeps import Levels
from paramgraph.nn.typed import FREE, POSITIVE, SCALE, SIGN, NeuronTypes, unit
from paramgraph.structure import EdgeKind

__all__ = ["EdgeLift", "ScaleInvariant", "ScaleMap", "neuron_sizes", "reciprocals"]


class ScaleMap(nn.Module):
    """``S(z) = (G z) * phi(canon(z), facts)``, of the same type as z; a plain MLP for free neurons.

    ``canon`` forgets what the type may change: ``|z|`` for signs, ``z / norm(z)`` for positive
    factors, ``|z| / norm(z)`` for any factor.

    Args:
        in_dim: Width of z.
        out_dim: Width of the result.
        context_dim: Width of facts; 0 without any.
        canon: For signs ``"abs"``, or ``"symmetrised"``: ``phi(z) + phi(-z)``.

    Example:
        >>> scale = ScaleMap(4, 8)
        >>> types = NeuronTypes.from_tensor(torch.full((3,), POSITIVE))
        >>> z = torch.randn(3, 4)
        >>> torch.allclose(scale(types, 5 * z), 5 * scale(types, z), atol=1e-4)
        True

    References:
        Kalogeropoulos et al. 2024, section 4 (https://arxiv.org/abs/2406.10685).
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, context_dim: int = 0, canon: str = "abs"
    ) -> None:
        super().__init__()
        self.canon = canon
        self.free = mlp(in_dim + context_dim, out_dim, out_dim)
        self.map = nn.Linear(in_dim, out_dim, bias=False)
        self.inner = nn.Linear(in_dim + context_dim, out_dim)
        self.gate = nn.Sequential(nn.LayerNorm(out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))
        # Signals keep their size at first: Linear's own start leaves a third of it.
        nn.init.normal_(self.map.weight, std=1 / math.sqrt(in_dim))
        last = self.gate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.ones_(last.bias)

    def forward(self, types: NeuronTypes, z: Tensor, facts: Tensor | None = None) -> Tensor:
        """Values ``[n, ..., out_dim]`` of ``[n, ..., in_dim]``, facts ``[n, context_dim]``."""
        functions: dict[int, object] = {
            FREE: lambda z, *c: self.free(_joined(z, *c)),
            SIGN: self._sign,
            POSITIVE: lambda z, *c: self.map(z) * self._phi(_direction(z), *c),
            SCALE: lambda z, *c: self.map(z) * self._phi(_direction(z).abs(), *c),
        }
        return types.apply(functions, z, *(() if facts is None else (facts,)))

    def _phi(self, canonical: Tensor, *facts: Tensor) -> Tensor:
        return self.gate(self.inner(_joined(canonical, *facts)))

    def _sign(self, z: Tensor, *facts: Tensor) -> Tensor:
        if self.canon == "abs":
            return self.map(z) * self._phi(z.abs(), *facts)
        return self.map(z) * (0.5 * (self._phi(z, *facts) + self._phi(-z, *facts)))


class ScaleInvariant(nn.Module):
    """``rho(canon(z), facts)``: what no symmetry changes ``[n, out_dim]``.

    Args:
        in_dim: Width of z.
        out_dim: Width of the result.
        context_dim: Width of facts.
    """

    def __init__(self, in_dim: int, out_dim: int, context_dim: int) -> None:
        super().__init__()
        self.rho = mlp(in_dim + context_dim, 2 * out_dim, out_dim)
        self.free = mlp(in_dim + context_dim, 2 * out_dim, out_dim)

    def forward(self, types: NeuronTypes, z: Tensor, facts: Tensor) -> Tensor:
        """Invariant values ``[n, out_dim]``."""

        def sign(z: Tensor, c: Tensor) -> Tensor:
            return 0.5 * (self.rho(_joined(z, c)) + self.rho(_joined(-z, c)))

        functions: dict[int, object] = {
            FREE: lambda z, c: self.free(_joined(z, c)),
            SIGN: sign,
            POSITIVE: lambda z, c: self.rho(_joined(_direction(z), c)),
            SCALE: lambda z, c: sign(_direction(z), c),
        }
        return types.apply(functions, z, facts)


def _direction(z: Tensor) -> Tensor:
    return math.sqrt(z.shape[-1]) * unit(z)


def _joined(z: Tensor, *facts: Tensor) -> Tensor:
    """Facts of a neuron beside each of its rows."""
    if not facts:
        return z
    (c,) = facts
    if z.dim() == 3:
        c = c[:, None].expand(-1, z.shape[1], -1)
    return torch.cat([z, c], dim=-1)


class EdgeLift(nn.Module):
    """Weights to edge features: ``e_ij = sum_p psi(p) w_ijp * u(kind)``, linear in the weight.

    Args:
        dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.positions = PositionFunctions(dim)
        self.kind = nn.Embedding(len(EdgeKind), dim)

    def forward(self, bucket: Bucket, weight: Tensor) -> Tensor:
        """Features ``[blocks, receivers, senders, dim]``."""
        psi = self.positions(bucket.positions, weight) / math.sqrt(weight.shape[-1])
        kind = self.kind.weight[list(EdgeKind).index(bucket.kind)]
        return weight.reshape(*bucket.block_shape, -1) @ (psi * kind)


def neuron_sizes(batch: GraphBatch, levels: Levels, weights: list[Tensor]) -> list[Tensor]:
    """Positive size of each neuron, rescaled like what its readers see, ``[n, 1]`` per level.

    ``s_i^2 = mean_j w_ij^2 s_j^2 + b_i^2`` in dataflow order, 1 at the inputs; biases of waves
    count for nothing. 0 where nothing arrives.
    """
    bias = batch.neuron_values[:, :1] * (batch.phase == 0)[:, None]
    sizes: list[Tensor] = []
    squares = batch.split(bias.square())
    kinds = batch.split(batch.kind)
    for level, square in enumerate(squares):
        total = square
        for number in levels.incoming[level]:
            bucket, weight = batch.buckets[number], weights[number]
            shape = bucket.block_shape
            s = bucket.senders.take(sizes[bucket.sender_depth]).reshape(shape[0], 1, shape[2])
            mean = (weight.reshape(*shape, -1).square().mean(3) * s.square()).mean(2)
            total = add_rows(total, bucket.receivers, mean.reshape(-1, 1), len(square))
        for product in levels.products[level]:
            message = product_message(product, sizes, levels.is_free).square()
            rows = slice(product.start, product.start + product.length)
            total = torch.cat([total[: rows.start], total[rows] + message, total[rows.stop :]])
        # Inputs have size 1, and zeros that a recurrence starts from unless they have a scale.
        is_zero = (total == 0)[:, 0] & (kinds[level] == 3) & (levels.before[level].types < SCALE)
        is_one = ((kinds[level] == 0) | is_zero)[:, None]
        total = torch.where(is_one, torch.ones_like(total), total)
        size = torch.where(total > 0, total, torch.ones_like(total)).sqrt() * (total > 0)
        power = levels.arrivals[level].power
        if power is not None:
            size = torch.where(size > 0, size, torch.ones_like(size)) ** power * (size > 0)
        sizes.append(size)
    return sizes


def reciprocals(
    batch: GraphBatch, levels: Levels, weights: list[Tensor], floor: float
) -> list[Tensor]:
    """``w / (w^2 + floor s_i^2 / s_j^2)`` of every bucket, of the type of ``1 / w``.

    Args:
        batch: The networks.
        levels: Their levels.
        weights: At unit scale.
        floor: Where the reciprocal starts to fall: at weights of this squared size, relative to
            what is typical. 0 is ``1 / w``, with 0 for weights that are 0.
    """
    sizes = neuron_sizes(batch, levels, weights)
    result = []
    for bucket, weight in zip(batch.buckets, weights, strict=True):
        blocks, receivers, senders = bucket.block_shape
        s_j = bucket.senders.take(sizes[bucket.sender_depth]).reshape(blocks, 1, senders, 1)
        s_i = bucket.receivers.take(sizes[bucket.receiver_depth]).reshape(blocks, receivers, 1, 1)
        power = levels.arrivals[bucket.receiver_depth].power
        if power is not None:  # a weight leads to the neuron before its activation
            rows = bucket.receivers.take(power).reshape(blocks, receivers, 1, 1)
            s_i = torch.where(s_i > 0, s_i, torch.ones_like(s_i)) ** (1 / rows) * (s_i > 0)
        flat = weight.reshape(blocks, receivers, senders, -1)
        is_known = s_j > 0
        typical = s_i / torch.where(is_known, s_j, torch.ones_like(s_j))
        below = flat.square() + floor * typical.square()
        is_finite = (below > 0) & is_known
        result.append(flat * is_finite / torch.where(is_finite, below, torch.ones_like(below)))
    return result
