"""What DWS, NFN and NFT are stacked from: stacks of equivariant layers, waves, invariant head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paramgraph.nn.tensor_layers import (
    Axes,
    EquivariantLinear,
    copies_in_channels,
    fold,
    free_axes,
    unfold,
)

__all__ = [
    "EntryLinear",
    "EquivariantStack",
    "InvariantHead",
    "PerTensorLinear",
    "ValueWaves",
    "end_waves",
    "with_end_waves",
]


class EquivariantStack(nn.Module):
    """Equivariant linear layers with ReLU (and dropout) behind each.

    Args:
        axes: Axes of each tensor, as from ``chain_axes``.
        fixed: Size of each axis that is not permuted: it goes into the channels.
        in_channels: Numbers per entry of each tensor.
        hidden_dim: Numbers per entry of each tensor between and behind the layers.
        num_layers: Number of layers.
        reduction: As for ``EquivariantLinear``.
        dropout: Behind each ReLU.

    Raises:
        ValueError: No layers, or an unknown reduction.

    Example:
        >>> stack = EquivariantStack([(1, 0), (1,)], {}, [1, 1], 8, 2)
        >>> [t.shape for t in stack([torch.zeros(7, 3, 2, 1), torch.zeros(7, 3, 1)])]
        [torch.Size([7, 3, 2, 8]), torch.Size([7, 3, 8])]
    """

    def __init__(
        self,
        axes: Sequence[Axes],
        fixed: Mapping[int, int],
        in_channels: Sequence[int],
        hidden_dim: int,
        num_layers: int,
        *,
        reduction: str = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}.")
        self.axes, self.fixed = tuple(axes), dict(fixed)
        free, copies = free_axes(axes, fixed), copies_in_channels(axes, fixed)
        dims = [n * c for n, c in zip(copies, in_channels, strict=True)]
        self.out_dims = [n * hidden_dim for n in copies]
        self.layers = nn.ModuleList(
            EquivariantLinear(
                free,
                self.out_dims if number else dims,
                self.out_dims,
                reduction=reduction,
                gain=math.sqrt(2),  # ReLU drops half of the mean square
            )
            for number in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Map ``[B, *axes, in_channels]`` to ``[B, *free axes, sizes * hidden_dim]``."""
        rows = zip(tensors, self.axes, strict=True)
        folded = [fold(tensor, axes, self.fixed) for tensor, axes in rows]
        for layer in self.layers:
            folded = [self.dropout(tensor.relu()) for tensor in layer(folded)]
        return folded


