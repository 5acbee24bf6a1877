"""Vectors for the numbered inputs and outputs of networks, however many there are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["identity_vectors"]


def identity_vectors(table: Tensor, number: Tensor) -> Tensor:
    """A learned vector per number; beyond the table it begins anew, told apart by fixed waves.

    Args:
        table: Learned vectors ``[size, dim]``.
        number: Which input or output ``[n]``, from 0.

    Returns:
        ``table[number % size] + sin(frequency * (number // size))``, ``[n, dim]``; within the table
        the second term is 0.

    Example:
        >>> table = torch.zeros(256, 8)
        >>> rows = identity_vectors(table, torch.tensor([3, 259, 515]))
        >>> rows[0].abs().sum().item(), bool((rows[1] != rows[2]).all())
        (0.0, True)
    """
    size, dim = table.shape
    vectors = table[number % size]
    turn = (number // size).to(vectors.dtype)[:, None]
    # Fast waves tell neighbours apart, slow ones 100 from 1000.
    frequency = torch.logspace(0.25, -3, dim, device=table.device, dtype=table.dtype)
    return vectors + (turn * frequency).sin()
