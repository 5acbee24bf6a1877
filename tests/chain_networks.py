"""Chains that tests of baselines read: layers of any widths with weights of any seed."""

from __future__ import annotations

import itertools

import torch
from networks import by_name, randomise
from torch import Tensor, nn

import paramgraph as pg

__all__ = ["Pair", "collated", "mlp", "mlp_pair", "network"]

Pair = tuple[pg.ParamGraph, dict[str, Tensor]]


def network(name: str) -> tuple[pg.ParamGraph, nn.Module]:
    hazard = by_name(name)
    module = hazard.make().double()
    return pg.capture(hazard.make(), hazard.example_inputs), module


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(widths):
        layers += [nn.Linear(num_in, num_out), act()]
    return nn.Sequential(*layers[:-1])


def mlp_pair(*widths: int, seed: int = 0, act: type[nn.Module] = nn.ReLU) -> Pair:
    module = randomise(mlp(*widths, act=act).double(), seed)
    graph = pg.capture(mlp(*widths, act=act), torch.randn(3, widths[0]))
    return graph, module.state_dict()


def collated(*pairs: Pair) -> pg.GraphBatch:
    return pg.collate([(graph, graph.features(state)) for graph, state in pairs])
