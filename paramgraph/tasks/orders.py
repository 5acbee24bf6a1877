"""Which networks form a mini-batch: by count or by a budget; a function of (seed, epoch) alone.

So a resumed run sees the same mini-batches as one that was never interrupted, and every process of
a run on several knows what the others read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from torch import Tensor

__all__ = ["EpochOrder", "Order"]

Steps = list[list[list[int]]]
"""For each step, for each process, the numbers of its networks (none at the end of an epoch)."""


class Order(ABC):
    """Mini-batches of network numbers, each network once per epoch; one process's share of them.

    Args:
        seed: Of the order.
        rank: Number of this process.
        num_ranks: Processes that share each step.
    """

    def __init__(self, *, seed: int, rank: int = 0, num_ranks: int = 1) -> None:
        if not 0 <= rank < num_ranks:
            raise ValueError(f"expected a rank in 0..{num_ranks - 1}, got {rank}.")
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.epoch = 0
        self._known: tuple[int, Steps] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Steps of an epoch, the same in each."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Steps:
        """The steps of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (called by the trainer)."""
        self.epoch = epoch

    def steps(self) -> Steps:
        """For each step of the epoch, for each process, the numbers of its networks."""
        if self._known is None or self._known[0] != self.epoch:
            self._known = self.epoch, self.draw(np.random.default_rng([self.seed, self.epoch]))
        return self._known[1]

    def __iter__(self) -> Iterator[list[int]]:
        """What this process reads; where a step has nothing for it, a network of weight 0."""
        for step in self.steps():
            yield step[self.rank] or [next(share[0] for share in step if share)]

    def count(self, index: int) -> int:
        """Networks of step ``index``, those of all processes."""
        return sum(map(len, self.steps()[index]))

    def weight(self, index: int) -> float:
        """Factor of this process's mean loss in step ``index``.

        ``num_ranks * own networks / all networks``: the mean over processes of the weighted losses
        is then the mean over all networks of the step, however many each process has.
        """
        return len(self.steps()[index][self.rank]) * self.num_ranks / self.count(index)


def cut(members: np.ndarray, size: int) -> list[np.ndarray]:
    """Pieces of ``size``, the last one smaller."""
    return [members[start : start + size] for start in range(0, len(members), size)]


class EpochOrder(Order):
    """Mini-batches of a fixed number of networks, drawn anew each epoch.

    Batches are put together from groups of networks of one architecture: fewer different blocks
    per batch, hence larger ones. Which networks form a group, and which groups a batch, is drawn
    anew each epoch. Several processes cut a batch of ``num_ranks * batch_size`` into equal parts,
    so they do what one process does with a batch of that size.

    Args:
        architecture: ``[num_networks]`` number of the architecture of each network.
        batch_size: Of each mini-batch of a process; the last of an epoch may be smaller.
        seed: Of the order.
        group_size: Networks of one architecture that stay together.
        rank: Number of this process.
        num_ranks: Processes that share each step.

    Raises:
        ValueError: ``rank`` is not below ``num_ranks``.

    Example:
        >>> import torch
        >>> order = EpochOrder(torch.tensor([0, 0, 0, 1, 1]), 2, seed=0)
        >>> [len(numbers) for numbers in order]
        [2, 2, 1]
        >>> list(order) == list(EpochOrder(torch.tensor([0, 0, 0, 1, 1]), 2, seed=0))
        True
    """

    def __init__(
        self,
        architecture: Tensor,
        batch_size: int,
        *,
        seed: int,
        group_size: int = 8,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        super().__init__(seed=seed, rank=rank, num_ranks=num_ranks)
        self.architecture = architecture.cpu().numpy()
        self.batch_size = batch_size
        self.group_size = group_size

    def __len__(self) -> int:
        return -(-len(self.architecture) // (self.batch_size * self.num_ranks))

    def draw(self, rng: np.random.Generator) -> Steps:
        """Groups in random order, cut into batches, each of them into equal shares."""
        order = rng.permutation(len(self.architecture))
        order = order[self.architecture[order].argsort(kind="stable")]
        counts = np.unique(self.architecture, return_counts=True)[1]
        groups = [
            group
            for members in np.split(order, counts.cumsum()[:-1])
            for group in cut(members, self.group_size)
        ]
        flat = np.concatenate([groups[number] for number in rng.permutation(len(groups))])
        return [
            [share.tolist() for share in np.array_split(batch, self.num_ranks)]
            for batch in cut(flat, self.batch_size * self.num_ranks)
        ]
