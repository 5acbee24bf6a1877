"""Statistics of several passes put together per neuron, and their gradients taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.moments import MessageTotals

__all__ = ["TotalGradients", "join_totals"]


def _rows_in(edges: EdgePass, start: int) -> slice | Tensor:
    """Rows of the targets of a pass, counted from ``start``."""
    rows = edges.target_rows
    if isinstance(rows, slice):
        return slice(rows.start - start, rows.stop - start)
    return rows - start


def join_totals(
    passes: Sequence[EdgePass], parts: Sequence[MessageTotals], targets: tuple[int, int]
) -> MessageTotals:
    """Totals over all passes, for the neurons from ``targets[0]`` to ``targets[1]``.

    Args:
        passes: The passes.
        parts: What each sends to its targets.
        targets: Range of neurons that all targets lie in.
    """
    first = parts[0].sums
    shape = targets[1] - targets[0], first.shape[1]
    sums, squares = first.new_zeros(shape), first.new_zeros(shape)
    lows, highs = first.new_full(shape, torch.inf), first.new_full(shape, -torch.inf)
    for edges, part in zip(passes, parts, strict=True):
        rows = _rows_in(edges, targets[0])
        if isinstance(rows, slice):
            sums[rows] += part.sums
            squares[rows] += part.squares
            torch.minimum(lows[rows], part.lows, out=lows[rows])
            torch.maximum(highs[rows], part.highs, out=highs[rows])
        else:
            sums.index_add_(0, rows, part.sums)
            squares.index_add_(0, rows, part.squares)
            index = rows[:, None].expand_as(part.lows)
            lows.scatter_reduce_(0, index, part.lows, "amin")
            highs.scatter_reduce_(0, index, part.highs, "amax")
    return MessageTotals(
        sums, squares, lows.masked_fill_(lows.isinf(), 0), highs.masked_fill_(highs.isinf(), 0)
    )


class TotalGradients:
    """Gradients of totals, as each pass gets them.

    Blocks that share the least (or the largest) message of a neuron share its gradient.

    Args:
        passes: The passes.
        parts: What each sent.
        totals: Of all.
        gradients: Of the totals, ``None`` for 0.
        targets: As for ``join_totals``.
    """

    def __init__(
        self,
        passes: Sequence[EdgePass],
        parts: Sequence[MessageTotals],
        totals: MessageTotals,
        gradients: Sequence[Tensor | None],
        targets: tuple[int, int],
    ) -> None:
        zero = totals.sums.new_zeros(()).expand_as(totals.sums)
        self._gradients = [zero if g is None else g for g in gradients]
        self._rows = [_rows_in(edges, targets[0]) for edges in passes]
        self._is_mine: list[list[Tensor]] = []
        for number, name in ((2, "lows"), (3, "highs")):
            total = getattr(totals, name)
            mine = [
                (getattr(part, name) == total[rows]).to(total.dtype)
                for part, rows in zip(parts, self._rows, strict=True)
            ]
            count = torch.zeros_like(total)
            for rows, flag in zip(self._rows, mine, strict=True):
                if isinstance(rows, slice):
                    count[rows] += flag
                else:
                    count.index_add_(0, rows, flag)
            self._gradients[number] = self._gradients[number] / count.clamp(min=1)
            self._is_mine.append(mine)

    def of_pass(self, number: int) -> MessageTotals:
        """Gradients of what one pass sent, one row per target."""
        sums, squares, lows, highs = (g[self._rows[number]].contiguous() for g in self._gradients)
        lows, highs = lows * self._is_mine[0][number], highs * self._is_mine[1][number]
        return MessageTotals(sums, squares, lows, highs)
