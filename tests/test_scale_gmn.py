"""ScaleGMN: a slow twin by loops over edges, exact invariance, finite reciprocals, refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.nn import ScaleGMN
from paramgraph.nn.scale_layers import reciprocals
from paramgraph.nn.sweeps import Levels
from paramgraph.nn.typed import NeuronTypes
from paramgraph.testing.draws import draw_kinds


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3.0 * x)


def chain(activation: type[nn.Module], *widths: int) -> Any:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1])).double()


def graph_of(network: nn.Module, num_inputs: int) -> pg.ParamGraph:
    return pg.capture(network, torch.randn(4, num_inputs, dtype=torch.float64))


def make(out_dim: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return ScaleGMN(out_dim, **{"hidden_dim": 8, "num_layers": 2, **options}).double().eval()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# --- slow twin


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_it_equals_its_slow_twin(activation: type[nn.Module], bidirectional: bool) -> None:
    """One edge and one neuron at a time, on a chain of two hidden layers."""
    torch.manual_seed(1)
    network = chain(activation, 2, 4, 3, 2)
    graph = graph_of(network, 2)
    batch = pg.collate([(graph, graph.features(network.state_dict()))])
    m = make(bidirectional=bidirectional)
    m.fit_statistics([batch])
    seen: list[Any] = []
    with m.layers[0].register_forward_hook(lambda _, args, __: seen.append(args)):
        expected = m(batch)
    structure, state = seen[0]
    levels = structure.levels
    kinds = {nn.ReLU: 3, nn.Tanh: 1, nn.GELU: 0}[activation]
    depth = len(batch.levels)

    def types_of(level: int) -> NeuronTypes:
        kind = kinds if 0 < level < depth - 1 else 0
        return NeuronTypes.from_tensor(torch.tensor([kind]))

    x = [list(rows) for rows in state.neurons]
    e = [bucket[0] for bucket in state.edges]  # [receivers, senders, dim], bucket l joins l, l + 1
    back = [bucket[0] for bucket in state.back]
    for layer in m.layers:
        new: list[list[Tensor]] = []
        known: list[list[Tensor]] = []
        for level, rows in enumerate(x):
            new.append([])
            for i, own in enumerate(rows):
                arrived, returned = torch.zeros(8).double(), torch.zeros(8).double()
                if level > 0:
                    for j, sender in enumerate(x[level - 1]):
                        z = layer.along.edge(e[level - 1][i, j]) * layer.along.neuron(sender)
                        arrived = arrived + layer.along.scale(types_of(level), z[None])[0]
                    arrived = arrived / math.sqrt(len(x[level - 1]))
                if bidirectional and level < depth - 1:
                    for r, receiver in enumerate(x[level + 1]):
                        z = layer.against.edge(back[level][r, i]) * layer.against.neuron(receiver)
                        returned = returned + layer.against.scale(types_of(level), z[None])[0]
                    returned = returned / math.sqrt(len(x[level + 1]))
                parts = [own, arrived, levels.bias[level][i]]
                z = torch.cat([*parts, returned] if bidirectional else parts)
                facts = levels.context[level][i][None]
                new[-1].append(own + layer.update(types_of(level), z[None], facts)[0])
        if layer.invariant is not None:
            known = [
                [
                    layer.invariant(types_of(level), own[None], levels.context[level][i][None])[0]
                    for i, own in enumerate(rows)
                ]
                for level, rows in enumerate(x)
            ]
            for update, edges in ((layer.edges, e), (layer.back, back)):
                if update is None:
                    continue
                for level, values in enumerate(edges):
                    rows = []
                    for i in range(values.shape[0]):
                        for j in range(values.shape[1]):
                            both = update.receiver(known[level + 1][i])
                            both = both + update.sender(known[level][j])
                            gate = update.last(nn.functional.silu(update.norm(both)))
                            rows.append(update.map(values[i, j]) * gate)
                    edges[level] = torch.stack(rows).reshape(values.shape)
        x = new
    values = [
        m.invariant(types_of(level), own[None], levels.context[level][i][None])[0]
        for level, rows in enumerate(x)
        for i, own in enumerate(rows)
    ]
    place = [int(kind) for kind in batch.kind]
    means = [
        torch.stack([v for v, at in zip(values, place, strict=True) if at == kind]).mean(0)
        for kind in (1, 0, 2)
    ]
    torch.testing.assert_close(m.head(torch.cat(means)[None]), expected, rtol=0, atol=1e-10)


# --- symmetries


@pytest.mark.parametrize("bidirectional", [False, True])
def test_rescaling_relus_changes_nothing_and_an_invalid_one_is_seen(bidirectional: bool) -> None:
    """Factors of 1/100 to 100; invalid: the next layer does not undo them."""
    torch.manual_seed(0)
    network = chain(nn.ReLU, 3, 16, 16, 2)
    graph, state = graph_of(network, 3), dict(network.state_dict())
    m = make(bidirectional=bidirectional)
    m.fit_statistics([pg.collate([(graph, graph.features(state))])])
    read = lambda s: m(pg.collate([(graph, graph.features(s))]))  # noqa: E731
    before = read(state)
    for seed in range(5):
        drawn = draw_kinds(graph, {"scale"}, torch.Generator().manual_seed(seed), scale_range=100)
        moved = drawn.apply(state)
        ratio = moved["0.weight"] / state["0.weight"]
        assert ratio.max() / ratio.min() > 100
        assert relative(read(moved), before) < 1e-8
        broken = {**moved, "2.weight": state["2.weight"]}
        assert relative(read(broken), before) > 1e-2


@pytest.mark.parametrize("bidirectional", [False, True])
def test_sine_phases_and_signs(bidirectional: bool) -> None:
    """A bias moved by 2 pi k / omega, or by pi / omega with the next layer's sign, is the same."""
    torch.manual_seed(0)
    network = chain(Sine, 2, 8, 8, 1)
    graph, state = graph_of(network, 2), dict(network.state_dict())
    m = make(bidirectional=bidirectional)
    m.fit_statistics([pg.collate([(graph, graph.features(state))])])
    read = lambda s: m(pg.collate([(graph, graph.features(s))]))  # noqa: E731
    before = read(state)
    turns = torch.arange(8.0, dtype=torch.float64) - 3
    whole = {**state, "0.bias": state["0.bias"] + 2 * math.pi / 3.0 * turns}
    assert relative(read(whole), before) < 1e-8
    half = {**state, "2.bias": state["2.bias"] + math.pi / 3.0 * turns}
    assert relative(read(half), before) > 1e-5
    half["4.weight"] = state["4.weight"] * torch.where(turns % 2 == 0, 1.0, -1.0)
    assert relative(read(half), before) < 1e-8
    flipped = {**state, "0.weight": -state["0.weight"], "0.bias": -state["0.bias"]}
    assert relative(read(flipped), before) > 1e-5
    flipped["2.weight"] = -state["2.weight"]
    assert relative(read(flipped), before) < 1e-8


