"""Captured networks run again: the same function of other weights and other inputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from more_networks import ALL_HAZARDS
from networks import Wired, as_double, by_name, outputs, vectors
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch.outgoing import outgoing_scales
from paramgraph.capture.running import output_tensors
from paramgraph.testing import ExampleNetwork, hazard_networks
from paramgraph.testing.moves import move_of

NETWORKS = [
    *(ExampleNetwork(f"hazard {row.name}", *row[1:]) for row in hazard_networks()),
    *(ExampleNetwork(h.name, h.make(), h.example_inputs) for h in ALL_HAZARDS),
]
NO_PROGRAM = {"expert_modules": r"cannot run 'aten.nonzero.default' of module 'top level'.*dynamic"}
ONE_LENGTH = {"loop_of_the_data": r"'_local_scalar_dense'|may go another way|module 'top level'"}

_CAPTURED: dict[str, tuple[nn.Module, Any, pg.ParamGraph]] = {}


def _id(row: ExampleNetwork) -> str:
    return row.name


def _double(row: ExampleNetwork) -> tuple[nn.Module, Any, pg.ParamGraph]:
    """The network in float64, its inputs, its graph; captured once."""
    if row.name not in _CAPTURED:
        network, inputs = copy.deepcopy(row.network).double(), as_double(row.example_inputs)
        _CAPTURED[row.name] = network, inputs, pg.capture(network, inputs)
    return _CAPTURED[row.name]


def _other(network: nn.Module, seed: int) -> nn.Module:
    """The network with other weights and running statistics."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
        for name, buffer in other.named_buffers():
            if "running" in name:
                noise = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
                buffer.mul_(1 + noise)
    return other


def _call(function: Any, weights: Any, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return function(weights, **inputs)
    return function(weights, *inputs) if isinstance(inputs, tuple) else function(weights, inputs)


def _error(graph: pg.ParamGraph, networks: list[nn.Module], inputs: Any) -> float:
    """Largest difference between what the networks return and what their graph computes."""
    found = _call(graph.run, [network.state_dict() for network in networks], inputs)
    several = [found] if isinstance(found, Tensor) else list(found)
    worst = 0.0
    for number, network in enumerate(networks):
        expected = [tensor for item in outputs(network, inputs) for tensor in output_tensors(item)]
        for one, all_ in zip(expected, several, strict=True):
            assert one.shape == all_.shape[1:]
            worst = max(worst, float((one - all_[number]).abs().max() / (1 + one.abs().max())))
    return worst


def _elsewhere(inputs: Any, num_samples: int) -> Any:
    """New inputs, of another number of samples; whole numbers are drawn from those given."""
    if isinstance(inputs, dict):
        return {name: _elsewhere(value, num_samples) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_elsewhere(value, num_samples) for value in inputs)
    rows = torch.randint(len(inputs), (num_samples,))
    new = inputs[rows]
    return new + torch.randn_like(new) if new.is_floating_point() else new


@pytest.mark.parametrize("row", NETWORKS, ids=_id)
def test_a_program_is_the_function_of_the_network(row: ExampleNetwork) -> None:
    network, inputs, graph = _double(row)
    networks = [network, _other(network, 1), _other(network, 2)]
    if row.name in NO_PROGRAM:
        with pytest.raises(pg.GraphError, match=NO_PROGRAM[row.name]):
            _error(graph, networks, inputs)
        return
    assert _error(graph, networks, inputs) < 1e-10
    tensors = output_tensors(inputs)
    if row.name in ONE_LENGTH or len({len(tensor) for tensor in tensors}) > 1:
        return
    for num_samples in (1, 2 * len(tensors[0]) + 1):
        assert _error(graph, networks, _elsewhere(inputs, num_samples)) < 1e-10


def test_only_known_networks_are_no_programs_or_of_one_length() -> None:
    rows = {row.name: _double(row)[2].program for row in NETWORKS}
    assert [name for name, program in rows.items() if isinstance(program, str)] == []
    assert [n for n, program in rows.items() if not program.steps.is_flexible] == [*ONE_LENGTH]


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "siren",
        "resnet",
        "flatten",
        "layer_norm",
        "tied",
        "elman",
        "cross_attention",
        "weight_norm",
    ],
)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    row = next(row for row in NETWORKS if row.name == name)
    network, inputs, graph = _double(row)
    state = {layout.name: network.state_dict()[layout.name] for layout in graph.parameters}
    names = list(state)
    several = output_tensors(inputs)
    leaves = [torch.stack([t, 1.1 * t]).requires_grad_() for t in state.values()]
    leaves += [tensor.clone().requires_grad_() for tensor in several]

    def run(*tensors: Tensor) -> Any:
        return graph.run(
            dict(zip(names, tensors[: len(names)], strict=True)), *tensors[len(names) :]
        )

    assert torch.autograd.gradcheck(run, leaves, atol=1e-5, rtol=1e-4)


