"""Reading and writing weights: complete, exact, differentiable, and safe against mix-ups."""

from __future__ import annotations

import functools

import pytest
import torch
from networks import HAZARDS, Hazard, by_name
from torch import Tensor

import paramgraph as pg
from paramgraph.structure import NeuronRole
from paramgraph.values import write_values

StateDict = dict[str, Tensor]


@functools.cache
def captured(name: str) -> pg.ParamGraph:
    hazard = by_name(name)
    return pg.capture(hazard.make(), hazard.example_inputs)


def noisy_states(hazard: Hazard, number: int) -> list[StateDict]:
    """Several networks of one architecture; tied parameters stay tied."""
    states = []
    for i in range(number):
        network = hazard.make()
        for parameter in network.parameters():
            parameter.data += 0.1 * i * torch.randn(parameter.shape)
        states.append(network.state_dict())
    return states


def stack(states: list[StateDict]) -> StateDict:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_each_scalar_of_each_used_parameter_appears_exactly_once(hazard: Hazard) -> None:
    """Number all scalars of the network and look for the numbers in the values."""
    network, graph = hazard.make(), captured(hazard.name)
    named: dict[str, Tensor] = dict(network.named_parameters())
    named |= {n: b for n, b in network.named_buffers() if n.endswith(("_mean", "_var"))}
    numbers: dict[str, Tensor] = {}
    total = 1  # 0 stands for "no value" in the features of a neuron
    for name, tensor in named.items():
        numbers[name] = torch.arange(total, total + tensor.numel()).reshape(tensor.shape).double()
        total += tensor.numel()
    expected = sorted(
        number
        for name, tensor in numbers.items()
        if name not in graph.unused_parameters
        for number in tensor.flatten().tolist()
    )
    values = graph.features(numbers)
    found: list[float] = []
    seen: set[str] = set()
    for block, entries in zip(graph.blocks, values.blocks, strict=True):
        if block.view is None:
            assert (entries == 1).all()
        elif block.view.parameter not in seen:  # a tied parameter counts once
            seen.add(block.view.parameter)
            found += entries.flatten().tolist()
    for group, columns in zip(graph.neuron_groups, values.neurons, strict=True):
        filled = {feature.role for feature in group.features}
        for feature in group.features:
            if feature.view.parameter not in seen:
                seen.add(feature.view.parameter)
                found += columns[0, :, feature.role.channel].tolist()
        for role in set(NeuronRole) - filled:
            assert (columns[..., role.channel] == 0).all()
    assert sorted(found) == expected
    trained = {name for name, _ in network.named_parameters()} - set(graph.unused_parameters)
    assert graph.num_parameters == sum(named[name].numel() for name in trained)


def test_a_matrix_entry_joins_its_receiver_and_its_sender() -> None:
    graph = captured("mlp")
    numbers = {row.name: torch.zeros(row.shape) for row in graph.parameters}
    numbers["2.weight"][3, 1] = 7.0  # from neuron 1 of layer 0 to neuron 3 of layer 2
    values = graph.features(numbers)
    assert torch.nonzero(values.blocks[1]).tolist() == [[0, 0, 3, 1, 0]]
    numbers = {row.name: torch.zeros(row.shape) for row in captured("raw_parameters").parameters}
    numbers["w"][1, 3] = 7.0  # x @ w: from input 1 to neuron 3
    values = captured("raw_parameters").features(numbers)
    assert torch.nonzero(values.blocks[0]).tolist() == [[0, 0, 3, 1, 0]]


