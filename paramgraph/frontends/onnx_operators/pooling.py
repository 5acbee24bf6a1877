"""Pooling over windows and over whole images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.convolutions import padding_of
from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


def _window(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
    kernel = call.get("kernel_shape")
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise call.error(f"pooling in {rank} dimensions, expected 1, 2 or 3")
    stride, dilation = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    return kernel, stride, dilation, padding_of(call, x, kernel, stride, dilation)


def _is_plain(kernel: list[int], pads: list[tuple[int, int]]) -> bool:
    """Whether torch can pad by itself: the same on both sides, at most half a window."""
    pairs = zip(kernel, pads, strict=True)
    return all(a == b and 2 * a <= width for width, (a, b) in pairs)


def _flat(pads: list[tuple[int, int]]) -> list[int]:
    return [number for pair in reversed(pads) for number in pair]


@operator("MaxPool")
def _max_pool(call: Call, x: Tensor) -> Tensor:
    if call.num_outputs > 1:
        raise call.error("its second output (indices of the maxima) is used")
    kernel, stride, dilation, pads = _window(call, x)
    if not _is_plain(kernel, pads):
        x = F.pad(x, _flat(pads), value=-torch.inf)
        pads = [(0, 0)] * len(kernel)
    functions: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    padding, ceil = [before for before, _ in pads], bool(call.get("ceil_mode", 0))
    return functions[len(kernel)](x, kernel, stride, padding, dilation, ceil)


@operator("AveragePool")
def _average_pool(call: Call, x: Tensor) -> Tensor:
    kernel, stride, dilation, pads = _window(call, x)
    if any(spread != 1 for spread in dilation):
        raise call.error(f"average pooling with dilations {dilation}, expected ones")
    functions: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    pool, ceil = functions[len(kernel)], bool(call.get("ceil_mode", 0))
    counted = bool(call.get("count_include_pad", 0))
    if _is_plain(kernel, pads):
        return pool(x, kernel, stride, [before for before, _ in pads], ceil, counted)
    padded = F.pad(x, _flat(pads))
    if counted:
        return pool(padded, kernel, stride, 0, ceil)
    inside = F.pad(torch.ones_like(x), _flat(pads))
    return pool(padded, kernel, stride, 0, ceil) / pool(inside, kernel, stride, 0, ceil)


@operator("LpPool")
def _lp_pool(call: Call, x: Tensor) -> Tensor:
    kernel, stride, dilation, pads = _window(call, x)
    if any(spread != 1 for spread in dilation):
        raise call.error(f"pooling with dilations {dilation}, expected ones")
    functions: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    power, count = call.get("p", 2), torch.Size(kernel).numel()
    powers = F.pad(x.abs() ** power, _flat(pads))
    ceil = bool(call.get("ceil_mode", 0))
    return (functions[len(kernel)](powers, kernel, stride, 0, ceil) * count) ** (1 / power)


@operator("GlobalAveragePool")
def _global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def _global_lp_pool(call: Call, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, call.get("p", 2), list(range(2, x.dim())), keepdim=True)
