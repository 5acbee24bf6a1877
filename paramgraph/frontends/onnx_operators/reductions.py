"""Sums, means and other reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(function: Callable[..., Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return function(x.byte(), axes, keep).bool()
        return function(x, axes, keep)

    return reduce


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": _extreme(torch.amax),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": _extreme(torch.amin),
    "ReduceProd": _prod,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


@operator(*_REDUCTIONS)
def _reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = call.ints(axes, "axes")
    if not over:
        if call.get("noop_with_empty_axes", 0):
            return x
        over = list(range(x.dim()))
    if x.dim() == 0:
        x, over = x.reshape(1), [0]
        return _REDUCTIONS[call.kind](x, over, False)
    return _REDUCTIONS[call.kind](x, over, bool(call.get("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def _arg(call: Call, x: Tensor) -> Tensor:
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    function = torch.argmax if call.kind == "ArgMax" else torch.argmin
    if not call.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)


@operator("CumSum")
def _cumsum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    dim = call.number(axis, "axis")
    x = x.flip(dim) if call.get("reverse", 0) else x
    total = torch.cumsum(x, dim, dtype=x.dtype)
    total = total - x if call.get("exclusive", 0) else total
    return total.flip(dim) if call.get("reverse", 0) else total
