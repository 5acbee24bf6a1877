"""NG-GNN as published: parameter counts, padded kernels, small tables; and a start that stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import by_name, randomise
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import GraphBatch
from paramgraph.nn import NeuralGraphGNN
from paramgraph.nn.encoders import EdgeEncoder, NeuronEncoder
from paramgraph.nn.padded_kernels import PaddedKernelBasis, kernel_slots
from paramgraph.structure import Activation, EdgeKind

PAPER: dict[str, Any] = {"num_frequencies": 128, "sigma": 3.0, "kind_embedding": False}
INR = {
    **PAPER,
    "dropout": 0.2,
    "readout": "outputs",
    "activation_embedding": False,
    "max_inputs": 2,
    "max_hidden_layers": 2,
    "max_outputs": 1,
}
CNN_ZOO = {
    **PAPER,
    "hidden_dim": 256,
    "readout": "outputs",
    "num_outputs": 10,
    "reverse_edges": False,
    "linear_as_conv": False,
    "max_kernel": (3, 3),
    "max_inputs": 1,
    "max_hidden_layers": 3,
    "max_outputs": 10,
    "num_activations": 7,
}
INR_PROBES: dict[str, Any] = {
    **INR,
    "num_probes": 64,
    "probe_options": {"num_layers": 4, "std": False, "num_channels": 2, "num_waves": 0},
}
WILD_PARK = {
    **CNN_ZOO,
    "hidden_dim": 64,
    "linear_as_conv": True,
    "max_kernel": (7, 7),
    "max_inputs": 3,
    "max_hidden_layers": 5,
}


def count(m: nn.Module) -> int:
    return sum(parameter.numel() for parameter in m.parameters())


def batch_of(*names: str) -> GraphBatch:
    pairs = []
    for name in names:
        hazard = by_name(name)
        graph = pg.capture(hazard.make(), hazard.example_inputs)
        network = randomise(hazard.make().double(), 1)
        pairs.append((graph, graph.features(network.state_dict())))
    return pg.collate(pairs)


def of(network: nn.Module, *shape: int) -> GraphBatch:
    graph = pg.capture(network, torch.randn(3, *shape))
    return pg.collate([(graph, graph.features(network.double().state_dict()))])


# --- counts


@pytest.mark.parametrize(
    ("options", "out_dim", "published"),
    [
        (INR, 10, 92_010),
        (INR_PROBES, 10, 100_714),
        (CNN_ZOO, 1, 5_587_969),
        (WILD_PARK, 1, 369_025),
    ],
)
def test_parameter_counts_are_the_published_ones(
    options: dict[str, Any], out_dim: int, published: int
) -> None:
    assert count(NeuralGraphGNN(out_dim, **options)) == published


def test_what_the_default_adds_to_the_published_layout() -> None:
    """Tables for networks of any kind, and a vector per kind of edge; the rest is the paper's."""
    added = "activation_embedding kind_embedding max_inputs max_hidden_layers max_outputs".split()
    full = NeuralGraphGNN(10, **{key: value for key, value in INR.items() if key not in added})
    rows = (64 + 256 + 256) - (2 + 2 + 1)  # positions: depths, inputs, outputs
    rows += len(Activation) + len(EdgeKind)
    assert count(full) == 92_010 + rows * 32


