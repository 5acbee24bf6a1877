"""One direction of one bucket, as a pass over its edges: where both ends of an edge lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import Bucket, GraphBatch
from paramgraph.engine.kernels import Both
from paramgraph.engine.tiles import Tiles

__all__ = ["EdgePass", "Ends", "edge_passes"]


@dataclass(frozen=True)
class EdgePass:
    """Edges of a bucket, or the reversed ones, in the order (block, target, source).

    Reversed edges are in another order than the edges: all that arrives at a neuron lies together.

    Attributes:
        bucket: The edges.
        is_reverse: Whether messages go from the receivers of the edges to their senders.
        target_rows: Rows of the flat neurons: a slice, or an index.
        source_rows: Likewise.
    """

    bucket: Bucket
    is_reverse: bool
    target_rows: slice | Tensor
    source_rows: slice | Tensor

    @property
    def num_edges(self) -> int:
        """Edges of the bucket."""
        return self.bucket.edges[1] - self.bucket.edges[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(blocks, targets, sources)."""
        blocks, receivers, senders = self.bucket.block_shape
        return (blocks, senders, receivers) if self.is_reverse else (blocks, receivers, senders)

    def arrange(self, values: Tensor) -> Tensor:
        """Values of the bucket's edges ``[..., num_positions]`` as ``[*shape, num_positions]``."""
        values = values.reshape(*self.bucket.block_shape, -1)
        return values.transpose(1, 2) if self.is_reverse else values


def edge_passes(batch: GraphBatch, *, is_reverse: bool) -> list[EdgePass]:
    """One pass per bucket of a batch."""
    result = []
    for bucket in batch.buckets:
        rows: list[slice | Tensor] = []
        for which, depth in (
            (bucket.receivers, bucket.receiver_depth),
            (bucket.senders, bucket.sender_depth),
        ):
            start = batch.levels[depth][0]
            if which.index is None:
                rows.append(slice(start + which.start, start + which.start + which.length))
            else:
                rows.append(which.index + start)
        target, source = reversed(rows) if is_reverse else rows
        result.append(EdgePass(bucket, is_reverse, target, source))
    return result


class Ends:
    """What both ends of the edges of a pass say, and its gradient.

    Args:
        edges: The pass.
        ends: ``[N, 2 * dim]``; the first half is said as a target, the second as a source.
    """

    def __init__(self, edges: EdgePass, ends: Tensor) -> None:
        blocks, targets, sources = edges.shape
        self.dim = ends.shape[1] // 2
        self._columns = slice(0, self.dim), slice(self.dim, None)
        self._rows = edges.target_rows, edges.source_rows
        of_targets = ends[self._rows[0], self._columns[0]].contiguous()
        of_sources = ends[self._rows[1], self._columns[1]].contiguous()
        self._of_targets = of_targets.view(blocks, targets, 1, self.dim)
        self._of_sources = of_sources.view(blocks, 1, sources, self.dim)
        self._gradient: tuple[Tensor, Tensor] | None = None

    def cut(self, tiles: Tiles) -> list[Both]:
        """What is said in each tile."""
        parts = tiles.of_targets(self._of_targets), tiles.of_blocks(self._of_sources)
        return [Both(*both) for both in zip(*parts, strict=True)]

    def cut_gradient(self, tiles: Tiles) -> list[Both]:
        """Where the gradients of what ``cut`` gave go.

        Those of targets are written; those of sources, which are in as many tiles as a block has,
        are added.
        """
        self._gradient = torch.empty_like(self._of_targets), torch.zeros_like(self._of_sources)
        parts = tiles.of_targets(self._gradient[0]), tiles.of_blocks(self._gradient[1])
        return [Both(*both) for both in zip(*parts, strict=True)]

    def write_gradient(self, out: Tensor) -> None:
        """Add what was collected to ``out [N, 2 * dim]``."""
        if self._gradient is None:
            return
        for rows, columns, gradient in zip(self._rows, self._columns, self._gradient, strict=True):
            flat = gradient.reshape(-1, self.dim)
            if isinstance(rows, slice):
                out[rows, columns] += flat
            else:
                part = torch.zeros_like(out[:, columns], memory_format=torch.contiguous_format)
                out[:, columns] += part.index_add_(0, rows, flat)
