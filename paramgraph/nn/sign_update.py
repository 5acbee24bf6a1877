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
from torch.nn import functional as F

from paramgraph.engine import workspace
from paramgraph.nn.sign_steps import steps_for

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
    if is_traced or torch._C._functorch.peek_interpreter_stack() is not None:
        return slow_sign_update(signals, context, mask, parameters)
    result: Tensor = _SignUpdate.apply(*signals, context, mask, *parameters)
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
def _columns(dim: int, present: tuple[int, ...], device: str) -> Tensor:
    """Columns of the weights that meet something other than zeros."""
    with torch.inference_mode(False):
        parts = [torch.arange(part * dim, (part + 1) * dim) for part in present]
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
        dim = message.shape[1]
        pieces = [own, message, bias, other, own]  # the last one is own |message|
        ctx.present = tuple(number for number, piece in enumerate(pieces) if piece is not None)
        linear, of_signals, of_context = _cut(linear, first, dim, ctx.present)
        ctx.steps = steps = steps_for(message)
        z, known, bound = steps.join(own, message, bias, other, 1 / (16 * _NUM_PARTS * dim))
        inner = torch.addmm(first_bias, context, of_context.t()).addmm_(known, of_signals.t())
        active, kept = steps.activate(inner, norm, norm_bias, mask)
        gate = torch.addmm(last_bias, active, last.t())
        moved = z @ linear.t()
        ctx.save_for_backward(
            *(own, message, bias, other, context, mask),
            *parameters,
            *(inner, active, gate, moved, bound, *kept),
            *(() if steps.joins_again else (z, known)),
        )
        return steps.gate(moved, gate, bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, parameters = saved[:6], saved[6:13]
        if torch.is_grad_enabled():  # a derivative of the derivative: in plain steps
            return _by_steps(inputs, parameters, grads[0], ctx.needs_input_grad)
        inner, active, gate, moved, bound, *kept = saved[13:]
        own, message, bias, other, context, mask = inputs
        whole_linear, first, _, norm, norm_bias, last, _ = parameters
        dim = message.shape[1]
        linear, of_signals, of_context = _cut(whole_linear, first, dim, ctx.present)
        steps = ctx.steps
        factor = 1 / (16 * _NUM_PARTS * dim)
        if steps.joins_again:
            z, known, _ = steps.join(own, message, bias, other, factor)
        else:
            *kept, z, known = kept
        d_gate, d_moved, size = steps.gate_back(grads[0], moved, gate, bound, factor)
        d_last, d_last_bias = d_gate.t() @ active, d_gate.sum(0)
        d_inner, d_norm, d_norm_bias, d_first_bias = steps.activate_back(
            d_gate @ last, inner, norm, norm_bias, mask, kept
        )
        d_first = _spread(
            torch.mm(d_inner.t(), known), torch.mm(d_inner.t(), context), dim, ctx.present
        )
        d_linear = _spread(torch.mm(d_moved.t(), z), None, dim, ctx.present)
        space = workspace(z)
        d_known = torch.mm(d_inner, of_signals, out=space.get("of known", z.shape))
        d_z = torch.mm(d_moved, linear, out=space.get("of z", z.shape))
        signals = steps.part(z, known, d_known, d_z, size, own, message, bias, other)
        rest = (d_linear, d_first, d_first_bias, d_norm, d_norm_bias, d_last, d_last_bias)
        return (*signals, d_inner @ of_context, None, *rest)


def _cut(
    linear: Tensor, first: Tensor, dim: int, present: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of G, and of the first map of phi for signals and for the context."""
    of_signals, of_context = first[:, : _NUM_PARTS * dim], first[:, _NUM_PARTS * dim :]
    if len(present) < _NUM_PARTS:
        columns = _columns(dim, present, str(first.device))
        linear, of_signals = linear[:, columns], of_signals[:, columns]
    return linear, of_signals, of_context


def _spread(
    of_signals: Tensor, of_context: Tensor | None, dim: int, present: tuple[int, ...]
) -> Tensor:
    """Gradients of the columns that ``_cut`` took, zeros for the others."""
    if len(present) < _NUM_PARTS:
        whole = of_signals.new_zeros(len(of_signals), _NUM_PARTS * dim)
        columns = _columns(dim, present, str(of_signals.device))
        of_signals = whole.index_copy_(1, columns, of_signals)
    return of_signals if of_context is None else torch.cat([of_signals, of_context], dim=1)


def _by_steps(
    inputs: tuple[Tensor | None, ...],
    parameters: tuple[Tensor, ...],
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The derivative of ``slow_sign_update``, of which autograd can take another."""
    own, message, bias, other, context, mask = inputs
    assert message is not None
    assert bias is not None
    assert context is not None
    result = slow_sign_update((own, message, bias, other), context, mask, parameters)
    wanted = [t for t, need in zip((*inputs, *parameters), needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return tuple(next(found) if need else None for need in needed)
