"""Shapes, reshapes, slices, joins, and tensors made from numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


@operator("Shape", is_shape=True)
def _shape(call: Call, x: Tensor) -> Tensor:
    sizes = list(x.shape)[slice(call.get("start", 0), call.get("end"))]
    return torch.tensor(sizes, dtype=torch.int64)


@operator("Size", is_shape=True)
def _size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("Reshape")
def _reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sizes = call.ints(shape, "shape")
    if not call.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    first = 1
    for size in x.shape[:axis]:
        first *= size
    return x.flatten(1) if axis == 1 and x.dim() > 1 else x.reshape(first, -1)


@operator("Squeeze")
def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = call.ints(axes, "axes")
    return x.squeeze() if over is None else x.squeeze(tuple(over))


@operator("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = call.ints(axes, "axes")
    rank = x.dim() + len(over)
    for axis in sorted(axis % rank for axis in over):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", list(reversed(range(x.dim())))))


@operator("Expand")
def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = call.ints(shape, "shape")
    return x.expand(torch.broadcast_shapes(x.shape, tuple(sizes)))


@operator("Tile")
def _tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(call.ints(repeats, "repeats"))


@operator("Concat")
def _concat(call: Call, *values: Tensor) -> Tensor:
    return torch.cat(values, call.get("axis"))


@operator("Split")
def _split(call: Call, x: Tensor, split: Tensor | None = None) -> Any:
    axis, sizes = call.get("axis", 0), call.ints(split, "split")
    if sizes is None:
        count = call.get("num_outputs", call.num_outputs)
        each = -(-x.shape[axis] // count)
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    parts = torch.split(x, sizes, axis)
    return parts[0] if len(parts) == 1 else parts


@operator("Slice")
def _slice(call: Call, x: Tensor, *limits: Tensor | None) -> Tensor:
    starts, ends, axes, steps = (*limits, None, None)[:4]
    first, last = call.ints(starts, "starts"), call.ints(ends, "ends")
    over = call.ints(axes, "axes") or list(range(len(first)))
    stride = call.ints(steps, "steps") or [1] * len(first)
    for axis, begin, end, step in zip(over, first, last, stride, strict=True):
        size = x.shape[axis]
        if step < 0:
            begin, end, step = _reversed(size, begin, end, step)
            x = x.flip(axis)
        else:
            begin, end = (min(max(n + size if n < 0 else n, 0), size) for n in (begin, end))
        if (begin, step) != (0, 1) or end < size:
            whole = [slice(None)] * x.dim()
            whole[axis] = slice(begin, max(begin, end), step)
            x = x[tuple(whole)]
    return x


def _reversed(size: int, begin: int, end: int, step: int) -> tuple[int, int, int]:
    """The same slice of the flipped axis, with a positive step."""
    begin = min(max(begin + size if begin < 0 else begin, -1), size - 1)
    end = min(max(end + size if end < 0 else end, -1), size - 1)
    return size - 1 - begin, size - 1 - end, -step


@operator("Pad")
def _pad(
    call: Call,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    sizes = call.ints(pads, "pads")
    over = call.ints(axes, "axes") or list(range(x.dim()))
    half = len(sizes) // 2
    pairs = [(0, 0)] * x.dim()
    for place, axis in enumerate(over):
        pairs[axis] = (sizes[place], sizes[half + place])
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    kind = mode[call.get("mode", "constant")]
    if kind == "constant":
        number = call.number(value, "value", 0.0)
        return F.pad(x, _flat(pairs), value=number) if any(map(any, pairs)) else x
    if any(map(any, pairs[:2])) or x.dim() < 3:
        return _pad_by_index(x, pairs, kind)
    return F.pad(x, _flat(pairs[2:]), mode=kind)


def _flat(pairs: list[tuple[int, int]]) -> list[int]:
    """Torch counts from the last axis."""
    return [number for pair in reversed(pairs) for number in pair]


def _pad_by_index(x: Tensor, pairs: list[tuple[int, int]], kind: str) -> Tensor:
    for axis, (before, after) in enumerate(pairs):
        if before or after:
            size = x.shape[axis]
            place = torch.arange(-before, size + after, device=x.device)
            if kind == "replicate":
                place = place.clamp(0, size - 1)
            elif kind == "circular":
                place = place % size
            else:
                place = size - 1 - (size - 1 - place.abs()).abs()
            x = x.index_select(axis, place)
    return x


@operator("Constant")
def _constant(call: Call) -> Tensor:
    tensor: Tensor | None = call.get("value")
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for numbers in (call.get(name), call.get(f"{name}s")):
            if numbers is not None:
                tensor = torch.tensor(numbers, dtype=dtype)
    if tensor is None:
        raise call.error("its value is text or sparse, which no other operator here can use")
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(call.precision.dtype(tensor.dtype))


@operator("ConstantOfShape")
def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    value = torch.zeros(1) if value is None else value
    dtype = call.precision.dtype(value.dtype)
    number = value.reshape(-1)[0].item()
    return torch.full(call.ints(shape, "shape"), number, dtype=dtype)


@operator("Range")
def _range(call: Call, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    numbers = [call.number(value, "") for value in (start, limit, step)]
    return torch.arange(*numbers, dtype=start.dtype)


@operator("EyeLike", is_shape=True)
def _eye_like(call: Call, x: Tensor) -> Tensor:
    dtype = call.dtype(call.get("dtype")) if call.get("dtype") else x.dtype
    eye = torch.zeros(x.shape, dtype=dtype)
    shift = call.get("k", 0)
    eye.diagonal(shift).fill_(1)
    return eye


@operator("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    block = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    block = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)
