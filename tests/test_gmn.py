"""Graph metanetworks against one-edge-at-a-time twins, their laws, and what they write back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import by_name, randomise
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

import paramgraph as pg
from paramgraph.batch import Entries
from paramgraph.batch.layout import HashedGraph
from paramgraph.explicit import NodeKind
from paramgraph.nn.editing import NetworkEditor
from paramgraph.nn.gmn import GraphMetanetwork
from paramgraph.nn.gmn_transformer import GraphMetanetworkTransformer
from paramgraph.nn.identities import identity_vectors
from paramgraph.nn.parameter_batch import read_batch
from paramgraph.nn.parameter_runs import parameter_tables
from paramgraph.nn.run_layout import make_run_layout
from paramgraph.structure import NeuronRole, NormKind
from paramgraph.testing import check_metanetwork, hazard_networks
from paramgraph.testing.captured import CapturedNetworks, capture_networks

both = pytest.mark.parametrize("kind", [GraphMetanetwork, GraphMetanetworkTransformer])
SOME = slice(None, None, 3)


@pytest.fixture(scope="module")
def captured() -> CapturedNetworks:
    return capture_networks(hazard_networks(), seed=0)


def make(kind: Any, out_dim: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    if kind is GraphMetanetworkTransformer:
        options = {"num_heads": 2, **options}
    m = kind(out_dim, **{"hidden_dim": 8, "num_layers": 2, **options})
    for parameter in m.parameters():
        if parameter.ndim == 1:  # biases start at 0, where a lost one would not be seen
            nn.init.normal_(parameter)
    return m.double().eval()


def pair(name: str, *seeds: int) -> Any:
    hazard = by_name(name)
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    states = [randomise(hazard.make().double(), seed).state_dict() for seed in seeds]
    return graph, graph.features(states)


# --- slow twins: one network, from the explicit graph alone, every message by itself


def twin(m: Any, graph: pg.ParamGraph, values: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Normalised edges ``[E, d]``, nodes ``[N, d]`` and network ``[d]`` after all blocks."""
    explicit = graph.expand("parameter")
    numbers = explicit.values(values)
    encoder = m.node_encoder
    x = []
    for node in range(explicit.num_nodes):
        kind = list(NodeKind)[int(explicit.node_kind[node])]
        row = encoder.kind.weight[kind.index]
        row = row + encoder.activation.weight[explicit.node_activation[node]]
        row = row + encoder.norm.weight[explicit.node_norm[node]]
        row = row + identity_vectors(encoder.depth.weight, explicit.node_depth[node, None])[0]
        place = explicit.node_position[node, None]
        tables = dict(zip(("input", "output", "fixed"), encoder.places, strict=True))
        if kind.value in tables and place >= 0:
            row = row + identity_vectors(tables[kind.value].weight, place)[0]
        assert explicit.node_roles == (NeuronRole.MEAN, NeuronRole.VARIANCE)
        x.append(row + encoder.statistics(numbers.nodes[0, node]))
    encoder = m.link_encoder
    e = []
    for edge in range(explicit.num_edges):
        value = numbers.edges[0, edge]
        if encoder.lift is not None:
            row = encoder.map(encoder.lift(value).sin())
        else:
            phase = value * encoder.frequencies
            row = encoder.map(torch.cat([phase.cos(), phase.sin()]))
        depth = explicit.node_depth[explicit.receiver[edge], None]
        row = row + encoder.kind.weight[explicit.edge_kind[edge]]
        row = row + identity_vectors(encoder.depth.weight, depth)[0]
        waves = encoder.place(explicit.slot_coordinates[edge].to(value.dtype)).sin()
        e.append(row + encoder.place_map(waves))
    ends = explicit.edge_index.T.tolist()
    step = attention_step if isinstance(m, GraphMetanetworkTransformer) else message_step
    u = m.network
    for block in m.blocks:
        e, x, u = step(block, m.norm, ends, e, x, u)
    rows = [n(row, m.norm) for row in e], [n(row, m.norm) for row in x]
    width = m.hidden_dim
    edges, nodes = (torch.stack(r) if r else torch.zeros(0, width) for r in rows)
    return edges, nodes, None if u is None else n(u, m.norm)


