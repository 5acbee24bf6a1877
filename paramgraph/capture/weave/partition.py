"""Where the blocks of a tensor lie in it, and which block an entry belongs to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from paramgraph.capture.axes import Axis, Leaf, axis_size, resolve
from paramgraph.capture.groups import Groups
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType

__all__ = ["Partition"]


class Partition:
    """The blocks of a tensor, in the order of ``Groups.blocks``.

    Attributes:
        axes: Factors of every axis of each block.
        index: For each block and axis the indices of the tensor that the block covers.
    """

    def __init__(self, groups: Groups, kind: TensorType) -> None:
        self.axes: list[Axes] = []
        self.index: list[tuple[np.ndarray, ...]] = []
        self._covered: dict[int, list[tuple[np.ndarray, list[int]]]] = {}
        start = 0
        for axes in kind.blocks if isinstance(kind, Bundle) else (kind,):
            ways = [_choices(axis) for axis in axes]
            if isinstance(kind, Bundle):
                ways[kind.axis] = [(f, index + start) for f, index in ways[kind.axis]]
                start += axis_size(axes[kind.axis])
            for choice in itertools.product(*ways):
                self.axes.append(tuple(groups.factors(factors) for factors, _ in choice))
                self.index.append(tuple(index for _, index in choice))

    def __len__(self) -> int:
        return len(self.axes)

    def find(self, place: Sequence[int | None]) -> list[int]:
        """The blocks at a place; ``None`` is anywhere on an axis."""
        if len(self.axes) == 1:
            return [0]
        found: set[int] | None = None
        for axis, at in enumerate(place):
            if at is None or len(ways := self._ways(axis)) == 1:
                continue
            here = {block for index, blocks in ways if _has(index, at) for block in blocks}
            found = here if found is None else found & here
        return list(range(len(self.axes))) if found is None else sorted(found)

    def _ways(self, axis: int) -> list[tuple[np.ndarray, list[int]]]:
        """The indices of an axis that blocks cover, each with all blocks that cover these."""
        if axis not in self._covered:
            alike: dict[bytes, tuple[np.ndarray, list[int]]] = {}
            for number, index in enumerate(self.index):
                alike.setdefault(index[axis].tobytes(), (index[axis], []))[1].append(number)
            self._covered[axis] = list(alike.values())
        return self._covered[axis]

    def probes(self, block: int) -> list[tuple[int, ...]]:
        """Some entries of a block: its first, its middle and its last one."""
        index = self.index[block]
        if any(not len(axis) for axis in index):
            return []
        places = {tuple(int(axis[int(f * (len(axis) - 1))]) for axis in index) for f in (0, 0.5, 1)}
        return sorted(places)


def _has(index: np.ndarray, at: int) -> bool:
    """Whether an index, sorted, is among some; most are ranges."""
    if not len(index) or not index[0] <= at <= index[-1]:
        return False
    return index[-1] - index[0] == len(index) - 1 or bool((index == at).any())


def _choices(axis: Axis) -> list[tuple[Axis, np.ndarray]]:
    """Every choice of one piece per leaf that has them, with the indices that it covers."""
    factors = resolve(axis)
    sizes = [axis_size((factor,)) for factor in factors]
    grid = np.arange(int(np.prod(sizes)) if sizes else 1).reshape(sizes)
    for place, factor in enumerate(factors):
        if isinstance(factor, Leaf) and factor.pieces is not None:
            found: list[tuple[Axis, np.ndarray]] = []
            start = 0
            for piece in factor.pieces:
                stop = start + axis_size(piece)
                part = grid.take(range(start, stop), axis=place).reshape(-1)
                rest = (*factors[:place], *piece, *factors[place + 1 :])
                found += [(inner, part[index]) for inner, index in _choices(rest)]
                start = stop
            return found
    return [(factors, grid.reshape(-1))]
