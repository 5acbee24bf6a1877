"""Lists of tensors, which exporters use for unbinding and stacking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


@operator("SequenceEmpty")
def _empty(call: Call) -> list[Tensor]:
    return []


@operator("SequenceConstruct")
def _construct(call: Call, *values: Tensor) -> list[Tensor]:
    return list(values)


@operator("SequenceAt")
def _at(call: Call, values: list[Tensor], place: Tensor) -> Tensor:
    return values[int(call.number(place, ""))]


@operator("SequenceInsert")
def _insert(
    call: Call, values: list[Tensor], value: Tensor, place: Tensor | None = None
) -> list[Tensor]:
    at = len(values) if place is None else int(call.number(place, ""))
    return [*values[:at], value, *values[at:]]


@operator("SequenceErase")
def _erase(call: Call, values: list[Tensor], place: Tensor | None = None) -> list[Tensor]:
    at = len(values) - 1 if place is None else int(call.number(place, "")) % len(values)
    return [*values[:at], *values[at + 1 :]]


@operator("SequenceLength")
def _length(call: Call, values: list[Tensor]) -> Tensor:
    return torch.tensor(len(values))


@operator("ConcatFromSequence")
def _concat(call: Call, values: list[Tensor]) -> Tensor:
    axis = call.get("axis")
    return torch.stack(values, axis) if call.get("new_axis", 0) else torch.cat(values, axis)


@operator("SplitToSequence")
def _split(call: Call, x: Tensor, split: Tensor | None = None) -> Any:
    axis = call.get("axis", 0)
    if split is None:
        parts = torch.split(x, 1, axis)
        return [p if call.get("keepdims", 1) else p.squeeze(axis) for p in parts]
    numbers = [int(n) for n in split.reshape(-1).tolist()]
    return list(torch.split(x, numbers if split.dim() else numbers[0], axis))
