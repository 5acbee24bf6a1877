"""Functions of kernel and image positions, so that no maximum kernel size exists anywhere."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

__all__ = ["FixedPositionBasis", "PositionFunctions"]


@lru_cache(maxsize=1024)
def _coordinates(positions: tuple[tuple[float, float], ...]) -> Tensor:
    return torch.tensor(positions, dtype=torch.float64)


def coordinates(positions: tuple[tuple[float, float], ...], like: Tensor) -> Tensor:
    """Position coordinates ``[num_positions, 2]`` on the device and in the dtype of ``like``."""
    return _coordinates(positions).to(like)


class PositionFunctions(nn.Module):
    """Learned functions psi_c of the offset (row, column): an MLP on direction and distance.

    A kernel with positions p becomes ``num_functions`` operators ``sum_p psi_c(p) W[:, :, p]``.
    A plain matrix (one position) stays one operator: psi_c = 1.

    Args:
        num_functions: Number of operators per kernel.

    Example:
        >>> PositionFunctions(4)(((0.0, 0.0),), torch.zeros(1)).shape
        torch.Size([1, 1])
    """

    def __init__(self, num_functions: int) -> None:
        super().__init__()
        self.num_functions = num_functions
        first, last = nn.Linear(4, 32), nn.Linear(32, num_functions)
        # Start with one averaging operator per function, varied by what the MLP adds.
        nn.init.ones_(last.bias)
        self.map = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, positions: tuple[tuple[float, float], ...], like: Tensor) -> Tensor:
        """Values ``[num_positions, num_functions]``, of unit scale over the positions."""
        if len(positions) == 1:
            return like.new_ones(1, 1)
        at = coordinates(positions, like)
        # Direction and distance, squashed: smooth, and bounded at any kernel size.
        radius = at.square().sum(1, keepdim=True).sqrt()
        features = torch.cat([at / (1 + radius), radius / (1 + radius), 1 / (1 + radius)], dim=1)
        return self.map(features)


class FixedPositionBasis(nn.Module):
    """Fixed random directions for weights at any position: rows of a Gaussian projection.

    The papers project a padded kernel of k x k values with one Gaussian row per slot. Here the row
    of slot p is a random smooth function of its coordinates, so slots have no number and no
    maximum; rows of different pixels are almost independent, and a plain matrix gets one Gaussian
    row.

    Args:
        dim: Length of a row.
        sigma: Standard deviation of its entries.
        num_features: Number of random waves.
        seed: Of the directions.

    Example:
        >>> FixedPositionBasis(8, sigma=3.0)(((0.0, 0.0),), torch.zeros(1)).shape
        torch.Size([1, 8])
    """

    frequency: Tensor
    phase: Tensor
    mixing: Tensor

    def __init__(
        self, dim: int, *, sigma: float = 1.0, num_features: int = 128, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        scale = sigma * math.sqrt(2 / num_features)
        frequency = 2.0 * torch.randn(2, num_features, generator=generator)
        phase = 2 * math.pi * torch.rand(num_features, generator=generator)
        mixing = scale * torch.randn(num_features, dim, generator=generator)
        self.register_buffer("frequency", frequency)
        self.register_buffer("phase", phase)
        self.register_buffer("mixing", mixing)

    def forward(self, positions: tuple[tuple[float, float], ...], like: Tensor) -> Tensor:
        """Rows ``[num_positions, dim]``."""
        at = coordinates(positions, like)
        return (at @ self.frequency + self.phase).cos() @ self.mixing
