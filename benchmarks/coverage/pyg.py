"""Convolutions of PyTorch Geometric: two layers on one small random graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.architecture import Architecture

__all__ = ["ARCHITECTURES"]

_NUM_NODES, _NUM_EDGES, _IN, _HIDDEN, _OUT, _EDGE_DIM, _KINDS = 7, 20, 5, 8, 8, 3, 2

#: Name of a layer to how it is made from the module ``torch_geometric.nn`` and two widths.
_LAYERS: dict[str, Callable[[Any, int, int], nn.Module]] = {
    "GCNConv": lambda pyg, a, b: pyg.GCNConv(a, b),
    "SAGEConv": lambda pyg, a, b: pyg.SAGEConv(a, b),
    "SAGEConv, max": lambda pyg, a, b: pyg.SAGEConv(a, b, aggr="max", project=True),
    "GATConv": lambda pyg, a, b: pyg.GATConv(a, b // 2, heads=2),
    "GATv2Conv": lambda pyg, a, b: pyg.GATv2Conv(a, b // 2, heads=2),
    "TransformerConv": lambda pyg, a, b: pyg.TransformerConv(a, b // 2, heads=2, beta=True),
    "SuperGATConv": lambda pyg, a, b: pyg.SuperGATConv(a, b // 2, heads=2),
    "GINConv": lambda pyg, a, b: pyg.GINConv(_mlp(a, b), train_eps=True),
    "GraphConv": lambda pyg, a, b: pyg.GraphConv(a, b),
    "ChebConv": lambda pyg, a, b: pyg.ChebConv(a, b, K=3),
    "GatedGraphConv": lambda pyg, a, b: pyg.GatedGraphConv(b, num_layers=2),
    "ResGatedGraphConv": lambda pyg, a, b: pyg.ResGatedGraphConv(a, b),
    "PNAConv": lambda pyg, a, b: pyg.PNAConv(
        a, b, ["mean", "max", "std"], ["identity", "amplification"], torch.tensor([0, 2, 3, 2])
    ),
    "TAGConv": lambda pyg, a, b: pyg.TAGConv(a, b, K=2),
    "SGConv": lambda pyg, a, b: pyg.SGConv(a, b, K=2),
    "SSGConv": lambda pyg, a, b: pyg.SSGConv(a, b, alpha=0.3, K=2),
    "ARMAConv": lambda pyg, a, b: pyg.ARMAConv(a, b, num_stacks=2, num_layers=2),
    "LEConv": lambda pyg, a, b: pyg.LEConv(a, b),
    "ClusterGCNConv": lambda pyg, a, b: pyg.ClusterGCNConv(a, b),
    "MFConv": lambda pyg, a, b: pyg.MFConv(a, b, max_degree=3),
    "EdgeConv": lambda pyg, a, b: pyg.EdgeConv(_mlp(2 * a, b)),
    "FeaStConv": lambda pyg, a, b: pyg.FeaStConv(a, b, heads=2),
    "FiLMConv": lambda pyg, a, b: pyg.FiLMConv(a, b),
    "GENConv": lambda pyg, a, b: pyg.GENConv(a, b, learn_t=True),
    "EGConv": lambda pyg, a, b: pyg.EGConv(a, b, num_heads=2, num_bases=3),
    "GeneralConv": lambda pyg, a, b: pyg.GeneralConv(a, b, attention=True, heads=2),
    "MixHopConv": lambda pyg, a, b: pyg.MixHopConv(a, b // 2, powers=[0, 1]),
    "AntiSymmetricConv": lambda pyg, a, b: pyg.AntiSymmetricConv(a),
    "DirGNNConv": lambda pyg, a, b: pyg.DirGNNConv(pyg.SAGEConv(a, b)),
}

#: Layers that read features of edges.
_EDGE_LAYERS: dict[str, Callable[[Any, int, int], nn.Module]] = {
    "GINEConv": lambda pyg, a, b: pyg.GINEConv(_mlp(a, b), edge_dim=_EDGE_DIM),
    "NNConv": lambda pyg, a, b: pyg.NNConv(a, b, _mlp(_EDGE_DIM, a * b)),
    "CGConv": lambda pyg, a, b: pyg.CGConv(a, dim=_EDGE_DIM),
    "PDNConv": lambda pyg, a, b: pyg.PDNConv(a, b, edge_dim=_EDGE_DIM, hidden_channels=4),
    "GMMConv": lambda pyg, a, b: pyg.GMMConv(a, b, dim=_EDGE_DIM, kernel_size=2),
    "GATConv, edge features": lambda pyg, a, b: pyg.GATConv(a, b // 2, 2, edge_dim=_EDGE_DIM),
}

#: Layers that read the kind of each edge.
_KIND_LAYERS: dict[str, Callable[[Any, int, int], nn.Module]] = {
    "RGCNConv": lambda pyg, a, b: pyg.RGCNConv(a, b, num_relations=_KINDS),
    "RGCNConv, bases": lambda pyg, a, b: pyg.RGCNConv(a, b, num_relations=_KINDS, num_bases=2),
}

#: Layers whose input and output are equally wide.
_SAME_WIDTH = {"AntiSymmetricConv", "CGConv"}


class _Stack(nn.Module):
    """Two layers with a ReLU between them."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, features: Tensor, *edges: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(features, *edges)), *edges)


def _mlp(in_dim: int, out_dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_dim, 6), nn.ReLU(), nn.Linear(6, out_dim))


def _build(
    make: Callable[[Any, int, int], nn.Module],
    same_width: bool,
    edge_inputs: Callable[[], tuple[Tensor, ...]],
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import torch_geometric.nn as pyg

    in_dim = _HIDDEN if same_width else _IN
    network = _Stack(make(pyg, in_dim, _HIDDEN), make(pyg, _HIDDEN, _OUT)).eval()
    # Every node has an edge, and no edge is a loop.
    sender = torch.cat([torch.arange(_NUM_NODES), torch.randint(_NUM_NODES, (_NUM_EDGES - 7,))])
    receiver = (sender + torch.randint(1, _NUM_NODES, sender.shape)) % _NUM_NODES
    features = torch.randn(_NUM_NODES, in_dim)
    return network, (features, torch.stack([sender, receiver]), *edge_inputs())


def _rows(
    layers: dict[str, Callable[[Any, int, int], nn.Module]],
    edge_inputs: Callable[[], tuple[Tensor, ...]],
) -> list[Architecture]:
    return [
        Architecture(
            name,
            "convolutions on graphs",
            functools.partial(_build, make, name in _SAME_WIDTH, edge_inputs),
        )
        for name, make in layers.items()
    ]


ARCHITECTURES: list[Architecture] = [
    *_rows(_LAYERS, tuple),
    *_rows(_EDGE_LAYERS, lambda: (torch.rand(_NUM_EDGES, _EDGE_DIM),)),
    *_rows(_KIND_LAYERS, lambda: (torch.randint(_KINDS, (_NUM_EDGES,)),)),
]
