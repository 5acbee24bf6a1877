"""Symmetries that look right and are not: each of these was claimed once, or nearly."""

from __future__ import annotations

from typing import Any

import torch
from expected_groups import found_groups
from networks import Wired, randomise, vectors
from torch import Tensor, nn

import paramgraph as pg

VECTOR = vectors(24, 3)


def _read(network: nn.Module) -> pg.ParamGraph:
    """The graph as the rules find it, without self-repair; it must hold on the network."""
    graph = pg.capture(network, VECTOR, check=False)
    verification = pg.verify(network, graph, VECTOR, num_draws=12)
    assert verification.passed, verification
    return graph


def test_the_order_of_sorted_choices_is_no_symmetry_of_the_router() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        chosen = n.router(x).topk(1).indices.flatten()
        order = chosen.sort().indices  # rows of one expert after those of another
        return n.head(torch.relu(n.first(x[order])))

    layers = {"router": nn.Linear(3, 4), "first": nn.Linear(3, 5), "head": nn.Linear(5, 2)}
    graph = _read(randomise(Wired(wiring, **layers), 0))
    assert found_groups(graph.axis_groups) == [(5, ())]
    reasons = {group.name: group.reason for group in graph.axis_groups}
    assert reasons["router"] == "its indices are sorted, and their order is read"


def test_groups_of_a_residual_convolution_are_exchanged_as_a_whole() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(n.first(x))[..., None]
        return n.head((hidden + n.mix(hidden)).flatten(1))

    layers = {
        "first": nn.Linear(3, 4),
        "mix": nn.Conv1d(4, 4, 1, groups=2),
        "head": nn.Linear(4, 2),
    }
    graph = _read(randomise(Wired(wiring, **layers), 0))
    sizes = [size for size, _ in found_groups(graph.axis_groups)]
    assert sizes == [2, 2]


def test_experts_that_are_not_alike_cannot_be_exchanged() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        chosen = n.router(x).argmax(-1)
        total = torch.zeros(len(x), 2, dtype=x.dtype)
        hot = nn.functional.one_hot(chosen, 3)
        for index in hot.sum(0).gt(0).nonzero():
            number = int(index[0].item())
            rows = hot[:, number].nonzero()[:, 0]
            total = total.index_add(0, rows, n.experts[number](x[rows]))
        return total

    experts = nn.ModuleList(
        nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)) for width in (4, 5, 4)
    )
    router = nn.Linear(3, 3)
    network = randomise(Wired(wiring, router=router, experts=experts), 4)
    with torch.no_grad():
        assert set(router(VECTOR).argmax(-1).tolist()) == {0, 1, 2}
    graph = _read(network)
    assert "router" in {group.name for group in graph.axis_groups if not group.free}


def test_only_a_comparison_with_an_index_tells_choices_apart() -> None:
    def wiring(limit: int) -> nn.Module:
        def forward(n: Any, x: Tensor) -> Tensor:
            chosen = n.router(x).argmax(-1)
            return n.head(torch.relu(n.first[chosen] * (chosen == limit)[:, None] + n.second(x)))

        layers = {"router": nn.Linear(3, 4), "second": nn.Linear(3, 5), "head": nn.Linear(5, 2)}
        return randomise(Wired(forward, first=nn.Parameter(torch.zeros(4, 5)), **layers), 0)

    def is_free(limit: int) -> bool:
        return {group.name: group.free for group in _read(wiring(limit)).axis_groups}["first"]

    assert is_free(4)
    assert not is_free(1)
