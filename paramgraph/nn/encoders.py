"""Encoders of neuron and edge values: random Fourier features, then linear maps (paper's lift)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.engine import EdgeSource
from paramgraph.nn.edge_lift import EdgeLift
from paramgraph.nn.identities import identity_vectors
from paramgraph.nn.magnitudes import log_magnitudes
from paramgraph.nn.probes import ProbeEncoder
from paramgraph.nn.standardize import Standardizer
from paramgraph.structure import Activation, EdgeKind

__all__ = ["EdgeEncoder", "KindTable", "NeuronEncoder"]

_KINDS = list(EdgeKind)
_FIRST_KINDS = 4  # kinds of the first release: linear, conv, scale, skip


class EdgeEncoder(EdgeLift):
    """Edge values to features ``[E, dim]``, one tensor per direction.

    An edge i <- j carries (w, 0, w) forward and (0, w, w) backward (weight, weight of the reverse
    edge, their sum). These are projected by fixed Gaussian rows, passed through cos and sin, and
    mapped twice linearly. ``w`` is a vector over kernel positions; see ``FixedPositionBasis``.

    Args:
        dim: Width of the features.
        num_frequencies: Gaussian rows; 0 maps the values linearly instead.
        sigma: Their standard deviation.
        is_reversed: Also give the reversed edges; without, an edge carries ``w`` alone.
        linear_as_conv: Whether plain matrices pass through the same maps as kernels, as kernels of
            one element, or through maps of their own.
        max_kernel: Rows and columns of the largest kernel, as in the paper: kernels lie in the
            middle of as many slots, one Gaussian row each. Without, a row is a function of the
            position and kernels have any size.
        kind_embedding: Add a learned vector per kind of edge (not in the paper).

    References:
        Kofinas et al. 2024, section 2 (edge directions) and appendix D (Fourier features).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_frequencies: int = 128,
        sigma: float = 0.5,
        is_reversed: bool = True,
        linear_as_conv: bool = True,
        max_kernel: tuple[int, int] | None = None,
        kind_embedding: bool = True,
    ) -> None:
        super().__init__(
            dim,
            num_frequencies=num_frequencies,
            sigma=sigma,
            is_reversed=is_reversed,
            max_kernel=max_kernel,
        )
        self.kind = KindTable(dim) if kind_embedding else None
        self.linear: EdgeLift | None = None
        if not linear_as_conv:
            self.linear = EdgeLift(
                dim,
                num_frequencies=num_frequencies,
                sigma=sigma,
                is_reversed=is_reversed,
                max_kernel=max_kernel and (1, 1),
            )

    def forward(
        self, batch: GraphBatch, standardizer: Standardizer
    ) -> tuple[Tensor, Tensor | None]:
        """Features of the edges and of the reversed edges, each ``[E, dim]``.

        Raises:
            BatchError: A kernel is larger than ``max_kernel``.
        """
        if self.linear is None:
            forward, backward = self.features(batch.buckets, standardizer)
        else:
            forward, backward = self._apart(batch, self.linear, standardizer)
        if self.kind is not None:
            weight = self.kind.weight
            kind = torch.cat(
                [
                    weight[_KINDS.index(b.kind)].expand(b.edges[1] - b.edges[0], -1)
                    for b in batch.buckets
                ]
            )
            forward = forward + kind
            backward = None if backward is None else backward + kind
        return forward, backward

    def sources(
        self, batch: GraphBatch, standardizer: Standardizer
    ) -> tuple[list[EdgeSource], list[EdgeSource] | None]:
        """The same features as recipes, one per bucket and direction; nothing is computed per edge.

        Raises:
            BatchError: A kernel is larger than ``max_kernel``.
        """
        maps = {}
        for lift in (self, self.linear):
            if lift is not None:
                weight, bias = lift.joined_map()
                maps[lift] = weight.to(batch.dtype), bias.to(batch.dtype)
        up, down = [], []
        for bucket in batch.buckets:
            lift = self.linear if self.linear is not None and _is_plain(bucket) else self
            weight, bias = maps[lift]
            if self.kind is not None:
                bias = bias + self.kind.weight[_KINDS.index(bucket.kind)]
            values = standardizer.edges(bucket).flatten(0, 1)
            bases = lift.bases_of(bucket, values)
            is_wave = bool(self.num_frequencies)
            up.append(EdgeSource(None, values, bases[0], is_wave, weight, bias))
            if bases[1] is not None:
                reverse = values.transpose(1, 2)  # as ``EdgePass`` has reversed edges
                down.append(EdgeSource(None, reverse, bases[1], is_wave, weight, bias))
        return up, down if self.is_reversed else None

    def _apart(
        self, batch: GraphBatch, linear: EdgeLift, standardizer: Standardizer
    ) -> tuple[Tensor, Tensor | None]:
        """Plain matrices through ``linear``, all else through the maps of kernels."""
        is_plain = [_is_plain(bucket) for bucket in batch.buckets]
        pieces: list[list[Tensor]] = [[torch.empty(0)] * len(batch.buckets) for _ in (0, 1)]
        for lift, plain in ((self.features, False), (linear.features, True)):
            numbers = [i for i, flag in enumerate(is_plain) if flag is plain]
            if not numbers:
                continue
            buckets = [batch.buckets[i] for i in numbers]
            sizes = [b.edges[1] - b.edges[0] for b in buckets]
            for direction, features in enumerate(lift(buckets, standardizer)):
                if features is not None:
                    for number, piece in zip(numbers, features.split(sizes), strict=True):
                        pieces[direction][number] = piece
        backward = torch.cat(pieces[1]) if self.is_reversed else None
        return torch.cat(pieces[0]), backward


