"""Relational attention where only some pairs have an edge, with a backward pass of its own.

Attention is over all nodes; a pair without an edge has ``e_ij = 0``, so its score is ``q_i . k_j``
and its value ``v_j``, or 0 if values are modulated. These scores are one matrix product per head;
those of the joined pairs are put in their places before the softmax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paramgraph.engine import in_full, without_autocast
from paramgraph.nn.attention_tile import EdgeMaps, head_columns

__all__ = ["Joined", "attend_pairs"]


class Joined(NamedTuple):
    """Which pairs (i, j) have an edge.

    Attributes:
        position: ``[P]`` places in ``[B, r, n]``, each once.
        source: ``[P]`` places of i in ``[B, r]``.
        target: ``[P]`` places of j in ``[B, n]``.
    """

    position: Tensor
    source: Tensor
    target: Tensor


def attend_pairs(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, joined: Joined, maps: EdgeMaps, num_heads: int
) -> Tensor:
    """What ``attend_tile`` gives for edges that are 0 but for the joined pairs.

    Args:
        q: ``[B, r, d]``, with the scale of the scores in it.
        k: ``[B, n, d]``.
        v: ``[B, n, d]``.
        e: ``[P, edge_dim]``.
        joined: Their places.
        maps: Of the edges, the scale in that of the queries.
        num_heads: Heads.

    Returns:
        ``[B, r, d]``. It has first derivatives only.
    """
    result: Tensor = _AttendPairs.apply(*map(in_full, (q, k, v, e, *joined, *maps)), num_heads)
    return result


class _AttendPairs(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        e: Tensor,
        position: Tensor,
        source: Tensor,
        target: Tensor,
        eq: Tensor,
        ek: Tensor,
        em: Tensor | None,
        ev: Tensor,
        num_heads: int,
    ) -> Tensor:
        columns = head_columns(num_heads, q)
        query = (e @ eq.T).add_(_rows(q, source))
        scores = query.mul_((e @ ek.T).add_(_rows(k, target))) @ columns
        plain = _heads_first(q, num_heads) @ _heads_first(k, num_heads).transpose(2, 3)
        plain.view(num_heads, -1).index_copy_(1, position, scores.T)
        weight = plain.softmax(3)
        own = weight.view(num_heads, -1).index_select(1, position).T
        values = e @ ev.T
        if em is not None:
            values.add_((e @ em.T).mul_(_rows(v, target)))
        values.mul_(own @ columns.T)
        found = q.new_zeros(q.shape[0] * q.shape[1], q.shape[2])
        found = found.index_add_(0, source, values).view(q.shape)
        if em is None:
            found = found + _heads_last(weight @ _heads_first(v, num_heads))
        ctx.save_for_backward(q, k, v, e, position, source, target, eq, ek, em, ev, weight)
        return found

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, e, position, source, target, eq, ek, em, ev, weight = ctx.saved_tensors
        num_heads = len(weight)
        columns = head_columns(num_heads, q)
        own = weight.view(num_heads, -1).index_select(1, position).T
        # Values of joined pairs.
        g_rows = _rows(g, source)
        values, factor = e @ ev.T, None
        if em is not None:
            factor = e @ em.T
            values.addcmul_(factor, _rows(v, target))
        d_own = values.mul_(g_rows) @ columns  # [P, heads]
        d_values = g_rows.mul_(own @ columns.T)
        d_ev, d_e, d_em = d_values.T @ e, d_values @ ev, None
        if em is None or factor is None:
            g_first = _heads_first(g, num_heads)
            d_v = _heads_last(weight.transpose(2, 3) @ g_first)
            d_weight = g_first @ _heads_first(v, num_heads).transpose(2, 3)
        else:
            d_v = _sum_rows(factor.mul_(d_values), target, v)
            d_factor = d_values.mul_(_rows(v, target))
            d_em = d_factor.T @ e
            d_e.addmm_(d_factor, em)
            d_weight = torch.zeros_like(weight)
        d_weight.view(num_heads, -1).index_add_(1, position, d_own.T)
        # Softmax, then scores: those of joined pairs are functions of their own.
        d_weight.mul_(weight)
        d_scores = d_weight.sub_(weight * d_weight.sum(3, keepdim=True))
        flat = d_scores.view(num_heads, -1)
        spread = flat.index_select(1, position).T @ columns.T
        flat.index_fill_(1, position, 0)
        d_q = _heads_last(d_scores @ _heads_first(k, num_heads))
        d_k = _heads_last(d_scores.transpose(2, 3) @ _heads_first(q, num_heads))
        d_key = (e @ eq.T).add_(_rows(q, source)).mul_(spread)
        d_query = (e @ ek.T).add_(_rows(k, target)).mul_(spread)
        d_e.addmm_(d_query, eq).addmm_(d_key, ek)
        return (
            *(d_q + _sum_rows(d_query, source, q), d_k + _sum_rows(d_key, target, k), d_v, d_e),
            *(None, None, None, d_query.T @ e, d_key.T @ e, d_em, d_ev, None),
        )


def _rows(nodes: Tensor, index: Tensor) -> Tensor:
    return nodes.flatten(0, 1).index_select(0, index)


def _sum_rows(pairs: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).flatten(0, 1).index_add_(0, index, pairs).view(like.shape)


def _heads_first(nodes: Tensor, num_heads: int) -> Tensor:
    """``[B, n, d]`` to ``[heads, B, n, d / heads]``."""
    return nodes.unflatten(2, (num_heads, -1)).permute(2, 0, 1, 3)


def _heads_last(nodes: Tensor) -> Tensor:
    """The inverse."""
    return nodes.permute(1, 2, 0, 3).flatten(2)
