"""A group of networks through relational layers: over all pairs of nodes, or along edges alone.

Rows that nobody reads are not computed: where the outputs alone are read, the last layer updates
their rows, and the layer before it their edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paramgraph.nn.attention_pairs import Joined
from paramgraph.nn.dense_networks import DenseGroup, PairList
from paramgraph.nn.relational_attention import RelationalLayer

__all__ = ["pass_all_pairs", "pass_joined_pairs"]


def pass_all_pairs(
    layers: Sequence[RelationalLayer],
    group: DenseGroup,
    x: Tensor,
    edges: Tensor,
    *,
    is_tiled: bool,
    keeps_all: bool,
) -> tuple[Tensor, Tensor]:
    """Every pair of nodes has edge features ``[B, n, n, edge_dim]``.

    Args:
        layers: The layers.
        group: The networks.
        x: Nodes ``[B, n, node_dim]``.
        edges: Features of the joined pairs ``[P, edge_dim]``; others start from 0.
        is_tiled: Compute tiles of rows, and again in the backward pass.
        keeps_all: Whether pairs that are not joined keep what an update gives them, or 0.

    Returns:
        The rows that are read ``[B, r, node_dim]``, and the joined pairs (as they were given if
        the last layer does not update them).
    """
    b, n, pairs = group.num_networks, group.num_nodes, group.pairs
    e = edges.new_zeros(b * n * n, edges.shape[1]).index_copy(0, pairs.position, edges)
    e = e.view(b, n, n, -1)
    mask = None
    if not keeps_all:
        mask = e.new_zeros(b * n * n).index_fill(0, pairs.position, 1).view(b, n, n, 1)
    for number, layer in enumerate(layers):
        rows = _rows(group, layers, number)
        if is_tiled and number == 0:  # the others are 0 still
            first = edges if rows is pairs else edges.index_select(0, rows.number)
            found = _attend_along(layer, rows, x, first)
        else:
            attend = layer.attention.tile if is_tiled else layer.attention.dense
            q, k, v = layer.attention.project(x, rows.num_rows)
            tiles = zip(*(_cut(t, rows, is_tiled) for t in (q, e[:, : rows.num_rows])), strict=True)
            found = torch.cat([attend(q_rows, k, v, e_rows) for q_rows, e_rows in tiles], dim=1)
        x = layer.update_nodes(x[:, : rows.num_rows], found)
        if layer.updates_edges:
            rows = _rows(group, layers, number + 1)
            source, target = layer.edge_ends(x)
            num = rows.num_rows
            pieces = zip(
                *(_cut(part[:, :num], rows, is_tiled) for part in (e, e.transpose(1, 2), source)),
                strict=True,
            )
            updated = [
                _again(is_tiled, layer, _update_rows(layer), *piece, target) for piece in pieces
            ]
            e = torch.cat(updated, dim=1)
            if mask is not None:
                e = e * mask[:, :num]
    if not layers[-1].updates_edges:
        return x, edges
    return x, e.flatten(0, 2).index_select(0, pairs.position)


def _update_rows(layer: RelationalLayer) -> Callable[..., Tensor]:
    def update(e: Tensor, reverse: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return layer.update_edges(e, reverse, source[:, :, None], target[:, None])

    return update


def pass_joined_pairs(
    layers: Sequence[RelationalLayer],
    group: DenseGroup,
    x: Tensor,
    edges: Tensor,
) -> tuple[Tensor, Tensor]:
    """Joined pairs alone have edge features, all others 0: no tensor has a vector per pair.

    Args:
        layers: The layers.
        group: The networks.
        x: Nodes ``[B, n, node_dim]``.
        edges: Features of the joined pairs ``[P, edge_dim]``.

    Returns:
        As ``pass_all_pairs``.
    """
    e, is_full = edges, True
    for number, layer in enumerate(layers):
        rows = _rows(group, layers, number)
        if is_full and rows is not group.pairs:
            e = e.index_select(0, rows.number)
        found = _attend_along(layer, rows, x, e)
        x = layer.update_nodes(x[:, : rows.num_rows], found)
        if layer.updates_edges:
            rows = _rows(group, layers, number + 1)
            is_full = rows is group.pairs
            ends = [part.flatten(0, 1) for part in layer.edge_ends(x)]
            own = e if is_full else e.index_select(0, rows.number)
            columns = (own, e.index_select(0, rows.reverse), rows.source, rows.target)
            tiles = zip(*(column.split(rows.pair_sizes) for column in columns), strict=True)
            e = torch.cat(
                [_again(True, layer, _update_pairs(layer), *piece, *ends) for piece in tiles]
            )
    return x, e


def _attend_along(layer: RelationalLayer, rows: PairList, x: Tensor, e: Tensor) -> Tensor:
    """What the rows ``[B, r, attn_dim]`` find; ``e`` are the joined pairs in them."""
    q, k, v = layer.attention.project(x, rows.num_rows)
    found, start = [], 0
    for q_rows, e_rows, position, target in zip(
        q.split(rows.row_sizes, dim=1),
        *(part.split(rows.pair_sizes) for part in (e, rows.position, rows.target)),
        strict=True,
    ):
        position = position - start * x.shape[1]
        joined = Joined(position, position // x.shape[1], target)
        found.append(layer.attention.along(q_rows, k, v, e_rows, joined))
        start += q_rows.shape[1]
    return torch.cat(found, dim=1)


def _update_pairs(layer: RelationalLayer) -> Callable[..., Tensor]:
    def update(
        e: Tensor, reverse: Tensor, i: Tensor, j: Tensor, source: Tensor, target: Tensor
    ) -> Tensor:
        ends = source.index_select(0, i), target.index_select(0, j)
        return layer.update_edges(e, reverse, *ends)

    return update


def _rows(group: DenseGroup, layers: Sequence[RelationalLayer], number: int) -> PairList:
    """The rows that a layer computes: those that are read, in the last one."""
    return group.read_pairs if number >= len(layers) - 1 else group.pairs


def _cut(values: Tensor, rows: PairList, is_tiled: bool) -> Sequence[Tensor]:
    return values.split(rows.row_sizes, dim=1) if is_tiled else (values,)


def _again(
    is_tiled: bool, layer: RelationalLayer, function: Callable[..., Tensor], *tensors: Tensor
) -> Tensor:
    """The value of a function whose inner tensors are computed anew in the backward pass."""
    if not is_tiled or not torch.is_grad_enabled():
        return function(*tensors)
    draws = layer.training and layer.dropout.p > 0
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=draws)
    return result
