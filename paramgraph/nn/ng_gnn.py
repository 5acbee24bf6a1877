"""NG-GNN: message passing on neural graphs (PNA aggregation, FiLM messages, edge updates).

The equations are the paper's code; three things differ. Normalisation is per network or per neuron
(the published one mixes all networks of a batch). Products that depend on one neuron are computed
per neuron, not per edge; linear maps that follow each other on edges are multiplied first; messages
that nobody reads are not computed. Weights of both directions share one dense block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paramgraph.batch import Entries, GraphBatch
from paramgraph.engine import EdgeSource
from paramgraph.nn.edge_chain import EdgeChain
from paramgraph.nn.encoders import EdgeEncoder, KindTable, NeuronEncoder
from paramgraph.nn.heads import EntryHead
from paramgraph.nn.metanetwork import Level, Metanetwork
from paramgraph.nn.neuron_memory import OrderedPNALayer
from paramgraph.nn.pna import PNALayer, edge_mean, in_degrees
from paramgraph.nn.probes import ProbePoints
from paramgraph.nn.readouts import GraphReadout
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.virtual_neurons import with_virtual_neurons

__all__ = ["NeuralGraphGNN"]


class NeuralGraphGNN(Metanetwork):
    """Kofinas et al.'s graph network: ``m_ij = s(e_ij) * A[x_i, x_j] + t(e_ij)``, then PNA.

    Messages come from both ends of every edge; their mean, min, max and standard deviation, plain
    and amplified by log(degree + 1) / delta, update the neuron; edges are updated from both ends.

    Args:
        out_dim: Number of outputs.
        level: What they are about; see ``Metanetwork``.
        hidden_dim: Width of neuron and edge features.
        num_layers: Message-passing layers.
        num_frequencies: Random Fourier features of weights and biases; 0 uses the values.
        sigma: Spread of their frequencies.
        dropout: Between layers.
        norm: ``"graph"`` normalises over all neurons and channels of one network, ``"neuron"`` over
            the channels of one neuron (then how loud its weights are is mostly lost).
        readout: A kind of ``GraphReadout``; other levels than ``"graph"`` read none. ``"outputs"``
            concatenates the output neurons (all networks must have ``num_outputs`` of them),
            ``"mean"`` averages over all neurons. With ``"cls"`` a virtual neuron is joined with all
            neurons of its network, at any level.
        num_outputs: Output neurons per network, for ``"outputs"``.
        num_read_layers: For ``"layers"``, see ``GraphReadout``.
        magnitudes: Also give each neuron the logarithms of its weights' magnitudes (our addition).
        reverse_edges: Send messages both ways, edges carry their weight and that of the reverse
            edge. Without, messages flow from inputs to outputs only.
        position_embedding: Tell neurons their depth, inputs and outputs their number. Without,
            the order of inputs and outputs is not seen.
        activation_embedding: Tell hidden neurons their activation.
        kind_embedding: Tell edges their kind (our addition).
        linear_as_conv: Lift plain matrices as kernels of one element, or by maps of their own.
        max_kernel: Rows and columns of the largest kernel, as in the paper, which pads kernels with
            zeros; larger ones are refused. ``None`` reads kernels of any size.
        num_probes: Learned inputs that every network is run on; what its neurons answer is added to
            their values.
        probe_options: Further arguments of ``ProbeEncoder``.
        schedule: ``"parallel"`` updates all neurons at once. ``"forward"`` visits the levels in the
            order of data flow (and back, with ``reverse_edges``), with gated memories of neurons in
            place of norm and dropout, see ``OrderedPNALayer``.
        max_inputs: Inputs with a learned vector of their own; see ``identity_vectors``.
        max_outputs: Outputs likewise.
        max_hidden_layers: Depths of hidden neurons with a learned vector, 63 when not given.
        num_activations: Activations with a learned vector, all when not given; the paper has 7.
        edge_state: ``"stored"`` keeps the features of edges for the backward pass,
            ``"recomputed"`` computes them anew from the raw weights in every layer: the same
            function in less memory and about twice the time. ``"auto"`` stores what fits.
        max_state_bytes: What fits, for ``"auto"``.

    Law: the output does not change (level ``"graph"``) or moves along when hidden neurons are
    permuted.

    Raises:
        ValueError: An option has none of the values named.

    Example:
        >>> NeuralGraphGNN(out_dim=10).hidden_dim
        32

    References:
        Kofinas et al. 2024, sections 2 and 3, eqs. 3 and 4 (https://arxiv.org/abs/2403.12143).
    """

    levels: ClassVar[frozenset[str]] = frozenset({"graph", "neuron", "parameter"})

    log_degree: Tensor
    read_center: Tensor
    read_spread: Tensor

    def __init__(
        self,
        out_dim: int,
        *,
        level: Level = "graph",
        hidden_dim: int = 32,
        num_layers: int = 4,
        num_frequencies: int = 32,
        sigma: float = 0.1,
        dropout: float = 0.0,
        norm: str = "graph",
        readout: str = "mean",
        num_outputs: int = 1,
        num_read_layers: int = 8,
        magnitudes: bool = False,
        reverse_edges: bool = True,
        position_embedding: bool = True,
        activation_embedding: bool = True,
        kind_embedding: bool = True,
        linear_as_conv: bool = True,
        max_kernel: tuple[int, int] | None = None,
        num_probes: int = 0,
        probe_options: Mapping[str, Any] | None = None,
        schedule: str = "parallel",
        max_inputs: int = 256,
        max_outputs: int = 256,
        max_hidden_layers: int | None = None,
        num_activations: int | None = None,
        edge_state: str = "auto",
        max_state_bytes: int = 2**31,
    ) -> None:
        super().__init__(out_dim, level=level)
        if norm not in ("graph", "neuron"):
            raise ValueError(f"norm must be 'graph' or 'neuron', got {norm!r}.")
        if schedule not in ("parallel", "forward"):
            raise ValueError(f"schedule must be 'parallel' or 'forward', got {schedule!r}.")
        if edge_state not in ("auto", "stored", "recomputed"):
            raise ValueError(
                f"edge_state must be 'auto', 'stored' or 'recomputed', got {edge_state!r}."
            )
        self.edge_state = edge_state
        self.max_state_bytes = max_state_bytes
        self.hidden_dim = hidden_dim
        self.readout = readout
        self.num_outputs = num_outputs
        self.standardizer = Standardizer()
        self.neuron_encoder = NeuronEncoder(
            hidden_dim,
            num_frequencies=num_frequencies,
            sigma=sigma,
            max_inputs=max_inputs,
            max_outputs=max_outputs,
            max_hidden_layers=max_hidden_layers,
            num_activations=num_activations,
            position_embedding=position_embedding,
            activation_embedding=activation_embedding,
            magnitudes=magnitudes,
            num_probes=num_probes,
            probe_options=probe_options,
        )
        self.edge_encoder = EdgeEncoder(
            hidden_dim,
            num_frequencies=num_frequencies,
            sigma=sigma,
            is_reversed=reverse_edges,
            linear_as_conv=linear_as_conv,
            max_kernel=None if max_kernel is None else (max_kernel[0], max_kernel[1]),
            kind_embedding=kind_embedding,
        )
        self.layers = nn.ModuleList()
        for number in range(num_layers):
            is_last = number == num_layers - 1
            updates_edges = not is_last or level == "parameter"
            self.layers.append(
                OrderedPNALayer(hidden_dim, updates_edges=updates_edges)
                if schedule == "forward"
                else PNALayer(
                    hidden_dim, dropout, norm, is_last=is_last, updates_edges=updates_edges
                )
            )
        # Mean of log(degree + 1) over training neurons: the paper's delta.
        self.register_buffer("log_degree", torch.tensor(math.log(17.0)))
        # Other levels read no whole network, but may gather in virtual neurons.
        kind = readout if level == "graph" or readout == "cls" else "mean"
        self.reader = GraphReadout(
            kind, hidden_dim, num_outputs=num_outputs, num_layers=num_read_layers
        )
        self.virtual_edges: nn.Parameter | None = None
        if readout == "cls":  # one vector per direction
            self.virtual_edges = nn.Parameter(torch.randn(2, hidden_dim))
        self.entries: EntryHead | None = None
        if level != "parameter":
            read_dim = self.reader.read_dim if level == "graph" else hidden_dim
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
        _start_at_unit_scale(self)
        if level == "parameter":  # has a start of its own
            self.entries = EntryHead(hidden_dim, hidden_dim, out_dim)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the scale of weights by role, and the mean log degree, on the training split."""
        several = list(batches)
        self.standardizer.fit(several)
        total, count = 0.0, 0
        for batch in several:
            total += float((in_degrees(batch).double() + 1).log().sum())
            count += batch.num_neurons
        self.log_degree.fill_(total / max(count, 1))
        if self.level == "parameter":
            return
        # What differs between networks is small beside what they share; start the head from
        # the differences, at unit scale. These are constants, so no prediction depends on a batch.
        read = torch.cat([self._features(batch) for batch in several])
        spread = read.std(0, correction=0)
        self.read_center.copy_(read.mean(0))
        self.read_spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, batch: GraphBatch) -> Tensor | Entries:
        """Predict at the level of the metanetwork.

        Returns:
            ``[num_networks, out_dim]``, ``[N, out_dim]``, or ``Entries`` with ``out_dim`` sets.

        Raises:
            BatchError: With ``readout="outputs"``, a network has another number of outputs; with
                ``max_kernel``, a kernel is larger; with probes, a network cannot be run.
        """
        if self.entries is not None:
            neurons, edges = self._neurons_and_edges(batch)
            parts = batch.split_edges(edges[: batch.num_edges])
            entries: Entries = self.entries(batch, parts, neurons[: batch.num_neurons])
            return entries
        read: Tensor = self.head((self._features(batch) - self.read_center) / self.read_spread)
        return read

    def _features(self, batch: GraphBatch) -> Tensor:
        """What the head reads ``[num_networks, read_dim]``, or ``[N, hidden_dim]``."""
        neurons, edges, larger = self._pass_messages(batch)
        if self.level == "neuron":
            return neurons[: batch.num_neurons]
        mean = None
        if self.readout == "mean-edges":
            mean = edges.read(edge_mean(batch, edges.features(larger)))
        read: Tensor = self.reader(batch, neurons, mean)
        return read

    def _neurons_and_edges(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Features of neurons and of edges after all layers, virtual ones last."""
        neurons, edges, larger = self._pass_messages(batch)
        return neurons, edges.value(larger)

    def _pass_messages(self, batch: GraphBatch) -> tuple[Tensor, EdgeChain, GraphBatch]:
        """Neurons and edges after all layers, virtual ones last, and the batch that has these."""
        neurons = self.neuron_encoder(batch, self.standardizer)
        up, down = self.edge_encoder.sources(batch, self.standardizer)
        if self.virtual_edges is not None:
            neurons = torch.cat([neurons, self.reader.first_tokens(batch.num_networks)])
            larger = with_virtual_neurons(batch)
            num = len(larger.buckets) - len(batch.buckets)
            up += [EdgeSource(bias=self.virtual_edges[0])] * num
            if down is not None:
                down += [EdgeSource(bias=self.virtual_edges[1])] * num
            batch = larger
        edges = EdgeChain.start(batch, up, down, is_stored=self._stores(batch))
        everything = [True] * len(edges.passes)
        for number, layer in enumerate(self.layers):
            is_last = number == len(self.layers) - 1
            wanted = _ends_at_outputs(batch, edges) if self._reads_outputs and is_last else None
            neurons, edges = layer(batch, neurons, edges, self.log_degree, wanted or everything)
        return neurons, edges, batch

    def _stores(self, batch: GraphBatch) -> bool:
        """Whether the features of edges are kept for the backward pass."""
        if self.edge_state != "auto":
            return self.edge_state == "stored"
        per_layer = batch.num_edges * self.hidden_dim * batch.neuron_values.element_size()
        num_kept = (len(self.layers) + 1) * (1 + self.edge_encoder.is_reversed)
        return per_layer * num_kept <= self.max_state_bytes

    @property
    def _reads_outputs(self) -> bool:
        """Whether nothing but output neurons is read."""
        return self.level == "graph" and self.readout in ("outputs", "mean-outputs")


def _start_at_unit_scale(module: nn.Module) -> None:
    """Keep signals at unit variance from layer to layer, and weights louder than places.

    With PyTorch's defaults every linear map shrinks its input by a third and the embeddings drown
    what the weights say: on INRs nothing was learned in 3 epochs, with this start 24 % in 4.
    """
    if isinstance(module, ProbePoints):  # inputs of networks have a scale of their own
        return
    for child in module.children():
        _start_at_unit_scale(child)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, KindTable):
        module.start(0.3)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.3)


def _ends_at_outputs(batch: GraphBatch, edges: EdgeChain) -> list[bool]:
    """Which passes send messages to output neurons."""
    levels = batch.split(batch.kind == 2)
    result = []
    for one in edges.passes:
        bucket = one.bucket
        rows, depth = bucket.receivers, bucket.receiver_depth
        if one.is_reverse:
            rows, depth = bucket.senders, bucket.sender_depth
        result.append(bool(rows.take(levels[depth]).any()))
    return result
