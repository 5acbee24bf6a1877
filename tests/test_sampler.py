"""Mini-batches by budget: nobody twice, nothing above the limit, well filled, fair to processes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_zoos import tiny_cnns
from torch import Tensor, nn

from paramgraph.capture import capture
from paramgraph.graph import ParamGraph
from paramgraph.tasks import BudgetOrder, EpochOrder, capture_zoo, load_networks
from paramgraph.tasks.orders import Order

WIDTHS = (3, 8, 21, 60)
COUNTS = (70, 50, 40, 30)


@functools.cache
def graphs() -> tuple[ParamGraph, ...]:
    """Networks 2 - n - n - 1 of very different sizes: 18 to 3,780 edges."""
    return tuple(_mlp(n) for n in WIDTHS)


def _mlp(n: int) -> ParamGraph:
    network = nn.Sequential(
        *(nn.Linear(2, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, 1))
    )
    return capture(network, torch.ones(1, 2))


def architecture() -> Tensor:
    kinds = torch.arange(len(WIDTHS)).repeat_interleave(torch.tensor(COUNTS))
    return kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))]


def edges(batch: list[int], kinds: Tensor) -> int:
    return sum(graphs()[int(kinds[i])].num_edges for i in batch)


def neurons(batch: list[int], kinds: Tensor) -> int:
    return sum(graphs()[int(kinds[i])].num_neurons for i in batch)


def order(seed: int = 0, **options: int) -> BudgetOrder:
    return BudgetOrder(architecture(), graphs(), seed=seed, **options)


LIMITS = [{"max_edges": 8000}, {"max_neurons": 400}, {"max_edges": 8000, "max_neurons": 300}]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_each_network_once_per_epoch_and_none_above_the_budget(
    limits: dict[str, int], num_ranks: int
) -> None:
    kinds = architecture()
    ranks = [order(**limits, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    lengths = set()
    for epoch in range(5):
        seen: list[int] = []
        for rank in ranks:
            rank.set_epoch(epoch)
            batches = list(rank)
            lengths.add(len(batches))
            assert len(batches) == len(rank)
            seen += itertools.chain(*batches)
            for batch in batches:
                assert edges(batch, kinds) <= limits.get("max_edges", math.inf)
                assert neurons(batch, kinds) <= limits.get("max_neurons", math.inf)
        assert sorted(seen) == list(range(sum(COUNTS)))
    assert len(lengths) == 1  # the schedule of the learning rate counts on it


@pytest.mark.parametrize("limits", LIMITS)
def test_batches_are_about_full(limits: dict[str, int]) -> None:
    made, kinds = order(**limits), architecture()
    everyone = list(range(len(kinds)))
    fewest = max(
        edges(everyone, kinds) / limits.get("max_edges", math.inf),
        neurons(everyone, kinds) / limits.get("max_neurons", math.inf),
    )
    assert len(made) <= math.ceil(fewest / 0.9)


def test_equal_networks_fill_batches_to_the_last_one() -> None:
    kinds = torch.ones(640, dtype=torch.long)
    size = graphs()[1].num_edges
    made = BudgetOrder(kinds, graphs(), max_edges=64 * size, seed=0)
    assert [len(batch) for batch in made] == [64] * 10


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first, second, other = (order(seed, max_edges=8000) for seed in (1, 1, 2))
    for made in (first, second, other):
        made.set_epoch(3)
    list(first)
    list(first)  # reading it draws nothing from a hidden state
    assert list(first) == list(second)
    assert list(first) != list(other)
    first.set_epoch(4)
    assert list(first) != list(second)


def test_who_meets_whom_changes_between_epochs() -> None:
    """Not only the networks: also which architectures share a batch."""
    several = [_mlp(n) for n in range(5, 17)]
    kinds = torch.arange(12).repeat(20)
    made = BudgetOrder(kinds, several, max_edges=5000, seed=0)
    seen = []
    for epoch in range(3):
        made.set_epoch(epoch)
        seen.append([tuple(np.bincount(kinds[batch].numpy(), minlength=12)) for batch in made])
    for first, second in itertools.combinations(seen, 2):
        assert len({*first} & {*second}) < len(made) / 2
    size = np.array([graph.num_edges for graph in several])
    # Largest first would fill the batches in one pattern, whoever the networks are.
    assert len({tuple(sorted(int(size @ batch) for batch in epoch)) for epoch in seen}) == 3


def test_networks_of_one_architecture_stay_together() -> None:
    made, kinds = order(max_edges=20000), architecture()
    for small in range(2):  # groups of 8, so each batch holds multiples of it but for remainders
        counts = [sum(int(kinds[i]) == small for i in batch) for batch in made]
        assert sum(count % 8 == 0 for count in counts) >= len(counts) - 2
        assert max(counts) > 0


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_processes_that_share_a_step_have_equal_work(num_ranks: int) -> None:
    """Also where two sizes are above the budget, so that batches are not equal by themselves."""
    kinds = architecture()
    with pytest.warns(UserWarning, match="70 networks"):
        made = order(max_edges=400, num_ranks=num_ranks)
    work = np.array([[edges(share, kinds) for share in step] for step in made.steps()])
    assert work.shape == (len(made), num_ranks)
    assert work.max(1).sum() / work.mean(1).sum() < 1.1


def test_a_network_above_the_budget_is_alone_and_said() -> None:
    kinds = architecture()
    with pytest.warns(UserWarning, match=r"30 networks are above the budget max_edges=1,000, the"):
        made = BudgetOrder(kinds, graphs(), max_edges=1000, seed=0)
    large = [batch for batch in made if any(int(kinds[i]) == 3 for i in batch)]
    assert [len(batch) for batch in large] == [1] * 30
    assert sorted(itertools.chain(*made)) == list(range(len(kinds)))


def test_only_networks_above_the_budget_and_several_processes() -> None:
    kinds = torch.full((5,), 3)
    with pytest.warns(UserWarning, match="5 networks"):
        ranks = [
            BudgetOrder(kinds, graphs(), max_edges=10, seed=0, rank=r, num_ranks=2) for r in (0, 1)
        ]
    assert [len(list(rank)) for rank in ranks] == [3, 3]
    owned = [
        share[0] for step in ranks[0].steps() for share in step if share
    ]  # one share of six is nobody's
    assert sorted(owned) == list(range(5))


def test_a_budget_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_edges=0, max_neurons=0"):
        order()
    with pytest.raises(ValueError, match="max_neurons=-1"):
        order(max_edges=5, max_neurons=-1)
    with pytest.raises(ValueError, match=r"a rank in 0\.\.1, got 2"):
        order(max_edges=8000, rank=2, num_ranks=2)


def test_the_budget_is_what_the_batch_counts() -> None:
    zoo = tiny_cnns()
    networks = load_networks(zoo, "test_accuracy", capture_zoo(zoo))
    made = BudgetOrder(networks.architecture, networks.graphs, max_edges=3000, seed=0)
    sizes = [networks.batch(torch.tensor(numbers))[0].num_edges for numbers in made]
    assert 1000 < max(sizes) <= 3000


# --- what both orders promise to several processes


def by_count(num_ranks: int, rank: int = 0) -> Order:
    return EpochOrder(architecture()[:50], 4, seed=1, rank=rank, num_ranks=num_ranks)


def by_budget(num_ranks: int, rank: int = 0) -> Order:
    return order(max_edges=8000, rank=rank, num_ranks=num_ranks)


@pytest.mark.parametrize("make", [by_count, by_budget])
def test_weighted_means_of_processes_are_the_mean_over_the_step(make: Callable[..., Order]) -> None:
    ranks = [make(3, rank) for rank in range(3)]
    losses = np.random.default_rng(0).normal(size=sum(COUNTS))
    for index, step in enumerate(ranks[0].steps()):
        everyone = list(itertools.chain(*step))
        assert ranks[0].count(index) == len(everyone)
        found = [
            rank.weight(index) * losses[share].mean()
            for rank, share in zip(ranks, (list(rank)[index] for rank in ranks), strict=True)
        ]
        assert np.mean(found) == pytest.approx(losses[everyone].mean())


def test_two_processes_read_what_one_reads_with_the_doubled_batch() -> None:
    kinds = architecture()[:50]
    one = list(EpochOrder(kinds, 8, seed=1))
    halves = zip(*(by_count(2, rank) for rank in (0, 1)), strict=True)
    assert [a + b for a, b in halves] == one


def test_a_process_without_a_network_reads_one_of_weight_zero() -> None:
    ranks = [EpochOrder(torch.zeros(1), 4, seed=0, rank=rank, num_ranks=2) for rank in (0, 1)]
    assert [list(rank) for rank in ranks] == [[[0]], [[0]]]
    assert [rank.weight(0) for rank in ranks] == [2.0, 0.0]
