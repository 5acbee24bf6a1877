"""GMN: message passing on parameter graphs with one edge per scalar (Lim et al. 2024).

Differences from the published code: networks are read as dense runs of edges, not as lists; maps of
one node are computed per node; running statistics are node features; ReLU followed by SiLU is one
SiLU; messages that follow edges and messages against them are averaged apart; values are brought to
unit scale (option); nothing is normalised over a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from paramgraph.batch import Entries, GraphBatch
from paramgraph.nn.gmn_blocks import EdgeMessageBlock, MetanetworkState, normal, start_linear
from paramgraph.nn.identities import identity_vectors
from paramgraph.nn.metanetwork import Level, Metanetwork, mlp
from paramgraph.nn.parameter_batch import ParameterBatch, read_batch
from paramgraph.nn.parameter_encoder import LinkEncoder, NodeEncoder
from paramgraph.nn.standardize import Standardizer
from paramgraph.structure import Activation, NormKind

__all__ = ["GraphMetanetwork", "ParameterGraphMetanetwork"]


class ParameterGraphMetanetwork(Metanetwork):
    """Encoders, heads and statistics of metanetworks on the parameter encoding; blocks differ.

    Args:
        out_dim: Number of outputs.
        level: What they are about; see ``Metanetwork``.
        hidden_dim: Width of the features of edges and nodes.
        values: See ``LinkEncoder``.
        norm: See ``GraphMetanetwork``.
        readout: See ``GraphMetanetwork``.
        use_global: Whether blocks update a vector per network.
        standardize: See ``GraphMetanetwork``.
        dropout: In the head.

    Raises:
        ValueError: An option has none of the values named.
    """

    levels: ClassVar[frozenset[str]] = frozenset({"graph", "neuron", "parameter"})

    read_center: Tensor
    read_spread: Tensor
    blocks: nn.ModuleList

    def __init__(
        self,
        out_dim: int,
        *,
        level: Level,
        hidden_dim: int,
        values: str,
        norm: str,
        readout: str,
        use_global: bool,
        standardize: bool,
        dropout: float,
    ) -> None:
        super().__init__(out_dim, level=level)
        if norm not in ("layer", "none"):
            raise ValueError(f"norm must be 'layer' or 'none', got {norm!r}.")
        if readout not in ("edges", "both"):
            raise ValueError(f"readout must be 'edges' or 'both', got {readout!r}.")
        self.hidden_dim = dim = hidden_dim
        self.norm = norm
        self.readout = readout
        self.standardizer = Standardizer() if standardize else None
        self.node_encoder = NodeEncoder(dim)
        self.link_encoder = LinkEncoder(dim, values=values)
        self.network = nn.Parameter(torch.zeros(dim)) if use_global else None
        self.apply(_start)
        if level == "graph":
            self.read_edges = start_linear(nn.Linear(dim, dim))
            self.read_nodes = start_linear(nn.Linear(dim, dim)) if readout == "both" else None
            self.read_network = start_linear(nn.Linear(dim, dim)) if use_global else None
            self.register_buffer("read_center", torch.zeros(dim))
            self.register_buffer("read_spread", torch.ones(dim))
            self.head = mlp(dim, 2 * dim, out_dim, dropout=dropout)
        elif level == "neuron":
            # Neurons that share a node are told apart by what stands between them.
            self.read_activation = nn.Embedding(len(Activation), dim)
            self.read_norm = nn.Embedding(len(NormKind), dim)
            self.read_rank = nn.Embedding(4, dim)
            self.head = mlp(dim, 2 * dim, out_dim, dropout=dropout)
        else:
            self.edge_head = mlp(dim, 2 * dim, out_dim)
            self.node_head = mlp(dim, 2 * dim, 2 * out_dim)

    @property
    def reads_nodes(self) -> bool:
        """Whether heads read nodes, or edges alone."""
        return self.readout == "both" or self.level != "graph"

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the scale of weights, and of what the head reads, on the training split."""
        several = list(batches)
        if self.standardizer is not None:
            self.standardizer.fit(several)
        if self.level == "graph":
            # What differs between networks is small beside what they share; start the head from
            # the differences. These are constants, so no prediction depends on a batch.
            was_training = self.training
            self.eval()
            read = torch.cat([self._read(batch) for batch in several])
            self.train(was_training)
            spread = read.std(0, correction=0)
            self.read_center.copy_(read.mean(0))
            self.read_spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, batch: GraphBatch) -> Tensor | Entries:
        """Predict at the level of this metanetwork.

        Returns:
            ``[num_networks, out_dim]``, ``[N, out_dim]``, or ``Entries`` with ``out_dim`` sets.

        Raises:
            BatchError: A network is too large for one edge per scalar.
        """
        if self.level == "graph":
            read = (self._read(batch) - self.read_center) / self.read_spread
            prediction: Tensor = self.head(read)
            return prediction
        networks = read_batch(batch, self.standardizer)
        state = self.pass_messages(networks)
        nodes = normal(state.nodes, self.norm)
        if self.level == "parameter":
            return networks.entries_of(self.edge_head(state.normal_edges), self.node_head(nodes))
        norms, rank = networks.neuron_facts().unbind(1)
        rows = networks.neurons_of(nodes) + self.read_activation(batch.activation)
        rows = rows + self.read_norm(norms) + identity_vectors(self.read_rank.weight, rank)
        prediction = self.head(rows)
        return prediction

    def pass_messages(self, networks: ParameterBatch) -> MetanetworkState:
        """Features of edges, nodes and networks after all blocks."""
        edges, nodes = self.link_encoder(networks), self.node_encoder(networks)
        num = networks.layout.num_networks
        vector = None if self.network is None else self.network.expand(num, -1)
        state = MetanetworkState(edges, nodes, vector, normal(edges, self.norm))
        for block in self.blocks:
            block(networks.layout, state)
        return state

    def _read(self, batch: GraphBatch) -> Tensor:
        """What the head reads ``[num_networks, d]``."""
        networks = read_batch(batch, self.standardizer)
        state = self.pass_messages(networks)
        read = networks.layout.mean_edges(silu(self.read_edges(state.normal_edges)))
        if self.read_nodes is not None:
            nodes = normal(state.nodes, self.norm)
            read = read + networks.layout.mean_nodes(silu(self.read_nodes(nodes)))
        if self.read_network is not None and state.network is not None:
            read = read + silu(self.read_network(normal(state.network, self.norm)))
        return networks.in_order(read)


