"""Weights as operators: what a sweep needs of the weights of a batch, wherever they are kept.

Weights are not copied to unit scale: the scale of a role is one number, which the messages are
multiplied by. Kernels become one operator per position function for the time of one product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.engine import push
from paramgraph.nn.magnitudes import Squares, log_magnitudes_of, squares_of
from paramgraph.nn.standardize import Standardizer

__all__ = ["HeldWeights", "Weights", "fan", "kernel_push"]


class Weights(Protocol):
    """The weights of a batch at unit scale, in memory or in files."""

    def push(
        self, number: int, signal: Tensor, psi: Tensor | None, *, backward: bool = False
    ) -> Tensor:
        """``(1 / sqrt(fan)) sum_s W_rs h_s`` of a bucket; see ``engine.push`` for the shapes.

        Args:
            number: Of the bucket.
            signal: Rows of the senders, or of the receivers when ``backward``.
            psi: Position functions ``[num_positions, operators]``; ``None`` with one position.
            backward: Multiply by the transpose.
        """
        ...

    def push_squares(self, number: int, signal: Tensor, *, backward: bool = False) -> Tensor:
        """``(1 / n) sum_s mean_p(W_rsp^2) h_s`` over the n rows that are summed."""
        ...

    def magnitudes(self) -> Tensor:
        """``log_magnitudes`` ``[N, 4]``."""
        ...


def fan(bucket: Bucket, *, backward: bool) -> int:
    """Number of weights that a receiver sums over, or a sender when ``backward``."""
    return bucket.values.shape[2 if backward else 3] * bucket.values.shape[4]


class HeldWeights:
    """Weights in memory.

    Args:
        batch: Whose weights they are.
        standardizer: Brings them to unit scale.
    """

    def __init__(self, batch: GraphBatch, standardizer: Standardizer) -> None:
        self._batch = batch
        self._scales = standardizer.factors(batch.buckets)

    def push(
        self, number: int, signal: Tensor, psi: Tensor | None, *, backward: bool = False
    ) -> Tensor:
        """See ``Weights``."""
        bucket = self._batch.buckets[number]
        if psi is None:
            message = push(bucket, bucket.values, signal, backward=backward)
        else:
            message = kernel_push(bucket, bucket.values, psi, signal, backward=backward)
        scale = self._scales[number] / math.sqrt(fan(bucket, backward=backward))
        return message if scale == 1 else message * scale

    def push_squares(self, number: int, signal: Tensor, *, backward: bool = False) -> Tensor:
        """See ``Weights``."""
        bucket = self._batch.buckets[number]
        square = bucket.values.square().mean(-1, keepdim=True)
        message = push(bucket, square, signal, backward=backward)
        return message * (self._scales[number] ** 2 / bucket.values.shape[2 if backward else 3])

    def magnitudes(self) -> Tensor:
        """See ``Weights``."""
        found: list[Squares] = [
            squares_of(bucket.values.reshape(*bucket.block_shape, -1)).scaled(scale**2)
            for bucket, scale in zip(self._batch.buckets, self._scales, strict=True)
        ]
        return log_magnitudes_of(self._batch, found)


def kernel_push(
    bucket: Bucket, values: Tensor, psi: Tensor, signal: Tensor, *, backward: bool = False
) -> Tensor:
    """``push`` with the operators ``sum_p psi_c(p) W_rsp``, which are not kept for the derivative.

    Args:
        bucket: For the shapes.
        values: ``[m, num_blocks, receivers, senders, num_positions]``.
        psi: ``[num_positions, operators]``.
        signal: As for ``push``.
        backward: As for ``push``.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(signal.device.type):
        return push(bucket, values @ psi, signal, backward=backward)
    result: Tensor = _KernelPush.apply(values, psi, signal, bucket.block_shape, backward)
    return result


def _operators(values: Tensor, psi: Tensor, shape: Sequence[int]) -> Tensor:
    """``[operators, blocks, receivers, senders]``."""
    return (psi.t() @ values.reshape(-1, psi.shape[0]).t()).reshape(-1, *shape)


def _cut(signal: Tensor, blocks: int, operators: int) -> Tensor:
    """Rows ``[blocks * n, dim]`` to ``[operators, blocks, n, dim / operators]``."""
    num, dim = signal.shape
    shape = blocks, num // blocks, operators, dim // operators
    return signal.reshape(shape).permute(2, 0, 1, 3)


def _joined(parts: Tensor) -> Tensor:
    """The inverse of ``_cut``."""
    operators, blocks, num, width = parts.shape
    return parts.permute(1, 2, 0, 3).reshape(blocks * num, operators * width)


class _KernelPush(torch.autograd.Function):
    """See ``kernel_push``."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        psi: Tensor,
        signal: Tensor,
        shape: tuple[int, int, int],
        backward: bool,
    ) -> Tensor:
        ctx.save_for_backward(values, psi, signal)
        ctx.shape, ctx.is_backward = shape, backward
        matrix = _operators(values, psi, shape)
        cut = _cut(signal, shape[0], psi.shape[1])
        return _joined((matrix.transpose(2, 3) if backward else matrix) @ cut)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, psi, signal = ctx.saved_tensors
        shape, num = ctx.shape, psi.shape[1]
        matrix = _operators(values, psi, shape)
        grad, cut = _cut(grads[0], shape[0], num), _cut(signal, shape[0], num)
        d_values = d_psi = d_signal = None
        if ctx.needs_input_grad[2]:
            d_signal = _joined((matrix if ctx.is_backward else matrix.transpose(2, 3)) @ grad)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            receivers, senders = (cut, grad) if ctx.is_backward else (grad, cut)
            d_matrix = (receivers @ senders.transpose(2, 3)).reshape(num, -1)
            if ctx.needs_input_grad[1]:
                d_psi = (d_matrix @ values.reshape(-1, psi.shape[0])).t()
            if ctx.needs_input_grad[0]:
                d_values = (d_matrix.t() @ psi.t()).reshape(values.shape)
        return d_values, d_psi, d_signal, None, None
