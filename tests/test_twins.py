"""The slow twins of the benchmarks compute what ours compute: outputs and gradients, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paramgraph as pg
from benchmarks.twin_dense_transformer import DenseTransformerTwin
from benchmarks.twin_layers import InrWeights, Twin
from benchmarks.twin_published import PublishedTwin
from paramgraph.nn import NeuralGraphGNN, NeuralGraphTransformer, make_metanetwork

SIREN = pg.zoo.Siren(widths=(5, 4), in_dim=2, out_dim=1)
NUM_NETWORKS = 3


def networks() -> tuple[pg.GraphBatch, InrWeights]:
    """The same INRs, as ours and as a twin read them; one weight is 0 and keeps its edge."""
    generator = torch.Generator().manual_seed(0)
    state = SIREN.sample_parameters(NUM_NETWORKS, generator)
    state = {name: value.double() for name, value in state.items()}
    state["layers.1.weight"][1, 2, 3] = 0.0
    graph = pg.capture(SIREN.build(), SIREN.example_inputs())
    return pg.collate([(graph, graph.features(state))]), InrWeights.of(state)


def ours(batch: pg.GraphBatch, **options: Any) -> NeuralGraphGNN:
    torch.manual_seed(0)
    metanetwork = make_metanetwork("ng-gnn-inr", 10, hidden_dim=8, **options).double().eval()
    assert isinstance(metanetwork, NeuralGraphGNN)
    metanetwork.fit_statistics([batch])
    with torch.no_grad():  # zeros and ones would hide a place that is read wrongly
        for parameter in metanetwork.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return metanetwork


def twin_of(kind: str, metanetwork: NeuralGraphGNN, batch: pg.GraphBatch) -> Twin:
    if kind == "pyg":
        pytest.importorskip("torch_geometric")
        from benchmarks.twin_pyg import PygTwin

        twin: Twin = PygTwin(metanetwork, SIREN.dims)
    else:
        twin = PublishedTwin(metanetwork, SIREN.dims)
    twin = twin.double().eval()
    twin.load_weights(metanetwork, batch)
    return twin


def gradients(module: nn.Module, read: Any) -> tuple[Tensor, dict[str, Tensor]]:
    out: Tensor = module(read)
    out.square().mean().backward()
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return out, found


@pytest.mark.parametrize("kind", ["published", "pyg"])
def test_a_twin_has_our_outputs_and_gradients(kind: str) -> None:
    batch, weights = networks()
    metanetwork = ours(batch)
    twin = twin_of(kind, metanetwork, batch)
    expected, own = gradients(metanetwork, batch)
    found, of_twin = gradients(twin, weights)
    assert expected.std(0).min() > 1e-6  # networks are told apart
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert len(of_twin) == len(list(twin.parameters()))
    for name, gradient in of_twin.items():
        expected_gradient = twin.from_ours(name, own)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["published", "pyg"])
def test_a_twin_has_as_many_parameters_as_the_paper(kind: str) -> None:
    batch, _ = networks()
    metanetwork = ours(batch)
    twin = twin_of(kind, metanetwork, batch)
    count = [sum(p.numel() for p in m.parameters()) for m in (metanetwork, twin)]
    assert count[0] == count[1]


def test_a_twin_refuses_what_it_has_no_equations_for() -> None:
    batch, _ = networks()
    with pytest.raises(ValueError, match=r"readout='mean'.*use 'ng-gnn-inr'"):
        PublishedTwin(ours(batch, readout="mean"), SIREN.dims)


def transformer(batch: pg.GraphBatch, **options: Any) -> NeuralGraphTransformer:
    torch.manual_seed(0)
    small = {"node_dim": 8, "edge_dim": 4, "num_heads": 2, "num_layers": 3}
    metanetwork = make_metanetwork("ng-t-inr", 10, **small, **options).double().eval()
    assert isinstance(metanetwork, NeuralGraphTransformer)
    metanetwork.fit_statistics([batch])
    with torch.no_grad():
        for parameter in metanetwork.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return metanetwork


def test_the_dense_transformer_has_our_outputs_and_gradients() -> None:
    batch, weights = networks()
    metanetwork = transformer(batch)
    twin = DenseTransformerTwin(copy.deepcopy(metanetwork), SIREN.dims).eval()
    expected, own = gradients(metanetwork, batch)
    found, of_twin = gradients(twin, weights)
    assert expected.std(0).min() > 1e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert len(of_twin) == len(own) == len(list(metanetwork.parameters()))
    for name, gradient in own.items():
        torch.testing.assert_close(of_twin[f"ours.{name}"], gradient, rtol=0, atol=1e-8)


def test_the_dense_transformer_refuses_what_it_has_no_equations_for() -> None:
    batch, _ = networks()
    with pytest.raises(ValueError, match=r"edges='graph'.*use 'ng-t-inr'"):
        DenseTransformerTwin(transformer(batch, edges="graph"), SIREN.dims)