# --- reciprocals


def levels_of(batch: pg.GraphBatch) -> Levels:
    from paramgraph.nn.arrival import Arrivals

    types = NeuronTypes.of(batch, "scale")
    arrivals = Arrivals.of(batch, types, phase=True, scale=True)
    nothing = torch.zeros(batch.num_neurons, 1, dtype=torch.float64)
    return Levels(batch, types, arrivals, nothing, nothing, phase=True)


def test_reciprocals_are_of_the_type_of_one_over_the_weight() -> None:
    torch.manual_seed(0)
    network = chain(nn.ReLU, 3, 5, 4, 2)
    graph, state = graph_of(network, 3), dict(network.state_dict())
    drawn = draw_kinds(graph, {"scale"}, torch.Generator().manual_seed(0), scale_range=100)
    found = []
    for s in (state, drawn.apply(state)):
        batch = pg.collate([(graph, graph.features(s))])
        weights = [bucket.values for bucket in batch.buckets]
        found.append((weights, reciprocals(batch, levels_of(batch), weights, 1.0)))
    for before, one, after, other in zip(*found[0], *found[1], strict=True):
        torch.testing.assert_close(
            (after / before).flatten(), (one / other).flatten(), rtol=1e-9, atol=0
        )


def test_without_a_floor_they_are_the_papers_and_zero_at_zero() -> None:
    network = chain(nn.ReLU, 3, 5, 2)
    with torch.no_grad():
        network[0].weight[0, 0] = 0.0
    graph = graph_of(network, 3)
    batch = pg.collate([(graph, graph.features(network.state_dict()))])
    weights = [bucket.values for bucket in batch.buckets]
    first = reciprocals(batch, levels_of(batch), weights, 0.0)[0].flatten()
    assert first[0] == 0
    torch.testing.assert_close(first[1:], 1 / weights[0].flatten()[1:])


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_zero_weights_are_read_with_finite_gradients(floor: float) -> None:
    network = chain(nn.ReLU, 3, 5, 2)
    graph = graph_of(network, 3)
    values = graph.features({k: torch.zeros_like(v) for k, v in network.state_dict().items()})
    blocks = tuple(block.requires_grad_() for block in values.blocks)
    m = make(bidirectional=True, reciprocal_floor=floor)
    output = m(pg.collate([(graph, pg.Values(blocks, values.neurons))]))
    gradients = torch.autograd.grad(output.sum(), [*blocks, *m.parameters()], allow_unused=True)
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