def n(row: Tensor, norm: str) -> Tensor:
    return layer_norm(row, row.shape[-1:]) if norm == "layer" else row


def message_step(block: Any, norm: str, ends: Any, e: Any, x: Any, u: Any) -> Any:
    old = [n(row, norm) for row in x]
    old_u = None if u is None else n(u, norm)
    for number, (s, r) in enumerate(ends):
        hidden = block.edge(n(e[number], norm))
        hidden = hidden + block.edge_sender(old[s]) + block.edge_receiver(old[r])
        if old_u is not None:
            hidden = hidden + block.edge_network(old_u)
        e[number] = e[number] + block.edge_out(silu(hidden))
    if block.updates_nodes:
        new = []
        for node, row in enumerate(x):
            hidden = block.node(old[node])
            arrived = [
                silu(block.message(n(e[k], norm)) + block.message_sender(old[s]))
                for k, (s, r) in enumerate(ends)
                if r == node
            ]
            if arrived:
                total = torch.stack(arrived).sum(0)
                hidden = hidden + block.node_in(total / (len(arrived) if mean(block) else 1))
            left = []
            if block.message_receiver is not None:
                left = [
                    silu(block.message(n(e[k], norm)) + block.message_receiver(old[r]))
                    for k, (s, r) in enumerate(ends)
                    if s == node
                ]
            if left:
                total = torch.stack(left).sum(0)
                hidden = hidden + block.node_back(total / (len(left) if mean(block) else 1))
            if old_u is not None:
                hidden = hidden + block.node_network(old_u)
            new.append(row + block.node_out(silu(hidden)))
        x = new
    if u is not None and block.updates_network:
        hidden = block.network(old_u)
        hidden = hidden + block.network_edges(torch.stack([n(row, norm) for row in e]).mean(0))
        hidden = hidden + block.network_nodes(torch.stack([n(row, norm) for row in x]).mean(0))
        u = u + block.network_out(silu(hidden))
    return e, x, u


def mean(block: Any) -> bool:
    return bool(block.aggregation == "mean")


def attention_step(block: Any, norm: str, ends: Any, e: Any, x: Any, u: Any) -> Any:
    old = [n(row, norm) for row in x]
    h = []
    for number, (s, r) in enumerate(ends):
        z = block.edge_factor(n(e[number], norm)) * (block.sender(old[s]) + block.receiver(old[r]))
        z = z.sign() * z.abs() / (z * z + 1e-4) ** 0.25
        h.append(silu(z + block.edge_shift(n(e[number], norm))))
    if block.edge_out is not None:  # the last block, where nothing reads edges, has none
        e = [row + block.edge_out(new) for row, new in zip(e, h, strict=True)]
    if not block.updates_nodes:
        return e, x, u
    heads = block.num_heads
    size = len(old[0]) // heads

    def attend(node: int, mine: int, score: Any, value: Any) -> list[Tensor]:
        own = [k for k, pair in enumerate(ends) if pair[mine] == node]
        if not own:
            return [torch.zeros(heads * size)] * 2
        found = []
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            scores = torch.stack([5 * (score(h[k])[head] / 5).tanh() for k in own]).softmax(0)
            rows = torch.stack([(value(old[ends[k][1 - mine]]) + h[k])[cut] for k in own])
            found.append(scores @ rows)
        y = torch.cat(found)
        return [y, y * math.log(1 + len(own))]

    def attend_to_all(node: int) -> Tensor:
        found = []
        query, key, value = zip(*(block.query_key_value(row).chunk(3) for row in old), strict=True)
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            scores = torch.stack([(query[node][cut] * k[cut]).sum() / size**0.5 for k in key])
            found.append(scores.softmax(0) @ torch.stack([v[cut] for v in value]))
        return torch.cat(found)

    new = []
    for node, row in enumerate(x):
        found = attend(node, 1, block.score_in, block.value_in)
        if block.score_back is not None:
            found += attend(node, 0, block.score_back, block.value_back)
        row = row + block.node_out(torch.cat([*found, attend_to_all(node)]))
        new.append(row + block.node_map(n(row, norm)))
    return e, new, u


