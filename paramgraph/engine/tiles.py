"""Tiles of edges that stay in cache, and the buffers that they are computed in."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Tile", "Workspace", "tile_bytes", "tiles", "workspace"]

_CPU_BYTES = 1 << 18  # one buffer; about eight are in use, which fit a second-level cache
_GPU_BYTES = 1 << 26  # large enough to hide launches


class _Setting(threading.local):
    num_bytes: int | None = None
    spaces: dict[tuple[torch.dtype, torch.device], Workspace] | None = None


_setting = _Setting()


@contextmanager
def tile_bytes(num_bytes: int) -> Iterator[None]:
    """Choose the size of a tile's buffers in place of the automatic one, in this thread.

    Args:
        num_bytes: Of one buffer; about eight are in use at a time.

    Raises:
        ValueError: ``num_bytes`` is not positive.

    Example:
        >>> with tile_bytes(1024):
        ...     [tile.num_rows for tile in tiles(6, 4, 4, 8, torch.zeros(1))]
        [32, 32, 32]
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes of a tile must be positive, got {num_bytes}.")
    before, _setting.num_bytes = _setting.num_bytes, num_bytes
    try:
        yield
    finally:
        _setting.num_bytes = before


class Tile(NamedTuple):
    """Some edges of a pass: whole blocks, or some targets of one block.

    Attributes:
        blocks: Which blocks.
        targets: Which targets.
        rows: Which edges, in the order of the pass.
        num_rows: Number of edges.
    """

    blocks: slice
    targets: slice
    rows: slice
    num_rows: int


def tiles(num_blocks: int, targets: int, sources: int, dim: int, like: Tensor) -> Iterator[Tile]:
    """Cut edges ``[num_blocks, targets, sources]`` into tiles of a size that fits the device.

    Args:
        num_blocks: Blocks of a bucket.
        targets: Of each.
        sources: Of each.
        dim: Width of what is kept per edge.
        like: For the dtype and the device.
    """
    if not num_blocks * targets * sources:
        return
    rows = max(1, _bytes(like.device) // (dim * like.element_size()))
    if targets * sources <= rows:
        step = rows // (targets * sources)
        for first in range(0, num_blocks, step):
            last = min(first + step, num_blocks)
            start = first * targets * sources
            num = (last - first) * targets * sources
            yield Tile(slice(first, last), slice(0, targets), slice(start, start + num), num)
        return
    # Equal tiles, so that the last one is not a rest of few rows.
    step = math.ceil(targets / math.ceil(targets / max(1, rows // sources)))
    for block in range(num_blocks):
        for first in range(0, targets, step):
            last = min(first + step, targets)
            start = (block * targets + first) * sources
            num = (last - first) * sources
            rows = slice(start, start + num)
            yield Tile(slice(block, block + 1), slice(first, last), rows, num)


def _bytes(device: torch.device) -> int:
    if _setting.num_bytes is not None:
        return _setting.num_bytes
    if device.type != "cpu":
        return _GPU_BYTES
    # Every thread has a cache of its own.
    return _CPU_BYTES * torch.get_num_threads()


class Workspace:
    """Named buffers that are used again.

    Args:
        like: For the dtype and the device.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str, Sequence[int]], Tensor] = {}

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        """A buffer with any content; the last one of this name is given up."""
        key = name, shape
        view = self._views.get(key)
        if view is None:
            size = math.prod(shape)
            buffer = self._buffers.get(name)
            if buffer is None or buffer.numel() < size:
                buffer = self._buffers[name] = self._like.new_empty(size)
                self._views = {k: v for k, v in self._views.items() if k[0] != name}
            view = self._views[key] = buffer[:size].view(shape)
        return view


def workspace(like: Tensor) -> Workspace:
    """A workspace for the dtype and the device of a tensor, of this thread."""
    if _setting.spaces is None:
        _setting.spaces = {}
    key = like.dtype, like.device
    if key not in _setting.spaces:
        _setting.spaces[key] = Workspace(torch.empty(0, dtype=like.dtype, device=like.device))
    return _setting.spaces[key]
