"""NG-T: the relational transformer on neural graphs (attention between all nodes of a network).

The equations are the paper's code; four things differ. Attention never leaves a network: the
published one sees padding where architectures are mixed. Values are brought to unit scale. Rows
that no readout reads are not computed. Several edges may join the same two neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from paramgraph.batch import Entries, GraphBatch
from paramgraph.nn.encoders import EdgeEncoder, KindTable, NeuronEncoder
from paramgraph.nn.heads import EntryHead
from paramgraph.nn.metanetwork import Level, Metanetwork
from paramgraph.nn.pna import edge_mean
from paramgraph.nn.probes import ProbePoints
from paramgraph.nn.readouts import GraphReadout
from paramgraph.nn.relational_attention import RelationalLayer
from paramgraph.nn.relational_stack import RelationalStack
from paramgraph.nn.standardize import Standardizer

__all__ = ["NeuralGraphTransformer"]


class NeuralGraphTransformer(Metanetwork):
    """Kofinas et al.'s transformer: ``x_i`` attends to all nodes j through ``e_ij``.

    See ``RelationalLayer`` for the equations; i is the source of ``e_ij``. Nodes that no weight
    joins start with ``e_ij = 0``.

    Args:
        out_dim: Number of outputs.
        level: What they are about; see ``Metanetwork``.
        node_dim: Width of neuron features.
        edge_dim: Width of edge features.
        attn_dim: Width of all heads together, ``2 * node_dim`` when not given.
        node_hidden_dim: Inner width of the maps of neurons, ``2 * node_dim`` when not given.
        edge_hidden_dim: Inner width of the maps of edges, ``2 * edge_dim`` when not given.
        head_dim: Inner width of the head, ``2 * node_dim`` when not given.
        num_head_layers: Inner layers of the head: 1 for INRs, 2 for CNNs in the paper.
        num_heads: Attention heads.
        num_layers: Layers.
        modulated_values: Values are ``(V x_j) * (Em e_ij) + Ev e_ij``, or ``V x_j + Ev e_ij``.
        edges: ``"all"`` keeps and updates features of all pairs of neurons, as published.
            ``"graph"`` keeps those of weights (both directions): others stay 0 in every layer.
        attention: ``"dense"`` holds queries, keys and values of all pairs; ``"tiled"`` computes a
            tile at a time, and again in the backward pass. The same function; with
            ``edges="graph"``, tiled attention holds nothing of the size of all pairs.
        tile_size: Pairs of a tile.
        start: ``"xavier"`` as published, or ``"loud"``: unit gains, and louder values. Attention to
            all nodes starts almost even, so that a weight is one part in many.
        num_frequencies: Random Fourier features of weights and biases; 0 uses the values.
        sigma: Spread of their frequencies.
        dropout: Of every update, and in the head.
        readout: A kind of ``GraphReadout``, as for ``NeuralGraphGNN``. With ``"cls"`` a virtual
            neuron takes part; with ``edges="graph"`` it has edges of its own, learned.
        num_outputs: Output neurons per network, for ``"outputs"``.
        num_read_layers: For ``"layers"``, see ``GraphReadout``.
        magnitudes: As for ``NeuralGraphGNN``.
        reverse_edges: Edges ``e_ij`` against a weight carry it too; without, they start from 0.
        position_embedding: As for ``NeuralGraphGNN``.
        activation_embedding: As for ``NeuralGraphGNN``.
        kind_embedding: As for ``NeuralGraphGNN``.
        linear_as_conv: As for ``NeuralGraphGNN``.
        max_kernel: As for ``NeuralGraphGNN``.
        num_probes: As for ``NeuralGraphGNN``.
        probe_options: As for ``NeuralGraphGNN``.
        max_inputs: As for ``NeuralGraphGNN``.
        max_outputs: As for ``NeuralGraphGNN``.
        max_hidden_layers: As for ``NeuralGraphGNN``.
        num_activations: As for ``NeuralGraphGNN``.

    Law: the output does not change (level ``"graph"``) or moves along when hidden neurons are
    permuted.

    Raises:
        ValueError: An option has none of the values named, or ``num_heads`` does not divide
            ``attn_dim``.

    Example:
        >>> NeuralGraphTransformer(out_dim=10).attn_dim
        128

    References:
        Kofinas et al. 2024, sections 2 and 3, eq. 5 (https://arxiv.org/abs/2403.12143); Diao and
        Loynd 2023, section 3 (https://arxiv.org/abs/2210.05062).
    """

    levels: ClassVar[frozenset[str]] = frozenset({"graph", "neuron", "parameter"})

    read_center: Tensor
    read_spread: Tensor

    def __init__(
        self,
        out_dim: int,
        *,
        level: Level = "graph",
        node_dim: int = 64,
        edge_dim: int = 32,
        attn_dim: int | None = None,
        node_hidden_dim: int | None = None,
        edge_hidden_dim: int | None = None,
        head_dim: int | None = None,
        num_head_layers: int = 1,
        num_heads: int = 8,
        num_layers: int = 4,
        modulated_values: bool = True,
        edges: Literal["all", "graph"] = "all",
        attention: Literal["dense", "tiled"] = "tiled",
        tile_size: int = 2**15,
        start: Literal["loud", "xavier"] = "loud",
        num_frequencies: int = 32,
        sigma: float = 0.1,
        dropout: float = 0.0,
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
        max_inputs: int = 256,
        max_outputs: int = 256,
        max_hidden_layers: int | None = None,
        num_activations: int | None = None,
    ) -> None:
        super().__init__(out_dim, level=level)
        if start not in ("loud", "xavier"):
            raise ValueError(f"start must be 'loud' or 'xavier', got {start!r}.")
        if num_head_layers < 1:
            raise ValueError(f"num_head_layers must be 1 or more, got {num_head_layers}.")
        self.node_dim, self.edge_dim = node_dim, edge_dim
        self.attn_dim = 2 * node_dim if attn_dim is None else attn_dim
        self.readout = readout
        self.standardizer = Standardizer()
        self.neuron_encoder = NeuronEncoder(
            node_dim,
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
            edge_dim,
            num_frequencies=num_frequencies,
            sigma=sigma,
            is_reversed=reverse_edges,
            linear_as_conv=linear_as_conv,
            max_kernel=None if max_kernel is None else (max_kernel[0], max_kernel[1]),
            kind_embedding=kind_embedding,
        )
        # Other levels read no whole network, but may gather in virtual neurons.
        kind = readout if level == "graph" or readout == "cls" else "mean"
        self.reader = GraphReadout(
            kind,
            node_dim,
            num_outputs=num_outputs,
            num_layers=num_read_layers,
            edge_dim=edge_dim,
        )
        reads_edges = level == "parameter" or kind == "mean-edges"
        num_read = {"outputs": "outputs", "mean-outputs": "outputs", "cls": "token"}.get(kind)
        self.stack = RelationalStack(
            [
                RelationalLayer(
                    node_dim,
                    edge_dim,
                    self.attn_dim,
                    2 * node_dim if node_hidden_dim is None else node_hidden_dim,
                    2 * edge_dim if edge_hidden_dim is None else edge_hidden_dim,
                    num_heads,
                    dropout=dropout,
                    modulated_values=modulated_values,
                    updates_edges=reads_edges or number < num_layers - 1,
                )
                for number in range(num_layers)
            ],
            edges=edges,
            attention=attention,
            tile_size=tile_size,
            token=kind == "cls",
            num_read=num_read if level == "graph" and num_read else "all",
        )
        self.entries: EntryHead | None = None
        if level != "parameter":
            read_dim = self.reader.read_dim if level == "graph" else node_dim
            self.register_buffer("read_center", torch.zeros(read_dim))
            self.register_buffer("read_spread", torch.ones(read_dim))
            head_dim = 2 * node_dim if head_dim is None else head_dim
            widths = [read_dim, *[head_dim] * num_head_layers]
            self.head = nn.Sequential()
            for before, after in pairwise(widths):
                self.head.extend([nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)])
            self.head.append(nn.Linear(widths[-1], out_dim))
        _start(self, is_loud=start == "loud")
        if level == "parameter":  # has a start of its own
            self.entries = EntryHead(edge_dim, node_dim, out_dim)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the scales of weights, and of what the head reads, on the training split."""
        several = list(batches)
        self.standardizer.fit(several)
        if self.level == "parameter":
            return
        # What differs between networks is small beside what they share; start the head from
        # the differences, at unit scale. These are constants, so no prediction depends on a batch.
        was_training = self.training
        self.eval()
        read = torch.cat([self._features(batch) for batch in several])
        self.train(was_training)
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
            neurons, edges = self._attend(batch)
            assert edges is not None
            parts = batch.split_edges(edges)
            entries: Entries = self.entries(batch, parts, neurons[: batch.num_neurons])
            return entries
        read: Tensor = self.head((self._features(batch) - self.read_center) / self.read_spread)
        return read

    def _features(self, batch: GraphBatch) -> Tensor:
        """What the head reads ``[num_networks, read_dim]``, or ``[N, node_dim]``."""
        neurons, edges = self._attend(batch)
        if self.level == "neuron":
            return neurons[: batch.num_neurons]
        mean = None if edges is None else edge_mean(batch, edges)
        read: Tensor = self.reader(batch, neurons, mean)
        return read

    def _attend(self, batch: GraphBatch) -> tuple[Tensor, Tensor | None]:
        """Neurons after all layers, virtual ones last, and forward edges, if any are read."""
        nodes = self.neuron_encoder(batch, self.standardizer)
        if self.reader.kind == "cls":
            nodes = torch.cat([nodes, self.reader.first_tokens(batch.num_networks)])
        up, down = self.edge_encoder(batch, self.standardizer)
        found: tuple[Tensor, Tensor | None] = self.stack(batch, nodes, up, down)
        return found


def _start(module: nn.Module, *, is_loud: bool) -> None:
    """Weights of linear maps, biases of 0, tables quieter than weights."""
    if isinstance(module, ProbePoints):  # inputs of networks have a scale of their own
        return
    for child in module.children():
        _start(child, is_loud=is_loud)
    if isinstance(module, nn.Linear):
        if is_loud:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, KindTable):
        module.start(0.3)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.3)
    elif isinstance(module, RelationalLayer) and is_loud:
        module.amplify_values()