def of_one(m: Any, graph: pg.ParamGraph, values: Any) -> Tensor:
    """Prediction for one network by the twin."""
    edges, nodes, u = twin(m, graph, values)
    read = silu(m.read_edges(edges)).mean(0)
    if m.read_nodes is not None:
        read = read + silu(m.read_nodes(nodes)).mean(0)
    if u is not None:
        read = read + silu(m.read_network(u))
    prediction: Tensor = m.head(read)
    return prediction


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bidirectional": False, "values": "fourier"},
    {"norm": "none", "readout": "edges"},
]
MESSAGES: list[dict[str, Any]] = [*OPTIONS, {"use_global": True, "aggregation": "sum"}]


def test_message_passing_is_that_of_a_loop_over_edges(
    captured: CapturedNetworks, float64: torch.dtype
) -> None:
    for number, options in enumerate(MESSAGES):
        m = make(GraphMetanetwork, standardize=False, **options)
        for network in captured.networks if number == 0 else captured.networks[SOME]:
            values = network.graph.features(network.state)
            with torch.no_grad():
                found = m(pg.collate([(network.graph, values)]))[0]
                expected = of_one(m, network.graph, values)
            assert torch.allclose(found, expected, atol=1e-10), (network.name, options)


def test_attention_is_that_of_a_loop_over_edges(
    captured: CapturedNetworks, float64: torch.dtype
) -> None:
    for number, options in enumerate(OPTIONS):
        m = make(GraphMetanetworkTransformer, standardize=False, **options)
        for network in captured.networks[:: 2 if number == 0 else 6]:
            if network.graph.num_parameters > 200:
                continue
            values = network.graph.features(network.state)
            with torch.no_grad():
                found = m(pg.collate([(network.graph, values)]))[0]
                expected = of_one(m, network.graph, values)
            assert torch.allclose(found, expected, atol=1e-10), (network.name, options)


@both
def test_entries_are_those_of_their_edges_and_nodes(
    kind: Any, captured: CapturedNetworks, float64: torch.dtype
) -> None:
    m = make(kind, standardize=False, level="parameter")
    for network in captured.networks[SOME]:
        values = network.graph.features(network.state)
        batch = pg.collate([(network.graph, values)])
        explicit = network.graph.expand("parameter")
        with torch.no_grad():
            found = m(batch)
            edges, nodes, _ = twin(m, network.graph, values)
            rows, statistics = m.edge_head(edges), m.node_head(nodes)
        has_entry = explicit.slot_entry >= 0
        for k in range(2):
            numbers = explicit.values(found.values(batch)[0][k])
            assert torch.allclose(numbers.edges[0, has_entry, 0], rows[has_entry, k], atol=1e-10)
            own = explicit.node_entry >= 0
            columns = statistics.unflatten(1, (2, 2))[..., k]
            assert torch.allclose(numbers.nodes[0][own], columns[own], atol=1e-10), network.name


