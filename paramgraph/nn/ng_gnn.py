"""NG-GNN: message passing on neural graphs (PNA aggregation, FiLM messages, edge updates).

The equations are the paper's code; three things differ. Normalisation is per network or per neuron
(the published one mixes all networks of a batch). Products that depend on one neuron are computed
per neuron, not per edge; linear maps that follow each other on edges are multiplied first; messages
that nobody reads are not computed. Weights of both directions share one dense block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.engine import moments, receivers_of, senders_of
from paramgraph.errors import BatchError
from paramgraph.nn.encoders import EdgeEncoder, KindTable, NeuronEncoder
from paramgraph.nn.metanetwork import Metanetwork, network_mean
from paramgraph.nn.standardize import Standardizer

__all__ = ["NeuralGraphGNN"]


class NeuralGraphGNN(Metanetwork):
    """Kofinas et al.'s graph network: ``m_ij = s(e_ij) * A[x_i, x_j] + t(e_ij)``, then PNA.

    Messages come from both ends of every edge; their mean, min, max and standard deviation, plain
    and amplified by log(degree + 1) / delta, update the neuron; edges are updated from both ends.

    Args:
        out_dim: Number of outputs per network.
        hidden_dim: Width of neuron and edge features.
        num_layers: Message-passing layers.
        num_frequencies: Random Fourier features of weights and biases; 0 uses the values.
        sigma: Spread of their frequencies.
        dropout: Between layers.
        norm: ``"graph"`` normalises over all neurons and channels of one network, ``"neuron"`` over
            the channels of one neuron (then how loud its weights are is mostly lost).
        readout: ``"outputs"`` concatenates the output neurons (all networks must have
            ``num_outputs`` of them), ``"mean"`` averages over all neurons, ``"mean-edges"`` over
            all neurons, over the outputs, and over all edges.
        num_outputs: Output neurons per network, for ``"outputs"``.
        magnitudes: Also give each neuron the logarithms of its weights' magnitudes (our addition).

    Law: the output does not change when hidden neurons are permuted.

    Example:
        >>> NeuralGraphGNN(out_dim=10).hidden_dim
        32

    References:
        Kofinas et al. 2024, section 3, eqs. 3 and 4 (https://arxiv.org/abs/2403.12143).
    """

    log_degree: Tensor
    read_center: Tensor
    read_spread: Tensor

    def __init__(
        self,
        out_dim: int,
        *,
        hidden_dim: int = 32,
        num_layers: int = 4,
        num_frequencies: int = 32,
        sigma: float = 0.1,
        dropout: float = 0.0,
        norm: str = "graph",
        readout: str = "mean",
        num_outputs: int = 1,
        magnitudes: bool = False,
    ) -> None:
        super().__init__(out_dim)
        if readout not in ("outputs", "mean", "mean-edges"):
            raise ValueError(f"readout must be 'outputs', 'mean' or 'mean-edges', got {readout!r}.")
        if norm not in ("graph", "neuron"):
            raise ValueError(f"norm must be 'graph' or 'neuron', got {norm!r}.")
        self.hidden_dim = hidden_dim
        self.readout = readout
        self.num_outputs = num_outputs
        self.standardizer = Standardizer()
        self.neuron_encoder = NeuronEncoder(
            hidden_dim, num_frequencies=num_frequencies, sigma=sigma, magnitudes=magnitudes
        )
        self.edge_encoder = EdgeEncoder(hidden_dim, num_frequencies=num_frequencies, sigma=sigma)
        self.layers = nn.ModuleList(
            _Layer(hidden_dim, dropout, norm, is_last=i == num_layers - 1)
            for i in range(num_layers)
        )
        # Mean of log(degree + 1) over training neurons: the paper's delta.
        self.register_buffer("log_degree", torch.tensor(math.log(17.0)))
        read_dim = hidden_dim * {"outputs": num_outputs, "mean": 1, "mean-edges": 3}[readout]
        self.register_buffer("read_center", torch.zeros(read_dim))
        self.register_buffer("read_spread", torch.ones(read_dim))
        self.head = nn.Sequential(
            nn.Linear(read_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, out_dim),
        )
        self.apply(_start_at_unit_scale)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the scale of weights by role, and the mean log degree, on the training split."""
        several = list(batches)
        self.standardizer.fit(several)
        total, count = 0.0, 0
        for batch in several:
            total += float((_degrees(batch).double() + 1).log().sum())
            count += batch.num_neurons
        self.log_degree.fill_(total / max(count, 1))
        # What differs between networks is small beside what they share; start the head from
        # the differences, at unit scale. These are constants, so no prediction depends on a batch.
        read = torch.cat([self._features(batch) for batch in several])
        spread = read.std(0, correction=0)
        self.read_center.copy_(read.mean(0))
        self.read_spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predict ``[num_networks, out_dim]``.

        Raises:
            BatchError: With ``readout="outputs"``, a network has another number of outputs.
        """
        return self.head((self._features(batch) - self.read_center) / self.read_spread)

    def _features(self, batch: GraphBatch) -> Tensor:
        """What the head reads ``[num_networks, read_dim]``."""
        neurons = self.neuron_encoder(batch, self.standardizer)
        forward, backward = map(_Edges, self.edge_encoder(batch, self.standardizer))
        everything = [True] * len(batch.buckets)
        for number, layer in enumerate(self.layers):
            wanted = everything, everything
            if self.readout == "outputs" and number == len(self.layers) - 1:
                wanted = _ends_at_outputs(batch)
            neurons, forward, backward = layer(
                batch, neurons, forward, backward, self.log_degree, wanted
            )
        return self._read(batch, neurons, forward)

    def _read(self, batch: GraphBatch, neurons: Tensor, edges: _Edges) -> Tensor:
        if self.readout == "mean":
            return network_mean(neurons, batch.network, batch.num_networks)
        rows = (batch.kind == 2).nonzero()[:, 0]
        if self.readout == "mean-edges":
            means = [
                network_mean(neurons, batch.network, batch.num_networks),
                network_mean(neurons[rows], batch.network[rows], batch.num_networks),
                _Edges(_edge_mean(batch, edges.features), edges.pending).value(),
            ]
            return torch.cat(means, dim=1)
        counts = torch.bincount(batch.network[rows], minlength=batch.num_networks)
        if bool((counts != self.num_outputs).any()):
            raise BatchError(
                f"readout='outputs' was made for {self.num_outputs} output neurons, but networks "
                f"of the batch have {sorted(set(counts.tolist()))}: use readout='mean'."
            )
        order = (batch.network[rows] * self.num_outputs + batch.identity[rows]).argsort()
        return neurons[rows[order]].reshape(batch.num_networks, -1)


def _start_at_unit_scale(module: nn.Module) -> None:
    """Keep signals at unit variance from layer to layer, and weights louder than places.

    With PyTorch's defaults every linear map shrinks its input by a third and the embeddings drown
    what the weights say: on INRs nothing was learned in 3 epochs, with this start 24 % in 4.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, KindTable):
        module.start(0.3)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.3)


