"""How outputs of each level move with a symmetry; draws; what a report says of wrong outputs."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from broken_twins import Broken, sound, transposed
from torch import Tensor

import paramgraph as pg
import paramgraph.testing as pt
from paramgraph.nn import OperatorMetanetwork
from paramgraph.nn.editing import NetworkEditor
from paramgraph.nn.metanetwork import Level
from paramgraph.symmetry import Symmetry
from paramgraph.testing.draws import double_state, draw_kinds, groups_of_kind, other_weights
from paramgraph.testing.moves import move_of

NAMES = ("mlp", "mixed_activations", "batch_norm")


@functools.cache
def example_networks() -> list[pt.ExampleNetwork]:
    return [row for row in pt.hazard_networks() if row.name in NAMES]


def captured(name: str) -> tuple[pg.ParamGraph, dict[str, Tensor]]:
    (network,) = (row for row in pt.hazard_networks() if row.name == name)
    return pg.capture(network.network, network.example_inputs), double_state(network.network)


def drawn(graph: pg.ParamGraph, *kinds: str, seed: int = 0) -> Symmetry:
    return draw_kinds(graph, kinds, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["mixed_activations", "siren", "tied", "vision_transformer"])
def test_changes_of_parameters_move_linearly(name: str) -> None:
    """Shifts of phases move the parameters, and not the changes of them."""
    graph, state = captured(name)
    symmetry = drawn(graph, "permutation", "sign", "scale", "phase")
    change = other_weights(graph, state, torch.Generator().manual_seed(1))
    moved = [symmetry.apply(weights) for weights in (state, sum_of(graph, state, change))]
    flat = [flatten(graph, weights) for weights in (*moved, change)]
    expected = flat[1] - flat[0]
    got = move_of(symmetry, graph, "parameter")(flat[2][:, None])[:, 0]
    assert float((got - expected).abs().max()) < 1e-9 * float(expected.abs().max())
    has_shifts = any(part.shifts for row in graph.parameters for part in row.parts)
    moved_as_a_change = move_of(symmetry, graph, "parameter")(flatten(graph, state)[:, None])
    assert torch.allclose(flat[0], moved_as_a_change[:, 0], rtol=1e-9) == (not has_shifts)


def sum_of(graph: pg.ParamGraph, *states: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [name for row in graph.parameters for name in (row.name, *row.aliases)]
    return {name: states[0][name] + states[1][name] for name in names}


def flatten(graph: pg.ParamGraph, state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[row.name].flatten() for row in graph.parameters if not row.is_buffer])


@pytest.mark.parametrize("name", ["mixed_activations", "siren", "tied", "concatenation"])
def test_editing_commutes_with_symmetries(name: str) -> None:
    """What the laws of parameters say, by the editor and state dicts alone."""
    graph, state = captured(name)
    metanetwork = OperatorMetanetwork(1, hidden_dim=8, level="parameter")
    editor = NetworkEditor(metanetwork, start=0.1).double()
    symmetry = drawn(graph, *sorted(metanetwork.promised_symmetries()))

    def edit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        (edited,) = editor(pg.collate([(graph, graph.features(weights))]))
        return edited.state_dict(0, weights)

    one, two = symmetry.apply(edit(state)), edit(symmetry.apply(state))
    for name_, value in one.items():
        assert float((value - two[name_]).abs().max()) < 1e-10, name_
    assert float((flatten(graph, edit(state)) - flatten(graph, state)).abs().max()) > 1e-4


def test_neurons_move_as_the_graph_says() -> None:
    graph, state = captured("depthwise")
    symmetry = drawn(graph, "permutation")
    values = graph.features([state, symmetry.apply(state)])
    rows = torch.cat([group[..., 0] for group in values.neurons], dim=1)
    move = move_of(symmetry, graph, "neuron")
    assert torch.equal(move(rows[0][:, None])[:, 0], rows[1])
    assert not torch.equal(rows[0], rows[1])


def test_factors_reach_from_a_hundredth_to_a_hundred() -> None:
    graph, _ = captured("mlp")
    factors = torch.cat(
        [f for seed in range(50) for f in drawn(graph, "scale", seed=seed).factors.values()]
    )
    assert 0.01 <= float(factors.min()) < 0.02
    assert 50 < float(factors.max()) <= 100


@pytest.mark.parametrize(("kind", "same"), [("sign", 1.0), ("scale", 1.0), ("phase", 0.0)], ids=str)
def test_no_group_is_left_as_it_was(kind: str, same: float) -> None:
    graph, _ = captured("siren" if kind == "phase" else "instance_norm")
    for seed in range(30):
        symmetry = drawn(graph, kind, seed=seed)
        assert symmetry.factors.keys() == {row.name for row in groups_of_kind(graph, kind)}
        assert all(bool((factor != same).any()) for factor in symmetry.factors.values())


def test_captured_networks_are_drawn_once_and_give_the_same_report() -> None:
    networks = pt.capture_networks(example_networks())
    first = pt.check_metanetwork(Broken(sound), networks)
    batch = networks.networks[0].sample(frozenset({"permutation"})).batch
    torch.manual_seed(1)
    metanetwork = Broken(sound)
    again, other = (
        pt.check_metanetwork(metanetwork, given) for given in (networks, example_networks())
    )
    assert networks.networks[0].sample(frozenset({"permutation"})).batch is batch
    assert [row.error for row in again.rows] == [row.error for row in other.rows]
    assert [row.error for row in first.rows] != [row.error for row in again.rows]


def test_a_tensor_that_the_function_does_not_depend_on_need_not_be_seen() -> None:
    """A bias before a norm, and a bias of keys, which softmax takes out again."""
    rows = [row for row in pt.hazard_networks() if row.name in ("instance_norm", "attention")]
    for network, dead in zip(
        pt.capture_networks(rows).networks, ("0.bias", "key.bias"), strict=True
    ):
        trained = {row.name for row in network.graph.parameters if not row.is_buffer}
        names = network.sample(frozenset({"permutation"})).names
        assert set(names["sensitive"]) == trained - {dead}
        assert dead not in names["wrong permutation"]
        assert len(names["wrong permutation"]) >= 5


def test_the_law_of_all_symmetries_says_which_one_is_broken_by_itself() -> None:
    metanetwork = Broken(sound, "permutation", "permutation", "sign")
    report = pt.check_metanetwork(metanetwork, example_networks())
    notes = {row.network: row.note for row in report.of("combined")}
    assert notes["mixed_activations"] == "sign is broken by itself"
    assert notes["mlp"] == "there are not two promised kinds of symmetries in the network"


@pytest.mark.parametrize(
    ("level", "output", "note"),
    [
        (
            "graph",
            lambda inner, batch: inner(batch).repeat(2, 1),
            r"promises .1, 2., got .2, 2.",
        ),
        ("neuron", lambda inner, batch: inner(batch)[1:], r"promises \(\d+, 2\), got"),
        ("parameter", lambda inner, batch: 0, r"'parameter' promises Entries, got int"),
        ("parameter", transposed, r"cannot be written to parameters: entries of a linear bucket"),
    ],
)
def test_outputs_of_a_wrong_shape_are_named(level: Level, output: Any, note: str) -> None:
    report = pt.check_metanetwork(Broken(output, level=level), example_networks())
    assert {row.law for row in report.failures} == {"shape"}
    assert all(re.search(note, row.note) for row in report.failures), report.failures[0].note
    others = [row for row in report.rows if row.law not in ("shape", "mixed batch")]
    assert not any(row.applies for row in others)
