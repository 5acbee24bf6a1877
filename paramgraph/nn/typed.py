"""Neuron updates that keep the type of a feature: free, sign, positive scale, real scale.

For a neuron that may be rescaled by q, primal features transform as q h and dual ones as g / q.
``(G z) * phi(invariants of z)`` keeps the type, because G has no bias and phi sees only what q does
not change. Free neurons get a plain MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from paramgraph.nn.fast_dropout import FastDropout
from paramgraph.nn.metanetwork import mlp
from paramgraph.nn.mirrored_sums import mirrored, mirrored_sums
from paramgraph.nn.neuron_types import FREE, POSITIVE, SCALE, SIGN, NeuronTypes, unit
from paramgraph.nn.sign_update import sign_update

__all__ = [
    "FREE",
    "POSITIVE",
    "SCALE",
    "SIGN",
    "NeuronTypes",
    "ReadRows",
    "TypedReadout",
    "TypedUpdate",
    "unit",
]

ALL = frozenset({"sign", "scale"})


class TypedUpdate(nn.Module):
    """New features of a neuron from its own, the message, its bias, and those of the other kind.

    Args:
        dim: Width of all features.
        context_dim: Width of facts that no symmetry changes.
        dropout: Inside phi.
        kept: Names of the symmetries that are kept, ``"sign"`` and ``"scale"``.

    Example:
        >>> update = TypedUpdate(8, 4, 0.0)
        >>> types = NeuronTypes.from_tensor(torch.ones(5, dtype=torch.long))
        >>> x, context = torch.randn(5, 8), torch.randn(5, 4)
        >>> plus = update(types, x, x, x, x, context)
        >>> torch.allclose(update(types, -x, -x, -x, -x, context), -plus)
        True
    """

    def __init__(
        self, dim: int, context_dim: int, dropout: float, kept: Collection[str] = ALL
    ) -> None:
        super().__init__()
        wide = 5 * dim
        self.free = _Gate(wide + context_dim, 2 * dim, dim, dropout)
        if "sign" in kept:
            self.sign_map = nn.Linear(wide, dim, bias=False)
            self.sign_gate = _Gate(wide + context_dim, 2 * dim, dim, dropout)
            _keep_size(self.sign_gate, self.sign_map, dim)
        if "scale" in kept:
            self.scale_map = nn.Linear(3 * dim, dim, bias=False)
            self.scale_gate = _Gate(wide + context_dim, 2 * dim, dim, dropout)
            _keep_size(self.scale_gate, self.scale_map, dim)

    def forward(
        self,
        types: NeuronTypes,
        own: Tensor | None,
        message: Tensor,
        bias: Tensor,
        other: Tensor | None,
        context: Tensor,
        *,
        is_dual: bool = False,
    ) -> Tensor:
        """The change of ``own`` ``[n, dim]``; ``bias`` is primal, ``other`` of the other kind.

        ``None`` stands for zeros, which cost nothing.
        """
        functions: dict[int, Callable[..., Tensor]] = {
            FREE: self._of_free,
            SIGN: self._of_sign,
            SCALE: partial(self._of_scale, is_dual=is_dual, has_sign=True),
            POSITIVE: partial(self._of_scale, is_dual=is_dual, has_sign=False),
        }
        functions = {kind: partial(_by_tiles, function) for kind, function in functions.items()}
        return types.apply(functions, own, message, bias, other, context)

    def _of_free(
        self, o: Tensor | None, m: Tensor, b: Tensor, x: Tensor | None, c: Tensor
    ) -> Tensor:
        if o is not None and x is not None:
            return self.free(torch.cat([o, m, b, x, o * m, c], dim=1))
        parts = [(0, o), (1, m), (2, b), (3, x), (4, None if o is None else o * m)]
        dim, present = m.shape[1], [(k, part) for k, part in parts if part is not None]
        first = self.free.first
        cut = first.weight.split([dim] * 5 + [c.shape[1]], dim=1)
        weight = torch.cat([*(cut[k] for k, _ in present), cut[5]], dim=1)
        known = torch.cat([*(part for _, part in present), c], dim=1)
        return self.free.rest(nn.functional.linear(known, weight, first.bias))

    def _of_sign(
        self, o: Tensor | None, m: Tensor, b: Tensor, x: Tensor | None, c: Tensor
    ) -> Tensor:
        gate = self.sign_gate
        parameters = (self.sign_map.weight, *gate.parameters())
        return sign_update((o, m, b, x), c, gate.mask(m), parameters)

    def _of_scale(
        self,
        o: Tensor | None,
        m: Tensor,
        b: Tensor,
        x: Tensor | None,
        c: Tensor,
        *,
        is_dual: bool,
        has_sign: bool,
    ) -> Tensor:
        # A bias scales like an activation: it may enter dual features only through products.
        zero = torch.zeros_like(m)
        o, x = zero if o is None else o, zero if x is None else x
        z = torch.cat([o, m, zero if is_dual else b], dim=1)
        partner = b * o if is_dual else b * x
        direction = unit(z).abs() if has_sign else unit(z)
        return self.scale_map(z) * self.scale_gate(torch.cat([direction, o * x, partner, c], dim=1))


_NUM_ROWS = 2048


def _by_tiles(function: Callable[..., Tensor], *rows: Tensor | None) -> Tensor:
    """``function`` of some rows at a time: without derivatives what it computes stays in the cache.

    With derivatives everything is kept anyway.
    """
    num = max(0 if part is None else len(part) for part in rows)
    if num <= _NUM_ROWS or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*rows)
    starts = range(0, num, _NUM_ROWS)
    tiles = ([None] * len(starts) if part is None else part.split(_NUM_ROWS) for part in rows)
    return torch.cat([function(*tile) for tile in zip(*tiles, strict=True)])


@torch.no_grad()
def _keep_size(gate: _Gate, linear: nn.Linear, dim: int) -> None:
    """Messages pass at their own size at first, or deep networks would hardly be heard.

    Linear layers start with a third of the variance that would keep a signal's size, and gates
    around 0: after a few levels nothing would be left of a typed signal.
    """
    nn.init.ones_(gate.last.bias)
    nn.init.normal_(linear.weight, std=0.35 / math.sqrt(dim))
    linear.weight[:, dim : 2 * dim] *= 2  # what arrives


class _Gate(nn.Module):
    """phi: Linear, LayerNorm, SiLU, dropout, Linear."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.SiLU(),
            FastDropout(dropout),
        )
        self.last = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))

    @property
    def first(self) -> nn.Linear:
        """The first linear map."""
        return cast("nn.Linear", self.layers[0])

    def rest(self, inner: Tensor) -> Tensor:
        """What follows the first linear map."""
        _, norm, silu, dropout = self.layers
        return self.last(dropout(silu(norm(inner))))

    def mask(self, like: Tensor) -> Tensor | None:
        """A mask of dropout for each row of ``like``."""
        dropout = cast("FastDropout", self.layers[3])
        if not dropout.draws:
            return None
        return dropout(like.new_ones(len(like), self.last.in_features))


