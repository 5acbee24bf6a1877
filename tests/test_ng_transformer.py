"""NG-T: counts, a slow twin by loops over pairs, arrangements of attention, what is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Wired, by_name, randomise
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import paramgraph as pg
import paramgraph.testing as pt
from paramgraph.batch import Entries, GraphBatch
from paramgraph.engine import edge_index
from paramgraph.nn.fast_dropout import FastDropout
from paramgraph.nn.ng_transformer import NeuralGraphTransformer
from paramgraph.nn.relational_attention import RelationalLayer
from paramgraph.values import Values

Pair = tuple[pg.ParamGraph, Values]

PAPER: dict[str, Any] = {
    **{"num_frequencies": 128, "sigma": 1.0, "kind_embedding": False},
    **{"reverse_edges": False, "readout": "outputs", "start": "xavier"},
}
INR = {
    **{**PAPER, "dropout": 0.2, "activation_embedding": False},
    **{"max_inputs": 2, "max_hidden_layers": 2, "max_outputs": 1},
}
PROBES: dict[str, Any] = {
    "num_probes": 64,
    "probe_options": {"num_layers": 4, "std": False, "num_channels": 2, "num_waves": 0},
}
CNN_ZOO = {
    **{**PAPER, "node_dim": 128, "edge_dim": 64, "head_dim": 256, "num_head_layers": 2},
    **{"num_outputs": 10, "max_kernel": (3, 3), "num_activations": 7},
    **{"max_inputs": 1, "max_hidden_layers": 3, "max_outputs": 10},
}
WILD_PARK = {
    **{**CNN_ZOO, "node_dim": 32, "edge_dim": 16, "attn_dim": 32, "edge_hidden_dim": 64},
    **{"head_dim": 64, "num_heads": 4, "num_layers": 3, "dropout": 0.2},
    **{"max_kernel": (7, 7), "max_inputs": 3, "max_hidden_layers": 5},
}
NAMES = ("mlp", "two_inputs", "siren", "width_one")


def pair(name: str, *seeds: int) -> Pair:
    hazard = by_name(name)
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    return graph, graph.features(
        [randomise(hazard.make().double(), seed).state_dict() for seed in seeds]
    )


def twice() -> Pair:
    """A layer that reads its input twice: two edges join the same neurons."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(n.first(x))
        return n.head(torch.cat([hidden, hidden], dim=1))

    network = Wired(wiring, first=nn.Linear(2, 3), head=nn.Linear(6, 2))
    graph = pg.capture(network, torch.randn(4, 2))
    return graph, graph.features(randomise(network.double(), 1).state_dict())


def make(out_dim: int = 2, **options: Any) -> NeuralGraphTransformer:
    torch.manual_seed(0)
    small = {"node_dim": 8, "edge_dim": 6, "num_heads": 4, "num_layers": 2, "num_frequencies": 8}
    m = NeuralGraphTransformer(out_dim, **{**small, **options})
    for parameter in m.parameters():
        if parameter.ndim == 1:  # biases start at 0, where a lost one would not be seen
            nn.init.normal_(parameter)
    return m.double().eval()


def first_layer(m: NeuralGraphTransformer) -> RelationalLayer:
    layer = m.stack.layers[0]
    assert isinstance(layer, RelationalLayer)
    return layer


def flat(output: Tensor | Entries) -> Tensor:
    if isinstance(output, Tensor):
        return output.flatten()
    return torch.cat([output.neurons.flatten(), *(edges.flatten() for edges in output.edges)])


