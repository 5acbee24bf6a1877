"""Laws of the symmetries that capture finds, on every network of ``networks.HAZARDS``."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from networks import HAZARDS, Hazard, as_double, by_name, outputs
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.structure import (
    AxisGroup,
    EdgeBlock,
    NeuronGroup,
    NeuronKind,
    NeuronRole,
    ScaleGroup,
    ScaleKind,
)
from paramgraph.symmetry import Symmetry, draw_symmetry

NUM_SEEDS = 20


@functools.cache
def captured(name: str) -> pg.ParamGraph:
    hazard = by_name(name)
    return pg.capture(hazard.make(), hazard.example_inputs)


def dense(block: EdgeBlock, values: Tensor) -> Tensor:
    """The entries ``[receivers, senders, positions]`` of a block, zero where no edge is."""
    num_receivers = block.num_blocks * block.num_receivers
    num_senders = block.num_blocks * block.num_senders
    matrix = torch.zeros(num_receivers, num_senders, block.num_positions, dtype=values.dtype)
    for k in range(block.num_blocks):
        for r in range(block.num_receivers):
            for s in range(block.num_senders):
                row, column = k * block.num_receivers + r, k * block.num_senders + s
                matrix[row, column] = values[k, r, s]
    return matrix


def largest_change(network: nn.Module, state: dict[str, Tensor], inputs: object) -> float:
    """Largest relative change of the outputs with other parameters; restores the network."""
    before = outputs(network, inputs)
    original = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    after = outputs(network, inputs)
    network.load_state_dict(original)
    scale = max(float(out.abs().max()) for out in before)
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) / scale


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
@pytest.mark.parametrize("scale", [False, True], ids=["permute", "permute_and_scale"])
def test_a_symmetry_keeps_the_function(hazard: Hazard, scale: bool) -> None:
    network, graph = hazard.make().double(), captured(hazard.name)
    inputs = as_double(hazard.example_inputs)
    errors = []
    for seed in range(NUM_SEEDS):
        symmetry = graph.sample_symmetry(torch.Generator().manual_seed(seed), scale=scale)
        for group in graph.axis_groups:
            identity = torch.arange(group.size)
            order = symmetry.orders[group.name]
            same = (order == identity).all(dim=1)
            assert not same.all() if group.free else same.all(), f"order of {group.name!r}"
            # What one order for all copies hides would be seen with another one for each.
            assert not group.free or len(order) == 1 or (order != order[0]).any()
        errors.append(largest_change(network, symmetry.apply(network.state_dict()), inputs))
    assert max(errors) < 1e-10, f"worst seed {errors.index(max(errors))}: {max(errors):.1e}"


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_features_commute_with_a_symmetry(hazard: Hazard) -> None:
    """Graph of the moved network = moved graph, with W[i, j] -> W[r(i), s(j)] q_r / q_s."""
    state, graph = hazard.make().double().state_dict(), captured(hazard.name)
    for seed in range(NUM_SEEDS):
        symmetry = graph.sample_symmetry(torch.Generator().manual_seed(seed), scale=True)
        before, after = graph.features(state)[0:1], graph.features(symmetry.apply(state))[0:1]
        orders = [symmetry.neuron_order(i) for i in range(len(graph.neuron_groups))]
        scales = [symmetry.neuron_scale(i) for i in range(len(graph.neuron_groups))]
        for index, block in enumerate(graph.blocks):
            r, s = block.receiver, block.sender
            ratio = scales[r][orders[r], None, None] / scales[s][orders[s], None]
            old, new = dense(block, before.blocks[index][0]), dense(block, after.blocks[index][0])
            torch.testing.assert_close(new, old[orders[r]][:, orders[s]] * ratio)
        for index, (order, scale) in enumerate(zip(orders, scales, strict=True)):
            factor = torch.ones(len(order), len(NeuronRole), dtype=torch.float64)
            factor[:, NeuronRole.BIAS.channel] = scale[order]
            factor[:, NeuronRole.MEAN.channel] = scale[order]
            # A variance keeps its sign; positive factors never reach a neuron that has one.
            expected = before.neurons[index][0][order] * factor
            torch.testing.assert_close(after.neurons[index][0], expected)


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_moving_one_tensor_alone_changes_the_function(hazard: Hazard) -> None:
    """The counter-test of the function law: nothing here is invariant for a trivial reason."""
    network, graph = hazard.make().double(), captured(hazard.name)
    inputs = as_double(hazard.example_inputs)
    for group in graph.axis_groups:
        if not group.free:
            continue
        others = [replace(row, free=row is group) for row in graph.axis_groups]
        users = [p for p in graph.parameters if group.name in p.groups]
        assert len(users) > 1, f"{group.name!r} stands in one tensor only"
        for layout in users:
            alone = draw_symmetry(others, (), [layout], graph.neuron_groups)
            change = largest_change(network, alone.apply(network.state_dict()), inputs)
            assert change > 1e-6, f"{group.name!r} of {layout.name!r} alone: {change:.1e}"


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_rescaling_one_tensor_alone_changes_the_function(hazard: Hazard) -> None:
    network, graph = hazard.make().double(), captured(hazard.name)
    inputs = as_double(hazard.example_inputs)
    for row in graph.scale_groups:
        if row.kind is ScaleKind.PHASE:
            continue
        users = [
            layout
            for layout in graph.parameters
            if any(scale.group == row.name for part in layout.parts for scale in part.scales)
        ]
        assert users, f"{row.name!r} scales nothing"
        factor = 2.0 + torch.arange(row.size, dtype=torch.float64)
        if row.kind is ScaleKind.SIGN:
            factor = 1 - 2 * (factor % 2 == 0).double()  # -1, 1, -1, ...
        for layout in users:
            alone = draw_symmetry(
                graph.axis_groups, graph.scale_groups, [layout], (), permute=False
            )
            alone = replace(alone, factors={row.name: factor})
            change = largest_change(network, alone.apply(network.state_dict()), inputs)
            assert change > 1e-6, f"{row.name!r} of {layout.name!r} alone: {change:.1e}"


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_verify_passes(hazard: Hazard) -> None:
    result = pg.verify(hazard.make(), captured(hazard.name), hazard.example_inputs)
    assert result.max_error < 1e-10
    assert result.passed
    assert result.num_free_groups > 0


def test_verify_fails_for_a_wrong_graph() -> None:
    hazard = by_name("preactivation_residual")
    graph = captured(hazard.name)
    free = tuple(replace(row, free=True, reason=None) for row in graph.axis_groups)
    result = pg.verify(hazard.make(), replace(graph, axis_groups=free), hazard.example_inputs)
    assert not result.passed
    assert "FAILED" in str(result)


def test_verify_refuses_outputs_that_are_not_finite() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = pg.capture(network, torch.randn(4, 3))
    with pytest.raises(pg.GraphError, match="Sequential: the outputs are not finite"):
        pg.verify(network, graph, torch.full((4, 3), torch.inf))


def test_apply_leaves_the_state_dict_and_unknown_entries_alone() -> None:
    hazard = by_name("unused_parameter")
    state = hazard.make().state_dict()
    copies = {name: value.clone() for name, value in state.items()}
    moved = captured(hazard.name).sample_symmetry(scale=True).apply(state)
    assert all(torch.equal(value, copies[name]) for name, value in state.items())
    assert moved["idle.weight"] is state["idle.weight"]
    assert not torch.equal(moved["first.weight"], state["first.weight"])


def test_apply_moves_every_name_of_a_tied_parameter() -> None:
    hazard = by_name("tied")
    moved = captured(hazard.name).sample_symmetry().apply(hazard.make().state_dict())
    assert torch.equal(moved["4.weight"], moved["2.weight"])


def test_without_permute_and_scale_the_symmetry_is_the_identity() -> None:
    hazard = by_name("group_norm")
    state = hazard.make().state_dict()
    moved = captured(hazard.name).sample_symmetry(permute=False).apply(state)
    assert all(torch.equal(value, state[name]) for name, value in moved.items())


def test_the_generator_decides_the_draw() -> None:
    graph = captured("mlp")
    first, second = (graph.sample_symmetry(torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(first.orders[name], second.orders[name]) for name in first.orders)


def test_positive_factors_stay_in_their_range() -> None:
    rows = [ScaleGroup("a", 1000, ScaleKind.POSITIVE), ScaleGroup("b", 1000, ScaleKind.SIGN)]
    drawn = draw_symmetry([], rows, [], [], scale=True, scale_range=4.0).factors
    assert 0.25 <= float(drawn["a"].min()) < 0.3 < 3.3 < float(drawn["a"].max()) <= 4.0
    assert set(drawn["b"].tolist()) == {-1.0, 1.0}


def test_a_dependent_group_gets_one_order_per_copy() -> None:
    rows = [AxisGroup("outer", 3, free=True), AxisGroup("inner", 4, free=True, given=("outer",))]
    symmetry = draw_symmetry(rows, [], [], [])
    assert symmetry.orders["inner"].shape == (3, 4)
    assert rows[1].log_size(3) == pytest.approx(3 * torch.tensor(24.0).log().item())


def test_a_dependent_group_moves_within_the_copy_its_data_comes_from() -> None:
    rows = [AxisGroup("outer", 2, free=True), AxisGroup("inner", 3, free=True, given=("outer",))]
    neurons = NeuronGroup("h", 6, NeuronKind.HIDDEN, axes=("outer", "inner"))
    orders = {"outer": torch.tensor([[1, 0]]), "inner": torch.tensor([[0, 1, 2], [2, 0, 1]])}
    symmetry = Symmetry(orders, {}, {row.name: row for row in rows}, (), (neurons,), {})
    # The first three come from copy 1 (neurons 3, 4, 5) in its order 2, 0, 1.
    assert symmetry.neuron_order(0).tolist() == [5, 3, 4, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("first.weight", None, "the state dict has no parameter 'first.weight'"),
        ("first.weight", (7, 3), r"'first.weight' has shape \(7, 3\), expected \(5, 3\)"),
    ],
)
def test_apply_refuses_another_architecture(
    name: str, value: tuple[int, ...] | None, match: str
) -> None:
    hazard = by_name("residual_mlp")
    state = hazard.make().state_dict()
    del state[name]
    if value:
        state[name] = torch.zeros(value)
    with pytest.raises(pg.GraphError, match=match):
        captured(hazard.name).sample_symmetry().apply(state)
