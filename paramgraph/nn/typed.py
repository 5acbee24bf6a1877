"""Neuron updates that keep the type of a feature: free, sign, positive scale, real scale.

For a neuron that may be rescaled by q, primal features transform as q h and dual ones as g / q.
``(G z) * phi(invariants of z)`` keeps the type, because G has no bias and phi sees only what q does
not change. Free neurons get a plain MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn.fast_dropout import FastDropout
from paramgraph.nn.metanetwork import mlp
from paramgraph.nn.per_layout import per_layout
from paramgraph.nn.sign_update import sign_update
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

T = TypeVar("T")

FREE, SIGN, SCALE, POSITIVE = range(4)

ALL = frozenset({"sign", "scale"})


@dataclass(frozen=True)
class NeuronTypes:
    """The type of each neuron, as far as a metanetwork keeps it.

    Attributes:
        types: ``[n]`` 0 free, 1 sign, 2 scale (any real factor), 3 positive factors only.
        present: The types that occur, so that a uniform level needs no selection.
        name: Under which facts that follow from them are kept for batches of the same layout;
            ``None`` keeps none.

    Example:
        >>> NeuronTypes.from_tensor(torch.tensor([0, 1, 1])).present
        (0, 1)
    """

    types: Tensor
    present: tuple[int, ...]
    name: tuple[Hashable, ...] | None = None

    @staticmethod
    def from_tensor(types: Tensor, name: tuple[Hashable, ...] | None = None) -> NeuronTypes:
        """Note which types occur."""
        return NeuronTypes(types, tuple(types.unique().tolist()), name)

    def kept(self, batch: GraphBatch, what: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        """What ``make`` derives from these types and the layout of their batch."""
        return make() if self.name is None else per_layout(batch, (*self.name, *what), make)

    @staticmethod
    def of(batch: GraphBatch, symmetry: str) -> NeuronTypes:
        """The types before the activation, under the symmetries that are to be kept."""
        make = partial(NeuronTypes._make, batch, symmetry)
        return per_layout(batch, ("types", symmetry), make)

    @staticmethod
    def _make(batch: GraphBatch, symmetry: str) -> NeuronTypes:
        table = {kind: FREE for kind in ScaleKind}
        if symmetry in ("sign", "scale"):
            table[ScaleKind.SIGN] = SIGN
            table[ScaleKind.REAL] = SIGN
        if symmetry == "scale":
            table[ScaleKind.POSITIVE] = POSITIVE
            table[ScaleKind.REAL] = SCALE
        lookup = torch.tensor([table[kind] for kind in ScaleKind], device=batch.scale.device)
        return NeuronTypes.from_tensor(lookup[batch.scale], ("types", symmetry))

    def behind(self, batch: GraphBatch, *, phase: bool) -> NeuronTypes:
        """The types that readers see: behind an even function no sign, behind a wave its phase.

        Args:
            batch: The neurons.
            phase: Whether half periods of the biases of sines are kept, as signs.
        """
        what = ("behind", phase)

        def make() -> NeuronTypes:
            types = self.types
            sign = torch.where(batch.is_even & (types == SIGN), FREE, types)
            types = torch.where(batch.is_even & (types == SCALE), POSITIVE, sign)
            if phase:
                types = torch.where(batch.phase > 0, SIGN, types)
            return NeuronTypes.from_tensor(types, None if self.name is None else self.name + what)

        return self.kept(batch, what, make)

    def by_level(self, batch: GraphBatch) -> list[NeuronTypes]:
        """The types of the neurons of each level."""
        return self.kept(
            batch,
            ("levels",),
            lambda: [NeuronTypes.from_tensor(self.types[a:b].clone()) for a, b in batch.levels],
        )

    @cached_property
    def _runs(self) -> tuple[tuple[int, int], ...]:
        """Types and lengths of rows of one type that lie side by side."""
        kinds, lengths = self.types.unique_consecutive(return_counts=True)
        return tuple(zip(kinds.tolist(), lengths.tolist(), strict=True))

    @cached_property
    def _index(self) -> dict[int, Tensor]:
        """The rows of each type."""
        return {kind: (self.types == kind).nonzero()[:, 0] for kind in self.present}

    @property
    def _is_sorted(self) -> bool:
        """Whether the rows of a type are cut out rather than gathered."""
        return len(self._runs) <= _MAX_RUNS

    def select(self, tensor: Tensor | None) -> dict[int, Tensor | None]:
        """The rows of each type ``[n_type, ...]``; those of ``None`` are ``None``."""
        if tensor is None or len(self.present) == 1:
            return dict.fromkeys(self.present, tensor)
        if not self._is_sorted:
            return {kind: tensor.index_select(0, index) for kind, index in self._index.items()}
        found: dict[int, list[Tensor]] = {kind: [] for kind in self.present}
        pieces = tensor.split([length for _, length in self._runs])
        for (kind, _), piece in zip(self._runs, pieces, strict=True):
            found[kind].append(piece)
        return {
            kind: pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            for kind, pieces in found.items()
        }

    def join(self, parts: Mapping[int, Tensor]) -> Tensor:
        """The inverse of ``select``."""
        if len(self.present) == 1:
            return parts[self.present[0]]
        if not self._is_sorted:
            first = parts[self.present[0]]
            result = first.new_zeros(len(self.types), *first.shape[1:])
            for kind, index in self._index.items():
                result = result.index_copy(0, index, parts[kind])
            return result
        pieces = {
            kind: iter(part.split([length for k, length in self._runs if k == kind]))
            for kind, part in parts.items()
        }
        return torch.cat([next(pieces[kind]) for kind, _ in self._runs])

    def apply(
        self, functions: Mapping[int, Callable[..., Tensor]], *tensors: Tensor | None
    ) -> Tensor:
        """Run the function of each type on its neurons; rows keep their order."""
        if len(self.present) == 1:
            return functions[self.present[0]](*tensors)
        rows = [self.select(tensor) for tensor in tensors]
        return self.join(
            {kind: functions[kind](*(row[kind] for row in rows)) for kind in self.present}
        )


_MAX_RUNS = 8


def unit(z: Tensor) -> Tensor:
    """Direction z / |z| per neuron: what a positive factor does not change (0 stays 0)."""
    return z / (z.square().sum(-1, keepdim=True) + _TINY).sqrt()


_TINY = 1e-30


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
        functions = {
            FREE: self._of_free,
            SIGN: self._of_sign,
            SCALE: partial(self._of_scale, is_dual=is_dual, has_sign=True),
            POSITIVE: partial(self._of_scale, is_dual=is_dual, has_sign=False),
        }
        return types.apply(functions, own, message, bias, other, context)

    def _of_free(
        self, o: Tensor | None, m: Tensor, b: Tensor, x: Tensor | None, c: Tensor
    ) -> Tensor:
        if o is not None and x is not None:
            return self.free(torch.cat([o, m, b, x, o * m, c], dim=1))
        parts = [(0, o), (1, m), (2, b), (3, x), (4, None if o is None else o * m)]
        dim, present = m.shape[1], [(k, part) for k, part in parts if part is not None]
        first = self.free.layers[0]
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
        return self.rest(self.layers[0](x))

    def rest(self, inner: Tensor) -> Tensor:
        """What follows the first linear map."""
        for layer in self.layers[1:]:
            inner = layer(inner)
        return self.last(inner)

    def mask(self, like: Tensor) -> Tensor | None:
        """A mask of dropout for each row of ``like``."""
        dropout = self.layers[3]
        if not dropout.draws:
            return None
        return dropout(like.new_ones(len(like), self.last.in_features))


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
            kind: lambda h, g, c, kind=kind: self._map(kind)[-1](self._hidden(kind, h, g, c))
            for kind in types.present
        }
        return types.apply(functions, h, g, context)

    def means(
        self, types: NeuronTypes, h: Tensor, g: Tensor, context: Tensor, index: Tensor, num: int
    ) -> Tensor:
        """Means ``[num, dim]`` of the values of the neurons of each set (0 without neurons).

        The last linear map comes after the sum: it is applied to sets, not to neurons.

        Args:
            types: Of the neurons.
            h: Primal features ``[n, dim]``.
            g: Dual features ``[n, dim]``.
            context: Facts ``[n, context_dim]``.
            index: Which set a neuron belongs to ``[n]``.
            num: Number of sets.
        """
        rows = [types.select(tensor) for tensor in (h, g, context, index)]
        total, count = h.new_zeros(()), h.new_zeros(())
        for kind in types.present:
            hidden = self._hidden(kind, *(row[kind] for row in rows[:3]))
            place = rows[3][kind]
            last = self._map(kind)[-1]
            pooled = hidden.new_zeros(num, hidden.shape[1]).index_add(0, place, hidden)
            size = h.new_zeros(num).index_add(0, place, h.new_ones(len(place)))[:, None]
            total = total + pooled @ last.weight.t() + size * last.bias
            count = count + size
        return total / count.clamp(min=1)

    def _map(self, kind: int) -> nn.Sequential:
        if kind == FREE:
            return self.free
        return self.sign if kind == SIGN else self.scale

    def _hidden(self, kind: int, h: Tensor, g: Tensor, c: Tensor) -> Tensor:
        """What the last linear map is applied to ``[n, 2 * dim]``."""
        first, silu = self._map(kind)[0], nn.functional.silu
        if kind == FREE:
            return silu(first(torch.cat([h, g, c], dim=1)))
        if kind != SIGN:
            directions = unit(h), unit(g)
            if kind == SCALE:
                directions = directions[0].abs(), directions[1].abs()
            return silu(first(torch.cat([*directions, h * g, c], dim=1)))
        # rho(h, g) + rho(-h, -g): signals and facts go through the first map once.
        of_signals, of_facts = first.weight.split([2 * h.shape[1], c.shape[1]], dim=1)
        fixed = nn.functional.linear(c, of_facts, first.bias)
        moved = torch.cat([h, g], dim=1) @ of_signals.t()
        return 0.5 * (silu(fixed + moved) + silu(fixed - moved))
