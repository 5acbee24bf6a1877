"""Convolutions, also transposed, and the padding rule that they share with pooling."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__ = ["padding_of"]


def padding_of(
    call: Call, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]
) -> list[tuple[int, int]]:
    """How many positions to add before and after each spatial axis."""
    rank = len(kernel)
    mode = call.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = call.get("pads", [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
        return list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for size, width, step, spread in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        wanted = -(-size // step)
        total = max(0, (wanted - 1) * step + (width - 1) * spread + 1 - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return found


@operator("Conv")
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    stride, dilation = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    pads = padding_of(call, x, list(weight.shape[2:]), stride, dilation)
    if any(before != after for before, after in pads):
        x = F.pad(x, [number for pair in reversed(pads) for number in pair])
        pads = [(0, 0)] * rank
    functions: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    if rank not in functions:
        raise call.error(f"convolution in {rank} dimensions, expected 1, 2 or 3")
    padding = [before for before, _ in pads]
    return functions[rank](x, weight, bias, stride, padding, dilation, call.get("group", 1))


@operator("ConvTranspose")
def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    kernel = list(weight.shape[2:])
    stride, dilation = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    extra = list(call.get("output_padding", [0] * rank))
    pads = _transposed_padding(call, x, kernel, stride, dilation, extra)
    functions: dict[int, Any] = {
        1: F.conv_transpose1d,
        2: F.conv_transpose2d,
        3: F.conv_transpose3d,
    }
    if rank not in functions:
        raise call.error(f"convolution in {rank} dimensions, expected 1, 2 or 3")
    # Torch takes one number for both sides: crop the larger side afterwards.
    both = [min(before, after) for before, after in pads]
    y = functions[rank](x, weight, bias, stride, both, extra, call.get("group", 1), dilation)
    for axis, ((before, after), done) in enumerate(zip(pads, both, strict=True), start=2):
        if before != after:
            y = y.narrow(axis, before - done, y.shape[axis] - before - after + 2 * done)
    return y


def _transposed_padding(
    call: Call,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    extra: list[int],
) -> list[tuple[int, int]]:
    wanted, mode = call.get("output_shape"), call.get("auto_pad", "NOTSET")
    if wanted is None and mode in ("NOTSET", "VALID"):
        return padding_of(call, x, kernel, stride, dilation)
    sizes = wanted or [size * step for size, step in zip(x.shape[2:], stride, strict=True)]
    found = []
    for place, size in enumerate(sizes[-len(kernel) :]):
        full = stride[place] * (x.shape[2 + place] - 1) + extra[place]
        total = full + (kernel[place] - 1) * dilation[place] + 1 - size
        if total < 0:  # more positions than the kernel reaches
            extra[place] -= total
            total = 0
        less, more = total // 2, total - total // 2
        found.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return found
