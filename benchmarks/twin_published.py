"""NG-GNN arranged as published: all pairs of neurons, dense to sparse, reversed copies, gathers.

The order of work is that of the published code (the text is our own): a dense matrix of edges of
all N x N pairs, with its transpose and sum, is encoded whole; a loop over networks makes an edge
list of it and appends the reversed edges; messages gather both ends, concatenate, and are scattered
four times. The norm is per network: the published one mixes the networks of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from benchmarks.twin_layers import InrWeights, LayerMaps, Twin

__all__ = ["PublishedTwin"]


class PublishedTwin(Twin):
    """``ng-gnn-inr`` on index operations; see ``Twin``.

    References:
        Kofinas et al. 2024 (https://arxiv.org/abs/2403.12143).
    """

    def pass_messages(self, networks: InrWeights) -> Tensor:
        """Neurons after all layers ``[B * num_neurons, dim]``."""
        neurons = self.first_neurons(networks)
        pairs, is_edge = self._dense_edges(networks)
        x, index, edges = _to_sparse(neurons, self.edge_lift(pairs), is_edge)
        for layer in self.layers:
            assert isinstance(layer, LayerMaps)
            x, edges = self._layer(layer, x, index, edges)
        return x

    def _dense_edges(self, networks: InrWeights) -> tuple[Tensor, Tensor]:
        """Values ``[B, N, N, 3]`` of all pairs (source, target), and which are edges.

        A weight of 0 is an edge too, so the mask follows the layout, not the values.
        """
        num = self.num_neurons
        dense = networks.weights[0].new_zeros(len(networks.weights[0]), num, num)
        is_edge = torch.zeros(dense.shape, dtype=torch.bool, device=dense.device)
        row = 0
        for weight, unit in zip(networks.weights, self.weight_units, strict=True):
            _, target, source = weight.shape
            column = row + source
            block = (slice(None), slice(row, column), slice(column, column + target))
            dense[block] = (weight / unit).transpose(1, 2)
            is_edge[block] = True
            row = column
        reverse = dense.transpose(1, 2)
        return torch.stack([dense, reverse, dense + reverse], dim=-1), is_edge

    def _layer(
        self, layer: LayerMaps, x: Tensor, index: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        source, target = index
        scale, shift = layer.film(edges).chunk(2, dim=-1)
        both = torch.cat([x[target], x[source]], dim=-1)
        messages = scale * layer.message(both) + shift
        statistics, degree = _scattered(messages, target, len(x))
        amplified = statistics * ((degree + 1).log() / self.log_degree)[:, None]
        x = layer.out(layer.post(torch.cat([x, statistics, amplified], dim=-1)))
        if layer.is_last:
            return x, edges
        x = self.dropout(silu(layer.norm(x)))
        ends = layer.edge_source(x)[source] + layer.edge_target(x)[target]
        return x, layer.edge_out(silu(layer.edge_own(edges) + ends))


def _to_sparse(neurons: Tensor, pairs: Tensor, is_edge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neurons ``[B * N, dim]``, edge list ``[2, E]`` and edges ``[E, dim]``, reversed ones last."""
    index, forward, backward = [], [], []
    for number, (features, mask) in enumerate(zip(pairs, is_edge, strict=True)):
        source, target = mask.nonzero(as_tuple=True)
        index.append(torch.stack([source, target]) + number * neurons.shape[1])
        forward.append(features[source, target])
        backward.append(features[target, source])
    there = torch.cat(index, dim=1)
    edges = torch.cat([*forward, *backward])
    return neurons.flatten(0, 1), torch.cat([there, there.flip(0)], dim=1), edges


def _scattered(messages: Tensor, target: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """``[num, 4 * dim]`` mean, min, max, standard deviation, and how many messages arrived."""
    degree = messages.new_zeros(num).index_add(0, target, messages.new_ones(len(target)))
    size = degree.clamp(min=1)[:, None]
    zeros = messages.new_zeros(num, messages.shape[1])
    mean = zeros.index_add(0, target, messages) / size
    square = zeros.index_add(0, target, messages.square()) / size
    index = target[:, None].expand_as(messages)
    low = zeros.scatter_reduce(0, index, messages, "amin", include_self=False)
    high = zeros.scatter_reduce(0, index, messages, "amax", include_self=False)
    std = ((square - mean.square()).clamp(min=0) + 1e-5).sqrt()
    return torch.cat([mean, low, high, std], dim=1), degree
