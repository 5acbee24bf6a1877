"""A zoo in memory: each architecture captured once, its networks as stacked values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch, collate
from paramgraph.capture import capture
from paramgraph.errors import ZooError
from paramgraph.graph import ParamGraph
from paramgraph.tasks.orders import EpochOrder
from paramgraph.values import Values
from paramgraph.zoo import Zoo

__all__ = ["EpochOrder", "LoadedNetworks", "capture_zoo", "load_networks"]

MAX_EDGES = 1_000_000
"""Edges of a batch where nothing else limits it: about 1 GB of features for most metanetworks."""


def capture_zoo(zoo: Zoo) -> dict[str, ParamGraph]:
    """The parameter graph of every architecture of a zoo, by name."""
    return {
        name: capture(spec.build(), spec.example_inputs())
        for name, spec in zoo.architectures.items()
    }


@dataclass(frozen=True)
class LoadedNetworks:
    """Networks of a zoo split, ready to be put into batches.

    Attributes:
        graphs: One graph per architecture.
        values: The networks of each architecture.
        architecture: ``[num_networks]`` which of these a network has.
        row: ``[num_networks]`` its row among the networks of its architecture.
        target: ``[num_networks]`` the label.
    """

    graphs: tuple[ParamGraph, ...]
    values: tuple[Values, ...]
    architecture: Tensor
    row: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device | str) -> LoadedNetworks:
        """The same networks on another device."""
        return LoadedNetworks(
            self.graphs,
            tuple(values.to(device) for values in self.values),
            *(tensor.to(device) for tensor in (self.architecture, self.row, self.target)),
        )

    def batch(
        self, numbers: Tensor, change: Callable[[ParamGraph, Values], Values] | None = None
    ) -> tuple[GraphBatch, Tensor]:
        """A batch of some networks, grouped by architecture, and their numbers in its order.

        Args:
            numbers: Which networks.
            change: Applied to the weights of each architecture (an augmentation).
        """
        numbers = numbers.to(self.architecture.device)
        # Equal architectures side by side: one slice of values each.
        numbers = numbers[self.architecture[numbers].argsort(stable=True)]
        kinds, counts = self.architecture[numbers].unique_consecutive(return_counts=True)
        rows = self.row[numbers].split(counts.tolist())
        pairs = []
        for kind, row in zip(kinds.tolist(), rows, strict=True):
            graph, values = self.graphs[kind], self.values[kind][row]
            pairs.append((graph, values if change is None else change(graph, values)))
        return collate(pairs), numbers

    def batches(
        self, batch_size: int, *, max_edges: int = MAX_EDGES
    ) -> Iterator[tuple[GraphBatch, Tensor]]:
        """All networks, architecture by architecture, with their numbers.

        Args:
            batch_size: Most networks of a batch.
            max_edges: Most edges of a batch; a network with more is alone.
        """
        sizes = [graph.num_edges for graph in self.graphs]
        start, edges = 0, 0
        order = self.architecture.argsort(stable=True)
        for place, kind in enumerate(self.architecture[order].tolist()):
            is_full = place - start == batch_size or edges + sizes[kind] > max_edges
            if place > start and is_full:
                yield self.batch(order[start:place])
                start, edges = place, 0
            edges += sizes[kind]
        if start < len(order):
            yield self.batch(order[start:])


def load_networks(
    zoo: Zoo,
    label: str,
    graphs: dict[str, ParamGraph],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedNetworks:
    """Read the weights and labels of a zoo (or a split of it) into memory.

    Args:
        zoo: What to read.
        label: Column of the target.
        graphs: The graph of each architecture (``capture_zoo``).
        device: Where to keep the weights.
        dtype: Of the weights.

    Raises:
        ZooError: Unknown column, an architecture without a graph, or weights that are not finite.
    """
    target = torch.as_tensor(zoo.column(label))
    if target.is_floating_point():
        target = target.to(dtype)
    architecture = torch.zeros(len(zoo), dtype=torch.long)
    row = torch.zeros(len(zoo), dtype=torch.long)
    used, values = [], []
    for number, (name, (places, tensors)) in enumerate(zoo.stacked().items()):
        if name not in graphs:
            raise ZooError(f"architecture {name!r} of the zoo was not captured.")
        for parameter, tensor in tensors.items():
            if tensor.is_floating_point() and not _is_finite(tensor):
                bad = (~tensor.flatten(1).isfinite()).any(1).nonzero()[:, 0]
                first = int(places[bad[0]])  # within this split, so name its file
                raise ZooError(
                    f"{len(bad)} networks of architecture {name!r} have weights that are not "
                    f"finite in {parameter!r}, the first at row {zoo.column('row')[first]} of "
                    f"{zoo.column('shard')[first]}.safetensors in {zoo.path}. Leave "
                    "them out with zoo.select(...), or build the zoo again."
                )
        architecture[places] = number
        row[places] = torch.arange(len(places))
        used.append(graphs[name])
        values.append(graphs[name].features(tensors).to(device).to(dtype))
    return LoadedNetworks(
        tuple(used),
        tuple(values),
        architecture.to(device),
        row.to(device),
        target.to(device),
    )


def _is_finite(tensor: Tensor) -> bool:
    """By the extremes, which are NaN where an entry is: ten times faster than asking each entry."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def as_tensor(numbers: Sequence[int]) -> Tensor:
    """Numbers of a mini-batch as a tensor (collate function of the loader)."""
    return torch.as_tensor(numbers)
