"""NG-GNN as a careful user of PyTorch Geometric writes it: ``MessagePassing`` on an edge list.

The edge list is made once per batch size, only true edges (both directions) are encoded, and the
four statistics come from PyG's fused aggregation. Needs ``torch_geometric``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import Aggregation, DegreeScalerAggregation, MultiAggregation

from benchmarks.twin_layers import InrWeights, LayerMaps, Twin
from paramgraph.nn import NeuralGraphGNN

__all__ = ["PygTwin"]


class _Statistics(Aggregation):
    """Mean, min, max and standard deviation; PyG's own clamps variances, the paper's adds 1e-5."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = MultiAggregation(["mean", "min", "max", "var"])

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        dim_of_one = x.shape[-1]
        found: Tensor = self.fused(x, index, ptr, dim_size, dim)
        rest, variance = found.split([3 * dim_of_one, dim_of_one], dim=-1)
        return torch.cat([rest, (variance.clamp(min=0) + 1e-5).sqrt()], dim=-1)


class _Layer(MessagePassing):
    """``PNAConv`` with one tower, messages scaled and shifted by what the edge says."""

    def __init__(self, maps: LayerMaps, degrees: Tensor) -> None:
        scaled = DegreeScalerAggregation(_Statistics(), ["identity", "amplification"], degrees)
        super().__init__(aggr=scaled, node_dim=0)
        self.maps = maps

    def forward(self, x: Tensor, edge_index: Tensor, edges: Tensor) -> Tensor:
        found = self.propagate(edge_index, x=x, film=self.maps.film(edges))
        new: Tensor = self.maps.out(self.maps.post(torch.cat([x, found], dim=-1)))
        return new

    def message(self, x_i: Tensor, x_j: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, dim=-1)
        both: Tensor = self.maps.message(torch.cat([x_i, x_j], dim=-1))
        return torch.addcmul(shift, scale, both)


class PygTwin(Twin):
    """``ng-gnn-inr`` on ``torch_geometric``; see ``Twin``.

    References:
        Kofinas et al. 2024 (https://arxiv.org/abs/2403.12143); Fey and Lenssen 2019
        (https://arxiv.org/abs/1903.02428).
    """

    def __init__(self, ours: NeuralGraphGNN, dims: Sequence[int]) -> None:
        super().__init__(ours, dims)
        index = _edge_list(self.dims)
        degrees = torch.bincount(torch.bincount(index[1]))
        self.convs = nn.ModuleList(
            _Layer(layer, degrees) for layer in self.layers if isinstance(layer, LayerMaps)
        )
        self._index = index
        self._repeated: dict[int, Tensor] = {}

    def pass_messages(self, networks: InrWeights) -> Tensor:
        """Neurons after all layers ``[B * num_neurons, dim]``."""
        x = self.first_neurons(networks).flatten(0, 1)
        index = self._edge_index(len(networks.biases[0]), x.device)
        edges = self.edge_lift(self._edge_values(networks))
        for layer in self.convs:
            assert isinstance(layer, _Layer)
            x = layer(x, index, edges)
            maps = layer.maps
            if not maps.is_last:
                x = self.dropout(silu(maps.norm(x)))
                source, target = maps.edge_source(x), maps.edge_target(x)
                ends = source.index_select(0, index[0]) + target.index_select(0, index[1])
                edges = maps.edge_out(silu(maps.edge_own(edges) + ends))
        return x

    def from_ours(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """As ``Twin.from_ours``; the scaler of PyG gets our delta."""
        if not name.startswith("convs."):
            return super().from_ours(name, state)
        _, number, rest = name.split(".", 2)
        if rest.startswith("maps."):
            return super().from_ours(f"layers.{number}.{rest.removeprefix('maps.')}", state)
        return state["log_degree"]

    def _edge_values(self, networks: InrWeights) -> Tensor:
        """``[2 * B * E, 3]``: weight, weight of the reverse edge, their sum."""
        layers = zip(networks.weights, self.weight_units, strict=True)
        w = torch.cat([(weight / unit).flatten(1) for weight, unit in layers], dim=1).flatten()
        none = torch.zeros_like(w)
        return torch.cat([torch.stack([w, none, w], dim=1), torch.stack([none, w, w], dim=1)])

    def _edge_index(self, num_networks: int, device: torch.device) -> Tensor:
        """The edges of a batch, made at its first use; those of each network side by side."""
        if num_networks not in self._repeated:
            start = self.num_neurons * torch.arange(num_networks)[:, None]
            there, back = self._index.unflatten(1, (2, -1)).unbind(1)
            both = [(side[:, None] + start).flatten(1) for side in (there, back)]
            self._repeated[num_networks] = torch.cat(both, dim=1).to(device)
        return self._repeated[num_networks]


def _edge_list(dims: Sequence[int]) -> Tensor:
    """Edges of one network ``[2, 2 * E]``, sources first; reversed ones in the second half."""
    blocks, start = [], 0
    for width, after in pairwise(dims):
        target, source = torch.meshgrid(torch.arange(after), torch.arange(width), indexing="ij")
        ends = torch.stack([start + source.flatten(), start + width + target.flatten()])
        blocks.append(ends)
        start += width
    there = torch.cat(blocks, dim=1)
    return torch.cat([there, there.flip(0)], dim=1)
