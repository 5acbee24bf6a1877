"""The public checks themselves: reports, refusals, draws; each law of capture is seen to fail."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from broken_twins import Broken, ignores_biases_of_outputs, sound
from networks import HAZARDS, Hazard, by_name
from torch import Tensor, nn

import paramgraph as pg
import paramgraph.testing as pt
from paramgraph.batch import GraphBatch
from paramgraph.nn import Metanetwork, OperatorMetanetwork
from paramgraph.structure import EdgeBlock, EdgeKind, ScaleKind
from paramgraph.testing import graph_laws
from paramgraph.testing.draws import double_state, other_weights

NAMES = ("mlp", "mixed_activations", "batch_norm")


@functools.cache
def example_networks() -> list[pt.ExampleNetwork]:
    return [pt.ExampleNetwork(n, by_name(n).make(), by_name(n).example_inputs) for n in NAMES]


def test_assert_names_the_broken_law_the_network_and_the_tensor() -> None:
    match = r"sensitive on mlp: .* more than 1e-05 expected \(4.bias\)"
    with pytest.raises(AssertionError, match=match):
        pt.assert_metanetwork(Broken(ignores_biases_of_outputs), example_networks())


def test_a_metanetwork_that_reads_nothing_has_not_passed() -> None:
    class Refusing(Metanetwork):
        def forward(self, batch: GraphBatch) -> Tensor:
            raise pg.BatchError("not today")

    report = pt.check_metanetwork(Refusing(1), example_networks())
    assert not report.passed
    assert not report.failures
    assert all("not today" in row.note for row in report.rows)
    assert "Metanetwork" not in str(report)
    with pytest.raises(AssertionError, match="FAILED: 0 of 0 checks"):
        pt.assert_metanetwork(Refusing(1), example_networks())


def test_a_refused_network_is_reported_and_the_others_are_mixed() -> None:
    class Small(Metanetwork):
        def __init__(self) -> None:
            super().__init__(2)
            self.inner = OperatorMetanetwork(2, hidden_dim=8, num_rounds=1)

        def forward(self, batch: GraphBatch) -> Tensor:
            if any(len(part.graph.blocks) > 4 for part in batch.parts):
                raise pg.BatchError("more than 4 blocks")
            return self.inner(batch)

    report = pt.check_metanetwork(Small(), example_networks())
    assert report.passed
    mixed = {row.network: row.passed for row in report.of("mixed batch")}
    assert mixed == {"mlp": True, "mixed_activations": None, "batch_norm": True}
    notes = {row.note for row in report.rows if row.network == "mixed_activations"}
    assert notes == {"refused: more than 4 blocks"}


def test_one_network_alone_makes_no_mixed_batch() -> None:
    report = pt.check_metanetwork(Broken(sound), example_networks()[:1])
    (row,) = report.of("mixed batch")
    assert row.passed is None
    assert row.note == "there is one network only"


def test_the_metanetwork_and_the_networks_are_not_changed() -> None:
    metanetwork = Broken(sound).train()
    before = {name: value.clone() for name, value in metanetwork.state_dict().items()}
    weights = {n.name: next(n.network.parameters()).clone() for n in example_networks()}
    pt.check_metanetwork(metanetwork, example_networks())
    after = metanetwork.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert metanetwork.training
    assert next(metanetwork.parameters()).dtype == torch.float32
    for network in example_networks():
        assert torch.equal(next(network.network.parameters()), weights[network.name])


def test_the_seed_decides_everything() -> None:
    metanetwork = Broken(sound)
    first, again, other = (
        [row.error for row in pt.check_metanetwork(metanetwork, example_networks(), seed=s).rows]
        for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


# --- graphs


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_the_laws_of_capture_hold(hazard: Hazard) -> None:
    report = pt.check_graph(hazard.make(), hazard.example_inputs, num_seeds=3)
    assert report.passed, str(report)


def _graph_report(name: str, change: Callable[[pg.ParamGraph], pg.ParamGraph]) -> pt.LawReport:
    hazard = by_name(name)
    network = hazard.make()
    graph = change(pg.capture(network, hazard.example_inputs))
    return pt.check_graph(network, hazard.example_inputs, graph=graph)


def _frees_the_outputs(graph: pg.ParamGraph) -> pg.ParamGraph:
    groups = tuple(replace(group, free=True) for group in graph.axis_groups)
    return replace(graph, axis_groups=groups)


def _lets_relu_change_sign(graph: pg.ParamGraph) -> pg.ParamGraph:
    groups = tuple(replace(group, kind=ScaleKind.SIGN) for group in graph.scale_groups)
    return replace(graph, scale_groups=groups)


def _forgets_that_neurons_move(graph: pg.ParamGraph) -> pg.ParamGraph:
    groups = tuple(replace(group, axes=(group.size,)) for group in graph.neuron_groups)
    return replace(graph, neuron_groups=groups)


def _reads_the_wrong_parameter(graph: pg.ParamGraph) -> pg.ParamGraph:
    """The two 4 x 4 matrices in the middle change places."""
    blocks = list(graph.blocks)
    second, third = blocks[1].view, blocks[2].view
    blocks[1], blocks[2] = replace(blocks[1], view=third), replace(blocks[2], view=second)
    return replace(graph, blocks=tuple(blocks))


def _loses_the_biases(graph: pg.ParamGraph) -> pg.ParamGraph:
    groups = tuple(replace(group, features=()) for group in graph.neuron_groups)
    parameters = tuple(row for row in graph.parameters if not row.name.endswith("bias"))
    return replace(graph, neuron_groups=groups, parameters=parameters)


def _ties_what_is_not_tied(graph: pg.ParamGraph) -> pg.ParamGraph:
    parameters = list(graph.parameters)
    place = [row.name for row in parameters].index("2.weight")
    parameters[place] = replace(parameters[place], aliases=("4.weight",))
    return replace(graph, parameters=tuple(parameters[:place] + parameters[place:][::-1]))


def _has_other_activations(graph: pg.ParamGraph) -> pg.ParamGraph:
    groups = tuple(replace(group, activation_text="?") for group in graph.neuron_groups)
    return replace(graph, neuron_groups=groups)


@pytest.mark.parametrize(
    ("law", "change", "note"),
    [
        ("function", _frees_the_outputs, "worst of 20 seeds: "),
        ("function", _lets_relu_change_sign, "worst of 20 seeds: "),
        ("commute", _forgets_that_neurons_move, "worst at "),
        ("commute", _reads_the_wrong_parameter, "worst at "),
        ("complete", _loses_the_biases, "0.bias, 2.bias, 4.bias, 6.bias, 8.bias"),
        ("round trip", _ties_what_is_not_tied, "4.weight"),
        ("zero weight", _has_other_activations, "the structure changes"),
    ],
)
def test_each_law_notices_a_wrong_graph(
    law: str, change: Callable[[pg.ParamGraph], pg.ParamGraph], note: str
) -> None:
    report = _graph_report("mixed_activations", change)
    assert not report.passed
    (row,) = report.of(law)
    assert row.passed is False, str(report)
    assert note in row.note


def test_outputs_that_are_not_finite_break_the_law() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    inputs = torch.full((4, 2), math.inf)
    graph = pg.capture(network, torch.randn(4, 2))
    (row,) = pt.check_graph(network, inputs, graph=graph, num_seeds=1).of("function")
    assert row.passed is False
    assert "not finite" in row.note


# --- networks and reports


def test_there_are_enough_hazard_networks_and_the_laws_hold_on_them() -> None:
    networks = pt.hazard_networks()
    assert len({network.name for network in networks}) == len(networks) >= 30
    for name, network, inputs in networks:
        assert sum(p.numel() for p in network.parameters()) < 200, name
        report = pt.check_graph(network, inputs, num_seeds=2)
        assert report.passed, f"{name}: {report}"


def test_hazard_networks_follow_their_seed_and_leave_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (pt.hazard_networks(seed)[0].network for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    one, two, three = (next(network.parameters()) for network in (first, again, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_hazard_networks_have_no_default_values() -> None:
    for name, network, _ in pt.hazard_networks():
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                assert not (value == 0).any(), f"{name}: {key}"
                assert not (value == 1).any(), f"{name}: {key}"


def test_other_weights_differ_but_variances_stay_positive_and_tied_tensors_tied() -> None:
    generator = torch.Generator().manual_seed(0)
    for hazard in HAZARDS:
        network = hazard.make()
        graph = pg.capture(network, hazard.example_inputs)
        state = double_state(network)
        for _ in range(5):
            other = other_weights(graph, state, generator)
            assert other.keys() == state.keys()
            for layout in graph.parameters:
                assert not (other[layout.name] == state[layout.name]).any(), hazard.name
                assert all(other[name] is other[layout.name] for name in layout.aliases)
            for name, value in other.items():
                assert not name.endswith("running_var") or bool((value > 0).all()), hazard.name


@pytest.mark.parametrize(
    ("error", "must_exceed", "passed"),
    [
        (1.0, False, True),
        (1.1, False, False),
        (math.nan, False, False),
        (1.0, True, False),
        (1.1, True, True),
        (math.nan, True, False),
        (None, False, None),
        (None, True, None),
    ],
)
def test_a_row_compares_its_error_with_its_bound(
    error: float | None, must_exceed: bool, passed: bool | None
) -> None:
    row = pt.LawRow("law", "net", error, 1.0, must_exceed=must_exceed)
    assert row.passed is passed
    assert row.applies is (error is not None)


def test_a_report_shows_the_worst_network_and_every_broken_row() -> None:
    rows = (
        pt.LawRow("scale", "small", 1e-12, 1e-8),
        pt.LawRow("scale", "large", 0.25, 1e-8, "draw 3"),
        pt.LawRow("sign", "small", None, 1e-8, "no signs"),
        pt.LawRow("sensitive", "small", 2e-5, 1e-5, must_exceed=True),
        pt.LawRow("sensitive", "large", 3e-5, 1e-5, must_exceed=True),
    )
    report = pt.LawReport("Mine", rows)
    lines = [line.split() for line in str(report).splitlines()]
    assert lines[0] == ["Mine:", "FAILED:", "3", "of", "4", "checks"]
    assert ["scale", "2", "2.5e-01", "<=", "1e-08", "large", "FAILED", "on", "1"] in lines
    assert ["sensitive", "2", "2.0e-05", ">", "1e-05", "small", "passed"] in lines
    assert ["sign", "0", "-", "-", "-", "does", "not", "apply"] in lines
    assert "  scale on large: 2.5e-01, at most 1e-08 expected (draw 3)" in str(report)
    assert "  sign on small: no signs" in str(report)
    assert report.failures == rows[1:2]
    assert report.laws == ("scale", "sign", "sensitive")


def test_a_report_fits_the_terminal_and_names_each_law_and_network() -> None:
    names = [f"network_{number}" for number in range(30)]
    rows = [pt.LawRow("scale", name, 0.5, 1e-8, "a long note, " * 12) for name in names]
    rows += [
        pt.LawRow(law, "odd_one", None, 0.0, "refused: " + "word " * 40) for law in pt.LAW_NAMES
    ]
    text = str(pt.LawReport("Mine", tuple(rows)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 60
    assert all(name in text for name in [*names, "odd_one", *pt.LAW_NAMES])
    assert "scale also on 26 others: network_4, network_5" in " ".join(text.split())
    assert text.count("refused") == 1
    assert "all laws on odd_one: refused" in text


def test_a_report_refuses_a_law_that_it_does_not_have() -> None:
    report = pt.LawReport("Mine", (pt.LawRow("scale", "small", 0.0, 1.0),))
    with pytest.raises(KeyError, match=r"no law 'scales' in the report; it has \('scale',\)"):
        report.of("scales")


def test_an_empty_report_has_not_passed() -> None:
    assert not pt.LawReport("Mine", ()).passed
    nothing = pt.LawReport("Mine", (pt.LawRow("scale", "small", None, 1.0, "why"),))
    assert not nothing.passed


def test_a_block_is_reordered_as_its_matrix_is() -> None:
    """Where the orders of both ends do not fit, an edge meets none: 0, also for skips."""
    block = EdgeBlock("w", EdgeKind.LINEAR, 0, 1, 3, 2, 2)
    values = torch.arange(1.0, 13.0).reshape(block.shape)
    matrix = torch.block_diag(*values[..., 0])
    places = torch.block_diag(*torch.ones(3, 2, 2)).bool()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        receiver, sender = (torch.randperm(6, generator=generator) for _ in range(2))
        moved = graph_laws._reordered(block, values, receiver, sender)
        assert torch.equal(moved.reshape(-1), matrix[receiver][:, sender][places])
