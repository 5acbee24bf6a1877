"""Mini-batches filled up to a number of neurons or edges, for networks of very different sizes."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from paramgraph.graph import ParamGraph
from paramgraph.tasks.orders import Order, Steps, cut

__all__ = ["BudgetOrder"]

# How freely groups are placed, freest first: 0 is largest first, which always finds room.
_FREEDOMS = (1.0, 0.7, 0.4, 0.2, 0.1, 0.0)
_PIECES = 4  # a group is at most this part of a batch, so that batches can be filled


class BudgetOrder(Order):
    """Mini-batches of at most ``max_edges`` edges and ``max_neurons`` neurons, all about full.

    What a step costs in time and memory follows edges and neurons, not networks. Networks of one
    architecture stay together in groups (blocks of equal shape, side by side, become one). The
    groups are drawn anew each epoch and go, larger ones rather first, to the batch with the most
    room; so all batches of an epoch cost about the same, their number is the same in each epoch,
    and processes that share a step have equal work. A network above the budget is alone in its
    batch.

    A step's loss is the mean over its networks, so a network counts a little more among large ones.

    Args:
        architecture: ``[num_networks]`` number of the architecture of each network.
        graphs: The architectures.
        max_edges: Most edges of a batch, counted as ``GraphBatch.num_edges``; 0 is no limit.
        max_neurons: Most neurons of a batch; 0 is no limit.
        seed: Of the order.
        group_size: Most networks of one architecture that stay together.
        rank: Number of this process.
        num_ranks: Processes that share each step; the budget is that of one of them.

    Raises:
        ValueError: No limit at all, a negative one, or a ``rank`` that is not below ``num_ranks``.

    Warns:
        UserWarning: A network is above the budget.

    Example:
        >>> import torch, paramgraph as pg
        >>> from torch import nn
        >>> def graph(n):
        ...     network = nn.Sequential(nn.Linear(2, n), nn.Tanh(), nn.Linear(n, 1))
        ...     return pg.capture(network, torch.ones(1, 2))
        >>> graphs = [graph(4), graph(40)]
        >>> [graph.num_edges for graph in graphs]
        [12, 120]
        >>> order = BudgetOrder(torch.tensor([0] * 20 + [1] * 4), graphs, max_edges=240, seed=0)
        >>> len(order)
        3
        >>> sorted(number for numbers in order for number in numbers) == list(range(24))
        True
        >>> edges = [sum(12 if n < 20 else 120 for n in numbers) for numbers in order]
        >>> max(edges) <= 240
        True
    """

    def __init__(
        self,
        architecture: Tensor,
        graphs: Sequence[ParamGraph],
        *,
        seed: int,
        max_edges: int = 0,
        max_neurons: int = 0,
        group_size: int = 8,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        super().__init__(seed=seed, rank=rank, num_ranks=num_ranks)
        limits = {"max_edges": max_edges, "max_neurons": max_neurons}
        if min(limits.values()) < 0 or not any(limits.values()):
            raise ValueError(
                "a budget needs max_edges or max_neurons above 0 (0 is no limit), got "
                f"max_edges={max_edges}, max_neurons={max_neurons}."
            )
        self.architecture = architecture.cpu().numpy()
        self.group_size = group_size
        # Of each architecture its part of each limit: a batch is full where a sum reaches 1.
        sizes = np.array([(graph.num_edges, graph.num_neurons) for graph in graphs], dtype=float)
        given = np.array([max_edges, max_neurons], dtype=float)
        self._part = sizes[:, given > 0] / given[given > 0]
        self._above = np.flatnonzero(self._part[self.architecture].max(1, initial=0) > 1)
        self._fitting = np.flatnonzero(self._part[self.architecture].max(1, initial=0) <= 1)
        self._num_batches = self._fewest_batches()
        if len(self._above):
            self._warn(graphs, limits)

    def __len__(self) -> int:
        return (self._num_batches + len(self._above)) // self.num_ranks

    def draw(self, rng: np.random.Generator) -> Steps:
        """Groups to batches as freely as all find room; batches of like cost to one step."""
        batches: list[list[int]] | None = None
        for freedom in _FREEDOMS:
            batches = self._fill(self._num_batches, freedom, rng)
            if batches is not None:
                break
        assert batches is not None, "with freedom 0 there was room when the batches were counted"
        batches += [[number] for number in self._above.tolist()]
        cost = np.array([self._part[self.architecture[batch]].sum(0).max() for batch in batches])
        # Largest first; equal ones in random order. Those of one step wait for each other.
        ranked = np.lexsort((rng.permutation(len(batches)), -cost))
        steps = [[batches[i] for i in row] for row in cut(ranked, self.num_ranks)]
        return [steps[i] for i in rng.permutation(len(steps))]

    def _fewest_batches(self) -> int:
        """The smallest number of batches, in whole steps, into which everything fits."""
        total = self._part[self.architecture[self._fitting]].sum(0).max() if self._num_fit else 0.0
        num = max(int(np.ceil(total - 1e-9)), 1 if self._num_fit else 0)
        while True:
            num += -(num + len(self._above)) % self.num_ranks
            if self._fill(num, 0.0, np.random.default_rng(0)) is not None:
                return num
            num += max(1, num // 200)

    @property
    def _num_fit(self) -> int:
        return len(self._fitting)

    def _groups(self, num_batches: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Networks of one architecture, drawn anew, in pieces that fill batches well."""
        order = rng.permutation(self._fitting)
        kinds = self.architecture[order]
        load = self._part[kinds].sum(0).max() / max(num_batches, 1)
        groups = []
        for kind in np.unique(kinds):
            most = int(load / _PIECES / max(self._part[kind].max(), 1e-12))
            groups += cut(order[kinds == kind], min(max(most, 1), self.group_size))
        return groups

    def _fill(
        self, num_batches: int, freedom: float, rng: np.random.Generator
    ) -> list[list[int]] | None:
        """Place all groups; ``None`` if a network finds no room.

        Args:
            num_batches: Into how many.
            freedom: 0 places the largest groups first, which wastes least; 1 in random order.
            rng: Draws groups and order.
        """
        groups = self._groups(num_batches, rng)
        if not groups or not num_batches:
            return None if groups else [[] for _ in range(num_batches)]
        cost = np.array([len(g) * self._part[self.architecture[g[0]]].max() for g in groups])
        key = np.log(cost + 1e-12) * (1 - freedom) + freedom * rng.normal(size=len(cost))
        ranked = np.lexsort((rng.permutation(len(groups)), -key))
        room = _Room(num_batches, self._part.shape[1])
        singles: list[int] = []
        for i in ranked:
            if not room.place(groups[i].tolist(), self._part[self.architecture[groups[i][0]]]):
                singles += groups[i].tolist()
        singles.sort(key=lambda number: -self._part[self.architecture[number]].max())
        for number in singles:
            if not room.place([number], self._part[self.architecture[number]]):
                return None
        return room.batches

    def _warn(self, graphs: Sequence[ParamGraph], limits: dict[str, int]) -> None:
        first = int(self._above[0])
        graph = graphs[self.architecture[first]]
        text = ", ".join(f"{name}={limit:,}" for name, limit in limits.items() if limit)
        warnings.warn(
            f"{len(self._above)} networks are above the budget {text}, the first is number {first} "
            f"({graph.name!r}: {graph.num_edges:,} edges, {graph.num_neurons:,} neurons). Each is "
            "alone in its batch; raise the budget, or leave them out.",
            stacklevel=3,
        )


class _Room:
    """Batches that are being filled; the one with the most room comes first."""

    def __init__(self, num_batches: int, num_limits: int) -> None:
        self.batches: list[list[int]] = [[] for _ in range(num_batches)]
        self.used = np.zeros((num_batches, num_limits))
        self._heap = [(0.0, i) for i in range(num_batches)]

    def place(self, numbers: list[int], part: np.ndarray) -> bool:
        """Put some networks of one architecture into the emptiest batch, if they fit."""
        batch = self._heap[0][1]
        after = self.used[batch] + len(numbers) * part
        if after.max() > 1 + 1e-9:
            # With two limits another batch may have room of the right kind.
            every = (self.used + len(numbers) * part).max(1)
            batch = int(every.argmin())
            if every[batch] > 1 + 1e-9:
                return False
            self.used[batch] += len(numbers) * part
            self.batches[batch] += numbers
            self._heap = [(float(u.max()), i) for i, u in enumerate(self.used)]
            heapq.heapify(self._heap)
            return True
        self.used[batch] = after
        self.batches[batch] += numbers
        heapq.heapreplace(self._heap, (float(after.max()), batch))
        return True