def gradients(m: nn.Module, batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of a fixed function of it with respect to all parameters."""
    output = flat(m(batch))
    weight = torch.linspace(0.5, 1.5, len(output), dtype=output.dtype)
    (weight * output.square()).sum().backward()
    found = []
    for name, parameter in m.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        found.append(parameter.grad.flatten())
    return output.detach(), torch.cat(found)


# --- counts


@pytest.mark.parametrize(
    ("options", "out_dim", "published"),
    [(INR, 10, 376_586), ({**INR, **PROBES}, 10, 393_866), (CNN_ZOO, 1, 1_807_873)],
)
def test_parameter_counts_are_the_published_ones(
    options: dict[str, Any], out_dim: int, published: int
) -> None:
    m = NeuralGraphTransformer(out_dim, **options)
    assert sum(parameter.numel() for parameter in m.parameters()) == published


def test_the_published_settings_read_their_networks() -> None:
    siren = by_name("siren")
    cases: list[tuple[dict[str, Any], int, Pair]] = [({**INR, **PROBES}, 10, pair("siren", 1, 2))]
    assert isinstance(siren.example_inputs, Tensor)
    for options in (CNN_ZOO, WILD_PARK):
        num = options["max_inputs"]
        network = nn.Sequential(
            *(nn.Conv2d(num, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2)),
            *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
        )
        graph = pg.capture(network, torch.randn(3, num, 12, 12))
        cases.append((options, 1, (graph, graph.features(network.double().state_dict()))))
    for options, out_dim, case in cases:
        batch = pg.collate([case])
        m = NeuralGraphTransformer(out_dim, **options).double()
        m.fit_statistics([batch])
        assert m(batch).isfinite().all()


# --- the slow twin


def twin(m: Any, batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """Nodes and edges after all layers, by loops over pairs of nodes (methods, 12.2)."""
    x = list(m.neuron_encoder(batch, m.standardizer))
    up, down = m.edge_encoder(batch, m.standardizer)
    zero = torch.zeros(m.edge_dim, dtype=torch.float64)
    network = batch.network.tolist()
    e: dict[tuple[int, int], Tensor] = {}
    ends = edge_index(batch).T.tolist()
    ranks = _ranks(batch)
    for number, (s, r) in enumerate(ends):
        backward = zero if down is None else down[number]
        e[s, r] = e.get((s, r), zero) + up[number].roll(ranks[number])
        e[r, s] = e.get((r, s), zero) + backward.roll(ranks[number])
    if m.reader.kind == "cls":
        for i in range(batch.num_networks):
            x.append(m.reader.token)
            network.append(i)
        for i in range(batch.num_neurons if m.stack.token_edges is not None else 0):
            token = batch.num_neurons + network[i]
            e[i, token], e[token, i] = m.stack.token_edges
    joined = set(e)
    mates = [[j for j in range(len(x)) if network[j] == network[i]] for i in range(len(x))]

    def edge(i: int, j: int) -> Tensor:
        return e.get((i, j), zero)

    for layer in m.stack.layers:
        attention, d = layer.attention, m.attn_dim
        wq, wk, wv = attention.query_key_value.weight.split(d)
        maps = attention.edge_maps.weight.split(d)
        width = d // attention.num_heads
        new = []
        for i in range(len(x)):
            scores, values = [], []
            for j in mates[i]:
                q, k = wq @ x[i] + maps[0] @ edge(i, j), wk @ x[j] + maps[1] @ edge(i, j)
                scores.append((q * k).view(-1, width).sum(1) / d**0.5)
                v = wv @ x[j]
                v = v * (maps[2] @ edge(i, j)) if attention.modulated_values else v
                values.append(v + maps[-1] @ edge(i, j))
            weight = torch.stack(scores).softmax(0).repeat_interleave(width, 1)
            h = layer.attention_out((weight * torch.stack(values)).sum(0))
            row = layer.node_norm(x[i] + layer.node_out(h))
            inner = layer.node_second(nn.functional.gelu(layer.node_first(row)))
            new.append(layer.node_last_norm(row + inner))
        x = new
        if layer.updates_edges:
            pairs = [(i, j) for i in range(len(x)) for j in mates[i]]
            if m.stack.edges == "graph":
                pairs = [p for p in pairs if p in joined]
            updated = {}
            for i, j in pairs:
                inner = layer.edge_own(torch.cat([edge(i, j), edge(j, i)]))
                inner = inner + layer.edge_source(x[i]) + layer.edge_target(x[j])
                row = layer.edge_norm(edge(i, j) + layer.edge_out(nn.functional.gelu(inner)))
                inner = layer.edge_second(nn.functional.gelu(layer.edge_first(row)))
                updated[i, j] = layer.edge_last_norm(row + inner)
            e = updated
    last = [edge(s, r).roll(-rank) for (s, r), rank in zip(ends, ranks, strict=True)]
    return torch.stack(x), torch.stack(last)


def _ranks(batch: GraphBatch) -> list[int]:
    """For each edge how many blocks before its own join the same two groups."""
    found = []
    for bucket in batch.buckets:
        size = bucket.values[0, ..., 0].numel()
        for slot in bucket.slots:
            blocks = batch.parts[slot.part].graph.blocks
            ends = [(block.sender, block.receiver) for block in blocks]
            found += [ends[: slot.block].count(ends[slot.block])] * (size * slot.copies)
    return found


@pytest.mark.parametrize("attention", ["dense", "tiled"])
@pytest.mark.parametrize("edges", ["all", "graph"])
@pytest.mark.parametrize(
    "options",
    [
        {"level": "parameter"},
        {"level": "parameter", "modulated_values": False, "reverse_edges": False},
        {"level": "parameter", "readout": "cls"},
        {"readout": "mean-outputs", "num_layers": 3},
        {"readout": "cls"},
        {"readout": "mean-outputs", "num_layers": 1},
    ],
)
def test_the_stack_equals_its_slow_twin(
    options: dict[str, Any], edges: str, attention: str
) -> None:
    m = make(edges=edges, attention=attention, tile_size=60, **options)
    batch = pg.collate([pair("mlp", 1, 2), pair("two_inputs", 1), twice(), pair("mlp", 3)])
    m.fit_statistics([batch])
    with torch.no_grad():
        nodes, last = m._attend(batch)
        expected_nodes, expected_edges = twin(m, batch)
    rows = torch.arange(len(nodes))
    if m.level == "graph":  # the others are not computed
        rows = (batch.kind == 2).nonzero()[:, 0]
        rows = rows if m.readout == "mean-outputs" else torch.arange(batch.num_neurons, len(nodes))
    torch.testing.assert_close(nodes[rows], expected_nodes[rows], rtol=0, atol=1e-10)
    assert (last is None) == (m.level == "graph")
    if last is not None:
        torch.testing.assert_close(last, expected_edges, rtol=0, atol=1e-10)


# --- arrangements


READOUTS = ["mean", "max", "mean-outputs", "layers", "set-transformer", "cls", "mean-edges"]


@pytest.mark.parametrize("modulated_values", [True, False])
@pytest.mark.parametrize("edges", ["all", "graph"])
@pytest.mark.parametrize(
    ("level", "readout"),
    [*(("graph", readout) for readout in READOUTS), ("neuron", "mean"), ("parameter", "cls")],
)
def test_dense_and_tiled_attention_are_one_function(
    level: str, readout: str, edges: str, modulated_values: bool
) -> None:
    """Tiles of one row, of several networks, of all; values and all gradients."""
    options: dict[str, Any] = {"level": level, "readout": readout, "edges": edges, "num_layers": 3}
    batch = pg.collate([pair("mlp", 1, 2), pair("siren", 1), pair("strided_cnn", 1, 2), twice()])
    found = [
        gradients(
            make(
                modulated_values=modulated_values,
                attention=attention,
                tile_size=tile_size,
                **options,
            ),
            batch,
        )
        for attention, tile_size in (("dense", 1), ("tiled", 1), ("tiled", 300), ("tiled", 9999))
    ]
    for output, gradient in found[1:]:
        torch.testing.assert_close(output, found[0][0], rtol=0, atol=1e-10)
        scale = float(found[0][1].abs().max())
        torch.testing.assert_close(gradient, found[0][1], rtol=0, atol=1e-10 * max(scale, 1))


def test_attention_to_other_nodes_is_seen_by_both_kinds_of_edges() -> None:
    """A neuron without any edge to the changed one is moved: attention is over all nodes."""
    graph, values = pair("mlp", 1, 1)
    values.neurons[-1][1, 0, 0] += 1.0  # a bias of an output
    batch = pg.collate([(graph, values)])
    inputs = (batch.kind == 0).nonzero()[:, 0]
    for edges in ("all", "graph"):
        rows = make(level="neuron", edges=edges, num_layers=1)(batch)[inputs].view(2, -1)
        assert (rows[0] - rows[1]).abs().max() > 1e-10, edges  # 0 if it were not
    kinds = [make(edges=edges)(batch) for edges in ("all", "graph")]
    assert (kinds[0] - kinds[1]).abs().max() > 1e-3


class LargestTensor(TorchDispatchMode):
    """Watches the number of entries of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("level", ["graph", "parameter"])
def test_what_is_held_at_most(level: str) -> None:
    """Forward and backward, as multiples of N x N entries."""
    network = nn.Sequential(nn.Linear(2, 200), nn.Tanh(), nn.Linear(200, 2))
    graph = pg.capture(network, torch.randn(3, 2))
    batch = pg.collate([(graph, graph.features(network.state_dict()))])
    square = batch.num_neurons**2
    found = {}
    for edges in ("all", "graph"):
        for attention in ("dense", "tiled"):
            m = make(level=level, edges=edges, attention=attention, tile_size=2000).float()
            with LargestTensor() as largest:
                flat(m(batch)).square().sum().backward()
            found[edges, attention] = largest.size / square
    assert found["all", "dense"] >= m.attn_dim
    assert m.edge_dim <= found["all", "tiled"] < m.edge_dim + 0.1
    assert found["graph", "tiled"] < 1  # no vector per pair: not even a number


def test_a_network_too_wide_for_all_pairs_is_read_along_its_edges() -> None:
    network = nn.Sequential(nn.Linear(4, 4000), nn.Tanh(), nn.Linear(4000, 2))
    graph = pg.capture(network, torch.randn(3, 4))
    batch = pg.collate([(graph, graph.features(network.state_dict()))])
    m = make(edges="graph", readout="outputs", num_outputs=2, num_layers=3).float()
    with LargestTensor() as largest, torch.no_grad():
        assert m(batch).isfinite().all()
    assert largest.size < batch.num_neurons**2 / 4


# --- batches, parallel edges, dropout


@pytest.mark.parametrize("options", [{}, {"edges": "graph"}, {"readout": "cls", "edges": "graph"}])
def test_a_prediction_never_depends_on_batch_mates(options: dict[str, Any]) -> None:
    m = make(tile_size=250, **options)
    pairs = [pair(name, seed) for seed in (1, 2) for name in NAMES]
    m.fit_statistics([pg.collate(pairs)])
    alone = torch.cat([m(pg.collate([row])) for row in pairs])
    torch.testing.assert_close(m(pg.collate(pairs)), alone, rtol=0, atol=1e-8)
    torch.testing.assert_close(m(pg.collate(pairs[::-1])).flip(0), alone, rtol=0, atol=1e-8)


@pytest.mark.parametrize("edges", ["all", "graph"])
def test_edges_that_join_the_same_neurons_are_told_apart(edges: str) -> None:
    graph, values = twice()
    assert [(block.sender, block.receiver) for block in graph.blocks] == [(0, 1), (1, 2), (1, 2)]
    first, *both = values.blocks
    swapped = Values((first, *both[::-1]), values.neurons)
    louder = Values((first, both[0], 2 * both[1]), values.neurons)
    batch = pg.collate([(graph, values), (graph, swapped), (graph, louder)])
    rows = make(edges=edges)(batch)
    assert (rows[1:] - rows[0]).abs().amax(1).min() > 1e-4
    batch = pg.collate([(graph, values)])
    ((found, _),) = make(level="parameter", edges=edges)(batch).values(batch)
    assert (found.blocks[1] - found.blocks[2]).abs().max() > 1e-3


def test_dropout_drops_as_many_as_it_says() -> None:
    torch.manual_seed(0)
    drop = FastDropout(0.2)
    rows = drop(torch.ones(1001, 333))
    kept = rows[rows != 0]
    assert abs(1 - len(kept) / rows.numel() - 0.2) < 0.003
    assert torch.allclose(kept, torch.tensor(1.25), atol=1e-4)
    columns = (rows == 0).double()
    assert abs(float(torch.corrcoef(columns.T[:4])[0, 1:].abs().max())) < 0.12
    assert not torch.equal(rows, drop(torch.ones(1001, 333)))
    assert torch.equal(FastDropout(0.2).eval()(rows), rows)
    assert torch.equal(FastDropout(0.0)(rows), rows)


@pytest.mark.parametrize("edges", ["all", "graph"])
def test_the_backward_pass_drops_what_the_forward_pass_dropped(edges: str) -> None:
    m = make(edges=edges, tile_size=100, dropout=0.3, readout="mean").train()
    batch = pg.collate([pair("mlp", 1), pair("siren", 1)])
    weight = first_layer(m).edge_out.weight
    direction = torch.randn_like(weight)

    def loss(step: float) -> Tensor:
        torch.manual_seed(3)
        with torch.no_grad():
            weight.add_(step * direction)
        found = m(batch).square().sum()
        if not step:
            found.backward()
        with torch.no_grad():
            weight.sub_(step * direction)
        return found.detach()

    loss(0.0)
    assert weight.grad is not None
    expected = float((weight.grad * direction).sum())
    found = float(loss(1e-5) - loss(-1e-5)) / 2e-5
    assert abs(expected) > 1e-6
    assert found == pytest.approx(expected, rel=1e-5)


# --- options


def test_starts() -> None:
    loud, published = make(start="loud"), make(start="xavier")
    m = first_layer(published).attention.edge_maps.weight
    bound = (6 / sum(m.shape)) ** 0.5
    assert 0.9 * bound < m.abs().max() <= bound
    layer = first_layer(loud)
    maps = layer.attention.edge_maps.weight.detach().chunk(4)
    stds = [float(weight.std(correction=0)) for weight in maps]
    assert stds == pytest.approx([s * 6**-0.5 for s in (1, 1, 2, 2)], rel=0.25)
    assert float(layer.attention_out.weight.detach().std()) == pytest.approx(8 * 16**-0.5, rel=0.25)


def test_second_derivatives_are_those_of_dense_attention() -> None:
    batch = pg.collate([pair("mlp", 1)])

    def penalty(attention: str) -> None:
        m = make(attention=attention)
        loss = m(batch).sum()
        weight = first_layer(m).edge_out.weight
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        gradient.square().sum().backward()

    penalty("dense")
    with pytest.raises(RuntimeError, match="differentiate twice"):
        penalty("tiled")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"edges": "some"}, "edges must be 'all' or 'graph', got 'some'"),
        ({"attention": "flash"}, "attention must be 'dense' or 'tiled', got 'flash'"),
        ({"start": "zero"}, "start must be 'loud' or 'xavier', got 'zero'"),
        ({"num_heads": 3}, "num_heads must divide attn_dim, got 3 and 16"),
        ({"num_layers": 0}, "num_layers must be 1 or more, got 0"),
        ({"num_head_layers": 0}, "num_head_layers must be 1 or more, got 0"),
        ({"tile_size": 0}, "tile_size must be 1 or more, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"readout": "sum"}, "readout must be one of outputs, .* got 'sum'"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**options)


def test_kernels_beyond_the_largest_are_refused() -> None:
    with pytest.raises(pg.BatchError, match=r"does not fit max_kernel=\(1, 1\)"):
        make(max_kernel=(1, 1))(pg.collate([pair("strided_cnn", 1)]))


@pytest.mark.parametrize(
    "options",
    [
        {"modulated_values": False},
        {"edges": "graph", "readout": "cls", "attention": "tiled"},
        {"attention": "dense", "readout": "set-transformer"},
    ],
)
def test_laws_hold_with_other_options(options: dict[str, Any]) -> None:
    """``tests/test_laws.py`` checks the default on all networks."""
    few = {"mlp", "strided_cnn", "residual", "projection_skip", "siren", "two_inputs"}
    networks = [row for row in pt.hazard_networks() if row.name in few]
    torch.manual_seed(0)
    small = {"node_dim": 8, "edge_dim": 8, "num_heads": 4, "num_layers": 3, "num_frequencies": 16}
    pt.assert_metanetwork(NeuralGraphTransformer(2, **{**small, **options}), networks)
