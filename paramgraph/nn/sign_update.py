"""The update of a neuron whose sign may change, as one function with its own derivative.

``z = [o, m, b, x, o |m|]``, ``(G z) phi([|z|, c]) / sqrt(1 + |z|^2 / (16 * 5 dim))`` with phi =
Linear, LayerNorm, SiLU, dropout, Linear. As separate operations autograd passes ten times over
tensors of the width of z, on the way back as often; here it is three times each way. What is known
to be zero (signals that have not been heard yet) takes no part at all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["sign_update", "slow_sign_update"]

_NUM_PARTS = 5


def sign_update(
    signals: tuple[Tensor | None, Tensor, Tensor, Tensor | None],
    context: Tensor,
    mask: Tensor | None,
    parameters: tuple[Tensor, ...],
) -> Tensor:
    """The change of a signal ``[n, dim]``.

    Args:
        signals: Own, message, bias, and that of the other kind, ``[n, dim]`` each; ``None`` for 0.
        context: ``[n, context_dim]``.
        mask: Of dropout ``[n, 2 * dim]``.
        parameters: Of G (weight), and of phi (weights and biases in order).
    """
    is_traced = torch.compiler.is_compiling() or torch.is_autocast_enabled(context.device.type)
    if is_traced or torch._C._functorch.peek_interpreter_stack() is not None:  # type: ignore[attr-defined]
        return slow_sign_update(signals, context, mask, parameters)
    result: Tensor = _SignUpdate.apply(*signals, context, mask, *parameters)  # type: ignore[no-untyped-call]
    return result


def slow_sign_update(
    signals: tuple[Tensor | None, Tensor, Tensor, Tensor | None],
    context: Tensor,
    mask: Tensor | None,
    parameters: tuple[Tensor, ...],
) -> Tensor:
    """``sign_update`` step by step, zeros included."""
    own, message, bias, other = signals
    zero = torch.zeros_like(message)
    own, other = (zero if part is None else part for part in (own, other))
    linear, first, first_bias, norm, norm_bias, last, last_bias = parameters
    z = torch.cat([own, message, bias, other, own * message.abs()], dim=1)
    inner = F.linear(torch.cat([z.abs(), context], dim=1), first, first_bias)
    inner = F.silu(F.layer_norm(inner, norm.shape, norm, norm_bias))
    gate = F.linear(inner if mask is None else inner * mask, last, last_bias)
    size = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return F.linear(z, linear) * (gate * (1 + size.square() / (16 * z.shape[1])).rsqrt())


@lru_cache(maxsize=64)
def _columns(dim: int, context_dim: int, present: tuple[int, ...], device: str) -> Tensor:
    """Columns of the weights that meet something other than zeros."""
    with torch.inference_mode(False):
        parts = [torch.arange(part * dim, (part + 1) * dim) for part in present]
        parts.append(torch.arange(_NUM_PARTS * dim, _NUM_PARTS * dim + context_dim))
        return torch.cat(parts).to(device)


class _SignUpdate(torch.autograd.Function):
    """See ``sign_update``."""

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor | None,
        message: Tensor,
        bias: Tensor,
        other: Tensor | None,
        context: Tensor,
        mask: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        linear, first, first_bias, norm, norm_bias, last, last_bias = parameters
        num, dim = message.shape
        pieces = [(0, own), (1, message), (2, bias), (3, other)]
        present = tuple(number for number, piece in pieces if piece is not None)
        if own is not None:
            present = (*present, 4)
        width = len(present) * dim
        ctx.columns = None
        if len(present) < _NUM_PARTS:
            ctx.columns = _columns(dim, context.shape[1], present, str(message.device))
            first = first.index_select(1, ctx.columns)
            linear = linear.index_select(1, ctx.columns[:width])
        z = message.new_empty(num, width)
        for place, number in enumerate(present):
            target = z[:, place * dim : (place + 1) * dim]
            if number == 4:
                torch.abs(message, out=target)
                target.mul_(own)
            else:
                target.copy_(pieces[number][1])  # type: ignore[arg-type]
        known = message.new_empty(num, width + context.shape[1])
        torch.abs(z, out=known[:, :width])
        known[:, width:].copy_(context)
        inner = torch.addmm(first_bias, known, first.t())
        unit, mean, rstd = torch.native_layer_norm(inner, norm.shape, norm, norm_bias, 1e-5)
        active = F.silu(unit)
        if mask is not None:
            active.mul_(mask)
        gate = torch.addmm(last_bias, active, last.t())
        moved = z @ linear.t()
        scale = 1 / (16 * _NUM_PARTS * dim)
        bound = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        bound = bound.square_().mul_(scale).add_(1).rsqrt_()
        ctx.present = present
        ctx.save_for_backward(
            *(own, message, bias, other, context, mask),
            *parameters,
            *(z, known, inner, mean, rstd, unit, active, gate, moved, bound),
        )
        return (moved * gate).mul_(bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        saved = ctx.saved_tensors
        inputs, parameters = saved[:6], saved[6:13]
        if torch.is_grad_enabled():  # a derivative of the derivative: in plain steps
            return _by_steps(inputs, parameters, grad, ctx.needs_input_grad)
        z, known, inner, mean, rstd, unit, active, gate, moved, bound = saved[13:]
        own, message, _, _, _, mask = inputs
        linear, first, _, norm, norm_bias, last, _ = parameters
        dim = message.shape[1]
        width = z.shape[1]
        if ctx.columns is not None:
            first = first.index_select(1, ctx.columns)
            linear = linear.index_select(1, ctx.columns[:width])
        grad = grad * bound
        d_gate = grad * moved
        d_moved = grad * gate
        d_last, d_last_bias = d_gate.t() @ active, d_gate.sum(0)
        d_active = d_gate @ last
        if mask is not None:
            d_active.mul_(mask)
        d_unit = torch.ops.aten.silu_backward(d_active, unit)
        d_inner, d_norm, d_norm_bias = torch.ops.aten.native_layer_norm_backward(
            d_unit, inner, norm.shape, mean, rstd, norm, norm_bias, [True, True, True]
        )
        d_first, d_first_bias = d_inner.t() @ known, d_inner.sum(0)
        d_linear = d_moved.t() @ z
        d_known = d_inner @ first
        d_z = d_moved @ linear
        sign = z.sign()
        d_z.addcmul_(d_known[:, :width], sign)
        # Of the bound: d (1 + q s)^(-1/2) / dz = -s bound^3 z.
        size = (d_moved * moved).sum(1, keepdim=True).mul_(bound.square())
        d_z.addcmul_(z, size, value=-1 / (16 * _NUM_PARTS * dim))
        found: dict[int, Tensor] = {
            number: d_z[:, place * dim : (place + 1) * dim]
            for place, number in enumerate(ctx.present)
        }
        if own is not None:
            place = ctx.present.index(1)
            rows = slice(place * dim, (place + 1) * dim)
            both = found[4]
            found[0].addcmul_(both, known[:, rows])
            found[1].addcmul_(both * own, sign[:, rows])
        if ctx.columns is not None:
            d_first = (
                parameters[1].new_zeros(parameters[1].shape).index_copy_(1, ctx.columns, d_first)
            )
            d_linear = (
                parameters[0]
                .new_zeros(parameters[0].shape)
                .index_copy_(1, ctx.columns[:width], d_linear)
            )
        signals = (found.get(number) for number in range(4))
        rest = (d_linear, d_first, d_first_bias, d_norm, d_norm_bias, d_last, d_last_bias)
        return (*signals, d_known[:, width:], None, *rest)


def _by_steps(
    inputs: tuple[Tensor | None, ...],
    parameters: tuple[Tensor, ...],
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The derivative of ``slow_sign_update``, of which autograd can take another."""
    own, message, bias, other, context, mask = inputs
    assert message is not None and bias is not None and context is not None
    result = slow_sign_update((own, message, bias, other), context, mask, parameters)
    wanted = [t for t, need in zip((*inputs, *parameters), needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return tuple(next(found) if need else None for need in needed)
