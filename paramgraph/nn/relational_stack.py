"""Relational layers on a batch: networks of any architectures in, their neurons and edges out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn.dense_networks import DenseLayout, dense_layout
from paramgraph.nn.relational_attention import RelationalLayer
from paramgraph.nn.relational_passes import pass_all_pairs, pass_joined_pairs

__all__ = ["RelationalStack"]

_NO_TILES = 2**62


class RelationalStack(nn.Module):
    """Layers of relational attention, over all pairs of nodes of a network or along its edges.

    | edges | attention | what is held |
    |---|---|---|
    | ``"all"`` | ``"dense"`` | queries, keys, values of all pairs, in each layer |
    | ``"all"`` | ``"tiled"`` | edges of all pairs, in each layer; the rest a tile at a time |
    | ``"graph"`` | ``"dense"`` | as above, for comparison: the edges of other pairs are 0 |
    | ``"graph"`` | ``"tiled"`` | features of real edges; scores of a tile of pairs |

    ``"dense"`` and ``"tiled"`` are one function, ``"all"`` and ``"graph"`` are two.

    Args:
        layers: One or more.
        edges: Whether all pairs have edges that are updated, or those joined by a weight alone
            (in both directions).
        attention: See the table.
        tile_size: Pairs of a tile.
        token: Whether a virtual node per network takes part. With ``edges="graph"`` its edges
            start from two learned vectors, one per direction.
        num_read: Which nodes are read: ``"all"``, ``"outputs"``, or the virtual one, ``"token"``.

    Raises:
        ValueError: An option has none of the values named, or there are no layers.
    """

    def __init__(
        self,
        layers: Sequence[RelationalLayer],
        *,
        edges: str,
        attention: str,
        tile_size: int,
        token: bool,
        num_read: str,
    ) -> None:
        super().__init__()
        if edges not in ("all", "graph"):
            raise ValueError(f"edges must be 'all' or 'graph', got {edges!r}.")
        if attention not in ("dense", "tiled"):
            raise ValueError(f"attention must be 'dense' or 'tiled', got {attention!r}.")
        for name, number in (("num_layers", len(layers)), ("tile_size", tile_size)):
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}.")
        self.layers = nn.ModuleList(layers)
        self.edges = edges
        self.attention = attention
        self.tile_size = tile_size
        self.token = token
        self.num_read = num_read
        self.token_edges: nn.Parameter | None = None
        if token and edges == "graph":
            self.token_edges = nn.Parameter(torch.randn(2, layers[0].edge_dim))

    def forward(
        self, batch: GraphBatch, nodes: Tensor, up: Tensor, down: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Pass all layers.

        Args:
            batch: The networks.
            nodes: Neurons ``[N, node_dim]``, then virtual nodes ``[num_networks, node_dim]``.
            up: Edges ``[E, edge_dim]``.
            down: Reversed edges; 0 when not given.

        Returns:
            Nodes, 0 where they are not read; and edges ``[E, edge_dim]``, ``None`` if the last
            layer does not update them.
        """
        layout = dense_layout(
            batch,
            token=self.token,
            token_edges=self.token_edges is not None,
            num_read=self.num_read,
            tile_size=self.tile_size if self.attention == "tiled" else _NO_TILES,
        )
        layers = [layer for layer in self.layers if isinstance(layer, RelationalLayer)]
        is_tiled, is_sparse = self.attention == "tiled", self.edges == "graph"
        # Gathered at once: the gradient of a gather is as large as what is gathered from.
        sizes = [group.nodes.numel() for group in layout.groups]
        all_nodes = self._by_architecture(batch, nodes).index_select(0, layout.nodes).split(sizes)
        all_pairs = self._pairs(batch, layout, up, down).split(layout.pair_sizes)
        found, pairs = [], []
        for group, x, e in zip(layout.groups, all_nodes, all_pairs, strict=True):
            x = x.view(*group.nodes.shape, -1)
            if is_tiled and is_sparse:
                x, e = pass_joined_pairs(layers, group, x, e)
            else:
                x, e = pass_all_pairs(
                    layers, group, x, e, is_tiled=is_tiled, keeps_all=not is_sparse
                )
            found.append(x.flatten(0, 1))
            pairs.append(e)
        rows = torch.cat([g.nodes[:, : g.read_pairs.num_rows].flatten() for g in layout.groups])
        nodes = torch.zeros_like(nodes).index_copy(0, rows, torch.cat(found))
        nodes = self._by_architecture(batch, nodes, back=True)
        if not layers[-1].updates_edges:
            return nodes, None
        edges = torch.cat(pairs).index_select(0, layout.slots[: batch.num_edges])
        for rank, rows in layout.parallel:
            edges = edges.index_copy(0, rows, edges[rows].roll(-rank, 1))
        return nodes, edges

    def _by_architecture(self, batch: GraphBatch, nodes: Tensor, *, back: bool = False) -> Tensor:
        """Virtual nodes from the order of the networks to that of the architectures, or back."""
        if not self.token:
            return nodes
        order = torch.cat([part.rows for part in batch.parts]).to(nodes.device)
        neurons, tokens = nodes[: batch.num_neurons], nodes[batch.num_neurons :]
        return torch.cat([neurons, tokens[order.argsort() if back else order]])

    def _pairs(
        self, batch: GraphBatch, layout: DenseLayout, up: Tensor, down: Tensor | None
    ) -> Tensor:
        """Features of the joined pairs of all groups.

        Of several edges between the same two neurons the second is shifted by one channel, the
        third by two, and so on: in their sum each can be told from the others.
        """
        both = [up, torch.zeros_like(up) if down is None else down]
        for rank, rows in layout.parallel:
            both = [e.index_copy(0, rows, e[rows].roll(rank, 1)) for e in both]
        if self.token_edges is not None:
            virtual = self.token_edges[:, None].expand(-1, batch.num_neurons, -1)
            both = [torch.cat(rows) for rows in zip(both, virtual, strict=True)]
        edges = torch.cat(both)
        pairs = edges.new_zeros(sum(layout.pair_sizes), edges.shape[1])
        return pairs.index_add(0, layout.slots, edges)
