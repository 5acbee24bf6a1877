"""Neuron updates that keep the type of a feature: free, sign, positive scale, real scale.

For a neuron that may be rescaled by q, primal features transform as q h and dual ones as g / q.
``(G z) * phi(invariants of z)`` keeps the type, because G has no bias and phi sees only what q does
not change. Free neurons get a plain MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from paramgraph.nn.fast_dropout import FastDropout
from paramgraph.nn.neuron_types import FREE, POSITIVE, SCALE, SIGN, NeuronTypes, unit
from paramgraph.nn.sign_update import sign_update

__all__ = [
    "FREE",
    "POSITIVE",
    "SCALE",
    "SIGN",
    "NeuronTypes",
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


NUM_ROWS = 2048


def _by_tiles(function: Callable[..., Tensor], *rows: Tensor | None) -> Tensor:
    """``function`` of some rows at a time: without derivatives what it computes stays in the cache.

    With derivatives everything is kept anyway.
    """
    num = max(0 if part is None else len(part) for part in rows)
    if num <= NUM_ROWS or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*rows)
    starts = range(0, num, NUM_ROWS)
    tiles = ([None] * len(starts) if part is None else part.split(NUM_ROWS) for part in rows)
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
