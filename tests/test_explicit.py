"""Laws of explicit graphs, on all hazards and in both encodings."""

import functools
import sys
from typing import Any

import pytest
import torch
from more_networks import ALL_HAZARDS
from networks import Hazard, Wired, vectors
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.errors import GraphError
from paramgraph.explicit import ExplicitGraph, ExplicitValues, LinkKind, NodeKind
from paramgraph.structure import NeuronRole, NormKind
from paramgraph.views import take_part

every_hazard = pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
both_encodings = pytest.mark.parametrize("encoding", ["neural", "parameter"])


@functools.cache
def _captured(name: str) -> tuple[dict[str, Tensor], pg.ParamGraph]:
    """Weights and graph of a hazard."""
    hazard = next(hazard for hazard in ALL_HAZARDS if hazard.name == name)
    network = hazard.make()
    return network.state_dict(), pg.capture(network, hazard.example_inputs)


def _num_uses(graph: pg.ParamGraph) -> Tensor:
    """How often each entry of the parameters is used: once, unless it is tied."""
    views = [block.view for block in graph.blocks if block.view is not None]
    views += [feature.view for group in graph.neuron_groups for feature in group.features]
    keys = [(view.parameter, view.part) for view in views]
    rows = []
    for layout in graph.parameters:
        uses = torch.zeros(layout.shape, dtype=torch.long)
        for number, part in enumerate(layout.parts):
            take_part(uses, part.steps).fill_(keys.count((layout.name, number)))
        rows.append(uses.reshape(-1))
    return torch.cat(rows)


@every_hazard
@both_encodings
def test_round_trip_keeps_every_bit(hazard: Hazard, encoding: str) -> None:
    state, graph = _captured(hazard.name)
    explicit = graph.expand(encoding)
    values = explicit.values([state, {name: value + 1 for name, value in state.items()}])
    written = explicit.write_back(values.edges, values.nodes)
    assert {layout.name for layout in graph.parameters} <= written.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor[0], state[name])
        assert torch.equal(tensor[1], state[name] + 1)


@every_hazard
@both_encodings
def test_each_entry_has_one_place_per_use_and_holds_its_value(
    hazard: Hazard, encoding: str
) -> None:
    state, graph = _captured(hazard.name)
    explicit = graph.expand(encoding)
    entries = torch.cat([explicit.slot_entry, explicit.node_entry.reshape(-1)])
    counts = entries[entries >= 0].bincount(minlength=len(_num_uses(graph)))
    assert torch.equal(counts, _num_uses(graph))
    flat = torch.cat(
        [
            torch.stack([state[n] for n in layout.members]).reshape(-1)
            if layout.members
            else state[layout.name].reshape(-1)
            for layout in graph.parameters
        ]
    )
    values = explicit.values(state)
    slots = values.edges[0][values.mask]
    has_entry = explicit.slot_entry >= 0
    assert torch.equal(slots[has_entry], flat[explicit.slot_entry[has_entry]])
    has_entry = explicit.node_entry >= 0
    assert torch.equal(values.nodes[0][has_entry], flat[explicit.node_entry[has_entry]])
    assert (values.nodes[0][~has_entry] == 0).all()


@every_hazard
def test_each_trained_entry_is_an_edge_of_its_own_in_the_parameter_encoding(
    hazard: Hazard,
) -> None:
    _, graph = _captured(hazard.name)
    explicit = graph.expand("parameter")
    assert explicit.num_positions == 1
    is_buffer = torch.cat(
        [torch.full((layout.num_entries,), layout.is_buffer) for layout in graph.parameters]
    )
    on_edges, on_nodes = torch.zeros_like(is_buffer), torch.zeros_like(is_buffer)
    on_edges[explicit.slot_entry[explicit.slot_entry >= 0]] = True
    on_nodes[explicit.node_entry[explicit.node_entry >= 0]] = True
    assert torch.equal(on_edges, ~is_buffer)
    assert torch.equal(on_nodes, is_buffer)
    assert explicit.num_edges >= graph.num_parameters


def _rows(
    explicit: ExplicitGraph, values: ExplicitValues, order: Tensor
) -> list[tuple[object, ...]]:
    """All edges with their attributes, in an order that does not depend on that of nodes."""
    columns = [
        order[explicit.sender],
        order[explicit.receiver],
        explicit.edge_kind,
        explicit.edge_block,
        explicit.edge_coordinates().flatten(1),
        values.mask,
        values.edges[0],
    ]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return sorted(tuple(map(str, row)) for row in rows)


