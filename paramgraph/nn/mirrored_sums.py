"""Sums over neurons of ``silu(W [h, g] + U c + b) + silu(-W [h, g] + U c + b)``, set by set.

What a readout needs of neurons whose sign may change. Only sums over sets of neurons (those of one
kind in one network) go on, so nothing as wide as the hidden layer is kept for the derivative; some
rows are worked on at a time, in memory that stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["mirrored", "mirrored_sums"]

_NUM_ROWS = 1024


def mirrored(h: Tensor, g: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``(silu(W [h, g] + U c + b) + silu(-W [h, g] + U c + b)) / 2`` for each row.

    Args:
        h: ``[n, dim]``.
        g: ``[n, dim]``.
        c: ``[n, context_dim]``.
        weight: W and U side by side ``[out, 2 * dim + context_dim]``.
        bias: ``[out]``.

    Example:
        >>> h, g, c = torch.randn(3, 2), torch.randn(3, 2), torch.randn(3, 1)
        >>> weight, bias = torch.randn(4, 5), torch.randn(4)
        >>> torch.equal(mirrored(h, g, c, weight, bias), mirrored(-h, -g, c, weight, bias))
        True
    """
    of_signals, of_facts = weight.split([2 * h.shape[1], c.shape[1]], dim=1)
    fixed = F.linear(c, of_facts, bias)
    moved = F.linear(torch.cat([h, g], dim=1), of_signals)
    return 0.5 * (F.silu(fixed + moved) + F.silu(fixed - moved))


def mirrored_sums(
    rows: tuple[Tensor, Tensor, Tensor], index: Tensor, num: int, weight: Tensor, bias: Tensor
) -> Tensor:
    """``mirrored`` summed over the rows of each set ``[num, out]``.

    Args:
        rows: h, g, and c.
        index: Which set each row belongs to ``[n]``.
        num: Number of sets.
        weight: As for ``mirrored``.
        bias: As for ``mirrored``.
    """
    h = rows[0]
    is_traced = torch.compiler.is_compiling() or torch.is_autocast_enabled(h.device.type)
    if is_traced or torch._C._functorch.peek_interpreter_stack() is not None:
        return _by_steps(*rows, index, num, weight, bias)
    result: Tensor = _MirroredSums.apply(*rows, index, num, weight, bias)
    return result


def _by_steps(
    h: Tensor, g: Tensor, c: Tensor, index: Tensor, num: int, weight: Tensor, bias: Tensor
) -> Tensor:
    values = mirrored(h, g, c, weight, bias)
    return values.new_zeros(num, values.shape[1]).index_add(0, index, values)


class _Tiles:
    """Both arguments of silu, some rows at a time; their memory is used again."""

    def __init__(self, h: Tensor, g: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.rows = _NUM_ROWS if h.device.type == "cpu" else max(len(h), 1)
        self._all = h, g, c
        self.of_signals, self.of_facts = weight.split([2 * h.shape[1], c.shape[1]], dim=1)
        self._bias = bias
        most = min(self.rows, len(h))
        self._buffers = [h.new_empty(most, len(weight)) for _ in range(3)]
        self._signals = h.new_empty(most, 2 * h.shape[1])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """[h, g], c, and the arguments ``[rows, out]`` with plus and minus."""
        for h, g, c in zip(*(t.split(self.rows) for t in self._all), strict=True):
            signals = torch.cat([h, g], dim=1, out=self._signals[: len(h)])
            moved, plus, minus = (buffer[: len(h)] for buffer in self._buffers)
            torch.mm(signals, self.of_signals.t(), out=moved)
            torch.addmm(self._bias, c, self.of_facts.t(), out=minus)
            torch.add(minus, moved, out=plus)
            yield signals, c, plus, minus.sub_(moved)


class _MirroredSums(torch.autograd.Function):
    """See ``mirrored_sums``."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        g: Tensor,
        c: Tensor,
        index: Tensor,
        num: int,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(h, g, c, index, weight, bias)
        ctx.num = num
        total = h.new_zeros(num, len(weight))
        tiles = _Tiles(h, g, c, weight, bias)
        for (_, _, plus, minus), place in zip(tiles, index.split(tiles.rows), strict=True):
            values = F.silu(plus, inplace=True).add_(F.silu(minus, inplace=True))
            total.index_add_(0, place, values)
        return total.mul_(0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, g, c, index, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of the derivative: in plain steps
            result = _by_steps(h, g, c, index, ctx.num, weight, bias)
            needed = ctx.needs_input_grad
            inputs = (h, g, c, index, None, weight, bias)
            wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(result, wanted, grads[0], create_graph=True))
            return tuple(next(found) if need else None for need in needed)
        d_h, d_g, d_c = (torch.empty_like(t) for t in (h, g, c))
        d_bias = torch.zeros_like(bias)
        tiles = _Tiles(h, g, c, weight, bias)
        d_signals, d_facts = torch.zeros_like(tiles.of_signals), torch.zeros_like(tiles.of_facts)
        of_h, of_g = tiles.of_signals.split(h.shape[1], dim=1)
        grad = grads[0] * 0.5
        rows = (t.split(tiles.rows) for t in (index, d_h, d_g, d_c))
        for (signals, c_rows, plus, minus), place, h_out, g_out, c_out in zip(
            tiles, *rows, strict=True
        ):
            above = grad.index_select(0, place)
            torch.ops.aten.silu_backward.grad_input(above, plus, grad_input=plus)
            torch.ops.aten.silu_backward.grad_input(above, minus, grad_input=minus)
            moved = torch.sub(plus, minus, out=above)
            fixed = plus.add_(minus)
            d_signals.addmm_(moved.t(), signals)
            d_facts.addmm_(fixed.t(), c_rows)
            d_bias += fixed.sum(0)
            torch.mm(moved, of_h, out=h_out)
            torch.mm(moved, of_g, out=g_out)
            torch.mm(fixed, tiles.of_facts, out=c_out)
        return d_h, d_g, d_c, None, None, torch.cat([d_signals, d_facts], dim=1), d_bias
