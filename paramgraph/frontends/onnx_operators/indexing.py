"""Reading and writing at indices, sorting, masks of triangles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


@operator("Gather")
def _gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = call.get("axis", 0) % max(x.dim(), 1)
    index = _positive(index, x.shape[axis])
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(index, x)
    if index.dim() == 0:
        return x.index_select(axis, index.reshape(1)).squeeze(axis)
    found = x.index_select(axis, index.reshape(-1))
    return found if index.dim() == 1 else found.unflatten(axis, tuple(index.shape))


def _positive(index: Tensor, size: int) -> Tensor:
    return torch.where(index < 0, index + size, index).long()


@operator("GatherElements")
def _gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, _positive(index, x.shape[axis]))


@operator("GatherND")
def _gather_nd(call: Call, x: Tensor, index: Tensor) -> Tensor:
    batch, depth = call.get("batch_dims", 0), index.shape[-1]
    places: list[Tensor] = []
    for axis in range(batch):
        shape = [1] * (index.dim() - 1)
        shape[axis] = x.shape[axis]
        places.append(torch.arange(x.shape[axis], device=x.device).reshape(shape))
    places += [_positive(index[..., i], x.shape[batch + i]) for i in range(depth)]
    return x[tuple(places)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def _scatter_elements(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    index, reduction = _positive(index, x.shape[axis]), call.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCE[reduction], include_self=True)


@operator("ScatterND")
def _scatter_nd(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    depth, reduction = index.shape[-1], call.get("reduction", "none")
    if reduction in ("none", "add"):
        places = tuple(_positive(index[..., i], x.shape[i]) for i in range(depth))
        return x.index_put(places, updates, accumulate=reduction == "add")
    flat = torch.zeros(index.shape[:-1], dtype=torch.long, device=x.device)
    for i in range(depth):
        flat = flat * x.shape[i] + _positive(index[..., i], x.shape[i])
    rows = x.reshape(torch.Size(x.shape[:depth]).numel(), -1)
    place = flat.reshape(-1, 1).expand(-1, rows.shape[1])
    changed = updates.reshape(place.shape)
    return rows.scatter_reduce(0, place, changed, _REDUCE[reduction]).reshape(x.shape)


@operator("TopK")
def _top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    count, axis = call.number(k, "k"), call.get("axis", -1)
    largest, ordered = bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    values, places = torch.topk(x, count, axis, largest, ordered)
    return values, places


@operator("OneHot")
def _one_hot(call: Call, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count, axis = int(call.number(depth, "depth")), call.get("axis", -1)
    hot = F.one_hot(_positive(index, count), count).bool()
    chosen = torch.where(hot, values[1], values[0])
    return chosen.movedim(-1, axis)


@operator("NonZero")
def _non_zero(call: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


@operator("Compress")
def _compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    axis = call.get("axis")
    x, dim = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(dim, torch.nonzero(condition).reshape(-1))


@operator("Trilu")
def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    shift = int(call.number(k, "k", 0))
    return torch.triu(x, shift) if call.get("upper", 1) else torch.tril(x, shift)


@operator("ReverseSequence")
def _reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    moved = x.movedim((batch, time), (0, 1))
    place = torch.arange(moved.shape[1], device=x.device)[None]
    length = lengths.long()[:, None]
    place = torch.where(place < length, length - 1 - place, place)
    rows = torch.arange(moved.shape[0], device=x.device)[:, None]
    return moved[rows, place].movedim((0, 1), (batch, time))
