"""Bring weights to unit scale by what they do, so that unseen architectures are covered.

A weight is multiplied by the root of its fan-in and divided by a root mean square that is learned
from the training split once per role (kind of edge; at the inputs, between hidden neurons, at the
outputs), never per neuron and never per batch. Nothing is shifted: a shift would break sign types.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from paramgraph.batch import ROLES, Bucket, GraphBatch, fan_in
from paramgraph.structure import EdgeKind
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["Standardizer", "Sums"]


class Sums:
    """Sums of squares over networks, and how many numbers they are of.

    Example:
        >>> Sums().squares.shape
        torch.Size([24])
    """

    def __init__(self) -> None:
        self.squares = torch.zeros(len(ROLES), dtype=torch.float64)
        self.counts = torch.zeros(len(ROLES), dtype=torch.float64)
        self.neuron_squares = torch.zeros(NUM_NEURON_CHANNELS, dtype=torch.float64)
        self.neuron_counts = torch.zeros(NUM_NEURON_CHANNELS, dtype=torch.float64)
        self.waves = torch.zeros(2, dtype=torch.float64)

    def add_neurons(self, batch: GraphBatch) -> None:
        """Biases, running statistics, and waves of biases."""
        is_wave = batch.phase != 0
        angle = (batch.phase.abs() * batch.neuron_values[:, 0])[is_wave].double()
        self.waves += torch.stack([angle.sin().square().sum(), angle.new_tensor(len(angle))]).cpu()
        has = batch.neuron_has.double()
        self.neuron_squares += (batch.neuron_values.double().square() * has).sum(0).cpu()
        self.neuron_counts += has.sum(0).cpu()

    def add_edges(self, bucket: Bucket, square: Tensor) -> None:
        """The weights of a bucket, whose squares sum to ``square``; constants do not count."""
        if bucket.kind.has_parameters:
            role = ROLES.index(bucket.role)
            self.squares[role] += fan_in(bucket) * square.cpu()
            self.counts[role] += bucket.values.numel()


class Standardizer(nn.Module):
    """Unit-scale weights: ``w * sqrt(fan_in) / rms(role)``; biases and statistics likewise.

    Example:
        >>> Standardizer().edge_scale.shape
        torch.Size([24])
    """

    edge_scale: Tensor
    neuron_scale: Tensor
    wave_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edge_scale", torch.ones(len(ROLES)))
        self.register_buffer("neuron_scale", torch.ones(NUM_NEURON_CHANNELS))
        # Of ``sin(omega b)``, for biases whose phase is all that counts.
        self.register_buffer("wave_scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the root mean squares on training networks; roles not seen keep scale 1."""
        sums = Sums()
        for batch in batches:
            sums.add_neurons(batch)
            for bucket in batch.buckets:
                if bucket.kind.has_parameters:
                    sums.add_edges(bucket, bucket.values.double().square().sum())
        self.set_from(sums)

    @torch.no_grad()
    def set_from(self, sums: Sums) -> None:
        """Take the root mean squares of what was summed; roles not seen keep scale 1."""
        self.edge_scale.copy_(_root_mean(sums.squares, sums.counts))
        self.wave_scale.copy_(_root_mean(sums.waves[0], sums.waves[1]))
        self.neuron_scale.copy_(_root_mean(sums.neuron_squares, sums.neuron_counts))

    def edges(self, bucket: Bucket) -> Tensor:
        """Unit-scale values of a bucket; a skip keeps its constant, other constants are a mean."""
        if bucket.kind is EdgeKind.SKIP:
            return bucket.values
        if not bucket.kind.has_parameters:
            return bucket.values / bucket.values.shape[3]
        return bucket.values / self.edge_unit(bucket)

    def factors(self, buckets: Sequence[Bucket]) -> list[float]:
        """What the values of each bucket are multiplied by to be as ``edges`` says."""
        sizes = self.edge_scale.tolist()
        found = []
        for bucket in buckets:
            if bucket.kind is EdgeKind.SKIP:
                found.append(1.0)
            elif not bucket.kind.has_parameters:
                found.append(1 / bucket.values.shape[3])
            else:
                found.append(math.sqrt(fan_in(bucket)) / sizes[ROLES.index(bucket.role)])
        return found

    def edge_unit(self, bucket: Bucket) -> Tensor:
        """Size of a typical weight of a bucket: what unit-scale values are multiples of."""
        return self.edge_scale[ROLES.index(bucket.role)] / math.sqrt(fan_in(bucket))

    def neurons(self, batch: GraphBatch) -> Tensor:
        """Unit-scale bias, running mean and variance ``[N, 3]``."""
        return batch.neuron_values / self.neuron_scale.to(batch.dtype)


def _root_mean(squares: Tensor, counts: Tensor) -> Tensor:
    mean = (squares / counts.clamp(min=1)).sqrt()
    return torch.where((counts > 0) & (mean > 0), mean, torch.ones_like(mean))