@every_hazard
@both_encodings
def test_a_permuted_network_has_the_relabelled_graph(hazard: Hazard, encoding: str) -> None:
    state, graph = _captured(hazard.name)
    explicit = graph.expand(encoding)
    before = explicit.values(state)
    symmetry = graph.sample_symmetry(torch.Generator().manual_seed(7))
    after = explicit.values(symmetry.apply(state))
    order = explicit.node_order(symmetry)
    assert torch.equal(order.sort().values, torch.arange(explicit.num_nodes))
    same = torch.arange(explicit.num_nodes)
    assert _rows(explicit, after, order) == _rows(explicit, before, same)
    assert torch.equal(after.nodes, before.nodes[:, order])
    for name in ("kind", "group", "position", "activation", "norm", "depth"):
        column = getattr(explicit, f"node_{name}")
        assert torch.equal(column, column[order]), name


@every_hazard
@both_encodings
def test_edges_lead_to_larger_depths_and_reach_every_node(hazard: Hazard, encoding: str) -> None:
    _, graph = _captured(hazard.name)
    explicit = graph.expand(encoding)
    assert (explicit.node_depth >= 0).all()
    assert (explicit.node_depth[explicit.sender] < explicit.node_depth[explicit.receiver]).all()
    touched = torch.cat([explicit.sender, explicit.receiver]).unique()
    assert torch.equal(touched, torch.arange(explicit.num_nodes))


@every_hazard
def test_the_neural_encoding_has_the_nodes_and_edges_of_the_structure(hazard: Hazard) -> None:
    _, graph = _captured(hazard.name)
    explicit = graph.expand("neural")
    assert (explicit.num_nodes, explicit.num_edges) == (graph.num_neurons, graph.num_edges)
    assert explicit.node_roles == tuple(NeuronRole)


@every_hazard
def test_normalisations_have_no_neurons_in_the_parameter_encoding(hazard: Hazard) -> None:
    _, graph = _captured(hazard.name)
    explicit = graph.expand("parameter")
    is_neuron = explicit.node_neuron >= 0
    kept = explicit.node_group[is_neuron].unique().tolist()
    norms = [group for group in kept if graph.neuron_groups[group].norm is not NormKind.NONE]
    # The gains of this one are repeated over the batch, so capture reads them as neurons.
    names = [graph.neuron_groups[group].name for group in norms]
    assert names == (["1#2"] if hazard.name == "instance_norm" else [])


@both_encodings
def test_without_dataflow_only_residuals_are_free_of_parameters(encoding: str) -> None:
    state, graph = _captured("multihead_attention")
    explicit = graph.expand(encoding, dataflow=False)
    is_free = explicit.slot_entry < 0
    edge = torch.arange(explicit.num_edges).repeat_interleave(explicit.edge_start.diff())
    assert set(explicit.edge_kind[edge[is_free]].tolist()) <= {LinkKind.SKIP.index}
    assert explicit.num_edges < graph.expand(encoding).num_edges
    values = explicit.values(state)
    written = explicit.write_back(values.edges, values.nodes)
    assert all(torch.equal(tensor[0], state[name]) for name, tensor in written.items())


def _small() -> tuple[nn.Sequential, pg.ParamGraph]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, (3, 1)), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 2)
    ).eval()
    return network, pg.capture(network, vectors(2, 1, 6, 6))


def test_kernels_of_several_sizes_are_padded_with_a_mask() -> None:
    network, graph = _small()
    explicit = graph.expand("neural")
    values = explicit.values(network.state_dict())
    assert values.edges.shape == (1, 2 + 2 + 6, 4)
    assert values.mask.sum(1).tolist() == [3] * 2 + [1] * 2 + [4] * 6
    assert (values.edges[0][~values.mask] == 0).all()
    first = network.state_dict()["0.weight"]
    assert torch.equal(values.edges[0, 1, :3], first[1, 0, :, 0])
    assert explicit.edge_coordinates()[0, :, 1].tolist() == [-1, 0, 1, 0]
    wide = explicit.values(network.state_dict(), num_positions=9)
    assert wide.edges.shape == (1, 10, 9)
    assert torch.equal(wide.edges[..., :4], values.edges)
    written = explicit.write_back(wide.edges, wide.nodes)
    assert torch.equal(written["0.weight"][0], first)
    with pytest.raises(GraphError, match="num_positions is 3, but an edge of this graph has 4"):
        explicit.values(network.state_dict(), num_positions=3)