# --- start, options, refusals


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize(("width", "depth"), [(8, 2), (8, 6), (256, 2)])
def test_outputs_and_gradients_have_a_usual_size_at_the_start(
    activation: type[nn.Module], width: int, depth: int, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    network = chain(activation, 3, *[width] * depth, 2)
    graph = graph_of(network, 3)
    batch = pg.collate([(graph, graph.features(network.state_dict()))])
    m = make(bidirectional=bidirectional)
    m.fit_statistics([batch])
    output = m(batch)
    assert 1e-2 < output.square().mean().sqrt() < 10
    output.square().sum().backward()
    sizes = [p.grad.norm().item() for p in m.parameters() if p.grad is not None]
    assert max(sizes) < 100
    assert max(sizes) > 1e-2


def test_outputs_are_read_in_their_order_with_inputs_if_both_directions() -> None:
    network = chain(nn.ReLU, 3, 5, 2)
    graph = graph_of(network, 3)
    batch = pg.collate([(graph, graph.features([network.state_dict()] * 2))])
    for both in (False, True):
        m = make(readout="outputs", num_outputs=2, num_inputs=3, bidirectional=both)
        assert m(batch).shape == (2, 3)
        values = torch.arange(batch.num_neurons, dtype=torch.float64)[:, None].expand(-1, 8)
        rows = m._read(batch, values)[:, ::8].long()
        assert rows.shape == (2, 5 if both else 2)
        for network_number, row in enumerate(rows):
            assert (batch.network[row] == network_number).all()
            assert batch.kind[row].tolist() == [2, 2, 0, 0, 0][: len(row)]
            assert batch.identity[row].tolist() == [0, 1, 0, 1, 2][: len(row)]
    with pytest.raises(pg.BatchError, match=r"made for 2 input neurons, but .* have \[3\]"):
        make(readout="outputs", num_outputs=2, bidirectional=True)(batch)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="symmetry must be one of sign, scale, got 'none'"):
        ScaleGMN(1, symmetry="none")
    with pytest.raises(ValueError, match="canon must be one of abs, symmetrised, got 'sort'"):
        ScaleGMN(1, canon="sort")
    with pytest.raises(ValueError, match="readout must be one of full, outputs, got 'sum'"):
        ScaleGMN(1, readout="sum")


@pytest.mark.parametrize("canon", ["abs", "symmetrised"])
def test_it_learns(canon: str) -> None:
    """Which of two inputs a tanh network hears more of; the loss falls clearly in 30 steps."""
    torch.manual_seed(0)
    share = torch.rand(64)
    states = []
    for t in share:
        network = chain(nn.Tanh, 2, 6, 1).float()
        with torch.no_grad():
            network[0].weight *= torch.stack([2 * t, 2 * (1 - t)])
        states.append(network.state_dict())
    graph = pg.capture(chain(nn.Tanh, 2, 6, 1).float(), torch.randn(4, 2))
    batch = pg.collate([(graph, graph.features(states))])
    m = make(1, canon=canon).float().train()
    m.fit_statistics([batch])
    optimizer = torch.optim.Adam(m.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (m(batch)[:, 0] - share).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * share.var().item()
