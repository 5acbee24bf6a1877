"""Heads: bounded targets, outputs per neuron, edited networks that load and run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from more_networks import ALL_HAZARDS
from networks import Hazard, as_double, outputs
from small_settings import small_options
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import ROLES, Entries, GraphBatch, neurons_by_part
from paramgraph.nn import (
    CONFIGS,
    BoundedHead,
    Metanetwork,
    NetworkEditor,
    NeuralGraphGNN,
    OperatorMetanetwork,
    StatNN,
    chain_options,
    make_metanetwork,
)
from paramgraph.nn.chains import ChainMetanetwork
from paramgraph.tasks import AccuracyPrediction

HAZARDS = {hazard.name: hazard for hazard in ALL_HAZARDS}
KINDS = ("mlp", "strided_cnn", "resnet", "vision_transformer", "lstm", "siren", "tied", "prelu")
CHAINS = ("mlp", "strided_cnn", "siren", "tied")
# One setting per class that has entries, at its smallest.
EDITORS = {
    config.kind: name
    for name, config in reversed(CONFIGS.items())
    if "parameter" in config.kind.levels
}
CASES = [
    (name, network)
    for kind, name in EDITORS.items()
    for network in (CHAINS if issubclass(kind, ChainMetanetwork) else KINDS)
]


@functools.cache
def captured(name: str) -> tuple[pg.ParamGraph, Hazard]:
    hazard = HAZARDS[name]
    return pg.capture(hazard.make().double(), as_double(hazard.example_inputs)), hazard


def state_of(name: str, seed: int = 0) -> dict[str, Tensor]:
    module = captured(name)[1].make().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():  # tied ones once
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.mul_(1 + 0.2 * noise)
    return module.state_dict()


def batch_of(*names: str, num: int = 2) -> GraphBatch:
    pairs = []
    for name in names:
        graph = captured(name)[0]
        pairs.append((graph, graph.features([state_of(name, seed) for seed in range(num)])))
    return pg.collate(pairs)


def editor_of(name: str, network: str, num_sets: int = 1, **options: Any) -> NetworkEditor:
    torch.manual_seed(0)
    made = small_options(name, level="parameter")
    if issubclass(CONFIGS[name].kind, ChainMetanetwork):
        made |= chain_options(captured(network)[0])
    if name == "ng-gnn":
        made["num_frequencies"] = 0
    m = make_metanetwork(name, num_sets, **made)
    editor = NetworkEditor(m, start=0.1, **options).double().eval()
    editor.fit_statistics([batch_of(network)])
    return editor


def permuted(graph: pg.ParamGraph) -> pg.Symmetry:
    return graph.sample_symmetry(torch.Generator().manual_seed(1))


class Constant(Metanetwork):
    """The same number for every entry."""

    levels = frozenset({"parameter"})

    def __init__(self, value: float, num_sets: int = 1) -> None:
        super().__init__(num_sets, level="parameter")
        self.value = value

    def forward(self, batch: GraphBatch) -> Entries:
        zeros = Entries.zeros(batch, self.out_dim)
        return Entries(tuple(e + self.value for e in zeros.edges), zeros.neurons + self.value)


# --- graph level


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, 3.0)])
def test_a_bounded_target(low: float, high: float) -> None:
    batch = batch_of("mlp", "siren")
    m = OperatorMetanetwork(1, hidden_dim=8).double()
    bounded = nn.Sequential(m, BoundedHead(low, high))
    found = bounded(batch)
    assert found.shape == (4, 1)
    torch.testing.assert_close(found, low + (high - low) / (1 + (-m(batch)).exp()))
    far = BoundedHead(low, high)(torch.tensor([-1e3, 0.0, 1e3]))
    assert far.tolist() == [low, (low + high) / 2, high]
    gradients = torch.autograd.grad(found.sum(), list(m.head.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 0.0), (float("nan"), 1.0)])
def test_bounds_in_the_wrong_order_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"low must be below high, got {low} and {high}"):
        BoundedHead(low, high)


def test_the_task_and_the_head_bound_accuracy_alike() -> None:
    raw = torch.tensor([[-30.0], [0.3], [30.0]])
    torch.testing.assert_close(AccuracyPrediction().predict(raw), BoundedHead()(raw)[:, 0])
    assert AccuracyPrediction().loss(raw, torch.tensor([0.0, 0.5, 1.0])).isfinite()


# --- neuron level


@pytest.mark.parametrize(
    "name", [name for name in EDITORS.values() if "neuron" in CONFIGS[name].kind.levels]
)
def test_outputs_per_neuron_stand_in_the_order_of_the_groups(name: str) -> None:
    torch.manual_seed(0)
    batch = batch_of("mlp", "lstm")
    m = make_metanetwork(name, 3, **small_options(name, level="neuron")).double().eval()
    m.fit_statistics([batch])
    found = m(batch).detach()
    assert found.shape == (batch.num_neurons, 3)
    graph, state = captured("mlp")[0], state_of("mlp")
    symmetry = permuted(graph)
    moved = pg.collate([(graph, graph.features([state, symmetry.apply(state)]))])
    ((inputs, first, second, last),) = neurons_by_part(moved, m(moved).detach())
    for rows in (inputs, last):
        torch.testing.assert_close(rows[0], rows[1])
    for rows in (first, second):
        assert float((rows[0] - rows[1]).abs().max()) > 1e-4
        torch.testing.assert_close(rows[0].sort(0)[0], rows[1].sort(0)[0])


# --- parameter level: every architecture, every metanetwork that has entries


@pytest.mark.parametrize(("name", "network"), CASES)
def test_edited_networks_load_and_run(name: str, network: str) -> None:
    _, hazard = captured(network)
    editor = editor_of(name, network)
    (edited,) = editor(batch_of(network))
    module = hazard.make().double()
    inputs = as_double(hazard.example_inputs)
    trained = {key for key, _ in module.named_parameters(remove_duplicate=False)}
    for number in range(2):
        old = state_of(network, number)
        module.load_state_dict(old)
        before = outputs(module, inputs)
        module.load_state_dict(edited.state_dict(number, old), strict=True)
        for key, value in module.state_dict().items():
            assert value.isfinite().all()
            assert bool((value != old[key]).any()) == (key in trained), key
        after = outputs(module, inputs)
        assert max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)) > 1e-6
        ran = edited.run(inputs)
        torch.testing.assert_close(ran[number], after[0])


@pytest.mark.parametrize(("name", "network"), CASES)
def test_editing_commutes_with_permutations(name: str, network: str) -> None:
    graph, _ = captured(network)
    editor, state = editor_of(name, network), state_of(network)
    symmetry = permuted(graph)

    def edit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        (edited,) = editor(pg.collate([(graph, graph.features(weights))]))
        return edited.state_dict(0, weights)

    one, two = symmetry.apply(edit(state)), edit(symmetry.apply(state))
    assert any(not torch.equal(symmetry.apply(state)[key], state[key]) for key in state)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("name", "network"), CASES)
def test_the_loss_of_edited_networks_reaches_the_editor(name: str, network: str) -> None:
    editor = editor_of(name, network)
    (edited,) = editor(batch_of(network))
    edited.run(as_double(captured(network)[1].example_inputs)).square().sum().backward()
    for parameter in (editor.edge_scale, editor.bias_scale):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
    gradients = [p.grad for p in editor.metanetwork.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > len(gradients) // 2


# --- parameter level: the editor by itself


@pytest.mark.parametrize("network", HAZARDS)
def test_no_output_leaves_every_network_as_it_was(network: str) -> None:
    state = state_of(network)
    (edited,) = NetworkEditor(Constant(0.0)).double()(batch_of(network, num=1))
    new = edited.state_dict(0, state)
    assert new.keys() == state.keys()
    assert all(torch.equal(new[key], state[key]) for key in state)


@pytest.mark.parametrize("network", HAZARDS)
def test_every_trained_parameter_is_edited_and_nothing_else(network: str) -> None:
    graph, hazard = captured(network)
    state = state_of(network)
    editor = NetworkEditor(Constant(1.0), start=0.25).double()
    (edited,) = editor(batch_of(network, num=1))
    new = edited.state_dict(0, state)
    held = {n for row in graph.parameters for n in (row.name, *row.aliases, *row.members)}
    module = hazard.make()
    trained = {key for key, _ in module.named_parameters(remove_duplicate=False)} & held
    for key in state:
        change = new[key] - state[key]
        expected = torch.full_like(change, 0.25 if key in trained else 0)
        torch.testing.assert_close(change, expected, rtol=0, atol=1e-12, msg=key)


def test_each_role_has_a_scale_of_its_own() -> None:
    editor = NetworkEditor(Constant(1.0)).double()
    with torch.no_grad():
        editor.edge_scale.copy_(torch.arange(1.0, 1 + len(editor.edge_scale)))
        editor.bias_scale.copy_(torch.tensor([-1.0, -2.0]))
    batch, state = batch_of("mlp", num=1), state_of("mlp")
    (edited,) = editor(batch)
    change = {k: v - state[k] for k, v in edited.state_dict(0, state).items()}
    roles = [ROLES.index(bucket.role) for bucket in batch.buckets]
    assert len(set(roles)) == 3  # at the inputs, between hidden neurons, at the outputs
    scales = [*(role + 1.0 for role in roles), -1.0, -1.0, -2.0]
    names = ["0.weight", "2.weight", "4.weight", "0.bias", "2.bias", "4.bias"]
    for name, scale in zip(names, scales, strict=True):
        torch.testing.assert_close(change[name], torch.full_like(change[name], scale))


def test_tied_parameters_stay_tied() -> None:
    state = state_of("tied")
    editor = editor_of("ng-gnn", "tied")
    (edited,) = editor(batch_of("tied", num=1))
    new = edited.state_dict(0, state)
    assert torch.equal(new["2.weight"], new["4.weight"])
    assert not torch.equal(new["2.weight"], state["2.weight"])


@pytest.mark.parametrize(
    ("frozen", "stay"),
    [
        (["0.weight"], {"0.weight"}),
        (["*.bias"], {"0.bias", "2.bias", "4.bias", "6.bias"}),
        ("4.weight", {"2.weight", "4.weight"}),  # tied
        (["0.*", "6.weight"], {"0.weight", "0.bias", "6.weight"}),
    ],
)
def test_frozen_parameters_stay(frozen: Any, stay: set[str]) -> None:
    state = state_of("tied")
    editor = editor_of("operator", "tied", frozen=frozen)
    (edited, other) = editor(batch_of("tied", "mlp"))
    new = edited.state_dict(1, state_of("tied", 1))
    old = state_of("tied", 1)
    assert {key for key in old if torch.equal(new[key], old[key])} == stay
    assert state.keys() == edited.parameters[0].keys()
    assert other.graph is captured("mlp")[0]


def test_a_frozen_name_that_nothing_has_is_refused() -> None:
    editor = editor_of("operator", "mlp", frozen=["0.weight", "head.*"])
    message = r"frozen='head\.\*' is no parameter of any .*; those of .* are 0\.weight, 0\.bias,"
    with pytest.raises(pg.BatchError, match=message):
        editor(batch_of("mlp"))


def test_mixed_batches_are_edited_as_each_alone() -> None:
    editor = editor_of("ng-gnn", "mlp")
    names = ("mlp", "lstm", "resnet")
    together = editor(batch_of(*names))
    assert [edited.rows.tolist() for edited in together] == [[0, 1], [2, 3], [4, 5]]
    for name, edited in zip(names, together, strict=True):
        (alone,) = editor(batch_of(name))
        for key, value in alone.parameters[0].items():
            torch.testing.assert_close(edited.parameters[0][key], value, rtol=0, atol=1e-10)


def test_state_dicts_keep_precision_and_belong_to_one_network() -> None:
    (edited,) = NetworkEditor(Constant(1.0)).double()(batch_of("mlp"))
    half = {key: value.bfloat16() for key, value in state_of("mlp").items()}
    assert {value.dtype for value in edited.state_dict(0, half).values()} == {torch.bfloat16}
    with pytest.raises(
        pg.BatchError, match=r"cannot complete .* has no '0\.weight', so it is of an"
    ):
        edited.state_dict(0, state_of("lstm"))


# --- several sets per network, averaged as functions


@pytest.mark.parametrize("network", ["siren", "lstm", "dict_output"])
def test_the_mean_of_functions_is_not_the_function_of_means(network: str) -> None:
    graph, hazard = captured(network)
    editor = editor_of("ng-gnn", network, num_sets=4)
    (edited,) = editor(batch_of(network))
    inputs = as_double(hazard.example_inputs)
    ran = edited.run(**inputs) if isinstance(inputs, dict) else edited.run(inputs)
    module = hazard.make().double()
    for number in range(2):
        several = []
        for k in range(4):
            module.load_state_dict(edited.state_dict(number, state_of(network), number=k))
            several.append(outputs(module, inputs))
        found = [ran[number]] if isinstance(ran, Tensor) else [value[number] for value in ran]
        for value, *each in zip(found, *several, strict=True):
            torch.testing.assert_close(value, torch.stack(each).mean(0))
            assert torch.stack(each).std(0).max() > 1e-4  # the sets differ
    means = {
        k: torch.stack([p[k] for p in edited.parameters]).mean(0) for k in edited.parameters[0]
    }
    if isinstance(ran, Tensor):
        assert float((graph.run(means, inputs) - ran).detach().abs().max()) > 1e-8


def test_each_set_gets_a_gradient_of_its_own() -> None:
    editor = editor_of("ng-gnn", "siren", num_sets=3)
    assert isinstance(editor.metanetwork, NeuralGraphGNN)
    assert editor.metanetwork.entries is not None
    (edited,) = editor(batch_of("siren"))
    edited.run(as_double(captured("siren")[1].example_inputs)).square().sum().backward()
    gradient = editor.metanetwork.entries.edges[-1].weight.grad
    assert isinstance(gradient, Tensor)
    rows = gradient.unflatten(0, (-1, 3))[0]  # one position: the first function alone
    assert all(bool(row.any()) for row in rows)
    assert not torch.allclose(rows[0], rows[1])


# --- refusals


def test_other_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="level='parameter', got StatNN with level='graph'"):
        NetworkEditor(StatNN(1))


def test_a_metanetwork_that_returns_something_else_is_refused() -> None:
    class Wrong(Constant):
        def forward(self, batch: GraphBatch) -> Any:
            return batch.neuron_values

    with pytest.raises(pg.BatchError, match="expected Entries, the metanetwork returned Tensor"):
        NetworkEditor(Wrong(0.0))(batch_of("mlp"))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            lambda e: Entries(tuple(edge[:1] for edge in e.edges), e.neurons),
            r"\(1, 1, 5, 3, 1, 1\)",
        ),
        (lambda e: Entries(e.edges, e.neurons[:, :1]), r"of neurons have shape \(28, 1, 1\)"),
    ],
)
def test_entries_of_another_batch_are_refused(
    cut: Callable[[Entries], Entries], message: str
) -> None:
    """Which would otherwise be broadcast."""

    class Wrong(Constant):
        def forward(self, batch: GraphBatch) -> Entries:
            return cut(super().forward(batch))

    with pytest.raises(pg.BatchError, match=f"{message}, expected .*: they belong to another"):
        NetworkEditor(Wrong(0.0)).double()(batch_of("mlp"))


def test_the_published_head_has_as_many_sets_as_it_says() -> None:
    batch = batch_of("strided_cnn", "mlp")
    m = NeuralGraphGNN(5, level="parameter", hidden_dim=8).double()
    entries = m(batch)
    assert isinstance(entries, Entries)
    assert entries.num_sets == 5
    assert [e.shape for e in entries.edges] == [(*b.values.shape, 5) for b in batch.buckets]