@both
def test_neurons_that_share_a_node_are_told_apart(kind: Any, float64: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    graph = pg.capture(network.eval(), torch.randn(4, 3))
    values = graph.features(network.state_dict())
    m = make(kind, standardize=False, level="neuron")
    batch = pg.collate([(graph, values)])
    found = m(batch)
    _, nodes, _ = twin(m, graph, values)
    explicit = graph.expand("parameter")
    num_shared, start = 0, 0
    for number, group in enumerate(graph.neuron_groups):
        rank = parameter_tables(HashedGraph(graph)).rank[number]
        num_shared += rank > 0
        root = number if rank == 0 else number - rank
        own = nodes[(explicit.node_group == root) & (explicit.node_neuron >= 0)]
        rows = own + m.read_activation.weight[group.activation.index] + m.read_rank.weight[rank]
        rows = rows + m.read_norm.weight[list(NormKind).index(group.norm)]
        assert torch.allclose(found[start : start + group.size], m.head(rows), atol=1e-10)
        start += group.size
    assert num_shared == 1


def test_values_are_in_units_of_their_role(float64: torch.dtype) -> None:
    m = make(GraphMetanetwork)
    batch = pg.collate([pair("strided_cnn", 1), pair("mlp", 2)])
    m.fit_statistics([batch])
    ours = read_batch(batch, m.standardizer)
    raw = read_batch(batch, None)
    units = {id(b): m.standardizer.edge_unit(b) for b in batch.buckets}
    expected: list[float] = []
    for piece in ours.layout.edges:
        if piece.run.group >= 0:
            unit = m.standardizer.neuron_scale[NeuronRole.BIAS.channel]
        else:
            slot = (piece.part, piece.run.block)
            own = [b for b in batch.buckets if slot in [(s.part, s.block) for s in b.slots]]
            unit = units[id(own[0])] if own[0].kind.has_parameters else torch.ones(())
        expected += [float(unit)] * (piece.copies * piece.run.num_edges)
    assert len(set(expected)) > 4
    assert torch.allclose(ours.edges[:, 0] * torch.tensor(expected), raw.edges[:, 0], atol=1e-12)


# --- laws

LAW_OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "messages": (GraphMetanetwork, {}),
    "messages, global": (GraphMetanetwork, {"use_global": True, "values": "fourier"}),
    "messages, forward only": (GraphMetanetwork, {"bidirectional": False, "readout": "edges"}),
    "messages, sums": (GraphMetanetwork, {"aggregation": "sum", "standardize": False}),
    "messages, neurons": (GraphMetanetwork, {"level": "neuron"}),
    "messages, entries": (GraphMetanetwork, {"level": "parameter", "use_global": True}),
    "attention": (GraphMetanetworkTransformer, {}),
    "attention, edges": (GraphMetanetworkTransformer, {"readout": "edges"}),
    "attention, forward only": (GraphMetanetworkTransformer, {"bidirectional": False}),
    "attention, neurons": (GraphMetanetworkTransformer, {"level": "neuron"}),
    "attention, entries": (GraphMetanetworkTransformer, {"level": "parameter"}),
}


@pytest.mark.parametrize("name", LAW_OPTIONS)
def test_the_laws_hold_on_all_hazards(name: str, captured: CapturedNetworks) -> None:
    kind, options = LAW_OPTIONS[name]
    torch.manual_seed(0)
    heads = {"num_heads": 2} if kind is GraphMetanetworkTransformer else {}
    m = kind(2, **{"hidden_dim": 16, **heads, **options})
    report = check_metanetwork(m, captured)
    assert len(report.networks) == len(captured.networks)
    assert all(row.applies for row in report.of("mixed batch"))
    assert [str(row) for row in report.failures] == []


@both
def test_batch_mates_change_nothing(kind: Any) -> None:
    """Same and other architectures, in any order; and values of several networks at once."""
    m = make(kind)
    parts = [pair("mlp", 1, 2), pair("resnet", 3), pair("siren", 4, 5)]
    batch = pg.collate([*parts, pair("mlp", 6)])
    m.fit_statistics([batch])
    found = m(batch)
    alone = [m(pg.collate([part])) for part in [*parts, pair("mlp", 6)]]
    assert torch.allclose(found, torch.cat(alone), atol=1e-10)
    turned = m(pg.collate([pair("mlp", 6), *reversed(parts)]))
    assert torch.allclose(found[-1], turned[0], atol=1e-10)
    assert found.std(0).min() > 1e-3


# --- what is written back


@both
def test_edited_networks_load_and_keep_statistics(kind: Any) -> None:
    m = make(kind, 1, level="parameter")
    editor = NetworkEditor(m, start=0.1).double()
    names = ("batch_norm", "mlp", "resnet")
    batch = pg.collate([pair(name, 1, 2) for name in names])
    editor.fit_statistics([batch])
    for name, edited in zip(names, editor(batch), strict=True):
        network = randomise(by_name(name).make().double(), 2)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(edited.state_dict(1, before))
        for key, value in network.state_dict().items():
            is_edited = "running" not in key and "num_batches" not in key
            assert bool((value != before[key]).any()) == is_edited, (name, key)
            assert value.isfinite().all()


