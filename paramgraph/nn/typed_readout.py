"""What no symmetry changes about neurons: values of each, or means over sets of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from paramgraph.nn.metanetwork import mlp
from paramgraph.nn.mirrored_sums import mirrored, mirrored_sums
from paramgraph.nn.neuron_types import FREE, SCALE, SIGN, NeuronTypes, unit
from paramgraph.nn.typed import ALL, NUM_ROWS

__all__ = ["ReadRows", "TypedReadout"]


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
        rows_at_once = len(place) if torch.is_grad_enabled() else NUM_ROWS
        tiles = zip(*(t.split(max(1, rows_at_once)) for t in (*rows, place)), strict=True)
        for h, g, c, here in tiles:
            pooled = pooled.index_add(0, here, self._hidden(kind, h, g, c).to(pooled.dtype))
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
