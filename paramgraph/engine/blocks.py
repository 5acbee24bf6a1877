"""What message passing over dense blocks is made of: ends of edges, sums over rows, products."""

from __future__ import annotations

import torch
from torch import Tensor

from paramgraph.batch import Bucket, Rows

__all__ = ["add_rows", "push", "receivers_of", "senders_of"]


def senders_of(level: Tensor, bucket: Bucket) -> Tensor:
    """Sender features of a bucket, ready to broadcast: ``[m * num_blocks, 1, senders, dim]``."""
    blocks, _, senders = bucket.block_shape
    return bucket.senders.take(level).reshape(blocks, 1, senders, -1)


def receivers_of(level: Tensor, bucket: Bucket) -> Tensor:
    """Receiver features of a bucket: ``[m * num_blocks, receivers, 1, dim]``."""
    blocks, receivers, _ = bucket.block_shape
    return bucket.receivers.take(level).reshape(blocks, receivers, 1, -1)


def add_rows(level: Tensor | None, rows: Rows, values: Tensor, num_rows: int) -> Tensor:
    """Add ``values [length, dim]`` to some rows of a level (``None`` is a level of zeros)."""
    if level is None:
        if rows.index is None and rows.length == num_rows:
            return values
        level = values.new_zeros(num_rows, values.shape[1])
    elif rows.index is None and rows.length == num_rows:
        return level + values
    return level.index_add(0, rows.numbers(values.device), values.to(level.dtype))


def push(bucket: Bucket, weights: Tensor, features: Tensor, *, backward: bool = False) -> Tensor:
    """Multiply features by the networks' own weights: ``f_r = sum_s W_rs h_s``.

    The features are cut into as many equal parts as there are operators, and operator c acts on
    part c (a kernel has several, one per position function).

    Args:
        bucket: For the shapes.
        weights: ``[m, num_blocks, receivers, senders, operators]``.
        features: Rows of the senders ``[m * num_blocks * senders, dim]``, or of the receivers when
            ``backward``.
        backward: Multiply by the transpose.

    Returns:
        ``[m * num_blocks * receivers, dim]``, or with the number of senders when ``backward``.
    """
    blocks, receivers, senders = bucket.block_shape
    operators = weights.shape[-1]
    dim = features.shape[-1]
    if receivers == senders == 1:
        cut = features.reshape(-1, operators, dim // operators)
        return (cut * weights.reshape(-1, operators, 1)).reshape(-1, dim)
    source, target = (receivers, senders) if backward else (senders, receivers)
    if operators == 1:
        matrix = weights.reshape(blocks, receivers, senders)
        matrix = matrix.transpose(1, 2) if backward else matrix
        return torch.bmm(matrix, features.reshape(blocks, source, dim)).reshape(-1, dim)
    matrix = weights.reshape(blocks, receivers, senders, operators).permute(0, 3, 1, 2)
    matrix = matrix.transpose(2, 3) if backward else matrix
    cut = features.reshape(blocks, source, operators, -1).transpose(1, 2)
    return torch.matmul(matrix, cut).transpose(1, 2).reshape(blocks * target, dim)
