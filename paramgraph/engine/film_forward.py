"""The forward half of ``film_pass``: one pass over the edges of one bucket and direction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeTiles, EdgeUpdate, FilmWeights
from paramgraph.engine.kernels import read_tile
from paramgraph.engine.moments import MessageTotals

__all__ = ["ForwardPass"]


class ForwardPass(EdgeTiles):
    """Runs one pass.

    Args:
        edges: As for ``EdgeTiles``.
        source: Likewise.
        updates: Likewise.
        film: Likewise.
        keeps_state: Whether the features after all updates are kept.

    Attributes:
        state: These, if they are kept.
        totals: Of the messages, if any are made, one row per target.
    """

    def __init__(
        self,
        edges: EdgePass,
        source: EdgeSource,
        updates: Sequence[EdgeUpdate],
        film: FilmWeights | None,
        *,
        keeps_state: bool,
    ) -> None:
        super().__init__(edges, source, updates, film)
        self.state = self.like.new_empty(edges.num_edges, self.dim) if keeps_state else None
        self.totals: MessageTotals | None = None
        if film is not None:
            new = self.like.new_empty(4, edges.shape[0] * edges.shape[1], self.dim)
            self.totals = MessageTotals(*new.unbind())

    def run(self) -> None:
        """Fill ``state`` and ``totals``."""
        sources, updates = self.source_tiles(), self.update_tiles()
        kept: Sequence[Tensor | None] = [None] * len(updates)
        if self.state is not None:
            kept = self.tiles.of_rows(self.state)
        if self.totals is None:
            for tile in zip(sources, updates, kept, strict=True):
                read_tile(self.space, *tile)
            return
        out = zip(*(self.target_tiles(total) for total in self.totals), strict=True)
        for *tile, film, totals in zip(sources, updates, kept, self.film_tiles(), out, strict=True):
            film.moments(self.space, read_tile(self.space, *tile), totals)
