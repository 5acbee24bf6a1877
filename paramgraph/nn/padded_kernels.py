"""Kernels of one largest size, as the paper has them: smaller ones lie in the middle of zeros."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from paramgraph.errors import BatchError

__all__ = ["PaddedKernelBasis", "kernel_slots"]

Positions = tuple[tuple[float, float], ...]


@lru_cache(maxsize=1024)
def kernel_slots(positions: Positions, size: tuple[int, int]) -> Tensor:
    """Where each element of a kernel lies in the flattened largest kernel ``[num_positions]``.

    Of the rows (and columns) that are missing, half, rounded down, come before the kernel.

    Args:
        positions: Coordinates of the elements.
        size: Rows and columns of the largest kernel.

    Raises:
        BatchError: The kernel is larger.

    Example:
        >>> kernel_slots(((0.0, -0.5), (0.0, 0.5)), (3, 3)).tolist()  # one row, two columns
        [3, 4]
    """
    numbers, found = [], []
    for axis in (0, 1):
        lines = sorted({position[axis] for position in positions})
        before = (size[axis] - len(lines)) // 2
        numbers.append([before + lines.index(position[axis]) for position in positions])
        found.append(len(lines))
    if found[0] > size[0] or found[1] > size[1]:
        raise BatchError(
            f"a kernel of {found[0]} x {found[1]} does not fit max_kernel={size}: raise it, or use "
            "max_kernel=None, which reads kernels of any size."
        )
    return torch.tensor([row * size[1] + column for row, column in zip(*numbers, strict=True)])


class PaddedKernelBasis(nn.Module):
    """One fixed direction per slot of the largest kernel.

    Zeros add nothing to a projection, so kernels need not be padded: the rows of the slots that a
    kernel has are enough. Stands in for ``FixedPositionBasis``.

    Args:
        directions: ``[slots, dim]``; slots are the rows and columns of ``size``, flattened.
        size: Rows and columns of the largest kernel.

    Example:
        >>> basis = PaddedKernelBasis(torch.eye(9), (3, 3))
        >>> basis(((0.0, 0.0),), torch.zeros(1)).argmax().item()
        4

    References:
        Kofinas et al. 2024, section 2.3 (padding kernels to a maximum size).
    """

    directions: Tensor

    def __init__(self, directions: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("directions", directions)

    def forward(self, positions: Positions, like: Tensor) -> Tensor:
        """Rows ``[num_positions, dim]``.

        Raises:
            BatchError: The kernel is larger than ``size``.
        """
        slots = kernel_slots(positions, self.size).to(like.device)
        return self.directions.to(like.dtype)[slots]
