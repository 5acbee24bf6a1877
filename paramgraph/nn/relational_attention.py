"""Relational attention: queries, keys and values of a pair of nodes from both nodes and their edge.

Two arrangements of one function: ``dense`` follows the equations, over all pairs at once;
the others work tile by tile and compute a tile anew in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from paramgraph.nn.attention_pairs import Joined, attend_pairs
from paramgraph.nn.attention_tile import EdgeMaps, attend_tile
from paramgraph.nn.fast_dropout import FastDropout

__all__ = ["RelationalAttention", "RelationalLayer"]


class RelationalAttention(nn.Module):
    """``y_i = sum_j a_ij v_ij``, ``a_ij = softmax_j(q_ij . k_ij / sqrt(d))`` over all nodes j.

    ``q_ij = Q x_i + Eq e_ij``, ``k_ij = K x_j + Ek e_ij``, and ``v_ij = (V x_j) * (Em e_ij) +
    Ev e_ij``, or the classic ``V x_j + Ev e_ij``. All maps are without biases.

    Args:
        node_dim: Width of nodes x.
        edge_dim: Width of edges e.
        attn_dim: Width d of all heads together.
        num_heads: Heads.
        modulated_values: Which form of the values.

    Raises:
        ValueError: ``num_heads`` does not divide ``attn_dim``.

    References:
        Kofinas et al. 2024, eq. 5; Diao and Loynd 2023, section 3
        (https://arxiv.org/abs/2210.05062).
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int,
        attn_dim: int,
        num_heads: int,
        *,
        modulated_values: bool,
    ) -> None:
        super().__init__()
        if num_heads < 1 or attn_dim % num_heads:
            raise ValueError(f"num_heads must divide attn_dim, got {num_heads} and {attn_dim}.")
        self.num_heads = num_heads
        self.modulated_values = modulated_values
        self.query_key_value = nn.Linear(node_dim, 3 * attn_dim, bias=False)
        self.edge_maps = nn.Linear(edge_dim, (3 + modulated_values) * attn_dim, bias=False)
        self.scale = attn_dim**-0.5

    def project(self, x: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first rows ``[B, r, d]``, keys and values of all nodes ``[B, n, d]``."""
        q, k, v = self.query_key_value.weight.chunk(3)
        return linear(x[:, :num_rows], q), linear(x, k), linear(x, v)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, e: Tensor) -> Tensor:
        """As in the equations.

        Args:
            q: ``[B, r, d]``.
            k: ``[B, n, d]``.
            v: ``[B, n, d]``.
            e: Edges of all pairs ``[B, r, n, edge_dim]``.

        Returns:
            ``[B, r, d]``.
        """
        heads = (self.num_heads, -1)
        of_edges = self.edge_maps(e).chunk(3 + self.modulated_values, dim=-1)
        query = (q[:, :, None] + of_edges[0]).unflatten(-1, heads)
        key = (k[:, None] + of_edges[1]).unflatten(-1, heads)
        weight = (self.scale * (query * key).sum(-1)).softmax(2)  # [B, r, n, heads]
        values = v[:, None].expand(-1, q.shape[1], -1, -1)
        if self.modulated_values:
            values = values * of_edges[2]
        values = (values + of_edges[-1]).unflatten(-1, heads)
        return (weight[..., None] * values).sum(2).flatten(2)

    def tile(self, q: Tensor, k: Tensor, v: Tensor, e: Tensor) -> Tensor:
        """The same with little kept for the backward pass; see ``attend_tile``."""
        return attend_tile(self.scale * q, k, v, e, self._maps(), self.num_heads)

    def along(self, q: Tensor, k: Tensor, v: Tensor, e: Tensor, joined: Joined) -> Tensor:
        """The same where pairs that are not joined have ``e_ij = 0``; see ``attend_pairs``."""
        return attend_pairs(self.scale * q, k, v, e, joined, self._maps(), self.num_heads)

    def _maps(self) -> EdgeMaps:
        maps = self.edge_maps.weight.chunk(3 + self.modulated_values)
        factor = maps[2] if self.modulated_values else None
        return EdgeMaps(self.scale * maps[0], maps[1], factor, maps[-1])


class RelationalLayer(nn.Module):
    """Relational attention, then a two-layer map of nodes, then an update of edges.

    ``x <- LN(x + W0 Wo y)``, ``x <- LN(x + L2 gelu(L1 x))``; with the new x
    ``e_ij <- LN(e_ij + M1 gelu(Me [e_ij; e_ji] + Ms x_i + Mt x_j))``,
    ``e_ij <- LN(e_ij + N2 gelu(N1 e_ij))``. L1 and N1 are without biases.

    Args:
        node_dim: Width of nodes.
        edge_dim: Width of edges.
        attn_dim: Width of all heads together.
        node_hidden_dim: Width between L1 and L2.
        edge_hidden_dim: Width between Me and M1, and between N1 and N2.
        num_heads: Heads.
        dropout: Of each update.
        modulated_values: See ``RelationalAttention``.
        updates_edges: Whether edges are updated; the last layer need not if none is read.

    References:
        Kofinas et al. 2024, section 3; Diao and Loynd 2023, section 3.
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int,
        attn_dim: int,
        node_hidden_dim: int,
        edge_hidden_dim: int,
        num_heads: int,
        *,
        dropout: float,
        modulated_values: bool,
        updates_edges: bool,
    ) -> None:
        super().__init__()
        self.dropout = FastDropout(dropout)
        self.attention = RelationalAttention(
            node_dim, edge_dim, attn_dim, num_heads, modulated_values=modulated_values
        )
        self.attention_out = nn.Linear(attn_dim, node_dim)
        self.node_out = nn.Linear(node_dim, node_dim)
        self.node_norm = nn.LayerNorm(node_dim)
        self.node_first = nn.Linear(node_dim, node_hidden_dim, bias=False)
        self.node_second = nn.Linear(node_hidden_dim, node_dim)
        self.node_last_norm = nn.LayerNorm(node_dim)
        self.updates_edges, self.edge_dim = updates_edges, edge_dim
        if updates_edges:
            self.edge_own = nn.Linear(2 * edge_dim, edge_hidden_dim)
            self.edge_source = nn.Linear(node_dim, edge_hidden_dim)
            self.edge_target = nn.Linear(node_dim, edge_hidden_dim)
            self.edge_out = nn.Linear(edge_hidden_dim, edge_dim)
            self.edge_norm = nn.LayerNorm(edge_dim)
            self.edge_first = nn.Linear(edge_dim, edge_hidden_dim, bias=False)
            self.edge_second = nn.Linear(edge_hidden_dim, edge_dim)
            self.edge_last_norm = nn.LayerNorm(edge_dim)

    @torch.no_grad()
    def amplify_values(self) -> None:
        """Let a node hear one edge among many: values twice, what attention finds 8 times as loud.

        Attention starts almost even, so an edge is one part in n of a mean. Sharper scores in place
        of louder values (3 times) kept the laws too; one run of 120 steps with them did not learn.
        Which start trains better in the long run is not known.
        """
        attention = self.attention
        for weight, parts in (
            (attention.query_key_value.weight, 3),
            (attention.edge_maps.weight, 3 + attention.modulated_values),
        ):
            for values in weight.chunk(parts)[2:]:
                values.mul_(2.0)
        self.attention_out.weight.mul_(8.0)

    def update_nodes(self, x: Tensor, found: Tensor) -> Tensor:
        """New nodes ``[..., node_dim]`` from what attention found ``[..., attn_dim]``."""
        x = self.node_norm(x + self.dropout(self.node_out(self.attention_out(found))))
        inner = self.node_second(gelu(self.node_first(x)))
        rows: Tensor = self.node_last_norm(x + self.dropout(inner))
        return rows

    def edge_ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What nodes say as i and as j of an edge, each ``[..., edge_hidden_dim]``."""
        return self.edge_source(x), self.edge_target(x)

    def update_edges(self, e: Tensor, reverse: Tensor, *ends: Tensor) -> Tensor:
        """New edges.

        Args:
            e: ``e_ij``, ``[..., edge_dim]``.
            reverse: ``e_ji``, in the places of ``e_ij``.
            ends: ``Ms x_i`` and ``Mt x_j``, to be broadcast to ``[..., edge_hidden_dim]``.
        """
        own, other = self.edge_own.weight.chunk(2, dim=1)
        inner = linear(e, own, self.edge_own.bias).add_(linear(reverse, other))
        for end in ends:
            inner.add_(end)
        e = self.edge_norm(e + self.dropout(self.edge_out(gelu(inner))))
        inner = self.edge_second(gelu(self.edge_first(e)))
        rows: Tensor = self.edge_last_norm(e + self.dropout(inner))
        return rows
