"""Tiles of edges that stay in cache, and the buffers that they are computed in, used again."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Tile:
    """Some edges of a bucket: whole blocks, or some receivers of one block.

    Attributes:
        blocks: First and last + 1 block.
        receivers: First and last + 1 receiver.
        start: First row in the flat order of edges.
        num_rows: Number of edges.
    """

    blocks: tuple[int, int]
    receivers: tuple[int, int]
    start: int
    num_rows: int


def tiles(num_blocks: int, receivers: int, senders: int, dim: int, like: Tensor) -> Iterator[Tile]:
    """Cut edges ``[num_blocks, receivers, senders]`` into tiles of a size that fits the device.

    Args:
        num_blocks: Blocks of a bucket.
        receivers: Of each.
        senders: Of each.
        dim: Width of what is kept per edge.
        like: For the dtype and the device.
    """
    if not num_blocks * receivers * senders:
        return
    rows = max(1, _bytes(like.device) // (dim * like.element_size()))
    if receivers * senders <= rows:
        step = rows // (receivers * senders)
        for first in range(0, num_blocks, step):
            last = min(first + step, num_blocks)
            start = first * receivers * senders
            num = (last - first) * receivers * senders
            yield Tile((first, last), (0, receivers), start, num)
        return
    # Equal tiles, so that the last one is not a rest of few rows.
    step = math.ceil(receivers / math.ceil(receivers / max(1, rows // senders)))
    for block in range(num_blocks):
        for first in range(0, receivers, step):
            last = min(first + step, receivers)
            start = (block * receivers + first) * senders
            yield Tile((block, block + 1), (first, last), start, (last - first) * senders)


def _bytes(device: torch.device) -> int:
    if _setting.num_bytes is not None:
        return _setting.num_bytes
    if device.type != "cpu":
        return _GPU_BYTES
    # Every thread has a cache of its own.
    return _CPU_BYTES * torch.get_num_threads()


class Workspace:
    """Named buffers that are used again: fresh memory costs more than what is written to it.

    Args:
        like: For the dtype and the device.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, rows: int, dim: int) -> Tensor:
        """A buffer ``[rows, dim]`` with any content; the last one of this name is given up."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < rows * dim:
            buffer = self._buffers[name] = self._like.new_empty(rows * dim)
        return buffer[: rows * dim].view(rows, dim)


def workspace(like: Tensor) -> Workspace:
    """The workspace of this thread, dtype and device."""
    if _setting.spaces is None:
        _setting.spaces = {}
    key = like.dtype, like.device
    if key not in _setting.spaces:
        _setting.spaces[key] = Workspace(torch.empty(0, dtype=like.dtype, device=like.device))
    return _setting.spaces[key]
