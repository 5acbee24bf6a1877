"""Tiles of edges that stay in cache, and the buffers that they are computed in."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Tiles", "Workspace", "rows_of_tile", "tile_bytes", "workspace"]

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
        ...     rows_of_tile(8, torch.zeros(1))
        32
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes of a tile must be positive, got {num_bytes}.")
    before, _setting.num_bytes = _setting.num_bytes, num_bytes
    try:
        yield
    finally:
        _setting.num_bytes = before


class Tiles:
    """Edges ``[blocks, targets, sources]`` in tiles: whole blocks, or some targets of one block.

    Args:
        shape: Blocks, targets and sources.
        rows: Edges of a tile, if they are not fewer than the sources.

    Attributes:
        num_rows: Edges of each tile.

    Example:
        >>> Tiles((6, 4, 4), 40).num_rows
        [32, 32, 32]
    """

    def __init__(self, shape: tuple[int, int, int], rows: int) -> None:
        blocks, targets, sources = shape
        self.shape = shape
        self._blocks_each = rows // max(1, targets * sources)
        self._targets_each: list[int] = []
        if not blocks * targets * sources:
            self.num_rows: list[int] = []
        elif self._blocks_each:
            sizes = _parts(blocks, self._blocks_each)
            self.num_rows = [size * targets * sources for size in sizes]
        else:
            # Equal tiles, so that the last one is not a rest of few rows.
            num = math.ceil(targets / max(1, rows // sources))
            self._targets_each = _parts(targets, math.ceil(targets / num))
            self.num_rows = [size * sources for size in self._targets_each] * blocks

    def of_rows(self, tensor: Tensor) -> Sequence[Tensor]:
        """Cut ``[E, ...]``."""
        return tensor.split(self.num_rows)

    def of_targets(self, tensor: Tensor) -> Sequence[Tensor]:
        """Cut ``[blocks, targets, ...]``."""
        if not self._targets_each:
            return tensor.split(self._blocks_each) if self.num_rows else ()
        blocks = tensor.split(1)
        return [part for block in blocks for part in block.split(self._targets_each, dim=1)]

    def of_blocks(self, tensor: Tensor) -> Sequence[Tensor]:
        """Cut ``[blocks, ...]``; tiles of one block get the same part."""
        if not self._targets_each:
            return tensor.split(self._blocks_each) if self.num_rows else ()
        return [block for block in tensor.split(1) for _ in self._targets_each]


def rows_of_tile(dim: int, like: Tensor) -> int:
    """How many rows of a buffer ``[rows, dim]`` fit the size of a tile."""
    return max(1, _bytes(like.device) // (dim * like.element_size()))


def _parts(total: int, each: int) -> list[int]:
    """``total`` in parts of ``each``, the last one smaller."""
    return [min(each, total - start) for start in range(0, total, each)]


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
