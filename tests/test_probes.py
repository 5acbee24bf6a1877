"""Probe features and the probing metanetwork: learned inputs, what neurons answer, laws."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from more_networks import ALL_HAZARDS
from networks import Wired, by_name, make_hazard, vectors
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import neurons_by_part
from paramgraph.nn import NeuralGraphGNN
from paramgraph.nn.probes import Generator, ProbeEncoder, ProbePoints
from paramgraph.nn.probing import ProbingMetanetwork
from paramgraph.testing import check_metanetwork, hazard_networks
from paramgraph.testing.moves import move_of

GENERATORS: tuple[Generator, ...] = ("free", "deep-linear")
HAZARDS = hazard_networks()


def _captured(network: nn.Module, inputs: Any) -> tuple[pg.ParamGraph, pg.values.Values]:
    graph = pg.capture(network, inputs)
    return graph, graph.features(network.state_dict())


def _points(points: ProbePoints, network: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    made = points(pg.capture(network, inputs).program, torch.float32)
    return tuple(tensor.detach() for tensor in made)


def _table(points: ProbePoints) -> Tensor:
    assert points.table is not None
    return points.table.detach()


def _all_hazards() -> list[tuple[pg.ParamGraph, pg.values.Values]]:
    return [
        _captured(copy.deepcopy(row.network).double(), _double(row.example_inputs))
        for row in HAZARDS
    ]


def _double(inputs: Any) -> Any:
    if isinstance(inputs, tuple):
        return tuple(map(_double, inputs))
    return inputs.double() if inputs.is_floating_point() else inputs


# Learned inputs


@pytest.mark.parametrize("generator", GENERATORS)
def test_one_set_of_probes_fits_every_architecture(generator: Generator) -> None:
    points = ProbePoints(5, generator=generator)
    known = {name: value.clone() for name, value in points.state_dict().items()}
    for hazard in ALL_HAZARDS:
        program = pg.capture(hazard.make(), hazard.example_inputs, check=False).program
        made = points(program, torch.float64)
        shapes = [
            (5, *shape) if row.has_samples else shape
            for row, shape in zip(program.inputs, program.input_shapes, strict=True)
        ]
        assert [tuple(one.shape) for one in made] == shapes
        for row, one in zip(program.inputs, made, strict=True):
            assert one.dtype == (torch.float64 if row.dtype.is_floating_point else row.dtype)
    assert all(torch.equal(points.state_dict()[name], value) for name, value in known.items())


def test_free_points_of_vectors_are_the_table() -> None:
    points = ProbePoints(64, num_channels=4)
    table = _table(points)
    assert float(table.min()) < -0.9
    assert float(table.max()) > 0.9
    assert float(table.abs().max()) <= 1.0
    (made,) = _points(points, nn.Linear(3, 2), vectors(4, 3))
    assert torch.equal(made, table[:, :3])


@pytest.mark.parametrize("generator", GENERATORS)
def test_points_start_as_large_as_uniform_ones(generator: Generator) -> None:
    points = ProbePoints(256, generator=generator)
    (vector,) = _points(points, nn.Linear(16, 2), vectors(4, 16))
    assert 0.45 < float(vector.std()) < 0.7  # of U(-1, 1): 0.577
    (image,) = _points(points, nn.Conv2d(3, 2, 3), vectors(2, 3, 12, 12))
    assert 0.45 < float(image.std()) < 1.2


def test_inputs_beyond_the_table_are_told_apart() -> None:
    points = ProbePoints(5, num_channels=4)
    (made,) = _points(points, nn.Linear(10, 2), vectors(4, 10))
    assert torch.equal(made[:, :4], _table(points))
    for one in range(10):
        for other in range(one):
            assert float((made[:, one] - made[:, other]).abs().max()) > 0.1
    flat = ProbePoints(5, num_channels=4, num_waves=0)
    (made,) = _points(flat, nn.Linear(10, 2), vectors(4, 10))
    assert torch.equal(made[:, 4:8], _table(flat))


def test_images_are_smooth_functions_of_the_position_at_any_resolution() -> None:
    points = ProbePoints(4)
    (small,) = _points(points, nn.Conv2d(3, 2, 3), vectors(2, 3, 5, 5))
    (large,) = _points(points, nn.Conv2d(3, 2, 3), vectors(2, 3, 9, 9))
    assert torch.allclose(small, large[:, :, ::2, ::2], atol=1e-6)
    assert torch.allclose(small[:, :, 2, 2], _table(points)[:, :3], atol=1e-6)
    assert float(small.std((2, 3)).min()) > 0.05
    (fine,) = _points(points, nn.Conv2d(3, 2, 3), vectors(2, 3, 101, 101))
    step = (fine[:, :, 1:] - fine[:, :, :-1]).abs().max()
    assert float(step) < 0.5


def test_channels_lie_on_the_axis_that_the_network_reads() -> None:
    points = ProbePoints(4)
    (last,) = _points(points, nn.Sequential(nn.Linear(3, 2)), vectors(2, 7, 3))
    assert last.shape == (4, 7, 3)
    assert torch.allclose(
        last[:, 3], _table(points)[:, :3], atol=1e-6
    )  # the middle of the sequence


def test_each_input_has_channels_of_its_own() -> None:
    hazard = by_name("two_inputs")
    points = ProbePoints(4)
    left, right = _points(points, hazard.make(), hazard.example_inputs)
    assert torch.equal(torch.cat([left, right], dim=1), _table(points)[:, :5])


def test_token_ids_are_fixed_draws_from_the_whole_table() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 2))
    examples = torch.randint(3, (4, 3))
    (made,) = _points(ProbePoints(400), network, examples)
    (again,) = _points(ProbePoints(400), network, examples)
    assert made.dtype == torch.int64
    assert torch.equal(made, again)
    assert sorted(made.unique().tolist()) == list(range(50))


def test_whole_numbers_that_no_table_is_read_with_stay_within_the_examples() -> None:
    def wiring(n: Any, x: Tensor, mask: Tensor) -> Tensor:
        return n.head(torch.relu(n.first(x)) * mask)

    network = Wired(wiring, first=nn.Linear(3, 4), head=nn.Linear(4, 2))
    inputs = vectors(4, 3), torch.tensor([[0], [1], [1], [1]])
    _, mask = _points(ProbePoints(100), network, inputs)
    assert sorted(mask.unique().tolist()) == [0, 1]


def test_unknown_generators_and_empty_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="generator must be 'free' or 'deep-linear', got 'deep'"):
        ProbePoints(4, generator="deep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be 1 or more, got 0 and 16"):
        ProbePoints(0)
    with pytest.raises(ValueError, match="num_layers must be 1 or more, got 0"):
        ProbeEncoder(4, 8, num_layers=0)
    with pytest.raises(ValueError, match="num_layers must be 2 or more, got 1"):
        ProbingMetanetwork(4, num_layers=1)


# Features of neurons


def test_parameters_are_as_many_as_published() -> None:
    def count(dim: int) -> int:
        return sum(p.numel() for p in ProbeEncoder.published(64, dim).parameters())

    assert count(32) == 100_714 - 92_010
    assert count(64) == 393_866 - 376_586


def test_published_features_equal_those_made_by_hand(float64: torch.dtype) -> None:
    make = by_name("siren").make
    networks = [make().double() for _ in range(3)]
    for number, network in enumerate(networks):
        for parameter in network.parameters():
            parameter.data += 0.1 * number * torch.randn_like(parameter)
    graph = pg.capture(networks[0], torch.randn(6, 2))
    batch = pg.collate([(graph, graph.features([n.state_dict() for n in networks]))])
    encoder = ProbeEncoder.published(16, 8)
    found = neurons_by_part(batch, encoder(batch))[0]
    points = _table(encoder.points)
    for row, network in enumerate(networks):
        first: Tensor = torch.sin(30.0 * network.get_submodule("first")(points))
        second = torch.sin(30.0 * network.get_submodule("second")(first))
        answers = [points, first, second, network(points)]
        # The last output counts first.
        for values, layer, group in zip(answers, list(encoder.layers)[::-1], found, strict=True):
            expected = layer(values.T)
            assert torch.allclose(group[row], expected, atol=1e-10)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("generator", GENERATORS)
def test_features_move_with_the_neurons(generator: Generator, num_layers: int) -> None:
    encoder = ProbeEncoder(6, 8, generator=generator, num_layers=num_layers).double()
    source = torch.Generator().manual_seed(0)
    for row, (graph, values) in zip(HAZARDS, _all_hazards(), strict=True):
        symmetry = graph.sample_symmetry(source)
        moved = graph.features(symmetry.apply(_state(row.network)))
        order = move_of(symmetry, graph, "neuron").index
        before, after = (encoder(pg.collate([(graph, v)])) for v in (values, moved))
        # Rows of one network by levels are its groups in order.
        assert torch.allclose(before[order], after, atol=1e-9), row.name
        if any(group.free and group.size > 1 for group in graph.axis_groups):
            assert not torch.allclose(before, after, atol=1e-3), row.name


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in network.state_dict().items()}


def test_features_do_not_depend_on_the_batch() -> None:
    several = _all_hazards()
    encoder = ProbeEncoder(6, 8, num_layers=2).double()
    together = pg.collate(several)
    found = neurons_by_part(together, encoder(together))
    for part, groups in zip(together.parts, found, strict=True):
        alone = pg.collate([(part.graph, part.values)])
        expected = neurons_by_part(alone, encoder(alone))[0]
        for one, other in zip(groups, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-10)


def test_neurons_without_values_have_no_features() -> None:
    row = next(row for row in HAZARDS if row.name == "embedding")
    graph, values = _captured(copy.deepcopy(row.network).double(), row.example_inputs)
    batch = pg.collate([(graph, values)])
    groups = neurons_by_part(batch, ProbeEncoder(6, 8).double()(batch))[0]
    empty = [g.name for g, f in zip(graph.neuron_groups, groups, strict=True) if not f.any()]
    assert empty == ["table.weight.rows"]


@pytest.mark.parametrize("generator", GENERATORS)
def test_gradients_reach_probes_and_weights(generator: Generator) -> None:
    encoder = ProbeEncoder(4, 8, generator=generator, num_layers=3).double()
    hazard = by_name("strided_cnn")
    graph = pg.capture(hazard.make().double(), _double(hazard.example_inputs))
    state = {name: t.double().requires_grad_() for name, t in hazard.make().state_dict().items()}
    batch = pg.collate([(graph, graph.features(state))])
    encoder(batch).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert all(t.grad is not None and bool(t.grad.any()) for t in state.values())


def test_graph_networks_read_probes_and_keep_their_laws() -> None:
    torch.manual_seed(0)
    metanetwork = NeuralGraphGNN(
        2, hidden_dim=8, num_layers=2, num_frequencies=8, num_probes=8, level="parameter"
    )
    report = check_metanetwork(metanetwork, HAZARDS)
    assert report.passed, str(report)


def test_a_network_that_cannot_be_run_is_refused() -> None:
    hazard = next(hazard for hazard in ALL_HAZARDS if hazard.name == "expert_modules")
    batch = pg.collate([_captured(hazard.make(), hazard.example_inputs)])
    match = r"cannot probe 'Wired': cannot run 'aten.nonzero.default'.* without|has no probes"
    for metanetwork in (ProbeEncoder(4, 8), ProbingMetanetwork(2)):
        with pytest.raises(pg.BatchError, match=match):
            metanetwork(batch)


# The probing metanetwork


@pytest.mark.parametrize("generator", GENERATORS)
def test_all_laws_hold(generator: Generator) -> None:
    torch.manual_seed(0)
    metanetwork = ProbingMetanetwork(2, num_probes=64, hidden_dim=32, generator=generator)
    report = check_metanetwork(metanetwork, HAZARDS)
    assert report.passed, str(report)
    for law in ("permutation", "sign", "scale", "phase", "combined"):
        assert any(row.applies for row in report.of(law)), law


def test_laws_hold_where_all_networks_have_as_many_outputs() -> None:
    torch.manual_seed(0)
    chosen = [row for row in HAZARDS if row.name in ("mlp", "siren", "residual", "batch_norm")]
    metanetwork = ProbingMetanetwork(2, num_probes=32, hidden_dim=16, num_outputs=2, std=False)
    report = check_metanetwork(metanetwork, [row for row in chosen if row.name != "siren"])
    assert report.passed, str(report)
    batch = pg.collate([_captured(row.network, row.example_inputs) for row in chosen])
    match = "made for networks with 2 outputs, but 'Wired' has 1: use num_outputs=None"
    with pytest.raises(pg.BatchError, match=match):
        metanetwork(batch)


def test_the_order_of_outputs_counts() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 100))
    graph = pg.capture(network, torch.randn(4, 3))
    state = network.state_dict()
    order = torch.randperm(100)
    other = {**state, "2.weight": state["2.weight"][order], "2.bias": state["2.bias"][order]}
    metanetwork = ProbingMetanetwork(2, num_probes=8, hidden_dim=16)
    one, two = metanetwork(pg.collate([(graph, graph.features([state, other]))])).detach()
    assert float((one - two).abs().max()) > 1e-4


def test_predictions_are_in_the_order_of_the_batch() -> None:
    torch.manual_seed(0)
    a, b = (make_hazard(n, by_name(n).make, by_name(n).example_inputs) for n in ("mlp", "siren"))
    pairs = [_captured(h.make(), h.example_inputs) for h in (a, b, a)]
    pairs[2] = (
        pairs[0][0],
        pg.values.Values(*(tuple(2 * t for t in s) for s in _both(pairs[0][1]))),
    )
    metanetwork = ProbingMetanetwork(2, num_probes=8, hidden_dim=16)
    together = metanetwork(pg.collate(pairs))
    for row, pair in zip(together, pairs, strict=True):
        assert torch.allclose(row, metanetwork(pg.collate([pair]))[0], atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def _both(values: pg.values.Values) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return values.blocks, values.neurons


def test_statistics_bring_outputs_to_unit_scale() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = pg.capture(network, torch.randn(4, 3))
    state = network.state_dict()
    louder = {**state, "2.weight": 1000 * state["2.weight"], "2.bias": 1000 * state["2.bias"] + 500}
    batches = [pg.collate([(graph, graph.features(one))]) for one in (state, louder)]
    metanetworks = []
    for batch in batches:
        torch.manual_seed(1)
        metanetworks.append(ProbingMetanetwork(2, num_probes=8, hidden_dim=16))
        metanetworks[-1].fit_statistics([batch])
    one, two = (m(batch) for m, batch in zip(metanetworks, batches, strict=True))
    assert float(metanetworks[1].spread / metanetworks[0].spread) == pytest.approx(1000, rel=1e-3)
    assert torch.allclose(one, two, atol=1e-4)


def test_an_architecture_of_another_function_gets_answers_of_its_own() -> None:
    torch.manual_seed(0)
    first, head = nn.Conv2d(1, 3, 3), nn.Linear(12, 2)

    def of(pool: nn.Module) -> tuple[pg.ParamGraph, pg.values.Values]:
        layers = (first, nn.ReLU(), pool, nn.Flatten(), head)
        return _captured(nn.Sequential(*layers), vectors(3, 1, 6, 6))

    pairs = [of(pool) for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2))]
    assert len({graph.signature for graph, _ in pairs}) == 1
    found = ProbingMetanetwork(2, num_probes=8, hidden_dim=16)(pg.collate(pairs))
    assert torch.allclose(found[0], found[2], atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-4)
