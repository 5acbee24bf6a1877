"""Graph transformer on parameter graphs: attention along the edges, and among all nodes.

GRIT (Ma et al. 2023), which Lim et al. use on zoos of CNNs, keeps a vector for every pair of nodes.
Here vectors belong to edges (parallel ones have each their own), scores of other pairs come from
the nodes alone, and no tensor has a row per pair. Further differences: layer norm in place of
batch norm, before each update; scores are bounded smoothly, the signed root too, so that all
gradients are finite; attention along edges and against them has a softmax each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from paramgraph.nn.gmn import ParameterGraphMetanetwork
from paramgraph.nn.gmn_blocks import MetanetworkState, normal, start_linear
from paramgraph.nn.metanetwork import Level, mlp
from paramgraph.nn.run_layout import EdgePiece, RunLayout

__all__ = ["EdgeAttentionBlock", "GraphMetanetworkTransformer"]

_MAX_SCORE = 5.0  # as GRIT, which cuts scores there; so exp needs no largest score


class EdgeAttentionBlock(nn.Module):
    """Attention with edge features along the edges, attention among all nodes, a two-layer map.

    For an edge from ``s`` to ``r``: ``h = silu(root((S x_s + R x_r) * W e) + B e)``; per head
    ``a = softmax(A h)`` over all edges that enter ``r``, and ``y_r = sum a (V x_s + h)``; likewise
    against the edges. Node updates read ``y``, ``y log(degree + 1)``, and attention among all nodes
    of the network; edges become ``e + O h``. ``root(z)`` is about ``sign(z) sqrt(|z|)``.

    Args:
        dim: Width of all features, a multiple of ``num_heads``.
        num_heads: Attention heads.
        bidirectional: Let senders attend to receivers too.
        updates_nodes: Whether anything reads the nodes afterwards.
        updates_edges: Whether anything reads the edges afterwards.
        norm: See ``normal``.
        dropout: Of the updates of nodes.
        gain: Of the maps into the residual stream, at the start.

    References:
        Ma et al. 2023, section 3 (GRIT; https://arxiv.org/abs/2305.17589).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        bidirectional: bool,
        updates_nodes: bool,
        updates_edges: bool,
        norm: str,
        dropout: float,
        gain: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.norm, self.updates_nodes = num_heads, norm, updates_nodes

        def linear(out_dim: int, *, bias: bool = False, gain: float = 1.0) -> nn.Linear:
            return start_linear(nn.Linear(dim, out_dim, bias=bias), gain)

        self.sender, self.receiver = (
            linear(dim, bias=True, gain=0.5**0.5),
            linear(dim, gain=0.5**0.5),
        )
        self.edge_factor, self.edge_shift = linear(dim, bias=True), linear(dim, bias=True)
        self.edge_out = linear(dim, bias=True, gain=gain) if updates_edges else None
        if not updates_nodes:
            return
        # Means over edges hardly differ between nodes: start with sharp and loud ones.
        self.score_in, self.value_in = linear(num_heads, gain=2.0), linear(dim, gain=2.0)
        self.score_back = linear(num_heads, gain=2.0) if bidirectional else None
        self.value_back = linear(dim, gain=2.0) if bidirectional else None
        self.query_key_value = linear(3 * dim)
        parts = 5 if bidirectional else 3
        self.node_out = start_linear(nn.Linear(parts * dim, dim), gain)
        self.node_map = mlp(dim, 2 * dim, dim, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, layout: RunLayout, state: MetanetworkState) -> None:
        """Update the state."""
        nodes = normal(state.nodes, self.norm)
        edges = self._edges(layout, state.normal_edges, nodes)
        if self.edge_out is not None:
            state.edges = state.edges + self.edge_out(edges)
            state.normal_edges = normal(state.edges, self.norm)
        if not self.updates_nodes:
            return
        found = self._attend(layout, edges, nodes, self.score_in, self.value_in, at_senders=False)
        if self.score_back is not None and self.value_back is not None:
            found += self._attend(
                layout, edges, nodes, self.score_back, self.value_back, at_senders=True
            )
        found.append(self._attend_to_all(layout, nodes))
        state.nodes = state.nodes + self.dropout(self.node_out(torch.cat(found, dim=1)))
        state.nodes = state.nodes + self.node_map(normal(state.nodes, self.norm))

    def _edges(self, layout: RunLayout, edges: Tensor, nodes: Tensor) -> Tensor:
        """What is said of each edge ``[E, d]``, from both ends and its own features."""
        senders = layout.cut_nodes(self.sender(nodes))
        receivers = layout.cut_nodes(self.receiver(nodes))
        pieces = [
            factor
            * (
                piece.run.from_senders(senders[piece.sender])
                + piece.run.from_receivers(receivers[piece.receiver])
            )
            for piece, factor in zip(
                layout.edges, layout.cut_edges(self.edge_factor(edges)), strict=True
            )
        ]
        product = layout.join_edges(pieces, edges)
        return silu(_signed_root(product) + self.edge_shift(edges))

    def _attend(
        self,
        layout: RunLayout,
        edges: Tensor,
        nodes: Tensor,
        score: nn.Linear,
        value: nn.Linear,
        *,
        at_senders: bool,
    ) -> list[Tensor]:
        """Mixture over the edges of each node ``[N, d]``, and that times log(degree + 1)."""
        heads = self.num_heads
        weights = (_MAX_SCORE * (score(edges) / _MAX_SCORE).tanh()).exp()  # [E, heads]
        values = layout.cut_nodes(value(nodes))
        # A piece of weights and of edges at a time; the values of the other end go with its rows.
        mixed, totals = [], []
        for piece, weight, rows in zip(
            layout.edges, layout.cut_edges(weights), layout.cut_edges(edges), strict=True
        ):
            other = values[piece.receiver if at_senders else piece.sender]
            mixed.append(_mix(piece, weight, rows, other, at_senders))
            totals.append(weight)
        total = layout.sums(totals, nodes.new_zeros(1, heads), to_senders=at_senders)
        found = layout.join_ends(mixed, nodes, at_senders=at_senders).unflatten(1, (heads, -1))
        # Nodes without edges have total 0 and found 0; weights of others are exp(-5) or more.
        y = (found / total.clamp(min=1e-3)[..., None]).flatten(1)
        return [y, y * layout.num_ends(nodes, at_senders=at_senders).log1p()]

    def _attend_to_all(self, layout: RunLayout, nodes: Tensor) -> Tensor:
        """Attention among all nodes of each network ``[N, d]``."""
        found = []
        for rows in layout.part_nodes(self.query_key_value(nodes)):
            query, key, value = (
                row.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for row in rows.chunk(3, dim=2)
            )
            mixed = scaled_dot_product_attention(query, key, value)
            found.append(mixed.transpose(1, 2).flatten(2))
        return layout.from_part_nodes(found)


def _signed_root(z: Tensor) -> Tensor:
    """``sign(z) sqrt(|z|)`` for ``|z|`` above 0.1 or so, with slope 10 at 0 instead of infinite."""
    return z * (z.square() + 1e-4).pow(-0.25)


def _mix(
    piece: EdgePiece, weight: Tensor, edges: Tensor, other: Tensor, at_senders: bool
) -> Tensor:
    """Sum of ``weight * (value of the other end + edge)`` per head, rows of nodes ``[rows, d]``."""
    run = piece.run
    values = edges + (run.from_receivers(other) if at_senders else run.from_senders(other))
    mixed = weight[..., None] * values.unflatten(-1, (weight.shape[-1], -1))
    return mixed.sum((2, 4) if at_senders else (3, 4)).flatten(0, 2).flatten(1)


class GraphMetanetworkTransformer(ParameterGraphMetanetwork):
    """A graph transformer on the parameter encoding, instead of message passing.

    Args:
        out_dim: Number of outputs.
        level: What they are about; see ``Metanetwork``.
        hidden_dim: Width of the features of edges and nodes, a multiple of ``num_heads``.
        num_layers: Blocks.
        num_heads: Attention heads.
        dropout: In the node updates and the head.
        values: See ``GraphMetanetwork``.
        bidirectional: Let senders attend to receivers too.
        norm: See ``GraphMetanetwork``.
        readout: See ``GraphMetanetwork``.
        standardize: See ``GraphMetanetwork``.

    Law: the output does not change when hidden neurons are permuted; neurons and entries move.

    Raises:
        ValueError: An option has none of the values named, or ``num_heads`` does not divide
            ``hidden_dim``.

    Example:
        >>> GraphMetanetworkTransformer(out_dim=1).hidden_dim
        64

    References:
        Lim et al. 2024, section 4.1 (graph transformer on CNNs; https://arxiv.org/abs/2312.04501);
        Ma et al. 2023, section 3 (https://arxiv.org/abs/2305.17589).
    """

    def __init__(
        self,
        out_dim: int,
        *,
        level: Level = "graph",
        hidden_dim: int = 64,
        num_layers: int = 4,
        num_heads: int = 8,
        dropout: float = 0.0,
        values: str = "sin",
        bidirectional: bool = True,
        norm: str = "layer",
        readout: str = "both",
        standardize: bool = True,
    ) -> None:
        if hidden_dim % num_heads:
            raise ValueError(f"num_heads must divide hidden_dim, got {num_heads} and {hidden_dim}.")
        super().__init__(
            out_dim,
            level=level,
            hidden_dim=hidden_dim,
            values=values,
            norm=norm,
            readout=readout,
            use_global=False,
            standardize=standardize,
            dropout=dropout,
        )
        self.blocks = nn.ModuleList(
            EdgeAttentionBlock(
                hidden_dim,
                num_heads=num_heads,
                bidirectional=bidirectional,
                updates_nodes=self.reads_nodes or number < num_layers - 1,
                updates_edges=level != "neuron" or number < num_layers - 1,
                norm=norm,
                dropout=dropout,
                gain=num_layers**-0.5,
            )
            for number in range(num_layers)
        )