class EntryLinear(nn.Module):
    """An equivariant linear layer whose results are tensors with all axes again.

    Args:
        axes: Axes of each tensor.
        fixed: Size of each axis that is not permuted.
        in_channels: Numbers per entry.
        out_channels: Numbers per entry of each result.

    Example:
        >>> layer = EntryLinear([(1, 0), (1,)], {0: 2, 1: 3}, 8, [1, 1])
        >>> [t.shape for t in layer([torch.zeros(7, 6 * 8), torch.zeros(7, 3 * 8)])]
        [torch.Size([7, 3, 2, 1]), torch.Size([7, 3, 1])]
    """

    def __init__(
        self,
        axes: Sequence[Axes],
        fixed: Mapping[int, int],
        in_channels: int,
        out_channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.axes, self.fixed = tuple(axes), dict(fixed)
        copies = copies_in_channels(axes, fixed)
        self.map = EquivariantLinear(
            free_axes(axes, fixed),
            [n * in_channels for n in copies],
            [n * c for n, c in zip(copies, out_channels, strict=True)],
        )

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Map ``[B, *free axes, sizes * in_channels]`` to ``[B, *axes, out_channels]``."""
        rows = zip(self.map(tensors), self.axes, strict=True)
        return [unfold(tensor, axes, self.fixed) for tensor, axes in rows]


class PerTensorLinear(nn.Module):
    """One linear map of the channels for each tensor.

    Args:
        in_dims: Channels of each tensor.
        out_dims: Channels of each result.

    Example:
        >>> [t.shape for t in PerTensorLinear([3, 1], [8, 8])([torch.ones(2, 3), torch.ones(5, 1)])]
        [torch.Size([2, 8]), torch.Size([5, 8])]
    """

    def __init__(self, in_dims: Sequence[int], out_dims: Sequence[int]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(n, m) for n, m in zip(in_dims, out_dims, strict=True))
        for linear in self.maps:
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.normal_(linear.bias, std=0.3)  # also tells the tensors apart

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Map the last axis of each tensor."""
        return [linear(tensor) for linear, tensor in zip(self.maps, tensors, strict=True)]


class InvariantHead(nn.Module):
    """Means of all tensors over their free axes, standardised by the training split, to an MLP.

    What differs between networks is small beside what they share, so the features are shifted and
    divided by constants that are measured once; no prediction depends on a batch.

    Args:
        in_dim: Channels of all tensors together.
        hidden_dim: Width of the MLP.
        out_dim: Number of outputs.
        dropout: In the MLP.

    Example:
        >>> InvariantHead(5, 8, 2)([torch.zeros(7, 4, 3), torch.zeros(7, 2)]).shape
        torch.Size([7, 2])
    """

    center: Tensor
    spread: Tensor

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
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
    def fit(self, features: Tensor) -> None:
        """Measure center and spread of features ``[num_networks, in_dim]``."""
        spread = features.std(0, correction=0)
        # A channel that hardly varies is not blown up: any step of the layers would move it far.
        spread = spread.clamp(min=0.3 * float(spread.square().mean().sqrt()))
        self.center.copy_(features.mean(0))
        self.spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    @staticmethod
    def pool(tensors: Sequence[Tensor]) -> Tensor:
        """Features ``[B, in_dim]`` of tensors ``[B, *free axes, channels]``."""
        flat = [t.mean(tuple(range(1, t.ndim - 1))) if t.ndim > 2 else t for t in tensors]
        return torch.cat(flat, dim=-1)

    def read(self, features: Tensor) -> Tensor:
        """Outputs ``[B, out_dim]`` for features ``[B, in_dim]``."""
        result: Tensor = self.layers((features - self.center) / self.spread)
        return result

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """Outputs ``[B, out_dim]`` for tensors ``[B, *free axes, channels]``."""
        return self.read(self.pool(tensors))


def end_waves(size: int, dim: int, like: Tensor) -> Tensor:
    """Fixed waves ``[size, dim]`` that tell the inputs (or the outputs) of a network apart.

    ``sin`` and ``cos`` of the number times frequencies from 1 down to 1/1000, so that any number of
    neurons is told apart and no table runs out.

    Example:
        >>> end_waves(3, 4, torch.zeros(1)).shape
        torch.Size([3, 4])
    """
    steps = torch.arange(dim // 2, dtype=torch.float64) / max(dim // 2 - 1, 1)
    angles = torch.arange(size, dtype=torch.float64)[:, None] * 1000.0**-steps
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like)


class ValueWaves(nn.Module):
    """Fixed Gaussian frequencies of values: ``cos`` and ``sin`` of ``2 pi sigma g v``.

    Args:
        num_frequencies: Number of them; 0 keeps the values.
        sigma: Spread of the frequencies.
        seed: Of the frequencies.

    Example:
        >>> ValueWaves(4, 0.1)(torch.zeros(7, 3, 2)).shape
        torch.Size([7, 3, 16])
    """

    frequency: Tensor

    def __init__(self, num_frequencies: int, sigma: float, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        frequency = 2 * math.pi * sigma * torch.randn(num_frequencies, generator=generator)
        self.register_buffer("frequency", frequency)
        self.per_value = 2 * num_frequencies if num_frequencies else 1

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[..., k]`` to ``[..., k * per_value]``."""
        if self.per_value == 1:
            return values
        angles = values[..., None] * self.frequency
        return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(-2)


def with_end_waves(tensors: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Add channels that tell inputs and outputs apart to a chain's first and last tensors.

    Args:
        tensors: Weights ``[B, receivers, senders, c]``, then biases ``[B, receivers, c]``.
        dim: Number of waves per end.

    Returns:
        Tensors with ``dim`` more channels: numbers of the inputs at the first weight, of the
        outputs at the last weight and the last bias (a single weight gets ``2 * dim``).

    Example:
        >>> ends = with_end_waves([torch.zeros(7, 3, 2, 1), torch.zeros(7, 3, 1)], 4)
        >>> [t.shape for t in ends]
        [torch.Size([7, 3, 2, 9]), torch.Size([7, 3, 5])]
    """
    if not dim:
        return list(tensors)
    found, num = list(tensors), len(tensors) // 2
    receivers, senders = found[num - 1].shape[1], found[0].shape[2]
    inputs = end_waves(senders, dim, found[0])
    outputs = end_waves(receivers, dim, found[0])
    for place, waves in ((0, inputs), (num - 1, outputs[:, None]), (-1, outputs)):
        shape = (*found[place].shape[:-1], dim)
        found[place] = torch.cat([found[place], waves.expand(shape)], dim=-1)
    return found
