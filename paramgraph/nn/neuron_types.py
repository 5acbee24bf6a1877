"""The type of each neuron: free, sign, real scale, positive scale; rows sorted by it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.nn.per_layout import per_layout
from paramgraph.structure import ScaleKind

__all__ = ["FREE", "POSITIVE", "SCALE", "SIGN", "NeuronTypes", "unit"]

T = TypeVar("T")

FREE, SIGN, SCALE, POSITIVE = range(4)


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

    def select(self, tensor: Tensor | None) -> dict[int, Any]:
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

    def apply(self, functions: Mapping[int, Any], *tensors: Tensor | None) -> Tensor:
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
