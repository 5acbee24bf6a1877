"""The operator metanetwork: exact where it promises, the same at any width and depth, learns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from networks import as_double, randomise
from torch import Tensor, nn

import paramgraph as pg
import paramgraph.testing as pt
from paramgraph.nn import OperatorMetanetwork
from paramgraph.nn.operator import OperatorMetanetwork as Operator
from paramgraph.nn.pushes import HeldWeights
from paramgraph.structure import Activation
from paramgraph.testing.draws import draw_kinds

# ReLU, tanh, sine, several activations, a residual sum, norms, attention, gates, even functions.
NETWORKS = (
    *("mlp", "strided_cnn", "siren", "siren_large_biases", "mixed_activations", "projection_skip"),
    *(
        "batch_norm",
        "layer_norm",
        "group_norm",
        "multi_head_attention",
        "vision_transformer",
        "gated_unit",
    ),
    *("rnn", "lstm", "gru", "cosine", "absolute", "square", "grouped_conv"),
)


HAZARDS = {row.name: row for row in pt.hazard_networks()}


def network_of(name: str, seed: int) -> tuple[pg.ParamGraph, dict[str, Tensor]]:
    row = HAZARDS[name]
    network = randomise(copy.deepcopy(row.network).double(), seed)
    graph = pg.capture(network, as_double(row.example_inputs))
    return graph, dict(network.state_dict())


@pytest.mark.parametrize("symmetry", ["sign", "scale"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_do_not_change_under_what_is_promised(name: str, symmetry: str) -> None:
    """Permutations, signs, phases, and factors of 1/100 to 100, all at once."""
    graph, state = network_of(name, 1)
    m = OperatorMetanetwork(3, hidden_dim=16, symmetry=symmetry).double().eval()
    m.fit_statistics([pg.collate([(graph, graph.features(state))])])
    with torch.no_grad():
        before = m(pg.collate([(graph, graph.features(state))]))
        for seed in range(4):
            drawn = draw_kinds(graph, m.promised_symmetries(), torch.Generator().manual_seed(seed))
            after = m(pg.collate([(graph, graph.features(drawn.apply(state)))]))
            assert ((after - before).norm() / before.norm()).item() < 1e-8


def test_a_factor_that_is_not_undone_is_seen() -> None:
    """The check above would pass for a constant: rows alone, without the next layer's columns."""
    graph, state = network_of("mlp", 1)
    m = OperatorMetanetwork(3, hidden_dim=16, symmetry="scale").double().eval()
    drawn = graph.sample_symmetry(
        torch.Generator().manual_seed(0), permute=False, scale=True, scale_range=100.0
    )
    moved = drawn.apply(state)
    last = [name for name in state if name.endswith("weight")][-1]
    broken = {**moved, last: state[last]}
    outputs = [m(pg.collate([(graph, graph.features(s))])) for s in (state, moved, broken)]
    assert (outputs[1] - outputs[0]).abs().max() < 1e-8
    assert (outputs[2] - outputs[0]).norm() / outputs[0].norm() > 1e-2


# --- width and depth


