"""What capture finds on each network, written by hand, and that the graph is the network."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from networks import HAZARDS, Hazard, Wired, as_double, by_name, outputs, vectors
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.structure import EdgeBlock, EdgeKind, NeuronKind, NeuronRole, ScaleKind


@dataclass(frozen=True)
class Expected:
    """Free axis groups, frozen ones, counts, and (activation, scale) of each neuron group."""

    free: dict[str, int]
    frozen: dict[str, int]
    neurons: int
    edges: int
    parameters: int
    groups: str
    permutations: int

    @property
    def group_rows(self) -> list[tuple[str, str, str]]:
        """Name, activation and scale kind of the neuron groups in order."""
        rows = [row.split() for row in self.groups.split(", ")]
        return [(name, activation, scale) for name, activation, scale in rows]


# Counts are sums over the neuron groups, the blocks and the parameters, in dataflow order.
EXPECTED = {
    "mlp": Expected(
        {"0": 5, "2": 4},
        {"4": 2},
        3 + 5 + 4 + 2,
        15 + 20 + 8,
        20 + 24 + 10,
        "input none none, 0 relu positive, 2 relu positive, 4 none none",
        math.factorial(5) * math.factorial(4),
    ),
    "mixed_activations": Expected(
        {"0": 4, "2": 4, "4": 4, "6": 4},
        {"8": 2},
        3 + 4 * 4 + 2,
        12 + 3 * 16 + 8,
        16 + 3 * 20 + 10,
        "input none none, 0 tanh sign, 2 relu positive, 4 gelu none, 6 softsign sign, 8 none none",
        math.factorial(4) ** 4,
    ),
    "no_bias": Expected(
        {"0": 5},
        {"2": 2},
        3 + 5 + 2,
        15 + 10,
        15 + 10,
        "input none none, 0 leaky_relu positive, 2 none none",
        math.factorial(5),
    ),
    "strided_cnn": Expected(
        {"0": 3, "3": 4},
        {"7": 2},
        1 + 3 + 4 + 2,
        3 + 12 + 8,
        (27 + 3) + (48 + 4) + (8 + 2),
        "input none none, 0 relu positive, 3 relu positive, 7 none none",
        math.factorial(3) * math.factorial(4),
    ),
    "cnn_1d": Expected(
        {"0": 4, "2": 3},
        {"6": 2},
        2 + 4 + 3 + 2,
        8 + 12 + 6,
        (24 + 4) + (24 + 3) + (6 + 2),
        "input none none, 0 leaky_relu positive, 2 tanh sign, 6 none none",
        math.factorial(4) * math.factorial(3),
    ),
    "flatten": Expected(
        {"0": 3, "4": 4},
        {"6": 2},
        1 + 3 + 4 + 2,
        3 + 12 + 8,
        (27 + 3) + (48 + 4) + (8 + 2),
        "input none none, 0 relu positive, 4 relu positive, 6 none none",
        math.factorial(3) * math.factorial(4),
    ),
    "permute_then_flatten": Expected(
        {"conv": 4},
        {"head": 2},
        1 + 4 + 2,
        4 + 8,
        (64 + 4) + (72 + 2),
        "input none none, conv relu positive, head none none",
        math.factorial(4),
    ),
    "residual_mlp": Expected(
        {"first": 5, "down": 4},
        {"head": 2},
        3 + 5 + 4 + 5 + 2,
        15 + 20 + 20 + 5 + 10,
        20 + 24 + 25 + 12,
        "input none none, first relu positive, down relu positive, up none positive, "
        "head none none",
        math.factorial(5) * math.factorial(4),
    ),
    "resnet": Expected(
        {"stem": 2, "conv1": 3, "conv2": 3},
        {"head": 2},
        1 + 2 + 3 + 3 + 3 + 3 + 3 + 3 + 2,
        2 + (6 + 3 + 9 + 3) + (6 + 3) + (9 + 3) + 6,
        (18 + 2) + (54 + 6 + 9 + 6) + (6 + 3) + (9 + 3) + (6 + 2),
        "input none none, stem relu positive, conv1 none sign, projection none positive, "
        "bn1 relu positive, conv2 none sign, bn2 relu positive, conv3 relu positive, "
        "head none none",
        math.factorial(2) * math.factorial(3) ** 2,
    ),
    "preactivation_residual": Expected(
        {"first": 5},
        {"head": 2},
        3 + 5 + 5 + 5 + 2,
        15 + 5 + 25 + 5 + 10,
        20 + 10 + 30 + 12,
        "input none none, first none none, norm relu positive, mix none none, head none none",
        math.factorial(5),
    ),
    "batch_norm": Expected(
        {"0": 5},
        {"3": 2},
        3 + 5 + 5 + 2,
        15 + 5 + 10,
        20 + 10 + 12,
        "input none none, 0 none sign, 1 relu positive, 3 none none",
        math.factorial(5),
    ),
    "batch_norm_without_affine": Expected(
        {"0": 5},
        {"3": 2},
        3 + 5 + 5 + 2,
        15 + 5 + 10,
        20 + 12,
        "input none none, 0 none sign, 1 tanh sign, 3 none none",
        math.factorial(5),
    ),
    "layer_norm": Expected(
        {"0": 5},
        {"3": 2},
        3 + 5 + 5 + 2,
        15 + 5 + 10,
        20 + 10 + 12,
        "input none none, 0 none none, 1 silu none, 3 none none",
        math.factorial(5),
    ),
    "group_norm": Expected(
        {"0.outer": 3, "0.inner": 2},
        {"5": 2},
        1 + 6 + 6 + 2,
        6 + 6 + 12,
        (24 + 6) + 12 + (12 + 2),
        "input none none, 0 none none, 1 silu none, 5 none none",
        math.factorial(3) * math.factorial(2) ** 3,
    ),
    "depthwise": Expected(
        {"0": 4},
        {"6": 2},
        1 + 4 + 4 + 2,
        4 + 4 + 8,
        (16 + 4) + (36 + 4) + (8 + 2),
        "input none none, 0 relu positive, 2 relu positive, 6 none none",
        math.factorial(4),
    ),
    "tied": Expected(
        {"0": 4},
        {"6": 2},
        3 + 4 + 4 + 4 + 2,
        12 + 16 + 16 + 8,
        16 + 20 + 10,
        "input none none, 0 relu positive, 2 relu positive, 2#2 relu positive, 6 none none",
        math.factorial(4),
    ),
    "unused_parameter": Expected(
        {"first": 5},
        {"head": 2},
        3 + 5 + 2,
        15 + 10,
        20 + 12,
        "input none none, first relu positive, head none none",
        math.factorial(5),
    ),
    "two_inputs": Expected(
        {"left": 5},
        {"head": 2},
        3 + 2 + 5 + 5 + 2,
        15 + 10 + 5 + 10,
        20 + 10 + 12,
        "input none none, input.1 none none, right none positive, left relu positive, "
        "head none none",
        math.factorial(5),
    ),
    "raw_parameters": Expected(
        {"w.1": 5},
        {"v": 2},
        3 + 5 + 2,
        15 + 10,
        15 + 5 + 10,
        "input none none, mm relu positive, mm#2 none none",
        math.factorial(5),
    ),
    "siren": Expected(
        {"first": 5, "second": 5},
        {"head": 1},
        2 + 5 + 5 + 1,
        10 + 25 + 5,
        15 + 30 + 6,
        "input none none, first sine sign, second sine sign, head none none",
        math.factorial(5) ** 2,
    ),
    "raw_and_activated": Expected(
        {"first": 5},
        {"head": 2},
        3 + 5 + 5 + 2 + 2,
        15 + 5 + 10 + 10 + 2,
        20 + 12 + 10,
        "input none none, first none positive, first#2 relu positive, bypass none none, "
        "head none none",
        math.factorial(5),
    ),
    "dict_output": Expected(
        {"first": 5},
        {"logits": 2, "value": 1},
        3 + 5 + 2 + 1,
        15 + 10 + 5,
        20 + 12 + 6,
        "input none none, first tanh sign, logits none none, value none none",
        math.factorial(5),
    ),
    "width_one": Expected(
        {"2": 3},
        {"0": 1, "4": 1},
        1 + 1 + 3 + 1,
        1 + 3 + 3,
        2 + 6 + 4,
        "input none none, 0 tanh sign, 2 relu positive, 4 none none",
        math.factorial(3),
    ),
}


@functools.cache
def captured(name: str) -> pg.ParamGraph:
    hazard = by_name(name)
    return pg.capture(hazard.make(), hazard.example_inputs)


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_the_structure_is_as_worked_out_by_hand(hazard: Hazard) -> None:
    graph, expected = captured(hazard.name), EXPECTED[hazard.name]
    assert {g.name: g.size for g in graph.axis_groups if g.free} == expected.free
    # The axes of weights that read the inputs are frozen, too, but number no neuron group.
    numbers = {factor for group in graph.neuron_groups for factor in group.axes}
    frozen = {g.name: g.size for g in graph.axis_groups if not g.free and g.name in numbers}
    assert frozen == expected.frozen
    assert all((g.reason is None) == g.free for g in graph.axis_groups)
    given = {"0.inner": ("0.outer",)} if hazard.name == "group_norm" else {}
    assert {g.name: g.given for g in graph.axis_groups if g.given} == given
    found = [(g.name, g.activation.value, g.scale.value) for g in graph.neuron_groups]
    assert found == expected.group_rows
    kinds = {
        row.name: row.kind
        for kind in (ScaleKind.POSITIVE, ScaleKind.SIGN)
        for row in graph.neuron_scales(kind)
    }
    for group in graph.neuron_groups:
        scaled_by = {kinds.get(name) for name, _ in group.scale_exponents}
        assert (ScaleKind.POSITIVE in scaled_by) == group.scale.has_positive
        assert (ScaleKind.SIGN in scaled_by) == group.scale.has_sign
    assert (graph.num_neurons, graph.num_edges) == (expected.neurons, expected.edges)
    assert graph.num_parameters == expected.parameters
    assert graph.log_group_size() == pytest.approx(math.log(expected.permutations))


def test_every_network_has_an_expected_structure() -> None:
    assert list(EXPECTED) == [hazard.name for hazard in HAZARDS]


def test_unused_parameters_are_named_and_left_out() -> None:
    graph = captured("unused_parameter")
    assert graph.unused_parameters == ("idle.weight", "idle.bias")
    assert not {"idle.weight", "idle.bias"} & {row.name for row in graph.parameters}


def test_kinds_positions_and_frequencies() -> None:
    cnn, depthwise, siren = captured("strided_cnn"), captured("depthwise"), captured("siren")
    first = cnn.blocks[0]
    assert first.kind is EdgeKind.CONV
    # 3 x 3 kernel with dilation 2, row by row
    assert first.positions == tuple((r, c) for r in (-2.0, 0.0, 2.0) for c in (-2.0, 0.0, 2.0))
    assert depthwise.blocks[1].shape == (4, 1, 1, 9)
    assert [group.omega for group in siren.neuron_groups] == [1.0, 30.0, 30.0, 1.0]
    assert siren.neuron_groups[-1].activation_text == "add(0.5)"
    kinds = [block.kind for block in captured("preactivation_residual").blocks]
    assert sorted(kind.value for kind in kinds) == ["linear", "linear", "linear", "scale", "skip"]


def test_flattened_positions_are_the_pixels_of_the_image() -> None:
    for name, side in (("flatten", 2), ("permute_then_flatten", 3)):
        block = next(b for b in captured(name).blocks if b.name in ("4.weight", "head.weight"))
        assert block.num_positions == side * side
        assert block.positions[1] == (-(side - 1) / 2, 1 - (side - 1) / 2)


# Activations of the vector networks, by the text that capture wrote down.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "leaky_relu(0.01)": nn.functional.leaky_relu,
    "div[|abs add(1)]": nn.functional.softsign,
    "mul(30) sin": lambda x: torch.sin(30 * x),
    "add(0.5)": lambda x: x + 0.5,
}
VECTOR_NETWORKS = [
    *("mlp", "mixed_activations", "no_bias", "residual_mlp", "batch_norm"),
    *("batch_norm_without_affine", "tied", "unused_parameter", "two_inputs", "raw_parameters"),
    *("siren", "raw_and_activated", "dict_output", "width_one"),
]


def replay(graph: pg.ParamGraph, values: pg.Values, inputs: list[Tensor]) -> list[Tensor]:
    """Run a network from its graph alone: each neuron sums over its edges."""
    left, neurons = list(inputs), []
    results = []
    for index, group in enumerate(graph.neuron_groups):
        if group.kind is NeuronKind.INPUT:
            neurons.append(left.pop(0))
            continue
        total = values.neurons[index][0, :, NeuronRole.BIAS.channel]
        for block, entries in zip(graph.blocks, values.blocks, strict=True):
            if block.receiver == index:
                total = total + _along(graph, values, block, entries[0, ..., 0], neurons)
        neurons.append(FUNCTIONS[group.activation_text](total))
        if group.kind is NeuronKind.OUTPUT:
            results.append(neurons[-1])
    return results


def _along(
    graph: pg.ParamGraph,
    values: pg.Values,
    block: EdgeBlock,
    weight: Tensor,
    neurons: list[Tensor],
) -> Tensor:
    sent = neurons[block.sender]
    roles = {feature.role for feature in graph.neuron_groups[block.sender].features}
    if block.kind is EdgeKind.SCALE and NeuronRole.VARIANCE in roles:
        stored = values.neurons[block.sender][0]
        mean, variance = stored[:, NeuronRole.MEAN.channel], stored[:, NeuronRole.VARIANCE.channel]
        sent = (sent - mean) / (variance + 1e-5).sqrt()
    sent = sent.reshape(len(sent), block.num_blocks, block.num_senders)
    return torch.einsum("krs,bks->bkr", weight, sent).flatten(1)


@pytest.mark.parametrize("name", VECTOR_NETWORKS)
def test_the_graph_computes_what_the_network_computes(name: str) -> None:
    hazard = by_name(name)
    network, inputs = hazard.make().double(), as_double(hazard.example_inputs)
    listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    listed = list(inputs.values()) if isinstance(inputs, dict) else listed
    graph = captured(name)
    found = replay(graph, graph.features(network.state_dict()), listed)
    for mine, theirs in zip(found, outputs(network, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_capture_leaves_everything_as_it_was() -> None:
    hazard = by_name("batch_norm")
    network = hazard.make().train()
    first, norm = list(network.children())[:2]
    first.register_forward_hook(lambda *_: None)
    inputs = vectors(4, 3)
    kept = inputs.clone()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    attributes = {path: set(vars(module)) for path, module in network.named_modules()}
    hooks = {path: len(m._forward_hooks) for path, m in network.named_modules()}
    random_state = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    graph = pg.capture(network, inputs)
    pg.verify(network, graph, inputs)
    assert network.training
    assert norm.training
    assert all(torch.equal(value, state[n]) for n, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert {path: set(vars(module)) for path, module in network.named_modules()} == attributes
    assert {path: len(m._forward_hooks) for path, m in network.named_modules()} == hooks
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert torch.equal(inputs, kept)
    assert torch.equal(torch.get_rng_state(), random_state[0])
    assert random.getstate() == random_state[1]
    assert repr(np.random.get_state()) == random_state[2]  # noqa: NPY002
    assert torch.is_grad_enabled()


def test_capture_does_not_depend_on_the_weights_the_batch_or_the_dtype() -> None:
    for hazard in HAZARDS:
        network = hazard.make()
        signature = captured(hazard.name).signature
        double = pg.capture(network.double(), as_double(hazard.example_inputs))
        assert double.signature == signature, hazard.name
        for parameter in network.parameters():
            parameter.data.zero_()
        assert pg.capture(network, as_double(hazard.example_inputs)).signature == signature
    small = pg.capture(by_name("flatten").make(), vectors(1, 1, 6, 6))
    assert small.signature == captured("flatten").signature


def test_a_network_that_overwrites_its_input_gets_a_copy() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(torch.relu(n.first(x.mul_(2))))

    network = Wired(wiring, first=nn.Linear(3, 4), idle=nn.Linear(3, 4), head=nn.Linear(4, 2))
    inputs = vectors(4, 3)
    graph = pg.capture(network, inputs)
    assert pg.verify(network, graph, inputs).passed
    assert torch.equal(inputs, vectors(4, 3))
