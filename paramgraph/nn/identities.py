"""Vectors for the numbered inputs and outputs of networks, however many there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch

__all__ = ["End", "ends_of", "identity_vectors"]


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


@dataclass(frozen=True)
class End:
    """Inputs or outputs of one level.

    Attributes:
        rows: Their rows in the level; ``None`` if it has no others.
        num_rows: Of the level.
        number: Which input or output of its network each is.
    """

    rows: Tensor | None
    num_rows: int
    number: Tensor

    def placed(self, vectors: Tensor) -> Tensor:
        """The level with a vector per end, zeros elsewhere."""
        if self.rows is None:
            return vectors
        return vectors.new_zeros(self.num_rows, vectors.shape[1]).index_copy(0, self.rows, vectors)


def ends_of(batch: GraphBatch, kind: int) -> list[End | None]:
    """Inputs (0) or outputs (2) of each level; ``None`` without any."""
    found: list[End | None] = []
    for kinds, identity in zip(batch.split(batch.kind), batch.split(batch.identity), strict=True):
        rows = (kinds == kind).nonzero()[:, 0]
        is_whole = len(rows) == len(kinds)
        number = identity[rows].clamp(min=0)
        end = End(None if is_whole else rows, len(kinds), number)
        found.append(end if len(rows) else None)
    return found