class GraphMetanetwork(ParameterGraphMetanetwork):
    """Lim et al.'s graph metanetwork: residual blocks that update edges, nodes, and one vector.

    ``e += O silu(E e + S x_s + R x_r + G u)``, then with messages ``m = silu(M e + N x_s)``
    ``x += P silu(C x + D mean m + G' u)``, then ``u += Q silu(H [u, mean e, mean x])``, all of
    layer norms on the right. Every scalar parameter is an edge; biases, gains and shifts come from
    nodes of their own.

    Args:
        out_dim: Number of outputs.
        level: What they are about; see ``Metanetwork``.
        hidden_dim: Width of the features of edges, nodes and the network.
        num_layers: Blocks.
        dropout: In the node updates and the head.
        use_global: Keep the vector ``u`` (the published accuracy experiments do not).
        values: ``"sin"`` (of a learned map) or ``"fourier"`` (fixed Gaussian frequencies).
        bidirectional: Send messages against the edges too.
        aggregation: ``"mean"`` of messages as published, or ``"sum"``, which counts neurons.
        norm: ``"layer"``, or ``"none"``, for weights that are set by hand.
        readout: Level ``"graph"`` reads the mean over ``"edges"`` (then the last block updates
            edges alone), or the sum of the means over edges and nodes, ``"both"``.
        standardize: Read weights in units of their role's scale, or as they are.

    Law: the output does not change when hidden neurons are permuted; neurons and entries move.

    Raises:
        ValueError: An option has none of the values named.

    Example:
        >>> GraphMetanetwork(out_dim=10, level="parameter").hidden_dim
        32

    References:
        Lim et al. 2024, section 3 (https://arxiv.org/abs/2312.04501).
    """

    def __init__(
        self,
        out_dim: int,
        *,
        level: Level = "graph",
        hidden_dim: int = 32,
        num_layers: int = 4,
        dropout: float = 0.0,
        use_global: bool = False,
        values: str = "sin",
        bidirectional: bool = True,
        aggregation: str = "mean",
        norm: str = "layer",
        readout: str = "both",
        standardize: bool = True,
    ) -> None:
        if aggregation not in ("mean", "sum"):
            raise ValueError(f"aggregation must be 'mean' or 'sum', got {aggregation!r}.")
        super().__init__(
            out_dim,
            level=level,
            hidden_dim=hidden_dim,
            values=values,
            norm=norm,
            readout=readout,
            use_global=use_global,
            standardize=standardize,
            dropout=dropout,
        )
        self.blocks = nn.ModuleList(
            EdgeMessageBlock(
                hidden_dim,
                bidirectional=bidirectional,
                use_global=use_global,
                updates_nodes=self.reads_nodes or use_global or number < num_layers - 1,
                updates_network=level == "graph" or number < num_layers - 1,
                aggregation=aggregation,
                norm=norm,
                dropout=dropout,
                gain=num_layers**-0.5,
            )
            for number in range(num_layers)
        )


def _start(module: nn.Module) -> None:
    """Linear maps with unit gain; what is known of a node or edge much quieter than its value.

    All networks share what is known: with 0.3 in place of 0.1, a network whose weights are moved
    from neuron to neuron was told from the first one ten times worse.
    """
    if isinstance(module, nn.Linear):
        start_linear(module)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.1)