@pytest.mark.parametrize("options", [CNN_ZOO, WILD_PARK])
def test_the_published_settings_read_their_networks(options: dict[str, Any]) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(options["max_inputs"], 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.Conv2d(4, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    )
    batch = of(network, options["max_inputs"], 12, 12)
    m = NeuralGraphGNN(1, **{**options, "hidden_dim": 16}).double().eval()
    m.fit_statistics([batch])
    assert m(batch).isfinite().all()


# --- a start that stays


def test_the_default_start_and_prediction_have_not_moved() -> None:
    """Published numbers were measured from this start; options must not draw before it."""
    torch.manual_seed(0)
    m = NeuralGraphGNN(2, hidden_dim=8)
    sums = {name: float(value.double().sum()) for name, value in m.state_dict().items()}
    assert len(sums) == 101
    expected = {
        "head.0.weight": -0.685278,
        "head.5.weight": 1.760712,
        "layers.0.film.weight": -4.776993,
        "layers.3.out.weight": -3.85662,
        "neuron_encoder.outputs.weight": 7.46422,
        "edge_encoder.kind.weight": 0.251362,
    }
    assert {name: sums[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    predicted = [[0.347399, 0.128434], [0.443585, -0.310941]]
    predicted += [[0.063252, -0.137983], [2.560299, -0.425654]]
    batch = batch_of("mlp", "strided_cnn", "resnet", "siren")
    m = m.double().eval()
    m.fit_statistics([batch])
    assert torch.allclose(m(batch), torch.tensor(predicted, dtype=torch.float64), atol=1e-4)


# --- padded kernels


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3), (3, 2), (2, 2), (1, 4), (3, 5)])
def test_slots_are_those_of_a_padded_kernel(kernel: tuple[int, int]) -> None:
    """Zeros around the kernel, half of them (rounded down) before it, flattened."""
    size = (3, 5)
    weight = torch.randn(kernel)
    missing = [whole - part for whole, part in zip(size, kernel, strict=True)]
    (top, left), (bottom, right) = [m // 2 for m in missing], [m - m // 2 for m in missing]
    padded = nn.functional.pad(weight, (left, right, top, bottom))
    directions = torch.randn(15, 6)
    rows, columns = kernel
    positions = tuple(
        (r - (rows - 1) / 2, c - (columns - 1) / 2) for r in range(rows) for c in range(columns)
    )
    basis = PaddedKernelBasis(directions, size)(positions, weight)
    assert torch.allclose(weight.reshape(-1) @ basis, padded.reshape(-1) @ directions, atol=1e-6)


def test_edge_features_are_those_of_padded_and_doubled_kernels() -> None:
    """Forward (w, 0, w), backward (0, w, w), padded to 5 x 5, through two linear maps."""
    batch = batch_of("mlp", "strided_cnn")
    torch.manual_seed(0)
    m = NeuralGraphGNN(1, hidden_dim=8, num_frequencies=0, max_kernel=(5, 5)).double()
    encoder = m.edge_encoder
    found = encoder(batch, m.standardizer)
    for direction, expected in enumerate(found):
        assert expected is not None
        for bucket, part in zip(batch.buckets, batch.split_edges(expected), strict=True):
            values = m.standardizer.edges(bucket)
            padded = values.new_zeros(*values.shape[:-1], 25)
            padded[..., kernel_slots(bucket.positions, (5, 5))] = values
            zeros = torch.zeros_like(padded)
            three = [padded, zeros, padded] if direction == 0 else [zeros, padded, padded]
            features = encoder.map(encoder.lift(torch.cat(three, dim=-1)))
            assert encoder.kind is not None
            features = features + encoder.kind.weight[0 if bucket.kind.value == "linear" else 1]
            assert torch.allclose(features.flatten(0, 1).flatten(0, 2), part.flatten(0, 2))


def test_kernels_beyond_the_largest_are_refused() -> None:
    m = NeuralGraphGNN(1, max_kernel=(3, 3)).double()
    batch = of(nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(1), nn.Linear(2, 1)), 1, 5, 5)
    with pytest.raises(pg.BatchError, match=r"kernel of 5 x 5 does not fit max_kernel=\(3, 3\)"):
        m(batch)
    assert NeuralGraphGNN(1, max_kernel=(5, 5)).double()(batch).shape == (1, 1)


# --- one option each


