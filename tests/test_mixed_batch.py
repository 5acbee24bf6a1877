"""One metanetwork reads MLP, CNN, ResNet, ViT, LSTM and SIREN together, and each as if alone."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from more_networks import ALL_HAZARDS
from networks import as_double, randomise
from small_settings import small_options
from torch import Tensor

import paramgraph as pg
from paramgraph.batch import Entries, GraphBatch, neurons_by_part
from paramgraph.nn import CONFIGS, Metanetwork, make_metanetwork

HAZARDS = {hazard.name: hazard for hazard in ALL_HAZARDS}
KINDS = ("mlp", "strided_cnn", "resnet", "vision_transformer", "lstm", "siren")
TOLERANCE = 1e-8

# Made for networks of one kind, as their line in CONFIGS says; all others read any.
OF_ONE_KIND = {
    *("dws", "nfn-np", "nfn-hnp", "nft", "flat-mlp"),
    *(name for name in CONFIGS if name.endswith(("-inr", "-inr-probes", "-cnn-zoo", "-wild-park"))),
}
READ_ANY = [name for name in CONFIGS if name not in OF_ONE_KIND]
CASES = [(name, level) for name in READ_ANY for level in sorted(CONFIGS[name].kind.levels)]


@functools.cache
def graph_of(kind: str) -> pg.ParamGraph:
    hazard = HAZARDS[kind]
    return pg.capture(hazard.make().double(), as_double(hazard.example_inputs))


@functools.cache
def pair(kind: str, *seeds: int) -> tuple[pg.ParamGraph, pg.Values]:
    graph = graph_of(kind)
    states = [randomise(HAZARDS[kind].make().double(), seed).state_dict() for seed in seeds]
    return graph, graph.features(states)


@functools.cache
def everything() -> GraphBatch:
    return pg.collate([pair(kind, 1, 2) for kind in KINDS])


@functools.cache
def made(name: str, level: str) -> Metanetwork:
    torch.manual_seed(0)
    m = make_metanetwork(name, 2, **small_options(name, level=level)).double().eval()
    m.fit_statistics([everything()])
    return m


def by_network(batch: GraphBatch, output: Tensor | Entries) -> list[list[Tensor]]:
    """The numbers about each network of a batch, in its order."""
    if isinstance(output, Entries):
        found: list[list[Tensor]] = [[] for _ in range(batch.num_networks)]
        for part, values in zip(batch.parts, output.values(batch), strict=True):
            for place, row in enumerate(part.rows.tolist()):
                for value in values:
                    tensors = (*value.blocks, *value.neurons)
                    found[row] += [tensor[place] for tensor in tensors]
        return found
    if len(output) == batch.num_networks:
        return [[row] for row in output]
    found = [[] for _ in range(batch.num_networks)]
    for part, groups in zip(batch.parts, neurons_by_part(batch, output), strict=True):
        for place, row in enumerate(part.rows.tolist()):
            found[row] += [group[place] for group in groups]
    return found


def predict(name: str, level: str, *kinds_and_seeds: tuple[str, int]) -> list[list[Tensor]]:
    batch = pg.collate([pair(kind, seed) for kind, seed in kinds_and_seeds])
    with torch.no_grad():
        return by_network(batch, made(name, level)(batch))


def worst(one: list[Tensor], two: list[Tensor]) -> float:
    assert [t.shape for t in one] == [t.shape for t in two]
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True) if a.numel())


def test_each_setting_says_whether_it_reads_any_network() -> None:
    says = {name for name, config in CONFIGS.items() if "any network" in config.summary}
    assert says == set(READ_ANY)
    assert {"operator", "ng-gnn", "gmn", "gmn-transformer", "statnn", "deepsets"} <= says


@pytest.mark.parametrize(("name", "level"), CASES)
def test_each_network_is_read_as_if_alone(name: str, level: str) -> None:
    networks = [(kind, seed) for kind in KINDS for seed in (1, 2)]
    alone = {row: predict(name, level, row)[0] for row in networks}
    generator = torch.Generator().manual_seed(0)
    batches = [
        networks,  # all
        [networks[n] for n in torch.randperm(len(networks), generator=generator).tolist()],
        [(kind, 1) for kind in reversed(KINDS)],
        *(list(several) for several in itertools.pairwise(networks[::2])),
    ]
    for batch in batches:
        for row, found in zip(batch, predict(name, level, *batch), strict=True):
            assert all(bool(tensor.isfinite().all()) for tensor in found), row
            assert worst(found, alone[row]) < TOLERANCE, (row, batch)
    for kind in KINDS:
        assert worst(alone[kind, 1], alone[kind, 2]) > 1e-6, kind


@functools.cache
def silent(name: str, level: str) -> tuple[str, ...]:
    """Parameters that get no gradient from a mixed batch."""
    m, batch = made(name, level), everything()
    m.zero_grad()
    output = m(batch)
    tensors = [*output.edges, output.neurons] if isinstance(output, Entries) else [output]
    # No symmetric loss: the mean square of what a norm returns has no gradient.
    loss = torch.stack(
        [
            (t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view_as(t)).sum()
            + t.square().sum()
            for t in tensors
        ]
    ).sum()
    loss.backward()
    return tuple(
        parameter
        for parameter, value in m.named_parameters()
        if value.grad is None or not value.grad.isfinite().all() or not value.grad.any()
    )


@pytest.mark.parametrize(("name", "level"), CASES)
def test_every_parameter_learns_from_a_mixed_batch(name: str, level: str) -> None:
    assert silent(name, level) == ()


@pytest.mark.parametrize("name", READ_ANY)
def test_each_kind_of_network_reaches_the_parameters(name: str) -> None:
    """A metanetwork that passed over an architecture would learn from it in its head alone."""
    m = made(name, "graph")
    for kind in KINDS:
        output = m(pg.collate([pair(kind, 1)]))
        gradients = torch.autograd.grad(output.sum(), list(m.parameters()), allow_unused=True)
        moved = sum(bool(gradient.any()) for gradient in gradients if gradient is not None)
        assert moved > len(gradients) / 3, kind