def test_values_are_differentiable_and_written_into_other_networks() -> None:
    network, graph = _small()
    explicit = graph.expand("parameter")
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["0.weight"].requires_grad_()
    values = explicit.values(state)
    (values.edges * 3).sum().backward()
    assert torch.equal(state["0.weight"].grad, torch.full_like(state["0.weight"], 3))
    written = explicit.write_back(values.edges.detach() + 1, values.nodes)
    assert torch.equal(written["1.bias"][0], state["1.bias"] + 1)


def test_tied_parameters_have_an_edge_per_use() -> None:
    state, graph = _captured("tied")
    explicit = graph.expand("parameter")
    values = explicit.values(state)
    ones = torch.ones_like(values.edges)
    assert (explicit.write_back(ones, values.nodes, tied="sum")["2.weight"] == 2).all()
    assert (explicit.write_back(ones, values.nodes)["2.weight"] == 1).all()


def test_values_of_another_graph_are_refused() -> None:
    network, graph = _small()
    explicit = graph.expand("parameter")
    other = pg.capture(nn.Linear(3, 2), vectors(4, 3))
    with pytest.raises(GraphError, match="the values have 21 numbers per network, the graph has"):
        explicit.values(other.features(nn.Linear(3, 2).state_dict()))
    values = graph.expand("neural").values(network.state_dict())
    with pytest.raises(GraphError, match="They belong to another graph or encoding"):
        explicit.write_back(values.edges, values.nodes)


def test_large_graphs_and_unknown_encodings_are_refused() -> None:
    _, graph = _small()
    # 6 + 24 kernel elements, 2 gains, and 2 + 2 + 3 biases and shifts
    with pytest.raises(GraphError, match="has 39 edges, more than max_edges = 38"):
        graph.expand("parameter", max_edges=38)
    assert graph.expand("parameter", max_edges=39).num_edges == 39
    with pytest.raises(GraphError, match="'neural' or 'parameter', got 'gmn'"):
        graph.expand("gmn")


def test_a_normalisation_beside_a_branch_of_its_input_keeps_its_neurons() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = n.first(x)
        return n.last((n.norm(hidden) + n.beside(hidden)).relu())

    network = Wired(
        wiring,
        first=nn.Linear(3, 4),
        norm=nn.LayerNorm(4),
        beside=nn.Linear(4, 4),
        last=nn.Linear(4, 2),
    )
    explicit = pg.capture(network, vectors(5, 3)).expand("parameter")
    # Merged, the branch would lead from the neurons to themselves.
    assert (explicit.sender != explicit.receiver).all()
    assert (explicit.node_depth[explicit.sender] < explicit.node_depth[explicit.receiver]).all()
    added = (explicit.edge_kind == LinkKind.SKIP.index) & (explicit.edge_block == -1)
    assert added.sum() == 4
    values = explicit.values(network.state_dict())
    assert (values.edges[0][added] == 1).all()
    gain = explicit.receiver[explicit.edge_kind == LinkKind.GAIN.index]
    assert torch.equal(gain.sort().values, explicit.receiver[added].sort().values)


def test_a_normalisation_between_two_activations_keeps_its_neurons() -> None:
    layers = (nn.Tanh(), nn.BatchNorm1d(3), nn.ReLU())
    kept = nn.Sequential(nn.Linear(2, 3), *layers, nn.Linear(3, 1)).eval()
    merged = nn.Sequential(nn.Linear(2, 3), *layers[:2], nn.Linear(3, 1)).eval()
    explicit = [pg.capture(n, vectors(4, 2)).expand("parameter") for n in (kept, merged)]
    assert explicit[0].num_nodes == explicit[1].num_nodes + 3