def test_answers_to_probes_are_added_to_the_values_of_neurons() -> None:
    batch = batch_of("mlp", "siren")
    torch.manual_seed(0)
    m = NeuralGraphGNN(1, hidden_dim=8, num_probes=4, position_embedding=False).double()
    encoder = m.neuron_encoder
    assert encoder.probes is not None
    with torch.no_grad():
        answers = encoder.probes(batch)
        told = encoder(batch, m.standardizer)
        encoder.probes = None
        plain = encoder(batch, m.standardizer)
    assert float(answers.abs().amax(1).min()) > 1e-3
    torch.testing.assert_close(told - plain, answers @ encoder.map.weight.T, rtol=0, atol=1e-10)


def test_probes_start_as_inputs_not_as_weights() -> None:
    """The start of linear maps does not touch the maps that make probes."""
    m = NeuralGraphGNN(1, num_probes=4, probe_options={"generator": "deep-linear"})
    probes = m.neuron_encoder.probes
    assert probes is not None
    assert probes.points.maps is not None
    first = probes.points.maps[0].weight
    assert isinstance(first, Tensor)
    assert torch.allclose(first @ first.T, torch.eye(len(first)), atol=1e-5)


def test_networks_that_cannot_be_run_are_refused_with_probes_only() -> None:
    batch = batch_of("mlp")
    graph = replace(batch.parts[0].graph, program="it is a test")
    batch = pg.collate([(graph, batch.parts[0].values)])
    assert NeuralGraphGNN(1).double()(batch).shape == (1, 1)
    with pytest.raises(pg.BatchError, match=r"cannot probe .* \(it is a test\)"):
        NeuralGraphGNN(1, num_probes=2).double()(batch)


@pytest.mark.parametrize("max_kernel", [None, (3, 3)])
def test_plain_matrices_may_have_maps_of_their_own(max_kernel: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    m = NeuralGraphGNN(1, hidden_dim=8, linear_as_conv=False, max_kernel=max_kernel).double()
    batch = batch_of("mlp", "strided_cnn")

    def moved(lift: Any) -> list[bool]:
        before = m.edge_encoder(batch, m.standardizer)
        with torch.no_grad():
            lift.map.weight.mul_(2)
        after = m.edge_encoder(batch, m.standardizer)
        parts = zip(*(batch.split_edges(e[0]) for e in (before, after)), strict=True)
        return [not torch.equal(a, b) for a, b in parts]

    is_linear = [bucket.kind.value == "linear" for bucket in batch.buckets]
    assert 0 < sum(is_linear) < len(is_linear)
    assert moved(m.edge_encoder.linear) == is_linear
    assert moved(m.edge_encoder) == [not flag for flag in is_linear]


def test_without_positions_the_order_of_inputs_is_not_seen() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    graph = pg.capture(network, torch.randn(5, 3))
    state = network.double().state_dict()
    for name, order in (("inputs", [2, 0, 1]), ("outputs", [1, 0])):
        if name == "inputs":
            moved = {**state, "0.weight": state["0.weight"][:, order]}
        else:
            moved = {k: v[order] if k.startswith("2.") else v for k, v in state.items()}
        batch = pg.collate([(graph, graph.features(state)), (graph, graph.features(moved))])
        for told in (True, False):
            torch.manual_seed(0)
            m = NeuralGraphGNN(2, position_embedding=told).double().eval()
            first, second = m(batch)
            assert torch.allclose(first, second, atol=1e-10) is not told, name


def test_without_activations_they_are_not_seen() -> None:
    pairs = []
    for activation in (nn.Tanh(), nn.ReLU()):
        network = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))
        torch.manual_seed(1)
        state = {k: torch.randn_like(v.double()) for k, v in network.state_dict().items()}
        graph = pg.capture(network, torch.randn(5, 3))
        pairs.append((graph, graph.features(state)))
    for told in (True, False):
        torch.manual_seed(0)
        m = NeuralGraphGNN(2, activation_embedding=told).double().eval()
        first, second = m(pg.collate(pairs))
        assert torch.allclose(first, second, atol=1e-10) is not told


