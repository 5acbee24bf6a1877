"""The mini-batches of an epoch, made in turn or ahead of time by worker processes.

Each is a function of (seed, epoch, step, process): how many workers there are changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paramgraph.batch import GraphBatch
from paramgraph.tasks.augment import add_weight_noise, flip_signs
from paramgraph.tasks.data import LoadedNetworks
from paramgraph.tasks.orders import Order
from paramgraph.tasks.packing import Packed, pack, unpack
from paramgraph.zoo.building import derive_seed

__all__ = ["BatchMaker", "Batches", "Job", "Prepared"]


class Job(NamedTuple):
    """A mini-batch to be made.

    Attributes:
        epoch: Number of the epoch.
        step: Number of the step in it.
        numbers: Which networks.
    """

    epoch: int
    step: int
    numbers: list[int]


class Prepared:
    """A finished mini-batch (no tuple or dataclass, which Lightning would look into).

    Attributes:
        batch: The networks.
        numbers: Their numbers, in the order of the batch.
    """

    def __init__(self, batch: GraphBatch, numbers: Tensor) -> None:
        self.batch = batch
        self.numbers = numbers


@dataclass(frozen=True)
class BatchMaker:
    """Picks networks of a split and augments them.

    Attributes:
        networks: The split.
        seed: Of the augmentations.
        rank: Number of this process: each draws its own.
        weight_noise: Relative Gaussian noise on all weights.
        sign_flips: Whether to negate random neurons whose sign is free.
    """

    networks: LoadedNetworks
    seed: int
    rank: int = 0
    weight_noise: float = 0.0
    sign_flips: bool = False

    def make(self, job: Job) -> Prepared:
        """The batch of a job, a function of the job alone."""
        device = self.networks.architecture.device
        generator = torch.Generator(device).manual_seed(
            derive_seed(self.seed, job.epoch, job.step, self.rank)
        )
        flip = partial(flip_signs, generator=generator) if self.sign_flips else None
        batch, numbers = self.networks.batch(torch.as_tensor(job.numbers), flip)
        return Prepared(add_weight_noise(batch, self.weight_noise, generator=generator), numbers)


class Batches:
    """The mini-batches of the epoch that ``order`` is at.

    Processes rather than a thread: making a batch is mostly Python, and a thread that does it slows
    the step by as much (measured, see docs/decisions.md). A worker hands over one buffer.

    Args:
        maker: Makes a batch.
        order: Which networks, in which step.
        num_workers: Processes that make batches ahead; 0 makes each when it is asked for.
        prefetch: Batches that each worker is ahead.

    Example:
        >>> from paramgraph.tasks import EpochOrder
        >>> import paramgraph as pg
        >>> network = torch.nn.Linear(2, 3)
        >>> graph = pg.capture(network, torch.ones(1, 2))
        >>> values = graph.features([network.state_dict()] * 5)
        >>> kinds = torch.zeros(5, dtype=torch.long)
        >>> networks = LoadedNetworks((graph,), (values,), kinds, torch.arange(5), torch.ones(5))
        >>> batches = Batches(BatchMaker(networks, seed=0), EpochOrder(kinds, 2, seed=0))
        >>> [prepared.batch.num_networks for prepared in batches]
        [2, 2, 1]
    """

    def __init__(
        self, maker: BatchMaker, order: Order, *, num_workers: int = 0, prefetch: int = 2
    ) -> None:
        self.maker = maker
        self.order = order
        self.device = maker.networks.architecture.device
        self._loader: DataLoader[Any] | None = None
        if num_workers:
            self._loader = DataLoader(
                _PackedBatches(maker),
                batch_size=None,
                sampler=_Jobs(order),
                num_workers=num_workers,
                prefetch_factor=prefetch,
                persistent_workers=True,
                pin_memory=self.device.type == "cuda",
                collate_fn=_unchanged,
            )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Prepared]:
        """Nothing is made, and no epoch chosen, before the first batch is asked for."""
        if self._loader is None:
            for job in _Jobs(self.order):
                yield self.maker.make(job)
            return
        for packed in self._loader:
            batch = unpack(packed, self.maker.networks.graphs, self.device)
            yield Prepared(batch, packed.numbers.to(self.device))


class _Jobs:
    """The steps of an epoch as jobs: what workers are asked for."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Job]:
        for step, numbers in enumerate(self.order):
            yield Job(self.order.epoch, step, numbers)


class _PackedBatches(Dataset[Packed]):
    """Runs in a worker; its networks lie on the CPU."""

    def __init__(self, maker: BatchMaker) -> None:
        networks = maker.networks.to("cpu")
        self.maker = BatchMaker(
            networks, maker.seed, maker.rank, maker.weight_noise, maker.sign_flips
        )
        self.number_of = {graph.function_key: i for i, graph in enumerate(networks.graphs)}

    def __getitem__(self, job: Job) -> Packed:
        made = self.maker.make(job)
        return pack(made.batch, made.numbers, self.number_of)


def _unchanged(packed: Any) -> Packed:
    return packed
