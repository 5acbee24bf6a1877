"""Encoders of neuron and edge values: random Fourier features, then linear maps (paper's lift)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.errors import BatchError
from paramgraph.nn.magnitudes import log_magnitudes
from paramgraph.nn.positions import FixedPositionBasis
from paramgraph.nn.standardize import Standardizer
from paramgraph.structure import Activation, EdgeKind

__all__ = ["EdgeEncoder", "KindTable", "NeuronEncoder"]

_KINDS = list(EdgeKind)
_FIRST_KINDS = 4  # kinds of the first release: linear, conv, scale, skip


class EdgeEncoder(nn.Module):
    """Edge values to features ``[E, dim]``, one tensor per direction.

    An edge i <- j carries (w, 0, w) forward and (0, w, w) backward (weight, weight of the reverse
    edge, their sum). These are projected by fixed Gaussian rows, passed through cos and sin, and
    mapped twice linearly. ``w`` is a vector over kernel positions; see ``FixedPositionBasis``.

    Args:
        dim: Width of the features.
        num_frequencies: Gaussian rows; 0 maps the values linearly instead.
        sigma: Their standard deviation.

    References:
        Kofinas et al. 2024, section 2 and appendix D; methods 1.1 "input lift", "edge direction".
    """

    def __init__(self, dim: int, *, num_frequencies: int = 128, sigma: float = 0.5) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        rows = num_frequencies or dim
        spread = 2 * math.pi * sigma if num_frequencies else 1.0
        self.bases = nn.ModuleList(
            FixedPositionBasis(rows, sigma=spread, seed=seed) for seed in range(3)
        )
        self.lift = nn.Linear(2 * rows if num_frequencies else rows, dim)
        self.map = nn.Linear(dim, dim)
        self.kind = KindTable(dim)

    def forward(self, batch: GraphBatch, standardizer: Standardizer) -> tuple[Tensor, Tensor]:
        """Features of the edges and of the reversed edges, each ``[E, dim]``."""
        projected: tuple[list[Tensor], list[Tensor]] = ([], [])
        kinds = []
        for bucket in batch.buckets:
            values = standardizer.edges(bucket)
            values = values.reshape(-1, values.shape[-1])
            own, reverse, both = (basis(bucket.positions, values) for basis in self.bases)
            projected[0].append(values @ (own + both))
            projected[1].append(values @ (reverse + both))
            kinds.append(self.kind.weight[_KINDS.index(bucket.kind)].expand(len(values), -1))
        kind = torch.cat(kinds)
        forward, backward = (self.map(self._lift(torch.cat(p))) + kind for p in projected)
        return forward, backward

    def _lift(self, projected: Tensor) -> Tensor:
        if not self.num_frequencies:
            return self.lift(projected)
        return self.lift(torch.cat([projected.cos(), projected.sin()], dim=1))


class KindTable(nn.Embedding):
    """One vector per kind of edge.

    The first four kinds draw from the global generator, the later ones from one of their own: a
    new kind changes no start that a published number was measured with.

    Example:
        >>> KindTable(8).weight.shape[1]
        8
    """

    def __init__(self, dim: int) -> None:
        super().__init__(len(_KINDS), dim, _weight=torch.empty(len(_KINDS), dim))
        self.start(1.0)

    @torch.no_grad()
    def start(self, std: float) -> None:
        """Draw all vectors anew.

        Args:
            std: Standard deviation of their entries.
        """
        first = torch.empty_like(self.weight[:_FIRST_KINDS])
        self.weight[:_FIRST_KINDS] = nn.init.normal_(first, std=std)
        generator = torch.Generator().manual_seed(_FIRST_KINDS)
        shape = (len(_KINDS) - _FIRST_KINDS, self.embedding_dim)
        self.weight[_FIRST_KINDS:] = std * torch.randn(shape, generator=generator)


class NeuronEncoder(nn.Module):
    """Biases and statistics to features ``[N, dim]``, with position and activation embeddings.

    Positions: one learned vector per depth for hidden neurons, counted from the inputs; one per
    input neuron and one per output neuron. Activations: one learned vector each, added to hidden
    neurons ("none" has its own).

    Args:
        dim: Width of the features.
        num_frequencies: Random Fourier features per value; 0 maps the values linearly.
        sigma: Standard deviation of their frequencies.
        max_depth: Number of depths with a learned vector; deeper ones share the last vector, told
            apart by fixed waves of how much deeper they are.
        max_identities: Number of inputs and of outputs told apart.
        magnitudes: Add a map of the logarithms of each neuron's weight magnitudes (not in the
            papers; without it, norms must be learned through message passing).

    References:
        Kofinas et al. 2024, section 2.
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        *,
        num_frequencies: int = 128,
        sigma: float = 0.5,
        max_depth: int = 64,
        max_identities: int = 256,
        magnitudes: bool = False,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        generator = torch.Generator().manual_seed(3)
        frequencies = torch.randn(3, max(num_frequencies, 1), generator=generator)
        self.register_buffer("frequencies", 2 * math.pi * sigma * frequencies)
        self.lift = nn.Linear(2 * num_frequencies if num_frequencies else 3, dim)
        self.map = nn.Linear(dim, dim)
        self.depth = nn.Embedding(max_depth, dim)
        self.inputs = nn.Embedding(max_identities, dim)
        self.outputs = nn.Embedding(max_identities, dim)
        self.activation = nn.Embedding(len(Activation), dim)
        self.magnitudes = nn.Linear(4, dim) if magnitudes else None

    def forward(self, batch: GraphBatch, standardizer: Standardizer) -> Tensor:
        """Features ``[N, dim]``.

        Raises:
            BatchError: A network is wider at its ends than there are embeddings.
        """
        largest = int(batch.identity.max())
        if largest >= self.inputs.num_embeddings:
            raise BatchError(
                f"a network has {largest + 1} inputs or outputs, but the neuron encoder tells at "
                f"most {self.inputs.num_embeddings} apart: raise max_identities."
            )
        values = standardizer.neurons(batch)
        if self.num_frequencies:
            # Absent values are 0: they add nothing to the phase.
            phase = values @ self.frequencies.to(values.dtype)
            values = torch.cat([phase.cos(), phase.sin()], dim=1)
        features = self.map(self.lift(values))
        number = batch.identity.clamp(min=0)
        kind = batch.kind[:, None]
        place = torch.where(kind == 0, self.inputs(number), self._depth(batch.depth))
        place = torch.where(kind == 2, self.outputs(number), place)
        hidden = (kind == 1).to(features.dtype)
        features = features + place + self.activation(batch.activation) * hidden
        if self.magnitudes is not None:
            weights = [standardizer.edges(bucket) for bucket in batch.buckets]
            features = features + self.magnitudes(log_magnitudes(batch, weights))
        return features

    def _depth(self, depth: Tensor) -> Tensor:
        """Learned up to the last vector of the table; beyond it, waves are added to that one."""
        last = self.depth.num_embeddings - 1
        vectors = self.depth(depth.clamp(max=last))
        beyond = (depth - last).clamp(min=0).to(vectors.dtype).log1p()
        # Fast waves tell neighbours apart, slow ones 100 from 1000; all are 0 within the table.
        dim = vectors.shape[1]
        frequency = torch.logspace(-1, 1, dim, device=vectors.device, dtype=vectors.dtype)
        return vectors + (beyond[:, None] * frequency).sin()
