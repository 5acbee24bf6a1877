"""Blocks of graph metanetworks: residual updates of edges, nodes, and one vector per network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from paramgraph.nn.run_layout import RunLayout

__all__ = ["EdgeMessageBlock", "MetanetworkState", "normal", "start_linear"]


@dataclass
class MetanetworkState:
    """Features between blocks; blocks replace them.

    Attributes:
        edges: ``[E, d]``.
        nodes: ``[N, d]``.
        network: ``[num_networks, d]`` by architecture, if there is such a vector.
        normal_edges: The edges, normalised: every block and head reads these.
    """

    edges: Tensor
    nodes: Tensor
    network: Tensor | None
    normal_edges: Tensor


def normal(features: Tensor, norm: str) -> Tensor:
    """Layer norm of each row by itself (``"layer"``), or nothing (``"none"``).

    It has no gain and shift: whatever reads it begins with a linear map.
    """
    return layer_norm(features, features.shape[-1:]) if norm == "layer" else features


def start_linear(linear: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Start with unit gain: variance ``gain^2 / in_features``, no bias."""
    nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class EdgeMessageBlock(nn.Module):
    """Update edges from their ends, then nodes from messages, then the vector of the network.

    ``e += O silu(E e + S x_s + R x_r + G u)``; to receivers ``m = silu(M e + N x_s)``, to senders
    ``m' = silu(M e + N' x_r)``; ``x += P silu(C x + D mean(m) + D' mean(m') + G' u)``;
    ``u += Q silu(H u + H_e mean(e) + H_x mean(x))``. On the right everything is normalised. Maps of
    nodes are applied per node, not per edge.

    Args:
        dim: Width of all features.
        bidirectional: Send messages against the edges too.
        use_global: Whether there is ``u``.
        updates_nodes: Whether anything reads the nodes afterwards.
        updates_network: Whether anything reads ``u`` afterwards.
        aggregation: ``"mean"`` or ``"sum"`` of messages.
        norm: See ``normal``.
        dropout: In the node updates.
        gain: Of the maps into the residual stream, at the start.
    """

    def __init__(
        self,
        dim: int,
        *,
        bidirectional: bool,
        use_global: bool,
        updates_nodes: bool,
        updates_network: bool,
        aggregation: str,
        norm: str,
        dropout: float,
        gain: float,
    ) -> None:
        super().__init__()
        self.aggregation, self.norm = aggregation, norm

        def linear(bias: bool = False, gain: float = 1.0) -> nn.Linear:
            return start_linear(nn.Linear(dim, dim, bias=bias), gain)

        # Four terms of unit variance are added.
        half = 0.5 if use_global else 3**-0.5
        self.edge = linear(bias=True, gain=half)
        self.edge_sender, self.edge_receiver = linear(gain=half), linear(gain=half)
        self.edge_out = linear(bias=True, gain=gain)
        self.updates_nodes = updates_nodes
        if updates_nodes:
            self.message = linear(bias=True)
            self.message_sender = linear()
            self.node = linear(bias=True, gain=half)
            self.node_in = linear(gain=2.0)  # means of messages hardly differ
            self.node_out = linear(bias=True, gain=gain)
        self.message_receiver = linear() if updates_nodes and bidirectional else None
        self.node_back = linear(gain=2.0) if updates_nodes and bidirectional else None
        self.edge_network = linear(gain=half) if use_global else None
        self.node_network = linear(gain=half) if use_global and updates_nodes else None
        self.updates_network = use_global and updates_network
        if self.updates_network:
            self.network = linear(bias=True, gain=half)
            self.network_edges, self.network_nodes = linear(gain=half), linear(gain=half)
            self.network_out = linear(bias=True, gain=gain)
        self.dropout = nn.Dropout(dropout)

    def forward(self, layout: RunLayout, state: MetanetworkState) -> None:
        """Update the state."""
        nodes = normal(state.nodes, self.norm)
        network = None if state.network is None else normal(state.network, self.norm)
        self._update_edges(layout, state, nodes, network)
        if self.updates_nodes:
            self._update_nodes(layout, state, nodes, network)
        if self.updates_network and state.network is not None and network is not None:
            # Means of normalised features keep their size, whatever the network's.
            nodes = normal(state.nodes, self.norm)
            hidden = self.network(network) + self.network_edges(
                layout.mean_edges(state.normal_edges)
            )
            hidden = hidden + self.network_nodes(layout.mean_nodes(nodes))
            state.network = state.network + self.network_out(silu(hidden))

    def _update_edges(
        self, layout: RunLayout, state: MetanetworkState, nodes: Tensor, network: Tensor | None
    ) -> None:
        senders, receivers = self.edge_sender(nodes), self.edge_receiver(nodes)
        if self.edge_network is not None and network is not None:
            senders = senders + self.edge_network(network)[layout.network]
        from_senders, from_receivers = layout.cut_nodes(senders), layout.cut_nodes(receivers)
        pieces = [
            rows
            + piece.run.from_senders(from_senders[piece.sender])
            + piece.run.from_receivers(from_receivers[piece.receiver])
            for piece, rows in zip(
                layout.edges, layout.cut_edges(self.edge(state.normal_edges)), strict=True
            )
        ]
        hidden = silu(layout.join_edges(pieces, state.edges))
        state.edges = state.edges + self.edge_out(hidden)
        state.normal_edges = normal(state.edges, self.norm)

    def _update_nodes(
        self, layout: RunLayout, state: MetanetworkState, nodes: Tensor, network: Tensor | None
    ) -> None:
        messages = layout.cut_edges(self.message(state.normal_edges))
        hidden = self.node(nodes)
        for at_senders, of_ends, read in (
            (False, self.message_sender, self.node_in),
            (True, self.message_receiver, self.node_back),
        ):
            if of_ends is None or read is None:
                continue
            ends = layout.cut_nodes(of_ends(nodes))
            sent = [
                silu(rows + piece.run.from_receivers(ends[piece.receiver]))
                if at_senders
                else silu(rows + piece.run.from_senders(ends[piece.sender]))
                for piece, rows in zip(layout.edges, messages, strict=True)
            ]
            arrived = layout.sums(sent, nodes, to_senders=at_senders)
            if self.aggregation == "mean":
                arrived = arrived / layout.num_ends(nodes, at_senders=at_senders).clamp(min=1)
            hidden = hidden + read(arrived)
        if self.node_network is not None and network is not None:
            hidden = hidden + self.node_network(network)[layout.network]
        state.nodes = state.nodes + self.node_out(self.dropout(silu(hidden)))