def test_a_normalisation_of_inputs_that_is_the_output_keeps_its_neurons() -> None:
    explicit = pg.capture(nn.LayerNorm(3), vectors(4, 3)).expand("parameter")
    kinds = [NodeKind.INPUT, NodeKind.OUTPUT, NodeKind.GAIN, NodeKind.SHIFT]
    counts = [int((explicit.node_kind == kind.index).sum()) for kind in kinds]
    assert counts == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("last", "num_nodes"),
    [(nn.BatchNorm1d(3), 2 + 3 + 1 + 2 + 3 + 2), (nn.LayerNorm(3), 2 + 3 + 1 + 2 + 2)],
    ids=["batch", "layer"],
)
def test_two_normalisations_share_neurons_unless_both_have_statistics(
    last: nn.Module, num_nodes: int
) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), last).eval()
    graph = pg.capture(network, vectors(4, 2))
    explicit = graph.expand("parameter")
    assert explicit.num_nodes == num_nodes
    values = explicit.values(network.state_dict())
    written = explicit.write_back(values.edges, values.nodes)
    assert all(torch.equal(written[n][0], network.state_dict()[n]) for n in written)


def test_positions_number_inputs_and_outputs_only() -> None:
    _, graph = _small()
    explicit = graph.expand("parameter")
    kind, position = explicit.node_kind, explicit.node_position
    assert position[kind == NodeKind.INPUT.index].tolist() == [0]
    assert position[kind == NodeKind.OUTPUT.index].tolist() == [0, 1, 2]
    others = (kind != NodeKind.INPUT.index) & (kind != NodeKind.OUTPUT.index)
    assert (position[others] == -1).all()
    hubs = explicit.node_neuron == -1
    found = [list(NodeKind)[index].value for index in kind[hubs].tolist()]
    assert sorted(found) == ["bias", "bias", "gain", "shift"]
    norms = [list(NormKind)[index].value for index in explicit.node_norm[hubs].tolist()]
    assert sorted(norms) == ["batch", "batch", "none", "none"]
    assert sorted(explicit.node_depth[hubs].tolist()) == [0, 0, 0, 1]


def test_rows_of_a_grid_have_coordinates() -> None:
    _, graph = _captured("tri_plane")
    explicit = graph.expand("parameter")
    edges = explicit.edge_kind == LinkKind.EMBEDDING.index
    places = explicit.slot_coordinates[edges].unique(dim=0)
    assert len(places) == 3 * 3 * 3
    assert places.unique().tolist() == [-1, 0, 1]


def test_pyg_data_can_be_batched() -> None:
    loader = pytest.importorskip("torch_geometric.data")
    network, graph = _small()
    other = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    other_graph = pg.capture(other, vectors(4, 2))
    networks = graph.to_pyg([network.state_dict()] * 2, num_positions=9)
    assert len(networks) == 2
    single = other_graph.to_pyg(other_graph.features(other.state_dict()), num_positions=9)
    batch = loader.Batch.from_data_list([*networks, single])
    assert batch.num_nodes == 2 * graph.num_neurons + other_graph.num_neurons
    assert batch.edge_attr.shape == (2 * graph.num_edges + other_graph.num_edges, 9)
    back = batch.to_data_list()[1]
    assert back.validate()
    assert torch.equal(back.edge_index, networks[1].edge_index)
    explicit = graph.expand("neural")
    written = explicit.write_back(back.edge_attr[None], back.x[None])
    assert torch.equal(written["3.weight"][0], network.state_dict()["3.weight"])


def test_networkx_has_the_same_edges() -> None:
    networkx = pytest.importorskip("networkx")
    network, graph = _small()
    drawn = graph.to_networkx(network.state_dict())
    explicit = graph.expand("neural")
    assert networkx.is_directed_acyclic_graph(drawn)
    assert networkx.is_weakly_connected(drawn)
    assert drawn.number_of_edges() == explicit.num_edges
    kernel = drawn.edges[0, 1, 0]
    assert (kernel["kind"], kernel["block"]) == ("conv", "0.weight")
    assert kernel["value"] == network.state_dict()["0.weight"][0, 0, :, 0].tolist()
    assert drawn.nodes[1]["bias"] == network.state_dict()["0.bias"][0].item()
    parameter = graph.to_networkx(network.state_dict(), "parameter")
    assert parameter.number_of_edges(0, 1) == 3  # the parallel edges of a kernel
    with pytest.raises(GraphError, match="takes one network, got 2"):
        graph.to_networkx([network.state_dict()] * 2)


@pytest.mark.parametrize(
    ("module", "method", "message"),
    [
        ("torch_geometric.data", "to_pyg", r"pip install 'paramgraph\[pyg\]'"),
        ("networkx", "to_networkx", "pip install networkx"),
    ],
)
def test_a_missing_library_is_named(
    module: str, method: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, graph = _small()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GraphError, match=message):
        getattr(graph, method)(network.state_dict())
