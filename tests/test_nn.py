"""Metanetworks and their parts: slow twins with one edge at a time, statistics, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from networks import HAZARDS, by_name, randomise
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import ROLES, GraphBatch
from paramgraph.nn import (
    FlatMLP,
    Metanetwork,
    NeuralGraphGNN,
    OperatorMetanetwork,
    Standardizer,
    StatNN,
    layer_statistics,
)
from paramgraph.nn.encoders import NeuronEncoder
from paramgraph.nn.metanetwork import network_mean
from paramgraph.nn.positions import FixedPositionBasis, PositionFunctions
from paramgraph.nn.typed import NeuronTypes
from paramgraph.structure import EdgeKind
from paramgraph.values import Values

Pair = tuple[pg.ParamGraph, Values]
TWINS = ["mlp", "strided_cnn", "flatten", "resnet", "depthwise", "siren", "two_inputs"]


def pair(name: str, *seeds: int, dtype: torch.dtype = torch.float64) -> Pair:
    """Networks of a hazard with other weights for each seed."""
    hazard = by_name(name)
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    states = [randomise(hazard.make().to(dtype), seed).state_dict() for seed in seeds]
    return graph, graph.features(states)


@dataclass(frozen=True)
class Edge:
    """One edge of one network: neurons by number in the batch of this network alone."""

    number: int
    sender: int
    receiver: int
    weight: Tensor  # [num_positions], unit scale
    positions: tuple[tuple[float, float], ...]
    kind: EdgeKind
    fan_in: int
    fan_out: int


def edges_of(batch: GraphBatch, graph: pg.ParamGraph, standardizer: Standardizer) -> list[Edge]:
    """The edges of a batch of one network, one by one, from the tables of its graph."""
    starts, start = {}, 0
    order = sorted(range(len(graph.neuron_groups)), key=lambda g: graph.neuron_groups[g].depth)
    for group in order:
        starts[group] = start
        start += graph.neuron_groups[group].size
    assert start == batch.num_neurons
    edges: list[Edge] = []
    (part,) = batch.parts
    for number, block in enumerate(graph.blocks):
        values = part.values.blocks[number][0]
        sender, receiver = graph.neuron_groups[block.sender], graph.neuron_groups[block.receiver]
        place = "last" if receiver.kind.value == "output" else "hidden"
        place = "first" if sender.kind.value == "input" else place
        fan_in = block.num_senders * block.num_positions
        if block.kind is not EdgeKind.SKIP:
            scale = standardizer.edge_scale[ROLES.index((block.kind, place))]
            values = values * math.sqrt(fan_in) / scale
        for k in range(block.num_blocks):
            for i in range(block.num_receivers):
                for j in range(block.num_senders):
                    edges.append(
                        Edge(
                            len(edges),
                            starts[block.sender] + k * block.num_senders + j,
                            starts[block.receiver] + k * block.num_receivers + i,
                            values[k, i, j],
                            block.positions,
                            block.kind,
                            fan_in,
                            block.num_receivers * block.num_positions,
                        )
                    )
    return edges


def assert_equals_twin(
    metanetwork: Metanetwork, twin: Callable[[pg.ParamGraph, GraphBatch], Tensor]
) -> None:
    """The twin reads each network alone, the metanetwork all of them together."""
    pairs = [pair(name, 1, 2) for name in TWINS]
    batch = pg.collate(pairs)
    metanetwork.double().eval()
    metanetwork.fit_statistics([batch])
    with torch.no_grad():
        rows = iter(metanetwork(batch))
        for name, (graph, values) in zip(TWINS, pairs, strict=True):
            for row in (0, 1):
                expected = twin(graph, pg.collate([(graph, values[row : row + 1])]))
                message = f"{name}, network {row}"
                torch.testing.assert_close(next(rows), expected, rtol=0, atol=1e-8, msg=message)


# --- slow twins


@pytest.mark.parametrize("norm", ["neuron", "graph"])
@pytest.mark.parametrize("num_frequencies", [0, 6])
def test_ng_gnn_equals_its_slow_twin(num_frequencies: int, norm: str) -> None:
    """Methods 12.1 with LayerNorm per neuron or network: one message, one edge update at a time."""
    m = NeuralGraphGNN(3, hidden_dim=8, num_layers=3, num_frequencies=num_frequencies, norm=norm)
    for parameter in m.parameters():
        if parameter.ndim == 1:  # biases start at 0, where a lost one would not be seen
            nn.init.normal_(parameter)

    def normalise(layer: Any, x: list[Tensor]) -> list[Tensor]:
        if norm == "neuron":
            return [layer.norm(row) for row in x]
        together = torch.stack(x)
        center, variance = together.mean(), together.var(correction=0)
        unit = (together - center) / (variance + 1e-5).sqrt()
        return list(unit * layer.norm.weight + layer.norm.bias)

    def lift(value: Tensor, weight: nn.Linear) -> Tensor:
        return weight(torch.cat([value.cos(), value.sin()]) if num_frequencies else value)

    def encode(edge: Edge, rows: tuple[int, int]) -> Tensor:
        """(w, 0, w) forward and (0, w, w) backward, each with its own fixed directions."""
        bases = [m.edge_encoder.bases[row](edge.positions, edge.weight) for row in rows]
        encoder = m.edge_encoder
        features = encoder.map(lift(edge.weight @ (bases[0] + bases[1]), encoder.lift))
        assert encoder.kind is not None
        return features + encoder.kind.weight[list(EdgeKind).index(edge.kind)]

    def twin(graph: pg.ParamGraph, batch: GraphBatch) -> Tensor:
        edges = edges_of(batch, graph, m.standardizer)
        x = list(m.neuron_encoder(batch, m.standardizer))
        forward = [encode(edge, (0, 2)) for edge in edges]
        backward = [encode(edge, (1, 2)) for edge in edges]
        layers: Any = m.layers
        for layer in layers:
            new = []
            for i in range(batch.num_neurons):
                messages = []
                for edge in edges:
                    for target, source, e in (
                        (edge.receiver, edge.sender, forward[edge.number]),
                        (edge.sender, edge.receiver, backward[edge.number]),
                    ):
                        if target == i:
                            scale, shift = layer.film(e).chunk(2)
                            both = layer.message_target(x[target]) + layer.message_source(x[source])
                            messages.append(scale * both + shift)
                stacked = torch.stack(messages)
                low, high = stacked.min(0).values, stacked.max(0).values
                std = (stacked.var(0, correction=0) + 1e-5).sqrt()
                four = torch.cat([stacked.mean(0), low, high, std])
                amplified = four * math.log(len(messages) + 1) / m.log_degree
                new.append(layer.out(layer.post(torch.cat([x[i], four, amplified]))))
            x = new
            if layer is layers[-1]:
                continue
            silu = nn.functional.silu
            x = [silu(row) for row in normalise(layer, x)]
            for features, ends in ((forward, (0, 1)), (backward, (1, 0))):
                for edge in edges:
                    end = (edge.sender, edge.receiver)
                    source, target = x[end[ends[0]]], x[end[ends[1]]]
                    inner = layer.edge_own(features[edge.number])
                    inner = inner + layer.edge_source(source) + layer.edge_target(target)
                    features[edge.number] = layer.edge_out(silu(inner))
        return m.head((torch.stack(x).mean(0) - m.read_center) / m.read_spread)

    assert_equals_twin(m, twin)


def test_ng_gnn_reads_the_output_neurons_in_their_order() -> None:
    """The head sees [output 0 | output 1] of each network, also when networks are interleaved."""
    m = NeuralGraphGNN(2, hidden_dim=4, num_layers=1, readout="outputs", num_outputs=2).double()
    batch = pg.collate([pair("mlp", 0), pair("cnn_1d", 0), pair("mlp", 1)])
    m.head = nn.Sequential()
    neurons = torch.arange(4.0 * batch.num_neurons, dtype=torch.float64).reshape(-1, 4)
    m.layers = nn.ModuleList([_Fixed(neurons)])
    seen = m(batch)
    for network in range(3):
        rows = (batch.network == network) & (batch.kind == 2)
        in_order = neurons[rows][batch.identity[rows].argsort()]
        assert torch.equal(seen[network], in_order.reshape(-1))


class _Fixed(nn.Module):
    """A layer that returns fixed neuron features."""

    def __init__(self, neurons: Tensor) -> None:
        super().__init__()
        self.neurons = neurons

    def forward(self, _batch: object, _neurons: object, edges: object, *_rest: object) -> Any:
        return self.neurons, edges


def test_ng_gnn_measures_the_mean_log_degree() -> None:
    """mlp 3-5-4-2: nothing ends at 3 inputs, 3 edges at 5 neurons, 5 at 4, 4 at 2."""
    m = NeuralGraphGNN(1, hidden_dim=4).double()
    m.fit_statistics([pg.collate([pair("mlp", 0), pair("mlp", 1)])])
    expected = (5 * math.log(4) + 4 * math.log(6) + 2 * math.log(5)) / 14
    assert m.log_degree.item() == pytest.approx(expected)


@pytest.mark.parametrize("symmetry", ["permutation", "sign", "scale"])
def test_the_operator_equals_its_slow_twin(symmetry: str) -> None:
    """Sweeps with one neuron and one edge at a time; updates are applied neuron by neuron."""
    m = OperatorMetanetwork(3, hidden_dim=8, num_rounds=2, num_operators=2, symmetry=symmetry)

    def operate(edge: Edge, positions: PositionFunctions, signal: Tensor) -> Tensor:
        """Sum over positions p of psi_c(p) w_p, times part c of the signal."""
        if len(edge.positions) == 1:
            return edge.weight[0] * signal
        psi = positions(edge.positions, edge.weight)
        parts = signal.chunk(2)
        return torch.cat([(edge.weight @ psi[:, c]) * part for c, part in enumerate(parts)])

    def twin(graph: pg.ParamGraph, batch: GraphBatch) -> Tensor:
        edges = edges_of(batch, graph, m.standardizer)
        seen: list[Tensor] = []  # the facts of each neuron, as the metanetwork itself has them
        with m.context.register_forward_hook(lambda *call: seen.append(call[-1])):
            m(batch)
        (context,) = seen
        known = m.standardizer.neurons(batch)[:, :2]
        gain = torch.ones(batch.num_neurons, dtype=torch.float64)
        if m.phase:  # of a sine only sin(omega b) and cos(omega b) count
            angle = batch.phase * batch.neuron_values[:, 0]
            gain = angle.cos()
            wave = torch.where(
                batch.phase > 0, angle.sin() / m.standardizer.wave_scale, known[:, 0]
            )
            known = torch.stack([wave, known[:, 1]], dim=1)
        bias = m.bias_map(known)
        h, g = (list(part) for part in m._start(batch))
        types = NeuronTypes.of(batch, symmetry).types
        neurons = sorted(range(batch.num_neurons), key=lambda i: int(batch.depth[i]))

        def update(module: nn.Module, i: int, *rows: Tensor, is_dual: bool) -> Tensor:
            kind = NeuronTypes.from_tensor(types[i : i + 1])
            return module(kind, *(row[None] for row in rows), is_dual=is_dual)[0]

        rounds: Any = m.rounds
        for sweep in rounds:
            for i in neurons:
                arriving = [edge for edge in edges if edge.receiver == i]
                if arriving:
                    message = torch.zeros(8, dtype=torch.float64)
                    for edge in arriving:
                        signal = sweep.forward_map(h[edge.sender])
                        sent = operate(edge, sweep.forward_positions, signal)
                        message = message + sent / math.sqrt(edge.fan_in)
                    rows = h[i], message * gain[i], bias[i], g[i], context[i]
                    h[i] = h[i] + update(sweep.primal, i, *rows, is_dual=False)
            for i in reversed(neurons):
                leaving = [edge for edge in edges if edge.sender == i]
                if leaving:
                    message = torch.zeros(8, dtype=torch.float64)
                    for edge in leaving:
                        signal = sweep.backward_map(g[edge.receiver] * gain[edge.receiver])
                        sent = operate(edge, sweep.backward_positions, signal)
                        message = message + sent / math.sqrt(edge.fan_out)
                    rows = g[i], message, bias[i], h[i], context[i]
                    g[i] = g[i] + update(sweep.dual, i, *rows, is_dual=True)
        read = []
        for i in range(batch.num_neurons):
            kind = NeuronTypes.from_tensor(types[i : i + 1])
            read.append(m.readout(kind, h[i][None], g[i][None], context[i][None])[0])
        means = []
        for place in (1, 0, 2):
            members = [row for i, row in enumerate(read) if int(batch.kind[i]) == place]
            means.append(torch.stack(members).mean(0))
        return m.head(torch.cat(means))

    assert_equals_twin(m, twin)


# --- parts


def test_the_standardizer_brings_each_role_to_unit_scale() -> None:
    """Root mean square of sqrt(fan-in) w is 1 over all weights of a role, biases likewise."""
    batches = [pg.collate([pair("mlp", 0), pair("strided_cnn", 0)]), pg.collate([pair("mlp", 1)])]
    standardizer = Standardizer().double()
    standardizer.fit(batches)
    by_role: dict[object, list[Tensor]] = {}
    for batch in batches:
        for bucket in batch.buckets:
            by_role.setdefault(bucket.role, []).append(standardizer.edges(bucket).reshape(-1))
    assert set(by_role) == {
        *((EdgeKind.LINEAR, place) for place in ("first", "hidden", "last")),
        *((EdgeKind.CONV, place) for place in ("first", "hidden")),
    }
    for role, values in by_role.items():
        assert torch.cat(values).square().mean().item() == pytest.approx(1), role
    biases = [standardizer.neurons(b)[b.neuron_has[:, 0] > 0, 0] for b in batches]
    assert torch.cat(biases).square().mean().item() == pytest.approx(1)


def test_the_scale_of_a_role_is_as_computed_by_hand() -> None:
    graph, values = pair("no_bias", 3)
    standardizer = Standardizer().double()
    standardizer.fit([pg.collate([(graph, values)])])
    first = ROLES.index((EdgeKind.LINEAR, "first"))
    expected = math.sqrt(3 * values.blocks[0].square().mean().item())  # fan-in 3
    assert standardizer.edge_scale[first].item() == pytest.approx(expected)


def test_roles_and_statistics_that_were_not_seen_keep_scale_one() -> None:
    standardizer = Standardizer().double()
    standardizer.fit([pg.collate([pair("no_bias", 0)])])
    seen = [ROLES.index((EdgeKind.LINEAR, place)) for place in ("first", "last")]
    for role, scale in enumerate(standardizer.edge_scale.tolist()):
        assert (scale == 1) is (role not in seen)
    assert standardizer.neuron_scale.tolist() == [1, 1, 1]
    batch = pg.collate([pair("strided_cnn", 0)])
    hidden = next(b for b in batch.buckets if b.role == (EdgeKind.CONV, "hidden"))
    expected = hidden.values * math.sqrt(3 * 4)  # 3 channels, 2 x 2 kernel
    torch.testing.assert_close(standardizer.edges(hidden), expected)


def test_all_zero_training_weights_leave_the_scale_at_one() -> None:
    graph, values = pair("mlp", 0)
    zero = Values(tuple(0 * b for b in values.blocks), tuple(0 * n for n in values.neurons))
    standardizer = Standardizer().double()
    standardizer.fit([pg.collate([(graph, zero)])])
    assert bool((standardizer.edge_scale == 1).all())
    assert bool((standardizer.neuron_scale == 1).all())


def test_a_skip_is_neither_measured_nor_scaled() -> None:
    batch = pg.collate([pair("residual_mlp", 0)])
    (skip,) = [bucket for bucket in batch.buckets if bucket.kind is EdgeKind.SKIP]
    doubled = replace(skip, values=2 * skip.values)
    standardizer = Standardizer().double()
    standardizer.fit([replace(batch, buckets=(doubled,))])
    assert bool((standardizer.edge_scale == 1).all())
    standardizer.edge_scale.fill_(3.0)
    assert torch.equal(standardizer.edges(doubled), 2 * skip.values)


def kernel(size: int) -> tuple[tuple[float, float], ...]:
    half = (size - 1) / 2
    return tuple((i - half, j - half) for i in range(size) for j in range(size))


@pytest.mark.parametrize("size", [2, 3, 7])
def test_position_functions_read_kernels_of_any_size(size: int) -> None:
    functions = PositionFunctions(4).double()
    psi = functions(kernel(size), torch.zeros(1, dtype=torch.float64))
    assert psi.shape == (size * size, 4)
    for column in psi.T:
        assert len(column.unique()) == size * size  # each position has a value of its own


def test_position_functions_of_a_plain_matrix_are_one() -> None:
    assert PositionFunctions(4)(((0.0, 0.0),), torch.zeros(1)).tolist() == [[1.0]]


def test_position_functions_depend_on_the_offset_and_not_on_the_kernel() -> None:
    functions, like = PositionFunctions(4).double(), torch.zeros(1, dtype=torch.float64)
    small, large = functions(kernel(3), like), functions(kernel(5), like)
    for row, offset in enumerate(kernel(3)):
        torch.testing.assert_close(small[row], large[kernel(5).index(offset)])


def test_the_fixed_basis_has_gaussian_rows_of_almost_independent_pixels() -> None:
    basis = FixedPositionBasis(4000, sigma=3.0, num_features=512).double()
    rows = basis(kernel(5), torch.zeros(1, dtype=torch.float64))
    # Standard deviations over 25 rows of 4000 entries: 3 within 15 %, correlations below 0.3.
    assert rows.std(dim=1).numpy() == pytest.approx(3.0, rel=0.15)
    correlation = torch.corrcoef(rows) - torch.eye(25, dtype=torch.float64)
    assert correlation.abs().max() < 0.3


def test_the_fixed_basis_follows_its_seed_and_the_offset() -> None:
    like = torch.zeros(1)
    first, again, other = (FixedPositionBasis(8, seed=s)(kernel(3), like) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    large = FixedPositionBasis(8, seed=0)(kernel(5), like)
    torch.testing.assert_close(first[4], large[12])  # the centre


def test_network_mean_is_zero_without_neurons() -> None:
    values = torch.tensor([[2.0], [4.0]])
    mean = network_mean(values, torch.tensor([2, 2]), 4)
    assert mean.tolist() == [[0.0], [0.0], [3.0], [0.0]]


# --- baselines


def test_statistics_of_a_layer_equal_those_of_numpy() -> None:
    graph, values = pair("mlp", 3)
    batch = pg.collate([(graph, values)])
    have = layer_statistics(batch.parts[0]).numpy()
    network = randomise(by_name("mlp").make().double(), 3)
    columns = []
    for tensor in network.state_dict().values():  # weight, bias, weight, ...
        flat = tensor.numpy().reshape(-1)
        quantiles = np.quantile(flat, [0, 0.25, 0.5, 0.75, 1])
        columns += [flat.mean(), flat.var(), *quantiles]
    np.testing.assert_allclose(have, [columns], rtol=0, atol=1e-12)


def test_statistics_of_a_layer_without_bias_are_zero() -> None:
    have = layer_statistics(pg.collate([pair("no_bias", 0)]).parts[0]).reshape(2, 2, 7)
    assert not have[:, 1].any()
    assert have[:, 0].all()


def test_stat_nn_fits_mean_and_deviation_and_survives_constant_statistics() -> None:
    m = StatNN(2, hidden_dim=8).double()
    batch = pg.collate([pair("mlp", *range(6))])
    m.fit_statistics([batch])
    features = (m._features(batch) - m.center) / m.spread
    used = 2 * 7 * 3
    assert features.mean(0).abs().max() < 1e-12
    np.testing.assert_allclose(features[:, :used].std(0, correction=0), 1)
    assert not features[:, used:].any()  # padding: no other layers


def test_stat_nn_refuses_more_layers_than_it_was_made_for() -> None:
    m = StatNN(1, max_layers=3).double()
    assert m(pg.collate([pair("mlp", 0)])).shape == (1, 1)
    with pytest.raises(pg.BatchError, match=r"'Sequential' has 5 parameter blocks, .* made for 3"):
        m(pg.collate([pair("mixed_activations", 0)]))


def test_flat_mlp_reads_all_parameters_of_networks_in_order() -> None:
    m = FlatMLP(2, hidden_dim=8).double()
    first, second = pair("mlp", 0), pair("mlp", 1, 2)
    m.fit_statistics([pg.collate([first])])
    together = m(pg.collate([second, first]))
    torch.testing.assert_close(together[:2], m(pg.collate([second])))
    torch.testing.assert_close(together[2:], m(pg.collate([first])))


def test_flat_mlp_refuses_to_read_before_it_was_fitted() -> None:
    with pytest.raises(pg.BatchError, match="number of inputs yet: call fit_statistics first"):
        FlatMLP(2)(pg.collate([pair("mlp", 0)]))


@pytest.mark.parametrize("make", [OperatorMetanetwork, NeuralGraphGNN, StatNN, FlatMLP])
def test_stored_weights_are_taken_over_with_the_statistics(
    make: Callable[[int], Metanetwork],
) -> None:
    first, second = make(2).double().eval(), make(2).double().eval()
    batch = pg.collate([pair("mlp", 0, 1, 2)])
    first.fit_statistics([batch])
    second.load(first.state_dict(), "a test")
    assert torch.equal(first(batch), second(batch))


def test_stored_weights_of_another_metanetwork_are_refused() -> None:
    state = OperatorMetanetwork(2, hidden_dim=8).state_dict()
    match = r"(?s)best.pt does not fit StatNN with .'hidden_dim': 256.*: .*center.* shape .*.3.."
    with pytest.raises(pg.CheckpointError, match=match):
        StatNN(2).load({"center": torch.zeros(3)}, "best.pt")
    with pytest.raises(pg.CheckpointError, match="epoch 3 does not fit OperatorMetanetwork"):
        OperatorMetanetwork(2).load(state, "epoch 3")


def test_flat_mlp_refuses_mixed_batches_and_other_architectures() -> None:
    m = FlatMLP(2, hidden_dim=8).double()
    m.fit_statistics([pg.collate([pair("mlp", 0)])])
    with pytest.raises(pg.BatchError, match="reads one architecture, but the batch holds 2"):
        m(pg.collate([pair("mlp", 0), pair("siren", 0)]))
    num_siren = sum(p.numel() for p in by_name("siren").make().parameters())
    with pytest.raises(pg.BatchError, match=f"54 parameters, but got 'Wired' with {num_siren}"):
        m(pg.collate([pair("siren", 0)]))


# --- options and refusals


def wide(num_inputs: int, num_hidden: int = 2, depth: int = 1) -> GraphBatch:
    """A batch of one network of the given sizes."""
    sizes = [num_inputs] + [num_hidden] * depth
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(sizes):
        layers += [nn.Linear(num_in, num_out), nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(num_hidden, 2))
    graph = pg.capture(network, torch.randn(3, num_inputs))
    return pg.collate([(graph, graph.features(network.state_dict()))])


@pytest.mark.parametrize("make", [OperatorMetanetwork, NeuralGraphGNN])
def test_inputs_beyond_the_table_are_told_apart(
    make: type[OperatorMetanetwork] | type[NeuralGraphGNN],
) -> None:
    """Input 256 has the table's first vector again, plus waves: exchanging the two is seen."""
    torch.manual_seed(0)
    m = make(1, hidden_dim=8).double().eval()
    network = nn.Sequential(nn.Linear(300, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    graph = pg.capture(network, torch.randn(3, 300, dtype=torch.float64))
    outputs = []
    for other in (0, 256):
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        state["0.weight"][:, [0, other]] = state["0.weight"][:, [other, 0]]
        outputs.append(m(pg.collate([(graph, graph.features(state))])))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-8


def test_depths_beyond_the_table_are_told_apart() -> None:
    torch.manual_seed(0)
    encoder = NeuronEncoder(8, max_depth=64)
    depth = torch.arange(300)
    vectors = encoder._depth(depth)
    assert torch.equal(vectors[:64], encoder.depth.weight)  # nothing is added within it
    distances = torch.cdist(vectors, vectors) + torch.eye(300)
    assert distances.min() > 0.005
    m = NeuralGraphGNN(1, hidden_dim=4, num_layers=1)
    assert m(wide(2, depth=62)).shape == m(wide(2, depth=100)).shape == (1, 1)


def test_ng_gnn_refuses_networks_with_another_number_of_outputs() -> None:
    m = NeuralGraphGNN(1, hidden_dim=8, readout="outputs", num_outputs=2).double()
    assert m(pg.collate([pair("mlp", 0)])).shape == (1, 1)
    with pytest.raises(pg.BatchError, match=r"made for 2 output neurons, .* have \[1, 2\]"):
        m(pg.collate([pair("mlp", 0), pair("siren", 0)]))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="'sign', 'scale' or 'permutation', got 'signs'"):
        OperatorMetanetwork(1, symmetry="signs")
    with pytest.raises(ValueError, match="num_operators must divide hidden_dim, got 3 and 32"):
        OperatorMetanetwork(1, num_operators=3)
    with pytest.raises(ValueError, match=r"readout must be one of outputs, .* got 'sum'"):
        NeuralGraphGNN(1, readout="sum")


@pytest.mark.parametrize("symmetry", ["permutation", "sign", "scale"])
def test_the_operator_reads_networks_of_any_width(symmetry: str) -> None:
    """Fitted on width 8, read at 512: outputs are finite and of the same size."""
    m = OperatorMetanetwork(4, hidden_dim=16, symmetry=symmetry).eval()
    m.fit_statistics([wide(3, 8, depth=2)])
    with torch.no_grad():
        narrow, broad = m(wide(3, 8, depth=2)), m(wide(3, 512, depth=2))
    assert bool(broad.isfinite().all())
    ratio = (broad.square().mean() / narrow.square().mean()).sqrt().item()
    assert 1 / 3 < ratio < 3


@pytest.mark.parametrize("make", [OperatorMetanetwork, NeuralGraphGNN, StatNN])
def test_metanetworks_train_on_networks_of_any_kind(make: Callable[[int], Metanetwork]) -> None:
    """A few steps on random targets lower the loss, in float32 and with every hazard."""
    m = make(1)
    batch = pg.collate([pair(hazard.name, 0, dtype=torch.float32) for hazard in HAZARDS])
    m.fit_statistics([batch])
    target = torch.randn(batch.num_networks, 1)
    optimizer = torch.optim.Adam(m.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = (m(batch) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in m.named_parameters():
        assert parameter.isfinite().all(), name