def chain(width: int, depth: int, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(4, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def as_pair(network: nn.Module) -> tuple[pg.ParamGraph, pg.Values]:
    like = next(network.parameters())
    graph = pg.capture(network, torch.randn(4, 4).to(like))
    return graph, graph.features(network.state_dict())


@pytest.mark.parametrize("symmetry", ["permutation", "sign", "scale"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("depth", [2, 8, 32])
def test_signals_keep_their_size_over_depth(
    symmetry: str, activation: type[nn.Module], depth: int
) -> None:
    """With Linear's own start a typed signal is a millionth after eight levels."""
    torch.manual_seed(0)
    batch = pg.collate([as_pair(chain(16, depth, activation))])
    m = Operator(2, hidden_dim=16, symmetry=symmetry).eval()
    m.fit_statistics([batch])
    with torch.no_grad():
        read = m._sweep(batch, HeldWeights(batch, m.standardizer))
    for level in (1, depth // 2, depth):
        assert 0.1 < read.signals.primal[level].square().mean().sqrt() < 30
        assert 0.05 < read.signals.dual[level].square().mean().sqrt() < 30


def test_what_comes_in_is_heard_at_the_other_end() -> None:
    """Without biases on the way: the first weight reaches the output signals of 16 levels."""
    torch.manual_seed(0)
    network = chain(16, 16, nn.Tanh).double()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    graph, values = as_pair(network)
    m = Operator(2, hidden_dim=16, num_rounds=1).double().eval()
    m.fit_statistics([pg.collate([(graph, values)])])
    weight = values.blocks[0].clone().requires_grad_()
    batch = pg.collate([(graph, pg.Values((weight, *values.blocks[1:]), values.neurons))])
    read = m._sweep(batch, HeldWeights(batch, m.standardizer))
    (slope,) = torch.autograd.grad(read.signals.primal[-1].square().sum(), weight)
    assert slope.norm() > 1e-3


def test_trained_at_width_32_it_reads_width_1024() -> None:
    """It learns how strongly networks react to one input rather than another; width is new."""
    torch.manual_seed(0)

    def draw(width: int, count: int) -> tuple[pg.ParamGraph, pg.Values, Tensor]:
        """Networks whose first layer hears input 0 in share t, input 1 in share 1 - t."""
        share = torch.rand(count)
        states = []
        for t in share:
            network = chain(width, 2, nn.Tanh)
            with torch.no_grad():
                network[0].weight[:, 0] *= 2 * t  # type: ignore[index, operator]
                network[0].weight[:, 1] *= 2 * (1 - t)  # type: ignore[index, operator]
            states.append(network.state_dict())
        graph = pg.capture(chain(width, 2, nn.Tanh), torch.randn(4, 4))
        return graph, graph.features(states), share

    m = OperatorMetanetwork(1, hidden_dim=16, num_rounds=1)
    graph, values, share = draw(32, 256)
    m.fit_statistics([pg.collate([(graph, values)])])
    optimizer = torch.optim.Adam(m.parameters(), lr=3e-3)
    for _ in range(60):
        rows = torch.randint(0, 256, (64,))
        loss = (m(pg.collate([(graph, values[rows])]))[:, 0] - share[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    graph, values, share = draw(1024, 12)
    with torch.no_grad():
        seen = m.eval()(pg.collate([(graph, values)]))[:, 0]
    assert seen.isfinite().all()
    assert torch.corrcoef(torch.stack([seen, share]))[0, 1] > 0.9
    assert (seen - share).abs().mean() < 0.2


# --- options


@pytest.mark.parametrize("symmetry", ["permutation", "sign"])
def test_second_order_channels_add_and_keep_the_symmetries(symmetry: str) -> None:
    graph, state = network_of("mixed_activations", 1)
    torch.manual_seed(0)
    m = OperatorMetanetwork(3, hidden_dim=8, symmetry=symmetry, second_order=True).double().eval()
    plain = OperatorMetanetwork(3, hidden_dim=8, symmetry=symmetry).double().eval()
    assert sum(p.numel() for p in m.parameters()) > sum(p.numel() for p in plain.parameters())
    before = m(pg.collate([(graph, graph.features(state))]))
    drawn = graph.sample_symmetry(torch.Generator().manual_seed(0))
    after = m(pg.collate([(graph, graph.features(drawn.apply(state)))]))
    assert (after - before).abs().max() < 1e-8
    before.square().sum().backward()
    second = [p.grad for name, p in m.named_parameters() if ".second." in name]
    assert len(second) > 4
    assert all(grad is not None and bool(grad.any()) for grad in second)


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="second_order=True reads how large weights are"):
        OperatorMetanetwork(1, symmetry="scale", second_order=True)


def test_without_phase_a_shifted_sine_is_another_network() -> None:
    """Shifting a bias by a period keeps the function: seen only without ``phase``."""
    graph, state = network_of("siren_large_biases", 2)
    group = next(g for g in graph.neuron_groups if g.activation is Activation.SINE)
    name = group.features[0].view.parameter
    shifted = {**state, name: state[name] + 2 * math.pi / group.omega}
    for phase, lowest, highest in ((True, 0.0, 1e-8), (False, 1e-4, math.inf)):
        torch.manual_seed(0)
        m = OperatorMetanetwork(3, hidden_dim=16, phase=phase).double().eval()
        m.fit_statistics([pg.collate([(graph, graph.features(state))])])
        outputs = [m(pg.collate([(graph, graph.features(s))])) for s in (state, shifted)]
        assert lowest <= (outputs[1] - outputs[0]).abs().max().item() <= highest


@pytest.mark.parametrize("symmetry", ["sign", "scale"])
@pytest.mark.parametrize("name", ["mlp", "siren_large_biases", "square", "vision_transformer"])
def test_answers_to_probes_keep_the_symmetries(name: str, symmetry: str) -> None:
    """Neurons answer as they scale, and outputs as they are."""
    graph, state = network_of(name, 1)
    torch.manual_seed(0)
    m = OperatorMetanetwork(3, hidden_dim=16, symmetry=symmetry, num_probes=8).double().eval()
    m.fit_statistics([pg.collate([(graph, graph.features(state))])])
    before = m(pg.collate([(graph, graph.features(state))]))
    for seed in range(3):
        drawn = draw_kinds(graph, m.promised_symmetries(), torch.Generator().manual_seed(seed))
        after = m(pg.collate([(graph, graph.features(drawn.apply(state)))]))
        assert ((after - before).norm() / before.norm()).item() < 1e-8
    before.square().sum().backward()
    names = ("probe_map.weight", "answer_map.0.weight", "probes.table")
    assert all(bool(m.get_parameter(name).grad.any()) for name in names)  # type: ignore[union-attr]


def test_beside_learned_tokens_inputs_stay_as_they_are() -> None:
    """Nothing arrives at the first level: tokens have a value to take in, inputs have none."""
    graph, state = network_of("vision_transformer", 1)
    torch.manual_seed(0)
    m = OperatorMetanetwork(3, hidden_dim=16).double().eval()
    batch = pg.collate([(graph, graph.features(state))])
    read = m._sweep(batch, HeldWeights(batch, m.standardizer))
    start = batch.split(m._start(batch)[0])[0]
    moved = (read.signals.primal[0] - start).abs().sum(1) > 0
    kinds = batch.split(batch.kind)[0]
    assert {0, 3} <= set(kinds.tolist())
    assert torch.equal(moved, kinds == 3)
