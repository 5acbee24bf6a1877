"""One direction of one bucket, as a pass over its edges: where both ends of an edge lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import Bucket, GraphBatch

__all__ = ["EdgePass", "Ends", "edge_passes"]


@dataclass(frozen=True)
class EdgePass:
    """Edges of a bucket, or the reversed ones.

    Attributes:
        bucket: The edges.
        number: Of the bucket in its batch.
        is_reverse: Whether messages go from the receivers to the senders.
        receiver_rows: Rows of the flat neurons: a slice, or an index.
        sender_rows: Likewise.
    """

    bucket: Bucket
    number: int
    is_reverse: bool
    receiver_rows: slice | Tensor
    sender_rows: slice | Tensor

    @property
    def num_edges(self) -> int:
        """Edges of the bucket."""
        return self.bucket.edges[1] - self.bucket.edges[0]

    @property
    def num_targets(self) -> int:
        """Neurons that are sent a message, each counted once per block."""
        blocks, receivers, senders = self.bucket.block_shape
        return blocks * (senders if self.is_reverse else receivers)


def edge_passes(batch: GraphBatch, *, is_reverse: bool) -> list[EdgePass]:
    """One pass per bucket of a batch."""
    result = []
    for number, bucket in enumerate(batch.buckets):
        rows = []
        for which, depth in (
            (bucket.receivers, bucket.receiver_depth),
            (bucket.senders, bucket.sender_depth),
        ):
            start = batch.levels[depth][0]
            if which.index is None:
                rows.append(slice(start + which.start, start + which.start + which.length))
            else:
                rows.append(which.index + start)
        result.append(EdgePass(bucket, number, is_reverse, rows[0], rows[1]))
    return result


class Ends:
    """What both ends of the edges of a pass say: ``target_i + source_j``, and its gradient.

    Args:
        edges: The pass.
        ends: ``[N, 2 * dim]``; the first half is said as the end of a message that receives it, the
            second as the one that sends.
    """

    def __init__(self, edges: EdgePass, ends: Tensor) -> None:
        blocks, receivers, senders = edges.bucket.block_shape
        self.dim = ends.shape[1] // 2
        first, second = slice(0, self.dim), slice(self.dim, None)
        self._columns = (second, first) if edges.is_reverse else (first, second)
        self._rows = edges.receiver_rows, edges.sender_rows
        of_receivers = ends[self._rows[0], self._columns[0]]
        of_senders = ends[self._rows[1], self._columns[1]]
        self._receivers = of_receivers.view(blocks, receivers, 1, self.dim)
        self._senders = of_senders.view(blocks, 1, senders, self.dim)
        self._gradient: tuple[Tensor, Tensor] | None = None

    def add_to(self, out: Tensor, blocks: slice, receivers: slice) -> None:
        """Write ``target_i + source_j`` of a tile into ``out [k, r, senders, dim]``."""
        torch.add(self._receivers[blocks, receivers], self._senders[blocks], out=out)

    def collect(self, gradient: Tensor, blocks: slice, receivers: slice) -> None:
        """Sum the gradient ``[k, r, senders, dim]`` of a tile at both ends."""
        if self._gradient is None:
            self._gradient = (
                torch.zeros_like(self._receivers[:, :, 0], memory_format=torch.contiguous_format),
                torch.zeros_like(self._senders[:, 0], memory_format=torch.contiguous_format),
            )
        # Each receiver is in one tile; senders are in as many as a block has tiles.
        torch.sum(gradient, 2, out=self._gradient[0][blocks, receivers])
        self._gradient[1][blocks] += gradient.sum(1)

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
