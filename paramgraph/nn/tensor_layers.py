"""Equivariant layers on the weight and bias tensors of a chain, all networks of a batch at once.

A chain of L layers has axes 0 (inputs), 1 to L - 1 (hidden neurons) and L (outputs). The weight W_i
has the axes (i + 1, i), the bias b_i the axis i + 1. Free axes are permuted, each by itself; fixed
axes (inputs and outputs, if they are told apart) are folded into the channels. A tensor is then
``[B, *free axes, channels]``, and a layer maps a list of such tensors to another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paramgraph.errors import BatchError

__all__ = [
    "Axes",
    "EquivariantLinear",
    "chain_axes",
    "copies_in_channels",
    "fold",
    "free_axes",
    "unfold",
]

Axes = tuple[int, ...]
"""The axes of a tensor, by number."""


def chain_axes(num_layers: int) -> tuple[Axes, ...]:
    """Axes of the tensors of a chain: all weights, then all biases.

    Example:
        >>> chain_axes(2)
        ((1, 0), (2, 1), (1,), (2,))
    """
    weights = [(layer + 1, layer) for layer in range(num_layers)]
    return (*weights, *((layer + 1,) for layer in range(num_layers)))


def fold(tensor: Tensor, axes: Axes, fixed: Mapping[int, int]) -> Tensor:
    """Move the fixed axes into the channels: ``[B, *axes, c]`` to ``[B, *free axes, sizes * c]``.

    Args:
        tensor: Of a batch of networks.
        axes: Its axes.
        fixed: Size of each fixed axis.

    Raises:
        BatchError: A fixed axis has another size.

    Example:
        >>> fold(torch.zeros(7, 4, 3, 2), (1, 0), {0: 3}).shape
        torch.Size([7, 4, 6])
    """
    places = [place for place, axis in enumerate(axes) if axis in fixed]
    for place in places:
        if tensor.shape[1 + place] != fixed[axes[place]]:
            raise BatchError(
                f"axis {axes[place]} of a chain has size {tensor.shape[1 + place]}, but the layer "
                f"was made for {fixed[axes[place]]}: fixed axes cannot change their size."
            )
    free = [place for place in range(len(axes)) if place not in places]
    order = [0, *(1 + place for place in (*free, *places)), tensor.ndim - 1]
    return tensor.permute(order).flatten(1 + len(free))


def unfold(tensor: Tensor, axes: Axes, fixed: Mapping[int, int]) -> Tensor:
    """The inverse of ``fold``.

    Example:
        >>> unfold(torch.zeros(7, 4, 6), (1, 0), {0: 3}).shape
        torch.Size([7, 4, 3, 2])
    """
    places = [place for place, axis in enumerate(axes) if axis in fixed]
    free = [place for place in range(len(axes)) if place not in places]
    tensor = tensor.unflatten(-1, (*(fixed[axes[place]] for place in places), -1))
    now = [*free, *places]  # which axis stands where
    order = [0, *(1 + now.index(place) for place in range(len(axes))), tensor.ndim - 1]
    return tensor.permute(order)


class EquivariantLinear(nn.Module):
    """All linear maps between lists of tensors that commute with permutations of the free axes.

    Two tensors T and U with the set A of axes in common are joined by one map for each subset S of
    A: the mean of T over its axes outside S, repeated over the axes of U outside S. These maps are
    a basis (if no axis has length 1). All tensors with the axes S are concatenated and mapped at
    once, so a layer is one matrix product per set S: ``U = sum_S repeat(M_S [mean(T) for T])``.

    Args:
        axes: Free axes of each tensor.
        in_dims: Channels of each tensor.
        out_dims: Channels of each result.
        reduction: ``"mean"``; or ``"max"`` over the axes outside S, which is not linear.
        gain: Standard deviation of results at the start, for inputs of mean square 1.

    Law: the maps span the commutant of the permutations (``reduction="mean"``).

    Raises:
        ValueError: Unknown reduction, or lists of other lengths.

    Example:
        >>> layer = EquivariantLinear([(1, 0), (1,)], [3, 3], [5, 5])
        >>> [t.shape for t in layer([torch.zeros(7, 4, 2, 3), torch.zeros(7, 4, 3)])]
        [torch.Size([7, 4, 2, 5]), torch.Size([7, 4, 5])]

    References:
        Navon et al. 2023, section 4 (https://arxiv.org/abs/2301.12780); Zhou et al. 2023, section 3
        and appendix (https://arxiv.org/abs/2302.14040).
    """

    def __init__(
        self,
        axes: Sequence[Axes],
        in_dims: Sequence[int],
        out_dims: Sequence[int],
        *,
        reduction: str = "mean",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "max"):
            raise ValueError(f"reduction must be 'mean' or 'max', got {reduction!r}.")
        if not len(axes) == len(in_dims) == len(out_dims):
            raise ValueError(
                f"expected channels for {len(axes)} tensors, got {len(in_dims)} going in and "
                f"{len(out_dims)} coming out."
            )
        self.axes, self.reduction = tuple(axes), reduction
        self.in_dims, self.out_dims = tuple(in_dims), tuple(out_dims)
        self.subsets = tuple(dict.fromkeys(s for row in self.axes for s in _subsets(row)))
        self.members = tuple(
            tuple(number for number, row in enumerate(self.axes) if set(subset) <= set(row))
            for subset in self.subsets
        )
        self.maps = nn.ModuleList(
            nn.Linear(
                sum(in_dims[number] for number in rows),
                sum(out_dims[number] for number in rows),
                bias=not subset,  # a constant tensor; other constants are no invariants
            )
            for subset, rows in zip(self.subsets, self.members, strict=True)
        )
        self._start(gain)

    @torch.no_grad()
    def _start(self, gain: float) -> None:
        """Weights of variance gain ** 2 / fan-in, where the fan-in counts all maps to a tensor."""
        fan_in = [0] * len(self.axes)
        for linear, rows in zip(self.maps, self.members, strict=True):
            assert isinstance(linear, nn.Linear)
            for number in rows:
                fan_in[number] += linear.in_features
        for linear, rows in zip(self.maps, self.members, strict=True):
            assert isinstance(linear, nn.Linear)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            parts = linear.weight.split([self.out_dims[number] for number in rows])
            for part, number in zip(parts, rows, strict=True):
                nn.init.normal_(part, std=gain / math.sqrt(fan_in[number]))

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Map ``[B, *free axes, in_dim]`` of each tensor to ``[B, *free axes, out_dim]``."""
        results: list[Tensor | None] = [None] * len(tensors)
        for subset, rows, linear in zip(self.subsets, self.members, self.maps, strict=True):
            seen = [self._pool(tensors[number], self.axes[number], subset) for number in rows]
            mapped = linear(torch.cat(seen, dim=-1))
            parts = mapped.split([self.out_dims[number] for number in rows], dim=-1)
            for number, part in zip(rows, parts, strict=True):
                for place, axis in enumerate(self.axes[number]):
                    if axis not in subset:
                        part = part.unsqueeze(1 + place)
                before = results[number]
                results[number] = part if before is None else before + part
        # Each tensor has the subset of all its axes, so that each result has its full shape.
        return [result for result in results if result is not None]

    def _pool(self, tensor: Tensor, axes: Axes, subset: Axes) -> Tensor:
        gone = [1 + place for place, axis in enumerate(axes) if axis not in subset]
        if not gone:
            return tensor
        return tensor.amax(gone) if self.reduction == "max" else tensor.mean(gone)


def _subsets(axes: Axes) -> list[Axes]:
    """All subsets, each in the order of the axes."""
    found: list[Axes] = [()]
    for axis in axes:
        found += [(*subset, axis) for subset in found]
    return found


def free_axes(axes: Sequence[Axes], fixed: Mapping[int, int]) -> list[Axes]:
    """Axes of each tensor that are permuted.

    Example:
        >>> free_axes(chain_axes(2), {0: 3, 2: 1})
        [(1,), (1,), (1,), ()]
    """
    return [tuple(axis for axis in row if axis not in fixed) for row in axes]


def copies_in_channels(axes: Sequence[Axes], fixed: Mapping[int, int]) -> list[int]:
    """How many entries of each tensor stand in the channels.

    Example:
        >>> copies_in_channels(chain_axes(2), {0: 3, 2: 1})
        [3, 1, 1, 1]
    """
    return [math.prod(fixed[axis] for axis in row if axis in fixed) for row in axes]