class _NetworkNorm(nn.Module):
    """Layer norm over all neurons and channels of one network, never over the batch (defect D1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, batch: GraphBatch, x: Tensor) -> Tensor:
        """Normalise ``[N, dim]``."""
        center = network_mean(x, batch.network, batch.num_networks).mean(1, keepdim=True)
        x = x - center[batch.network]
        square = network_mean(x.square(), batch.network, batch.num_networks).mean(1, keepdim=True)
        return x * (square + 1e-5).rsqrt()[batch.network] * self.weight + self.bias


@dataclass(frozen=True)
class _Edges:
    """Edge features and a linear map that is still to be applied to them.

    Readers of edges are linear maps too, so both are multiplied first: one map of small matrices
    instead of one over all edges.
    """

    features: Tensor
    pending: nn.Linear | None = None

    def through(self, linear: nn.Linear) -> Tensor:
        """The features after the pending map and ``linear``."""
        if self.pending is None:
            return linear(self.features)
        weight = linear.weight @ self.pending.weight
        bias = linear.weight @ self.pending.bias + linear.bias
        return nn.functional.linear(self.features, weight, bias)

    def value(self) -> Tensor:
        """The features after the pending map."""
        return self.features if self.pending is None else self.pending(self.features)


class _Layer(nn.Module):
    """One PNA layer with FiLM messages; all but the last end in norm, SiLU and edge update."""

    def __init__(self, dim: int, dropout: float, norm: str, *, is_last: bool) -> None:
        super().__init__()
        self.film = nn.Linear(dim, 2 * dim)
        self.message_target = nn.Linear(dim, dim)
        self.message_source = nn.Linear(dim, dim, bias=False)
        self.post = nn.Linear(9 * dim, dim)
        self.out = nn.Linear(dim, dim)
        self.is_last = is_last
        if not is_last:
            self.norm = nn.LayerNorm(dim) if norm == "neuron" else _NetworkNorm(dim)
            self.dropout = nn.Dropout(dropout)
            self.edge_own = nn.Linear(dim, dim)
            self.edge_source = nn.Linear(dim, dim)
            self.edge_target = nn.Linear(dim, dim)
            self.edge_out = nn.Linear(dim, dim)

    def forward(
        self,
        batch: GraphBatch,
        neurons: Tensor,
        forward: _Edges,
        backward: _Edges,
        log_degree: Tensor,
        wanted: tuple[list[bool], list[bool]],
    ) -> tuple[Tensor, _Edges, _Edges]:
        target = batch.split(self.message_target(neurons))
        source = batch.split(self.message_source(neurons))
        film_forward = self._film(batch, forward, wanted[0])
        film_backward = self._film(batch, backward, wanted[1])

        def messages(number: int) -> tuple[Tensor | None, Tensor | None]:
            bucket = batch.buckets[number]
            s, r = bucket.sender_depth, bucket.receiver_depth
            up, down = film_forward[number], film_backward[number]
            if up is not None:
                up = _modulate(up, receivers_of(target[r], bucket) + senders_of(source[s], bucket))
            if down is not None:
                down = _modulate(
                    down, senders_of(target[s], bucket) + receivers_of(source[r], bucket)
                )
            return up, down

        statistics, degree = moments(batch, messages)
        amplified = statistics * ((degree + 1).log() / log_degree.to(neurons.dtype))
        neurons = self.out(self.post(torch.cat([neurons, statistics, amplified], dim=1)))
        if self.is_last:
            return neurons, forward, backward
        if isinstance(self.norm, _NetworkNorm):
            normal = self.norm(batch, neurons)
        else:
            normal = self.norm(neurons)
        neurons = self.dropout(nn.functional.silu(normal))
        ends = batch.split(self.edge_source(neurons)), batch.split(self.edge_target(neurons))
        forward = self._update_edges(batch, forward, *ends)
        backward = self._update_edges(batch, backward, *ends, reverse=True)
        return neurons, forward, backward

    def _film(self, batch: GraphBatch, edges: _Edges, wanted: list[bool]) -> list[Tensor | None]:
        """Scale and shift per edge, by bucket; ``None`` where nobody reads the messages."""
        if all(wanted):
            return list(batch.split_edges(edges.through(self.film)))
        parts = batch.split_edges(edges.features)
        return [
            _Edges(part, edges.pending).through(self.film) if want else None
            for part, want in zip(parts, wanted, strict=True)
        ]

    def _update_edges(
        self,
        batch: GraphBatch,
        edges: _Edges,
        source: list[Tensor],
        target: list[Tensor],
        *,
        reverse: bool = False,
    ) -> _Edges:
        """``L1 silu(L_e e + L_s x_source + L_t x_target)``; ``L1`` is left for the reader."""
        own = edges.through(self.edge_own)
        ends = []
        for bucket in batch.buckets:
            s, r = bucket.sender_depth, bucket.receiver_depth
            if reverse:
                both = receivers_of(source[r], bucket) + senders_of(target[s], bucket)
            else:
                both = senders_of(source[s], bucket) + receivers_of(target[r], bucket)
            ends.append(both.reshape(-1, own.shape[1]))
        return _Edges(nn.functional.silu(own + torch.cat(ends)), self.edge_out)


def _edge_mean(batch: GraphBatch, edges: Tensor) -> Tensor:
    """Mean of edge features per network ``[num_networks, dim]``."""
    total = edges.new_zeros(batch.num_networks, edges.shape[1])
    count = edges.new_zeros(batch.num_networks, 1)
    for bucket, part in zip(batch.buckets, batch.split_edges(edges), strict=True):
        copies = bucket.values.shape[0]
        first = bucket.receivers.numbers(edges.device).reshape(copies, -1)[:, 0]
        network = batch.network[first + batch.levels[bucket.receiver_depth][0]]
        flat = part.reshape(copies, -1, edges.shape[1])
        total = total.index_add(0, network, flat.sum(1))
        count = count.index_add(0, network, count.new_full((copies, 1), flat.shape[1]))
    return total / count.clamp(min=1)


def _ends_at_outputs(batch: GraphBatch) -> tuple[list[bool], list[bool]]:
    """Which buckets send messages to output neurons: up to receivers, down to senders."""
    levels = batch.split(batch.kind == 2)
    up = [bool(b.receivers.take(levels[b.receiver_depth]).any()) for b in batch.buckets]
    down = [bool(b.senders.take(levels[b.sender_depth]).any()) for b in batch.buckets]
    return up, down


def _modulate(film: Tensor, values: Tensor) -> Tensor:
    """Scale and shift messages by what the edge says."""
    scale, shift = film.chunk(2, dim=-1)
    return torch.addcmul(shift, scale, values)


def _degrees(batch: GraphBatch) -> Tensor:
    """Number of edges that end at each neuron."""
    degree = batch.neuron_values.new_zeros(batch.num_neurons)
    for bucket in batch.buckets:
        _, _, senders = bucket.block_shape
        rows = bucket.receivers.numbers(degree.device) + batch.levels[bucket.receiver_depth][0]
        degree.index_add_(0, rows, degree.new_full((bucket.receivers.length,), senders))
    return degree