# Neurons


def test_activations_are_what_the_modules_return() -> None:
    network, _, graph = _double(ExampleNetwork("mlp", by_name("mlp").make(), vectors(4, 3)))
    assert isinstance(network, nn.Sequential)
    points = torch.randn(7, 3, dtype=torch.float64)
    found = graph.activations(network.state_dict(), points)
    expected = [points, network[:2](points), network[:4](points), network(points)]
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert torch.allclose(one[0], other, atol=1e-12)


def test_activations_of_channels_are_summarised_over_positions() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    network = layers.double()
    images = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    graph = pg.capture(network, images)
    state = {name: tensor[None] for name, tensor in network.state_dict().items()}
    found = graph.program.activations(state, (images,), std=True)
    hidden = network[:2](images).flatten(2)
    for values, expected in zip(found, (images.flatten(2), hidden), strict=False):
        assert torch.allclose(values[0, ..., 0], expected.mean(2), atol=1e-12)
        assert torch.allclose(values[0, ..., 1], expected.std(2, correction=0), atol=1e-7)
    assert torch.allclose(found[-1][0, ..., 0], network(images), atol=1e-12)


def test_activations_are_read_behind_all_that_belongs_to_the_neurons() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return x @ n.weight + n.bias

    weight, bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2))
    network = Wired(wiring, weight=weight, bias=bias)
    graph, points = pg.capture(network, vectors(4, 3)), vectors(7, 3)
    found = graph.activations(network.state_dict(), points)[-1]
    assert found is not None
    assert torch.allclose(found[0], network(points), atol=1e-6)


def test_only_wanted_groups_are_computed() -> None:
    network, inputs, graph = _double(ExampleNetwork("mlp", by_name("mlp").make(), vectors(4, 3)))
    state = {name: tensor[None] for name, tensor in network.state_dict().items()}
    every = graph.program.activations(state, inputs)
    wanted = graph.program.activations(
        {
            name: state[name]
            for name in ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
        },
        inputs,
        groups=[1],
    )
    assert [values is None for values in wanted] == [True, False, True, True]
    assert torch.equal(wanted[1], every[1])


def _is_passed_on(graph: pg.ParamGraph, number: int) -> bool:
    """Whether readers see the factor of a neuron as it is (not through a square or a cosine)."""
    passed = outgoing_scales(graph)[number]
    return not passed.is_even and passed.power == 1


@pytest.mark.parametrize("row", NETWORKS, ids=_id)
def test_activations_move_and_scale_with_the_neurons(row: ExampleNetwork) -> None:
    if row.name in NO_PROGRAM:
        pytest.skip("is no program")
    network, inputs, graph = _double(row)
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for scale in (False, True):
        symmetry = graph.sample_symmetry(generator, scale=scale, scale_range=3.0)
        before = _call(graph.activations, state, inputs)
        after = _call(graph.activations, symmetry.apply(state), inputs)
        order = move_of(symmetry, graph, "neuron").index.split(
            [g.size for g in graph.neuron_groups]
        )
        start = 0
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            group = graph.neuron_groups[number]
            if one is not None and other is not None and _is_passed_on(graph, number):
                moved = (one * symmetry.neuron_scale(number))[..., order[number] - start]
                assert torch.allclose(moved, other, rtol=1e-8, atol=1e-9), group.name
            start += group.size


