"""Baselines that every metanetwork is compared with: weight statistics and a flat MLP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch, Part
from paramgraph.errors import BatchError
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.structure import NeuronRole

__all__ = ["FlatMLP", "StatNN", "layer_statistics"]

NUM_STATISTICS = 7


def layer_statistics(part: Part) -> Tensor:
    """Mean, variance and the 0, 25, 50, 75, 100 % quantiles of each weight and bias.

    Args:
        part: Networks of one architecture.

    Returns:
        ``[num_networks, num_tensors * 7]``, in dataflow order: for every layer weight, then bias;
        at last values of neurons that no weight leads to (gains that are the same for all inputs).

    References:
        Unterthiner et al. 2020 (https://arxiv.org/abs/2002.11448), section 4.
    """
    graph, values = part.graph, part.values
    nothing = values.neurons[0].new_zeros(values.num_networks, NUM_STATISTICS)
    biases = [
        _statistics(neurons[..., NeuronRole.BIAS.channel])
        if any(feature.role is NeuronRole.BIAS for feature in group.features)
        else None
        for group, neurons in zip(graph.neuron_groups, values.neurons, strict=True)
    ]
    columns, summarised = [], set()
    for number, block in enumerate(graph.blocks):
        if block.view is None:
            continue
        bias = biases[block.receiver]
        columns += [
            _statistics(values.blocks[number].flatten(1)),
            nothing if bias is None else bias,
        ]
        summarised.add(block.receiver)
    for group, bias in enumerate(biases):
        if bias is not None and group not in summarised:
            columns += [nothing, bias]
    return torch.cat(columns, dim=1)


def _statistics(flat: Tensor) -> Tensor:
    at = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=flat.dtype, device=flat.device)
    quantiles = flat.quantile(at, dim=1).T
    variance = flat.var(1, correction=0)
    return torch.cat([flat.mean(1)[:, None], variance[:, None], quantiles], dim=1)


class StatNN(Metanetwork):
    """An MLP on statistics of each layer's weights and biases (Unterthiner et al. 2020).

    Networks with fewer layers are padded with zeros, as the papers do for zoos of mixed depth.

    Args:
        out_dim: Number of outputs per network.
        hidden_dim: Width of the MLP.
        max_layers: Largest number of parameter blocks (norm gains count).
        dropout: In the MLP.

    Example:
        >>> StatNN(out_dim=1).max_layers
        16

    References:
        https://arxiv.org/abs/2002.11448
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})
    center: Tensor
    spread: Tensor

    def __init__(
        self, out_dim: int, *, hidden_dim: int = 256, max_layers: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__(out_dim)
        self.max_layers = max_layers
        in_dim = max_layers * 2 * NUM_STATISTICS
        self.register_buffer("center", torch.zeros(in_dim))
        self.register_buffer("spread", torch.ones(in_dim))
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, out_dim),
        )

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure mean and standard deviation of every statistic on the training split."""
        features = torch.cat([self._features(batch) for batch in batches])
        self.center.copy_(features.mean(0))
        spread = features.std(0, correction=0)
        self.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predict ``[num_networks, out_dim]``.

        Raises:
            BatchError: A network has more than ``max_layers`` parameter blocks.
        """
        features = (self._features(batch) - self.center) / self.spread
        return self.layers(features)

    def _features(self, batch: GraphBatch) -> Tensor:
        width = len(self.center)
        rows = []
        for part in batch.parts:
            have = layer_statistics(part)
            if have.shape[1] > width:
                raise BatchError(
                    f"{part.graph.name!r} has {have.shape[1] // (2 * NUM_STATISTICS)} parameter "
                    f"blocks, but StatNN was made for {self.max_layers}: raise max_layers."
                )
            rows.append(nn.functional.pad(have, (0, width - have.shape[1])))
        order = torch.cat([part.rows for part in batch.parts]).argsort()
        return torch.cat(rows)[order.to(rows[0].device)]


class FlatMLP(Metanetwork):
    """An MLP on the flattened parameters; it knows no symmetry, and reads one architecture only.

    Args:
        out_dim: Number of outputs per network.
        hidden_dim: Width of the MLP.
        dropout: In the MLP.

    Example:
        >>> FlatMLP(out_dim=10).promised_symmetries()
        frozenset()
    """

    symmetries: ClassVar[frozenset[str]] = frozenset()
    signature: Tensor

    def __init__(self, out_dim: int, *, hidden_dim: int = 256, dropout: float = 0.0) -> None:
        super().__init__(out_dim)
        # Which architecture it reads: bytes of ``ParamGraph.signature``.
        self.register_buffer("signature", torch.zeros(8, dtype=torch.uint8))
        self.hidden_dim = hidden_dim
        self.first: nn.Linear | None = None
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, out_dim),
        )

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Fix the architecture to that of the training networks (again: the weights stay)."""
        for batch in batches:
            flat = self._flat(batch)
            if self.first is None or self.first.in_features != flat.shape[1]:
                self._start(flat.shape[1])
            self.signature.copy_(_signature(batch.parts[0]))
            return

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take over stored weights, with their number of inputs."""
        if "first.weight" in tensors:
            self._start(tensors["first.weight"].shape[1])
        super().load(tensors, source)

    def _start(self, in_dim: int) -> None:
        like = self.layers[2].weight
        self.first = nn.Linear(in_dim, self.hidden_dim, device=like.device, dtype=like.dtype)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predict ``[num_networks, out_dim]``.

        Raises:
            BatchError: The number of parameters is not known yet, or is another one.
        """
        flat = self._flat(batch)
        if self.first is None:
            raise BatchError(
                "FlatMLP does not know its number of inputs yet: call fit_statistics first."
            )
        part = batch.parts[0]
        if not torch.equal(_signature(part).to(self.signature.device), self.signature):
            raise BatchError(
                f"FlatMLP was made for another architecture with {self.first.in_features} "
                f"parameters, but got {part.graph.name!r} with {flat.shape[1]}: it reads the one "
                "that it was fitted to."
            )
        return self.layers(self.first(flat))

    @staticmethod
    def _flat(batch: GraphBatch) -> Tensor:
        """All parameters of each network ``[num_networks, num_parameters]``."""
        if len(batch.parts) > 1:
            raise BatchError(
                f"FlatMLP reads one architecture, but the batch holds {len(batch.parts)}: use a "
                "metanetwork, or select one architecture of the zoo."
            )
        part = batch.parts[0]
        parameters = part.graph.write_back(part.values)
        names = [row.name for row in part.graph.parameters]
        # One part: its rows are in the order of the batch.
        return torch.cat([parameters[name].flatten(1) for name in names], dim=1)


def _signature(part: Part) -> Tensor:
    """The structure of an architecture as 8 bytes."""
    return torch.tensor(list(bytes.fromhex(part.graph.signature)), dtype=torch.uint8)
