"""Weights of edges, kernels of any size or of one largest size, to features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paramgraph.batch import Bucket
from paramgraph.nn.padded_kernels import PaddedKernelBasis
from paramgraph.nn.positions import FixedPositionBasis
from paramgraph.nn.standardize import Standardizer

__all__ = ["EdgeLift"]


class EdgeLift(nn.Module):
    """Fixed projection of kernels, cos and sin, two linear maps: the same for all its edges.

    Args:
        dim: Width of the features.
        num_frequencies: Rows of the projection; 0 maps the values linearly instead.
        sigma: Standard deviation of the rows, in turns.
        is_reversed: Whether an edge i <- j carries (w, 0, w) forward and (0, w, w) backward, or
            ``w`` alone.
        max_kernel: Rows and columns of the largest kernel; ``None`` for kernels of any size.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_frequencies: int,
        sigma: float,
        is_reversed: bool,
        max_kernel: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.is_reversed = is_reversed
        num_bases = 3 if is_reversed else 1  # of the weight, the reverse weight, their sum
        spread = 2 * math.pi * sigma
        if max_kernel is None:
            rows = num_frequencies or dim
            self.bases = nn.ModuleList(
                FixedPositionBasis(rows, sigma=spread if num_frequencies else 1.0, seed=seed)
                for seed in range(num_bases)
            )
        else:
            num_slots = max_kernel[0] * max_kernel[1]
            rows = num_frequencies or num_bases * num_slots
            directions = torch.eye(num_bases * num_slots)  # the values themselves, side by side
            if num_frequencies:
                generator = torch.Generator().manual_seed(0)
                directions = spread * torch.randn(len(directions), rows, generator=generator)
            self.bases = nn.ModuleList(
                PaddedKernelBasis(part, max_kernel) for part in directions.split(num_slots)
            )
        self.lift = nn.Linear(2 * rows if num_frequencies else rows, dim)
        self.map = nn.Linear(dim, dim)

    def bases_of(self, bucket: Bucket, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the weights of a bucket are projected on ``[num_positions, rows]``, each way."""
        bases = [basis(bucket.positions, like) for basis in self.bases]
        if not self.is_reversed:
            return bases[0], None
        own, reverse, both = bases
        return own + both, reverse + both

    def joined_map(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of both linear maps in one."""
        weight = self.map.weight @ self.lift.weight
        return weight, self.map.weight @ self.lift.bias + self.map.bias

    def features(
        self, buckets: Sequence[Bucket], standardizer: Standardizer
    ) -> tuple[Tensor, Tensor | None]:
        """Features of the edges of some buckets and of the reversed edges, ``[edges, dim]``."""
        projected: tuple[list[Tensor], list[Tensor]] = ([], [])
        for bucket in buckets:
            values = standardizer.edges(bucket)
            values = values.reshape(-1, values.shape[-1])
            for pieces, basis in zip(projected, self.bases_of(bucket, values), strict=True):
                if basis is not None:
                    pieces.append(values @ basis)
        forward = self.map(self._lift(torch.cat(projected[0])))
        if not self.is_reversed:
            return forward, None
        return forward, self.map(self._lift(torch.cat(projected[1])))

    def _lift(self, projected: Tensor) -> Tensor:
        if not self.num_frequencies:
            return self.lift(projected)
        return self.lift(torch.cat([projected.cos(), projected.sin()], dim=1))
