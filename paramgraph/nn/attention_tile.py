"""Relational attention over a tile of pairs, with a backward pass of its own.

What has a vector per pair is made, used in place and dropped; nothing of that size but the edges
and the attention weights is kept for the backward pass, which makes it again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paramgraph.engine import in_full, without_autocast

__all__ = ["EdgeMaps", "attend_tile", "head_columns"]


class EdgeMaps(NamedTuple):
    """Maps of edges to queries, keys, factors and shifts of values, each ``[attn_dim, edge_dim]``.

    ``factor`` is ``None`` for values that are not modulated.
    """

    query: Tensor
    key: Tensor
    factor: Tensor | None
    shift: Tensor


def attend_tile(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, maps: EdgeMaps, num_heads: int
) -> Tensor:
    """``y_i = sum_j softmax_j((q_i + Eq e_ij) . (k_j + Ek e_ij)) ((v_j * Em e_ij) + Ev e_ij)``.

    Args:
        q: ``[B, r, d]``, with the scale of the scores in it.
        k: ``[B, n, d]``.
        v: ``[B, n, d]``.
        e: ``[B, r, n, edge_dim]``.
        maps: Of the edges, the scale in that of the queries.
        num_heads: Heads.

    Returns:
        ``[B, r, d]``. It has first derivatives only.
    """
    result: Tensor = _AttendTile.apply(*map(in_full, (q, k, v, e, *maps)), num_heads)
    return result


class _AttendTile(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        e: Tensor,
        eq: Tensor,
        ek: Tensor,
        em: Tensor | None,
        ev: Tensor,
        num_heads: int,
    ) -> Tensor:
        b, r, n, _ = e.shape
        e = e.contiguous()
        query, key = _query_key(q, k, e, eq, ek)
        scores = query.mul_(key).flatten(0, 2) @ head_columns(num_heads, q)
        weight = scores.view(b, r, n, num_heads).softmax(2)
        by_row = weight.view(b * r, n, num_heads).transpose(1, 2)  # [B r, heads, n]
        mixed = by_row @ e.view(b * r, n, -1)
        found = torch.einsum("rhf,hcf->rhc", mixed, _by_head(ev, num_heads))
        if em is None:
            found = found + _mix_nodes(weight, v)
        else:
            values = (e.flatten(0, 2) @ em.T).view(b, r, n, -1).mul_(v[:, None])
            found = found + _own_heads(by_row @ values.view(b * r, n, -1), num_heads)
        ctx.save_for_backward(q, k, v, e, eq, ek, em, ev, weight)
        return found.reshape(b, r, -1)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, e, eq, ek, em, ev, weight = ctx.saved_tensors
        b, r, n, num_heads = weight.shape
        by_row, rows = weight.view(b * r, n, num_heads), e.view(b * r, n, -1)
        flat = e.view(b * r * n, -1)
        g_heads = g.reshape(b * r, num_heads, -1)
        # Shifts: Ev (sum_j a_ij e_ij).
        mixed = by_row.transpose(1, 2) @ rows
        d_ev = torch.einsum("rhc,rhf->hcf", g_heads, mixed).reshape(ev.shape)
        g_mixed = torch.einsum("rhc,hcf->rhf", g_heads, _by_head(ev, num_heads))
        d_weight = rows @ g_mixed.transpose(1, 2)
        d_e = torch.bmm(by_row, g_mixed).view(b * r * n, -1)
        # Values of nodes.
        d_em = None
        if em is None:
            heads_first = weight.permute(0, 3, 2, 1)  # [B, heads, n, r]
            g_first = g.unflatten(2, (num_heads, -1)).transpose(1, 2)  # [B, heads, r, c]
            d_v = (heads_first @ g_first).transpose(1, 2).flatten(2)
            v_first = v.unflatten(2, (num_heads, -1)).permute(0, 2, 3, 1)
            d_weight = d_weight + (g_first @ v_first).permute(0, 2, 3, 1).reshape(d_weight.shape)
        else:
            blocks = _block_rows(g_heads)  # [B r, heads, d]
            factor = (flat @ em.T).view(b, r, n, -1)
            weighted = torch.bmm(by_row, blocks).view(b, r, n, -1)
            d_v = (weighted * factor).sum(1)
            factor.mul_(v[:, None])
            d_weight = d_weight + factor.view(b * r, n, -1) @ blocks.transpose(1, 2)
            weighted.mul_(v[:, None])
            d_factor = weighted.view(b * r * n, -1)
            d_em = d_factor.T @ flat
            d_e.addmm_(d_factor, em)
            del factor, weighted, d_factor
        # Softmax, then both factors of the scores.
        d_scores = d_weight.sub_((d_weight * by_row).sum(1, keepdim=True)).mul_(by_row)
        spread = (d_scores.view(b * r * n, -1) @ head_columns(num_heads, q).T).view(b, r, n, -1)
        query, key = _query_key(q, k, e, eq, ek)
        d_key, d_query = query.mul_(spread), key.mul_(spread)
        d_q, d_k = d_query.sum(2), d_key.sum(1)
        d_query, d_key = d_query.view(b * r * n, -1), d_key.view(b * r * n, -1)
        d_e.addmm_(d_query, eq).addmm_(d_key, ek)
        return (
            *(d_q, d_k, d_v, d_e.view(e.shape)),
            *(d_query.T @ flat, d_key.T @ flat, d_em, d_ev, None),
        )


def _query_key(q: Tensor, k: Tensor, e: Tensor, eq: Tensor, ek: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of all pairs ``[B, r, n, d]``."""
    flat = e.flatten(0, 2)
    query = (flat @ eq.T).view(*e.shape[:3], -1).add_(q[:, :, None])
    return query, (flat @ ek.T).view(*e.shape[:3], -1).add_(k[:, None])


def head_columns(num_heads: int, like: Tensor) -> Tensor:
    """``[d, heads]`` with 1 where a channel belongs to a head: a product sums each head fastest."""
    return _columns(num_heads, like.shape[-1], like.dtype, like.device)


@lru_cache(maxsize=64)
def _columns(num_heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    one = torch.eye(num_heads, dtype=dtype, device=device)
    return one.repeat_interleave(dim // num_heads, 0)


def _by_head(weight: Tensor, num_heads: int) -> Tensor:
    return weight.unflatten(0, (num_heads, -1))


def _own_heads(found: Tensor, num_heads: int) -> Tensor:
    """``[rows, heads, d]`` to ``[rows, heads, d / heads]``: of each head its own channels."""
    return found.unflatten(2, (num_heads, -1)).diagonal(dim1=1, dim2=2).transpose(1, 2)


def _block_rows(g: Tensor) -> Tensor:
    """The other way: ``[rows, heads, c]`` to ``[rows, heads, heads * c]``, 0 for other heads."""
    return torch.diag_embed(g.transpose(1, 2), dim1=1, dim2=2).flatten(2)


def _mix_nodes(weight: Tensor, v: Tensor) -> Tensor:
    """``sum_j a_ij v_j`` per head ``[B * r, heads, d / heads]``."""
    b, r, _, num_heads = weight.shape
    mixed = weight.permute(0, 3, 1, 2) @ v.unflatten(2, (num_heads, -1)).transpose(1, 2)
    return mixed.transpose(1, 2).reshape(b * r, num_heads, -1)