@both
def test_editing_teaches_the_metanetwork(kind: Any) -> None:
    """The loss of the edited networks has a gradient for every part that entries depend on."""
    m = make(kind, 1, level="parameter")
    editor = NetworkEditor(m).double()
    batch = pg.collate([pair("mlp", 1, 2), pair("batch_norm", 1)])
    loss = sum(
        value.square().sum() for edited in editor(batch) for value in edited.parameters[0].values()
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    # Statistics are read by a head of their own, which editing does not use.
    silent = {"metanetwork.node_head.0.", "metanetwork.node_head.3."}
    for name, parameter in editor.named_parameters():
        if not any(name.startswith(prefix) for prefix in silent):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()


# --- sizes, structure, options


@both
def test_any_number_of_inputs_is_told_apart(kind: Any) -> None:
    """Inputs 3 and 259 share a learned vector, and differ by waves."""
    network = nn.Sequential(nn.Linear(300, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    graph = pg.capture(network, torch.randn(3, 300).double())
    state = network.state_dict()
    order = torch.arange(300)
    order[[3, 259]] = order[[259, 3]]
    moved = {**state, "0.weight": state["0.weight"][:, order]}
    m = make(kind)
    batch = pg.collate([(graph, graph.features([state, moved]))])
    first, second = m(batch)
    assert (first - second).abs().max() > 1e-9
    with torch.no_grad():  # without places nothing else tells inputs apart
        m.node_encoder.places[0].weight.zero_()
        same = m(pg.collate([(graph, graph.features([state]))]))
    assert same.isfinite().all()


def test_structure_is_made_once_per_architecture() -> None:
    m = make(GraphMetanetwork)
    batches = [pg.collate([pair("mlp", seed, 7), pair("siren", seed)]) for seed in (1, 2)]
    m(batches[0])
    tables, layouts = parameter_tables.cache_info().misses, make_run_layout.cache_info().misses
    m(batches[1])
    make(GraphMetanetworkTransformer)(batches[1])
    assert parameter_tables.cache_info().misses == tables
    assert make_run_layout.cache_info().misses == layouts


def test_a_network_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(31, 37).double()
    graph = pg.capture(network, torch.randn(3, 31).double())
    batch = pg.collate([(graph, graph.features(network.state_dict()))])
    monkeypatch.setattr(type(graph), "expand", _refuse)
    with pytest.raises(pg.BatchError, match=r"has 1,184 parameters. Read it with .* on blocks"):
        make(GraphMetanetwork)(batch)


def _refuse(graph: pg.ParamGraph, encoding: str) -> None:
    raise pg.GraphError("more than max_edges")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GraphMetanetwork, {"norm": "batch"}, "norm must be 'layer' or 'none', got 'batch'"),
        (GraphMetanetwork, {"readout": "nodes"}, "readout must be 'edges' or 'both', got 'nodes'"),
        (GraphMetanetwork, {"values": "log"}, "values must be 'sin' or 'fourier', got 'log'"),
        (GraphMetanetwork, {"aggregation": "max"}, "must be 'mean' or 'sum', got 'max'"),
        (GraphMetanetworkTransformer, {"num_heads": 3, "hidden_dim": 8}, "got 3 and 8"),
    ],
)
def test_unknown_options_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(1, **options)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (GraphMetanetwork, {"hidden_dim": 122, "readout": "edges"}, 750_000),
        (GraphMetanetworkTransformer, {"hidden_dim": 96, "readout": "edges"}, 717_000),
    ],
)
def test_published_size(kind: Any, options: dict[str, Any], expected: int) -> None:
    """Lim et al. give all metanetworks about 750,000 parameters."""
    m = kind(1, **options)
    assert sum(p.numel() for p in m.parameters()) == pytest.approx(expected, rel=0.01)


def test_the_last_block_of_a_readout_of_edges_updates_edges_alone() -> None:
    m = GraphMetanetwork(1, readout="edges", num_layers=2)
    assert [block.updates_nodes for block in m.blocks] == [True, False]
    everything = [p for p in m.parameters() if p.grad is None]
    m = m.double()
    found = m(pg.collate([pair("batch_norm", 1), pair("strided_cnn", 1)]))
    found.sum().backward()
    assert len(everything) == sum(p.grad is not None for p in m.parameters())


def test_a_batch_holds_no_entries_of_another(float64: torch.dtype) -> None:
    m = make(GraphMetanetwork, level="parameter")
    found = m(pg.collate([pair("mlp", 1)]))
    assert isinstance(found, Entries)
    with pytest.raises(pg.BatchError, match="they belong to another batch"):
        found.values(pg.collate([pair("siren", 1)]))