def test_without_kinds_a_skip_is_a_weight_of_one() -> None:
    batch = batch_of("residual_mlp")
    kinds = [bucket.kind.value for bucket in batch.buckets]
    torch.manual_seed(0)
    m = NeuralGraphGNN(1, hidden_dim=8, kind_embedding=False).double()
    features, _ = m.edge_encoder(batch, m.standardizer)
    skip = batch.split_edges(features)[kinds.index("skip")].reshape(-1, 8)
    one = batch.buckets[kinds.index("skip")]
    lone = m.edge_encoder.features([one], m.standardizer)[0]
    assert torch.allclose(skip, lone)
    told = EdgeEncoder(8).double()(batch, m.standardizer)[0]
    assert told.shape == features.shape


def test_one_direction_carries_the_weight_alone() -> None:
    batch = batch_of("mlp", "strided_cnn")
    m = NeuralGraphGNN(1, hidden_dim=8, reverse_edges=False, kind_embedding=False).double()
    forward, backward = m.edge_encoder(batch, m.standardizer)
    assert backward is None
    (basis,) = m.edge_encoder.bases
    for bucket, part in zip(batch.buckets, batch.split_edges(forward), strict=True):
        values = m.standardizer.edges(bucket)
        phase = values @ basis(bucket.positions, values)
        lifted = m.edge_encoder.lift(torch.cat([phase.cos(), phase.sin()], dim=-1))
        features = m.edge_encoder.map(lifted)
        assert torch.allclose(features.reshape(-1, 8), part.reshape(-1, 8))


# --- tables


def test_inputs_beyond_the_table_are_told_apart() -> None:
    batch = of(nn.Linear(300, 1), 300)
    encoder = NeuronEncoder(8).double()
    place = encoder._place(batch)[batch.kind == 0]
    assert torch.equal(place[:256], encoder.inputs.weight)
    assert not torch.isclose(place[256:], encoder.inputs.weight[:44]).all(1).any()
    assert (torch.cdist(place, place) + torch.eye(300)).min() > 1e-3
    swapped = torch.arange(300)
    swapped[[0, 256]] = swapped[[256, 0]]
    graph, values = batch.parts[0].graph, batch.parts[0].values
    other = type(values)(tuple(b[..., swapped, :] for b in values.blocks), values.neurons)
    m = NeuralGraphGNN(1).double().eval()
    first, second = m(pg.collate([(graph, values), (graph, other)]))
    assert abs(first - second) > 1e-6


def test_activations_beyond_the_table_are_told_apart() -> None:
    batch = of(nn.Sequential(nn.Linear(1, len(Activation)), nn.Tanh(), nn.Linear(26, 1)), 1)
    encoder = NeuronEncoder(8, num_activations=7, position_embedding=False).double()
    hidden = batch.kind == 1
    activation = batch.activation.clone()
    activation[hidden] = torch.arange(len(Activation))
    values = torch.zeros_like(batch.neuron_values)
    batch = replace(batch, activation=activation, neuron_values=values)
    m = NeuralGraphGNN(1)
    rows = encoder(batch, m.standardizer.double())[hidden]
    assert (torch.cdist(rows, rows) + torch.eye(len(rows))).min() > 1e-3
    assert encoder.activation is not None
    assert len(encoder.activation.weight) == 7
    names = ("none", "relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid")
    assert tuple(a.value for a in list(Activation)[:7]) == names


def test_hidden_layers_are_counted_from_the_first() -> None:
    batch = batch_of("mlp")  # two hidden layers
    encoder = NeuronEncoder(8, max_hidden_layers=2).double()
    place = encoder._place(batch)
    for depth in (1, 2):
        rows: Tensor = place[(batch.kind == 1) & (batch.depth == depth)]
        assert torch.equal(rows, encoder.depth.weight[depth - 1].expand_as(rows))