def test_neurons_without_a_tensor_are_none() -> None:
    row = next(row for row in NETWORKS if row.name == "hazard embedding")
    network, inputs, graph = _double(row)
    found = graph.activations(network.state_dict(), inputs)
    names = [g.name for g, values in zip(graph.neuron_groups, found, strict=True) if values is None]
    assert names == ["table.weight.rows"]


@pytest.mark.parametrize("row", NETWORKS, ids=_id)
def test_inputs_and_outputs_always_have_values(row: ExampleNetwork) -> None:
    if row.name in NO_PROGRAM:
        pytest.skip("is no program")
    graph = _double(row)[2]
    places = zip(graph.neuron_groups, graph.program.places, strict=True)
    missing = [
        group.name for group, place in places if place is None and group.kind.value == "output"
    ]
    assert missing == []


# One function, another function


def test_the_digest_depends_on_the_function_alone() -> None:
    def key(offset: float, num: int, seed: int) -> str:
        torch.manual_seed(seed)
        first, head = nn.Linear(2, 5), nn.Linear(5, 1)
        network = Wired(lambda n, x: n.head(n.first(x).sin()) + offset, first=first, head=head)
        return pg.capture(network, torch.randn(num, 2)).function_key

    assert key(0.5, 6, 0) == key(0.5, 9, 1)
    assert key(0.5, 6, 0) != key(0.25, 6, 0)


def test_a_batch_keeps_networks_of_other_functions_apart() -> None:
    def of(pool: nn.Module) -> tuple[pg.ParamGraph, pg.values.Values]:
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 3, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(12, 2))
        network = nn.Sequential(*layers)
        graph = pg.capture(network, torch.randn(3, 1, 6, 6))
        return graph, graph.features(network.state_dict())

    largest, mean, again = of(nn.MaxPool2d(2)), of(nn.AvgPool2d(2)), of(nn.MaxPool2d(2))
    assert largest[0].signature == mean[0].signature
    batch = pg.collate([largest, mean, again])
    assert [part.rows.tolist() for part in batch.parts] == [[0, 2], [1]]
    images = torch.randn(4, 1, 6, 6)
    found = [part.graph.run(part.values, images) for part in batch.parts]
    assert torch.allclose(found[0][0], found[0][1])
    assert not torch.allclose(found[0][0], found[1][0])


# Errors


def _mlp_graph() -> tuple[nn.Module, pg.ParamGraph]:
    hazard = by_name("mlp")
    network = hazard.make()
    return network, pg.capture(network, hazard.example_inputs)


def test_other_inputs_are_refused() -> None:
    network, graph = _mlp_graph()
    match = r"cannot run Sequential on inputs torch.float32 \(7, 2\): expected .*\('M', 3\)"
    with pytest.raises(pg.GraphError, match=match):
        graph.run(network.state_dict(), torch.randn(7, 2))
    with pytest.raises(pg.GraphError, match=r"torch.int64 \(7, 3\): expected torch.float32"):
        graph.run(network.state_dict(), torch.ones(7, 3, dtype=torch.int64))
    with pytest.raises(
        pg.GraphError, match=r"on inputs torch.float32 .*, torch.float32 .*: expected"
    ):
        graph.run(network.state_dict(), torch.randn(7, 3), torch.randn(7, 3))


def test_other_parameters_are_refused() -> None:
    network, graph = _mlp_graph()
    state = {name: tensor[None] for name, tensor in network.state_dict().items()}
    points = (torch.randn(7, 3),)
    with pytest.raises(pg.GraphError, match=r"Sequential: parameter '0\.weight' is missing"):
        graph.program.run({n: t for n, t in state.items() if n != "0.weight"}, points)
    with pytest.raises(pg.GraphError, match=r"'2.bias' has shape \(2, 4\), expected \('B', 4\)"):
        graph.program.run({**state, "2.bias": state["2.bias"].expand(2, -1)}, points)


