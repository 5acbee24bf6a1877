"""Encoders of the parameter encoding: what is known of its nodes and edges, and their values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramgraph.explicit import LinkKind, NodeKind
from paramgraph.nn.identities import identity_vectors
from paramgraph.nn.parameter_batch import ParameterBatch
from paramgraph.nn.run_layout import RunLayout
from paramgraph.structure import Activation, NormKind

__all__ = ["LinkEncoder", "NodeEncoder"]

_PLACED = (NodeKind.INPUT, NodeKind.OUTPUT, NodeKind.FIXED)
_NUM_DEPTHS = 64
_NUM_PLACES = 256


class NodeEncoder(nn.Module):
    """Kind, layer, place, activation, normalisation and running statistics of nodes, summed.

    A sum of embeddings is their concatenation, mapped linearly. Places are those of inputs, of
    outputs, and of rows of tables that no symmetry permutes; there may be any number of them, see
    ``identity_vectors``.

    Args:
        dim: Width of the features.

    References:
        Lim et al. 2024, appendix C (node features: layer, position, type).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(len(NodeKind), dim)
        self.depth = nn.Embedding(_NUM_DEPTHS, dim)
        self.places = nn.ModuleList(nn.Embedding(_NUM_PLACES, dim) for _ in _PLACED)
        self.activation = nn.Embedding(len(Activation), dim)
        self.norm = nn.Embedding(len(NormKind), dim)
        self.statistics = nn.Linear(2, dim, bias=False)

    def forward(self, networks: ParameterBatch) -> Tensor:
        """Features ``[N, dim]``."""
        kind, depth, activation, norm, position = networks.layout.nodes.table.unbind(1)
        known: Tensor = self.kind(kind) + self.activation(activation) + self.norm(norm)
        known = known + identity_vectors(self.depth.weight, depth)
        for placed, table in zip(_PLACED, self.places, strict=True):
            assert isinstance(table, nn.Embedding)
            rows = torch.nonzero((kind == placed.index) & (position >= 0))[:, 0]
            known = known.index_add(0, rows, identity_vectors(table.weight, position[rows]))
        features: Tensor = known + self.statistics(networks.statistics)
        return features


class LinkEncoder(nn.Module):
    """Value, kind, layer and coordinates of edges.

    ``map(sin(a w + b))`` with learned ``a, b`` for the value, or ``map([cos(f w), sin(f w)])`` with
    fixed Gaussian ``f``; sine waves of the coordinates; what does not depend on the weights is
    computed once per run.

    Args:
        dim: Width of the features.
        values: ``"sin"`` or ``"fourier"``.
        sigma: Standard deviation of ``f``, in radians per unit of standardised weight.

    Raises:
        ValueError: ``values`` is neither of the two.

    References:
        Lim et al. 2024, released code (encoders of scalars, edge features).
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, values: str = "sin", sigma: float = 3.0) -> None:
        super().__init__()
        if values not in ("sin", "fourier"):
            raise ValueError(f"values must be 'sin' or 'fourier', got {values!r}.")
        self.lift = nn.Linear(1, dim) if values == "sin" else None
        generator = torch.Generator().manual_seed(0)
        frequencies = sigma * torch.randn(max(dim // 2, 1), generator=generator)
        self.register_buffer("frequencies", frequencies)
        self.map = nn.Linear(dim if values == "sin" else 2 * len(frequencies), dim, bias=False)
        self.kind = nn.Embedding(len(LinkKind), dim)
        self.depth = nn.Embedding(_NUM_DEPTHS, dim)
        self.place = nn.Linear(3, dim)
        self.place_map = nn.Linear(dim, dim, bias=False)

    def forward(self, networks: ParameterBatch) -> Tensor:
        """Features ``[E, dim]``."""
        if self.lift is not None:
            lifted = self.lift(networks.edges).sin()
        else:
            phase = networks.edges * self.frequencies
            lifted = torch.cat([phase.cos(), phase.sin()], dim=-1)
        features: Tensor = self.map(lifted)
        layout = networks.layout
        pieces = [
            rows + known
            for rows, known in zip(layout.cut_edges(features), self._known(layout), strict=True)
        ]
        return layout.join_edges(pieces, features)

    def _known(self, layout: RunLayout) -> list[Tensor]:
        """What is known of each run without its weights, to be broadcast to ``[*shape, dim]``."""
        facts = self.kind(layout.kinds) + identity_vectors(self.depth.weight, layout.depths)
        waves = self.place_map(self.place(layout.coordinates.to(facts.dtype)).sin())
        sizes = [piece.run.coordinates.numel() // 3 for piece in layout.edges]
        return [
            wave.reshape(*piece.run.coordinates.shape[:-1], -1) + fact
            for piece, wave, fact in zip(layout.edges, waves.split(sizes), facts, strict=True)
        ]
