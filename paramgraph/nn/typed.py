"""Neuron updates that keep the type of a feature: free, sign, positive scale, real scale.

For a neuron that may be rescaled by q, primal features transform as q h and dual ones as g / q.
``(G z) * phi(invariants of z)`` keeps the type, because G has no bias and phi sees only what q does
not change. Free neurons get a plain MLP.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn.metanetwork import mlp
from paramgraph.structure import ScaleKind

__all__ = [
    "FREE",
    "POSITIVE",
    "SCALE",
    "SIGN",
    "NeuronTypes",
    "TypedReadout",
    "TypedUpdate",
    "unit",
]

FREE, SIGN, SCALE, POSITIVE = range(4)

ALL = frozenset({"sign", "scale"})


@dataclass(frozen=True)
class NeuronTypes:
    """The type of each neuron, as far as a metanetwork keeps it.

    Attributes:
        types: ``[n]`` 0 free, 1 sign, 2 scale (any real factor), 3 positive factors only.
        present: The types that occur, so that a uniform level needs no selection.

    Example:
        >>> NeuronTypes.from_tensor(torch.tensor([0, 1, 1])).present
        (0, 1)
    """

    types: Tensor
    present: tuple[int, ...]

    @staticmethod
    def from_tensor(types: Tensor) -> NeuronTypes:
        """Note which types occur."""
        return NeuronTypes(types, tuple(types.unique().tolist()))

    @staticmethod
    def of(batch: GraphBatch, symmetry: str) -> NeuronTypes:
        """The types before the activation, under the symmetries that are to be kept."""
        table = {kind: FREE for kind in ScaleKind}
        if symmetry in ("sign", "scale"):
            table[ScaleKind.SIGN] = SIGN
            table[ScaleKind.REAL] = SIGN
        if symmetry == "scale":
            table[ScaleKind.POSITIVE] = POSITIVE
            table[ScaleKind.REAL] = SCALE
        lookup = torch.tensor([table[kind] for kind in ScaleKind], device=batch.scale.device)
        return NeuronTypes.from_tensor(lookup[batch.scale])

    def behind(self, batch: GraphBatch, *, phase: bool) -> NeuronTypes:
        """The types that readers see: behind an even function no sign, behind a wave its phase.

        Args:
            batch: The neurons.
            phase: Whether half periods of the biases of sines are kept, as signs.
        """
        types = self.types
        sign = torch.where(batch.is_even & (types == SIGN), FREE, types)
        types = torch.where(batch.is_even & (types == SCALE), POSITIVE, sign)
        if phase:
            types = torch.where(batch.phase > 0, SIGN, types)
        return NeuronTypes.from_tensor(types)

    def rows(self, start: int, end: int) -> NeuronTypes:
        """The types of some neurons."""
        return NeuronTypes.from_tensor(self.types[start:end])

    def apply(self, functions: dict[int, object], *tensors: Tensor) -> Tensor:
        """Run the function of each type on its neurons; rows keep their order."""
        if len(self.present) == 1:
            return functions[self.present[0]](*tensors)  # type: ignore[operator]
        result = None
        for kind in self.present:
            index = (self.types == kind).nonzero()[:, 0]
            part = functions[kind](*(t.index_select(0, index) for t in tensors))  # type: ignore[operator]
            if result is None:
                result = part.new_zeros(len(self.types), *part.shape[1:])
            result = result.index_copy(0, index, part)
        assert result is not None
        return result


def unit(z: Tensor) -> Tensor:
    """Direction z / |z| per neuron: what a positive factor does not change (0 stays 0)."""
    return z / (z.square().sum(-1, keepdim=True) + _TINY).sqrt()


_TINY = 1e-30


def _bound(z: Tensor) -> Tensor:
    """``[n, 1]`` about 1 for small z and 1 / |z| for large ones, so that signals cannot explode."""
    size = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return (1 + size.square() / (16 * z.shape[1])).rsqrt()


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
        own: Tensor,
        message: Tensor,
        bias: Tensor,
        other: Tensor,
        context: Tensor,
        *,
        is_dual: bool = False,
    ) -> Tensor:
        """The change of ``own`` ``[n, dim]``; ``bias`` is primal, ``other`` of the other kind."""

        def free(o: Tensor, m: Tensor, b: Tensor, x: Tensor, c: Tensor) -> Tensor:
            return self.free(torch.cat([o, m, b, x, o * m, c], dim=1))

        def sign(o: Tensor, m: Tensor, b: Tensor, x: Tensor, c: Tensor) -> Tensor:
            z = torch.cat([o, m, b, x, o * m.abs()], dim=1)
            gate = self.sign_gate(torch.cat([z.abs(), c], dim=1))
            return self.sign_map(z) * (gate * _bound(z))

        def scale(o: Tensor, m: Tensor, b: Tensor, x: Tensor, c: Tensor) -> Tensor:
            # A bias scales like an activation: it may enter dual features only through products.
            z = torch.cat([o, m, torch.zeros_like(b) if is_dual else b], dim=1)
            partner = b * o if is_dual else b * x
            known = torch.cat([unit(z).abs(), o * x, partner, c], dim=1)
            return self.scale_map(z) * self.scale_gate(known)

        def positive(o: Tensor, m: Tensor, b: Tensor, x: Tensor, c: Tensor) -> Tensor:
            z = torch.cat([o, m, torch.zeros_like(b) if is_dual else b], dim=1)
            partner = b * o if is_dual else b * x
            return self.scale_map(z) * self.scale_gate(torch.cat([unit(z), o * x, partner, c], 1))

        functions = {FREE: free, SIGN: sign, SCALE: scale, POSITIVE: positive}
        return types.apply(functions, own, message, bias, other, context)  # type: ignore[arg-type]


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
            nn.Dropout(dropout),
        )
        self.last = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x))


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

        def free(h: Tensor, g: Tensor, c: Tensor) -> Tensor:
            return self.free(torch.cat([h, g, c], dim=1))

        def sign(h: Tensor, g: Tensor, c: Tensor) -> Tensor:
            return 0.5 * (
                self.sign(torch.cat([h, g, c], dim=1)) + self.sign(torch.cat([-h, -g, c], dim=1))
            )

        def scale(h: Tensor, g: Tensor, c: Tensor) -> Tensor:
            return self.scale(torch.cat([unit(h).abs(), unit(g).abs(), h * g, c], dim=1))

        def positive(h: Tensor, g: Tensor, c: Tensor) -> Tensor:
            return self.scale(torch.cat([unit(h), unit(g), h * g, c], dim=1))

        functions = {FREE: free, SIGN: sign, SCALE: scale, POSITIVE: positive}
        return types.apply(functions, h, g, context)  # type: ignore[arg-type]