@dataclass(frozen=True)
class ReadRows:
    """Some neurons, for ``TypedReadout.means``.

    Attributes:
        types: Of the neurons.
        h: Primal features ``[n, dim]``.
        g: Dual features ``[n, dim]``.
        context: Facts ``[n, context_dim]``.
        index: Which set a neuron belongs to ``[n]``.
    """

    types: NeuronTypes
    h: Tensor
    g: Tensor
    context: Tensor
    index: Tensor


class TypedReadout(nn.Module):
    """What no symmetry changes about a neuron: rho(h) + rho(-h) for signs, directions for scales.

    Args:
        dim: Width of h and g, and of the result.
        context_dim: Width of facts.
        kept: Names of the symmetries that are kept, ``"sign"`` and ``"scale"``.

    Example:
        >>> readout = TypedReadout(8, 4)
        >>> types = NeuronTypes.from_tensor(torch.ones(5, dtype=torch.long))
        >>> h, g, context = torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 4)
        >>> torch.allclose(readout(types, -h, -g, context), readout(types, h, g, context))
        True
    """

    def __init__(self, dim: int, context_dim: int, kept: Collection[str] = ALL) -> None:
        super().__init__()
        self.free = mlp(2 * dim + context_dim, 2 * dim, dim)
        if "sign" in kept:
            self.sign = mlp(2 * dim + context_dim, 2 * dim, dim)
        if "scale" in kept:
            self.scale = mlp(3 * dim + context_dim, 2 * dim, dim)

    def forward(self, types: NeuronTypes, h: Tensor, g: Tensor, context: Tensor) -> Tensor:
        """Invariant values ``[n, dim]``."""
        functions = {
            kind: lambda h, g, c, kind=kind: self._maps(kind)[1](self._hidden(kind, h, g, c))
            for kind in types.present
        }
        return types.apply(functions, h, g, context)

    def means(self, rows: Iterable[ReadRows], num: int) -> Tensor:
        """Means ``[num, dim]`` of the values of the neurons of each set (0 without neurons).

        The last linear map comes after the sum: it is applied to sets, not to neurons.

        Args:
            rows: Neurons, in any number of pieces.
            num: Number of sets.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for piece in rows:
            parts = (piece.h, piece.g, piece.context, piece.index)
            cut = [piece.types.select(part) for part in parts]
            for kind in piece.types.present:
                h, g, c, place = (part[kind] for part in cut)
                pooled = self._pooled(kind, (h, g, c), place, num)
                size = h.new_zeros(num).index_add(0, place, h.new_ones(len(place)))[:, None]
                if kind in found:
                    pooled, size = pooled + found[kind][0], size + found[kind][1]
                found[kind] = pooled, size
        values = []
        for kind, (pooled, size) in found.items():
            last = self._maps(kind)[1]
            values.append(pooled @ last.weight.t() + size * last.bias)
        count = torch.stack([size for _, size in found.values()]).sum(0)
        return torch.stack(values).sum(0) / count.clamp(min=1)

    def _pooled(
        self, kind: int, rows: tuple[Tensor, Tensor, Tensor], place: Tensor, num: int
    ) -> Tensor:
        """Sums ``[num, 2 * dim]`` of what the last linear map is applied to."""
        first = self._maps(kind)[0]
        if kind == SIGN:
            return mirrored_sums(rows, place, num, first.weight, first.bias)
        pooled = rows[0].new_zeros(num, first.out_features)
        rows_at_once = len(place) if torch.is_grad_enabled() else _NUM_ROWS
        tiles = zip(*(t.split(max(1, rows_at_once)) for t in (*rows, place)), strict=True)
        for h, g, c, here in tiles:
            pooled = pooled.index_add(0, here, self._hidden(kind, h, g, c))
        return pooled

    def _maps(self, kind: int) -> tuple[nn.Linear, nn.Linear]:
        """The first and the last linear map for a type."""
        layers = self.free if kind == FREE else self.sign if kind == SIGN else self.scale
        return cast("nn.Linear", layers[0]), cast("nn.Linear", layers[-1])

    def _hidden(self, kind: int, h: Tensor, g: Tensor, c: Tensor) -> Tensor:
        """What the last linear map is applied to ``[n, 2 * dim]``."""
        first, silu = self._maps(kind)[0], nn.functional.silu
        if kind == FREE:
            return silu(first(torch.cat([h, g, c], dim=1)))
        if kind != SIGN:
            directions = unit(h), unit(g)
            if kind == SCALE:
                directions = directions[0].abs(), directions[1].abs()
            return silu(first(torch.cat([*directions, h * g, c], dim=1)))
        return mirrored(h, g, c, first.weight, first.bias)