def test_flattened_columns_belong_to_channels_and_positions() -> None:
    """Channel-major after ``flatten``, position-major after ``permute(0, 2, 3, 1).flatten``."""
    columns = {
        "flatten": ("4.weight", 3, 4, False),
        "permute_then_flatten": ("head.weight", 4, 9, True),
    }
    for name, (parameter, channels, positions, position_major) in columns.items():
        graph = captured(name)
        state = by_name(name).make().state_dict()
        index = next(i for i, block in enumerate(graph.blocks) if block.name == parameter)
        entries = graph.features(state).blocks[index][0, 0]
        for c in range(channels):
            for p in range(positions):
                column = p * channels + c if position_major else c * positions + p
                assert torch.equal(entries[:, c, p], state[parameter][:, column])


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_the_round_trip_is_bitwise_exact(hazard: Hazard) -> None:
    graph, states = captured(hazard.name), noisy_states(hazard, 3)
    for given in (states, stack(states)):
        written = graph.write_back(graph.features(given))
        for name, tensor in written.items():
            for i, state in enumerate(states):
                assert torch.equal(tensor[i], state[name]), f"{name} of network {i}"
    single = graph.write_back(graph.features(states[1]))
    assert all(torch.equal(tensor[0], states[1][name]) for name, tensor in single.items())
    used = {name for row in graph.parameters for name in (row.name, *row.aliases)}
    assert set(written) == used


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_values_round_trip_from_the_other_side(hazard: Hazard) -> None:
    """Edited values survive writing and reading, except where tied blocks are averaged."""
    graph = captured(hazard.name)
    values = graph.features(hazard.make().state_dict())
    edited = pg.Values(
        tuple(
            b + 1.0 if row.view else b for row, b in zip(graph.blocks, values.blocks, strict=True)
        ),
        values.neurons,
    )
    again = graph.features(graph.write_back(edited))
    for before, after in zip(edited.blocks, again.blocks, strict=True):
        torch.testing.assert_close(after, before)


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_zero_weights_keep_every_neuron_and_edge(hazard: Hazard) -> None:
    graph, state = captured(hazard.name), hazard.make().state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    before, after = graph.features(state), graph.features(zeros)
    assert [b.shape for b in after.blocks] == [b.shape for b in before.blocks]
    assert [b.shape for b in after.blocks] == [(1, *block.shape) for block in graph.blocks]
    assert [n.shape for n in after.neurons] == [(1, g.size, 3) for g in graph.neuron_groups]


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_gradients_flow_through_reading_and_writing(hazard: Hazard) -> None:
    graph, network = captured(hazard.name), hazard.make()
    parameters = dict(network.named_parameters())
    state = network.state_dict() | {n: p for n, p in parameters.items()}
    written = graph.write_back(graph.features(state))
    used = [row.name for row in graph.parameters if not row.is_buffer]
    weights = {name: torch.randn_like(parameters[name]) for name in used}
    sum((written[name][0] * weights[name]).sum() for name in used).backward()  # type: ignore[union-attr]
    for name in used:
        torch.testing.assert_close(parameters[name].grad, weights[name])
    assert all(parameters[name].grad is None for name in graph.unused_parameters)


def test_tied_blocks_are_averaged_or_summed() -> None:
    graph = captured("tied")
    values = graph.features(by_name("tied").make().state_dict())
    tied = [i for i, block in enumerate(graph.blocks) if block.name == "2.weight"]
    assert len(tied) == 2
    blocks = list(values.blocks)
    blocks[tied[0]], blocks[tied[1]] = blocks[tied[0]] * 0 + 1.0, blocks[tied[1]] * 0 + 4.0
    edited = pg.Values(tuple(blocks), values.neurons)
    for how, number in (("mean", 2.5), ("sum", 5.0)):
        written = graph.write_back(edited, tied=how)
        assert (written["2.weight"] == number).all()
        assert (written["4.weight"] == number).all()


def test_slices_and_casts_of_values() -> None:
    graph, states = captured("batch_norm"), noisy_states(by_name("batch_norm"), 4)
    values = graph.features(states)
    assert values.num_networks == 4
    part = values[torch.tensor([2, 0])]
    assert part.num_networks == 2
    assert torch.equal(part.blocks[0][1], values.blocks[0][0])
    assert torch.equal(part.neurons[1][0], values.neurons[1][2])
    assert {t.dtype for t in (*part.to(torch.float64).blocks, *part.to(torch.float64).neurons)} == {
        torch.float64
    }