def _is_plain(bucket: Bucket) -> bool:
    """Whether it is a matrix, not a kernel."""
    return bucket.kind is EdgeKind.LINEAR and len(bucket.positions) == 1


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
        max_inputs: Input neurons with a vector of their own; beyond, see ``identity_vectors``.
        max_outputs: Output neurons likewise.
        max_hidden_layers: In place of ``max_depth``: depths from 1 on with a learned vector.
        num_activations: Activations with a vector of their own, all when not given; the first 7 are
            those of the paper. Beyond, see ``identity_vectors``.
        position_embedding: Whether positions are told.
        activation_embedding: Whether activations are told.
        magnitudes: Add a map of the logarithms of each neuron's weight magnitudes (not in the
            papers; without it, norms must be learned through message passing).
        num_probes: Learned inputs that all networks are run on; what a neuron answers is added to
            its values. 0 runs nothing.
        probe_options: Further arguments of ``ProbeEncoder``.

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
        max_inputs: int = 256,
        max_outputs: int = 256,
        max_hidden_layers: int | None = None,
        num_activations: int | None = None,
        position_embedding: bool = True,
        activation_embedding: bool = True,
        magnitudes: bool = False,
        num_probes: int = 0,
        probe_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        generator = torch.Generator().manual_seed(3)
        frequencies = torch.randn(3, max(num_frequencies, 1), generator=generator)
        self.register_buffer("frequencies", 2 * math.pi * sigma * frequencies)
        self.lift = nn.Linear(2 * num_frequencies if num_frequencies else 3, dim)
        self.map = nn.Linear(dim, dim)
        self.position_embedding = position_embedding
        self.first_depth = 0 if max_hidden_layers is None else 1
        if position_embedding:
            self.depth = nn.Embedding(max_hidden_layers or max_depth, dim)
            self.inputs = nn.Embedding(max_inputs, dim)
            self.outputs = nn.Embedding(max_outputs, dim)
        self.activation: nn.Embedding | None = None
        if activation_embedding:
            self.activation = nn.Embedding(num_activations or len(Activation), dim)
        self.magnitudes = nn.Linear(4, dim) if magnitudes else None
        self.probes = ProbeEncoder(num_probes, dim, **(probe_options or {})) if num_probes else None

    def forward(self, batch: GraphBatch, standardizer: Standardizer) -> Tensor:
        """Features ``[N, dim]``.

        Raises:
            BatchError: With probes, a network cannot be run.
        """
        values = standardizer.neurons(batch)
        if self.num_frequencies:
            # Absent values are 0: they add nothing to the phase.
            phase = values @ self.frequencies.to(values.dtype)
            of_cos, of_sin = self.lift.weight.chunk(2, dim=1)
            features = linear(phase.cos(), of_cos, self.lift.bias) + linear(phase.sin(), of_sin)
        else:
            features = self.lift(values)
        if self.probes is not None:
            features = features + self.probes(batch)
        features = self.map(features)
        if self.position_embedding:
            features = features + self._place(batch)
        if self.activation is not None:
            hidden = (batch.kind == 1)[:, None].to(features.dtype)
            told = identity_vectors(self.activation.weight, batch.activation)
            features = features + told * hidden
        if self.magnitudes is not None:
            weights = [standardizer.edges(bucket) for bucket in batch.buckets]
            features = features + self.magnitudes(log_magnitudes(batch, weights))
        return features

    def _place(self, batch: GraphBatch) -> Tensor:
        """Vectors of depths for hidden neurons, of their own for inputs and outputs."""
        number = batch.identity.clamp(min=0)
        kind = batch.kind[:, None]
        inputs = identity_vectors(self.inputs.weight, number)
        outputs = identity_vectors(self.outputs.weight, number)
        depth = (batch.depth - self.first_depth).clamp(min=0)
        place = torch.where(kind == 0, inputs, self._depth(depth))
        return torch.where(kind == 2, outputs, place)

    def _depth(self, depth: Tensor) -> Tensor:
        """Learned up to the last vector of the table; beyond it, waves are added to that one."""
        last = self.depth.num_embeddings - 1
        vectors = self.depth(depth.clamp(max=last))
        beyond = (depth - last).clamp(min=0).to(vectors.dtype).log1p()
        # Fast waves tell neighbours apart, slow ones 100 from 1000; all are 0 within the table.
        dim = vectors.shape[1]
        frequency = torch.logspace(-1, 1, dim, device=vectors.device, dtype=vectors.dtype)
        return vectors + (beyond[:, None] * frequency).sin()