def test_a_graph_that_was_not_captured_is_not_run() -> None:
    network, graph = _mlp_graph()
    with pytest.raises(
        pg.GraphError, match=r"Sequential cannot be run .*: it was not made by capture"
    ):
        replace(graph, program=None).run(network.state_dict(), torch.randn(7, 3))
    with pytest.raises(
        pg.GraphError, match=r"Sequential cannot be run .*: it burnt. Use a metanet"
    ):
        replace(graph, program="it burnt").activations(network.state_dict(), torch.randn(7, 3))


class _Turns(nn.Module):
    """Goes another way when its input or its weights say so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return hidden.relu() if float(hidden.sum().detach()) > 0 else hidden.tanh()


def test_a_network_whose_way_depends_on_numbers_is_captured_but_not_run() -> None:
    torch.manual_seed(0)
    network = _Turns()
    graph = pg.capture(network, torch.randn(4, 3))
    assert graph.num_parameters == 8
    with pytest.raises(pg.GraphError, match=r"cannot run 'aten._local_scalar_dense.default'"):
        graph.run(network.state_dict(), torch.randn(4, 3))


class _Threshold(nn.Module):
    """Goes another way when its input says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return hidden.relu() if int((x > 0).sum()) == 12 else hidden.tanh()


def test_a_network_whose_way_depends_on_inputs_runs_on_inputs_like_those_recorded() -> None:
    network = _Threshold().double()
    graph = pg.capture(network, torch.ones(4, 3, dtype=torch.float64))
    points = torch.rand(4, 3, dtype=torch.float64) + 0.1
    found = graph.run(network.state_dict(), points)
    assert torch.allclose(found[0], network(points))
    with pytest.raises(pg.GraphError, match=r"reads the number 0 .* was 12 on the example inputs"):
        graph.run(network.state_dict(), -points)


def test_keyword_inputs_are_taken_by_name() -> None:
    def wiring(n: Any, left: Tensor, right: Tensor) -> Tensor:
        return n.one(left) - n.two(right)

    network = Wired(wiring, one=nn.Linear(3, 2), two=nn.Linear(3, 2))
    left, right = vectors(4, 3), vectors(4, 3, seed=1)
    graph = pg.capture(network, {"left": left, "right": right})
    found = graph.run(network.state_dict(), right=right, left=left)
    assert torch.allclose(found[0], network(left=left, right=right), atol=1e-6)


class _Shifted(nn.Module):
    """Adds a constant."""

    extra: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.register_buffer("extra", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.extra


def test_the_program_holds_no_memory_of_the_network() -> None:
    shift = torch.ones(2)
    network = Wired(lambda n, x: n.first(x) + shift, first=nn.Linear(3, 2))
    graph, points = pg.capture(network, vectors(4, 3)), vectors(5, 3)
    before = graph.run(network.state_dict(), points)
    shift.zero_()
    assert torch.equal(graph.run(network.state_dict(), points), before)


def test_a_network_on_the_meta_device_runs_unless_it_lacks_constants() -> None:
    points = torch.randn(5, 3)
    network: nn.Module
    for network, lacks in ((nn.Linear(3, 2), False), (_Shifted(), True)):
        state = {n: t for n, t in network.state_dict().items() if n != "extra"}
        graph = pg.capture(copy.deepcopy(network).to("meta"), torch.randn(4, 3, device="meta"))
        if lacks:
            with pytest.raises(pg.GraphError, match="captured without the values of its constants"):
                graph.run(state, points)
        else:
            assert torch.allclose(graph.run(state, points)[0], network(points), atol=1e-6)


def test_types_change_as_they_were_recorded() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        bins = (2 * x[:, 0]).floor().clamp(0, 3).to(torch.int64)
        half = n.head(x).to(torch.float16).to(torch.float32)
        return half + n.table(bins)

    network = Wired(wiring, head=nn.Linear(3, 2), table=nn.Embedding(4, 2))
    points = 2 * torch.rand(9, 3)
    graph = pg.capture(network, points, check=False)
    found = graph.run(network.state_dict(), points)
    assert torch.equal(found[0], network(points))