def test_as_many_stacked_networks_as_a_layer_has_rows_are_not_confused() -> None:
    """Stacked biases [5, 5] look like a matrix, and one network's weight [5, 3] like a stack."""
    graph, states = captured("mlp"), noisy_states(by_name("mlp"), 5)
    values = graph.features(stack(states))
    assert values.num_networks == 5
    for i, state in enumerate(states):
        assert torch.equal(values.blocks[0][i, 0, :, :, 0], state["0.weight"])
        assert torch.equal(values.neurons[1][i, :, 0], state["0.bias"])


def _without(state: StateDict, name: str) -> StateDict:
    return {key: value for key, value in state.items() if key != name}


def _with(state: StateDict, name: str, *shape: int) -> StateDict:
    return state | {name: torch.zeros(shape)}


MLP = noisy_states(by_name("mlp"), 1)[0]
STACKED = stack(noisy_states(by_name("mlp"), 5))
BAD_STATES = {
    "missing": (_without(MLP, "2.bias"), "no parameter '2.bias' of shape 4, .* has 5 tensors: 0.w"),
    "empty_dict": ({}, "no parameter '0.weight' of shape 5 x 3, .* has 0 tensors: none"),
    "shape": (_with(MLP, "2.weight", 4, 6), "'2.weight' has shape 4 x 6, expected 4 x 5"),
    "rank": (_with(MLP, "2.bias", 1, 1, 4), "'2.bias' has shape 1 x 1 x 4, expected 4:"),
    "first_is_transposed": (_with(MLP, "0.weight", 3, 5), "shape 3 x 5, expected 5 x 3:"),
    "one_stacked_parameter": (_with(MLP, "2.bias", 1, 4), "'2.bias' has shape 1 x 4, expected 4:"),
    "one_single_parameter": (
        _with(STACKED, "2.bias", 4),
        r"'2.bias' has shape 4, expected B x 4 \(stacked networks\)",
    ),
    "stacked_shape": (_with(STACKED, "2.bias", 5, 6), "shape 5 x 6, expected B x 4"),
    "stacked_lengths": (
        _with(STACKED, "2.bias", 3, 4),
        "different numbers of networks: 5 in '0.weight', 3 in '2.bias'",
    ),
    "stacked_none": ({k: v[:0] for k, v in STACKED.items()}, "stacked tensors hold 0 networks"),
    "empty_list": ([], "the list of state dicts is empty"),
    "second_of_a_list": ([MLP, _with(MLP, "0.bias", 6)], "'0.bias' has shape 6, expected 5"),
    "list_of_stacks": ([STACKED], "'0.weight' has shape 5 x 5 x 3, expected 5 x 3"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_features_refuse_other_architectures_and_mixed_stacks(name: str) -> None:
    states, match = BAD_STATES[name]
    with pytest.raises(pg.GraphError, match=match):
        captured("mlp").features(states)  # type: ignore[arg-type]


def test_write_back_refuses_an_unknown_way_to_tie() -> None:
    graph = captured("mlp")
    with pytest.raises(pg.GraphError, match="tied must be 'mean' or 'sum', got 'max'"):
        graph.write_back(graph.features(MLP), tied="max")


def test_write_refuses_values_of_another_graph() -> None:
    graph, other = captured("mlp"), captured("no_bias")
    values = other.features(by_name("no_bias").make().state_dict())
    match = r"values have 2 blocks and 3 neuron groups, the graph has 3 and 4"
    with pytest.raises(pg.GraphError, match=match):
        write_values(values, graph.parameters, graph.neuron_groups, graph.blocks)
    bigger = graph.features(MLP)
    wrong = pg.Values((bigger.blocks[1], *bigger.blocks[1:]), bigger.neurons)
    match = r"block '0.weight' .* 1 x 1 x 4 x 5 x 1, expected B x 1 x 5 x 3 x 1"
    with pytest.raises(pg.GraphError, match=match):
        graph.write_back(wrong)
