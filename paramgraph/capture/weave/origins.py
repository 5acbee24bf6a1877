"""Where an entry comes from that was moved, or written over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.loom import Loom

__all__ = ["RESHAPES", "SAME", "SPLITS", "overwritten", "source_of"]


Place = tuple[int, ...]

Source = tuple[TensorRef, Place]

SAME = {
    *("detach", "clone", "alias", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy"),
    *("real", "conj", "_conj", "resolve_conj", "resolve_neg"),
}

RESHAPES = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias"}

SPLITS = {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"}


def source_of(entry: TapeEntry, number: int, place: Place) -> Source | None:
    """The argument, and the entry of it, that an entry of output ``number`` is a copy of."""
    name, args = entry.operation.removeprefix("aten."), entry.args
    out = entry.outputs[number]
    assert out is not None
    if name in ("cat", "stack"):
        return _of_several(name, args, out, place)
    ref: TensorRef = next(v for v in args.values() if isinstance(v, TensorRef))
    shape, rank = ref.shape, len(ref.shape)
    if name in SAME:
        return ref, place
    if name in RESHAPES:
        if math.prod(out.shape) != math.prod(shape):
            return None
        flat = int(np.ravel_multi_index(place, out.shape)) if place else 0
        return ref, tuple(map(int, np.unravel_index(flat, shape))) if rank else ()
    if name in ("t", "transpose", "permute", "numpy_T"):
        order = list(range(rank))
        if name == "transpose" and rank:
            a, b = args["dim0"], args["dim1"]
            order[a], order[b] = order[b], order[a]
        elif name == "permute":
            order = [axis % rank for axis in args["dims"]]
        elif name != "transpose":
            order = order[::-1]
        inside = [0] * rank
        for axis, source in enumerate(order):
            inside[source] = place[axis]
        return ref, tuple(inside)
    if name in ("expand", "repeat"):
        missing = len(place) - rank
        return ref, tuple(p % size for p, size in zip(place[missing:], shape, strict=True))
    if name == "repeat_interleave":
        dim, times = args.get("dim"), args.get("repeats")
        if not isinstance(dim, int) or not isinstance(times, int):
            return None
        return ref, _at(place, dim % rank, place[dim % rank] // times)
    return ref, _taken(name, args, entry, number, place, shape)


def _taken(
    name: str, args: dict[str, Any], entry: TapeEntry, number: int, place: Place, shape: Place
) -> Place:
    """For selections: the place in what is selected from."""
    rank = len(shape)
    if name == "constant_pad_nd":
        before = [0] * rank
        for i, n in enumerate(args["pad"][::2]):
            before[rank - 1 - i] = n
        return tuple(p - b for p, b in zip(place, before, strict=True))
    dim = args.get("dim", 0) % rank
    if name == "slice":
        start = args.get("start") or 0
        start = min(start + shape[dim] if start < 0 else start, shape[dim])
        return _at(place, dim, start + place[dim] * (args.get("step") or 1))
    if name == "select":
        return (*place[:dim], args["index"] % shape[dim], *place[dim:])
    if name == "unbind":
        return (*place[:dim], number, *place[dim:])
    sizes = [ref.shape[dim] for ref in entry.outputs if ref is not None]
    return _at(place, dim, place[dim] + sum(sizes[:number]))


def _of_several(name: str, args: dict[str, Any], out: TensorRef, place: Place) -> Source | None:
    dim = args.get("dim", 0) % len(out.shape)
    if name == "stack":
        return args["tensors"][place[dim]], (*place[:dim], *place[dim + 1 :])
    at = place[dim]
    for ref in args["tensors"]:
        if len(ref.shape) != len(out.shape):
            continue  # an old way to write an empty tensor
        if at < ref.shape[dim]:
            return ref, _at(place, dim, at)
        at -= ref.shape[dim]
    return None


def _at(place: Place, dim: int, value: int) -> Place:
    return (*place[:dim], value, *place[dim + 1 :])


def overwritten(
    loom: Loom, ref: TensorRef, block: int, before: TensorRef, source: TensorRef
) -> list[tuple[TensorRef, int]]:
    """Blocks that a block is made of after ``source``, in the same memory, was written."""
    found: dict[tuple[int, int], tuple[TensorRef, int]] = {}
    target, written = loom.partition(ref), loom.partition(source)
    for place in target.probes(block):
        inside = _elsewhere(loom, place, ref, source)
        origin, spot = (before, place) if inside is None else (source, inside)
        for at in loom.partition(origin).find(spot):
            found[origin.number, at] = (origin, at)
    for at in range(len(written)):
        for place in written.probes(at):
            inside = _elsewhere(loom, place, source, ref)
            if inside is not None and block in target.find(inside):
                found[source.number, at] = (source, at)
    return list(found.values())


def _elsewhere(loom: Loom, place: Place, ref: TensorRef, other: TensorRef) -> Place | None:
    """Where in another view of the same memory an entry stands."""
    geometry = loom.run.tape.windows
    (start, steps), (begin, strides) = geometry[ref.number], geometry[other.number]
    rest = start + sum(p * step for p, step in zip(place, steps, strict=True)) - begin
    inside = [0] * len(other.shape)
    for axis in sorted(range(len(strides)), key=lambda axis: -strides[axis]):
        if strides[axis] and other.shape[axis] > 1:
            inside[axis], rest = divmod(rest, strides[axis])
    fits = rest == 0 and all(0 <= i < size for i, size in zip(inside, other.shape, strict=True))
    return tuple(inside) if fits else None
