"""The forward half of ``film_pass``: one pass over the edges of one bucket and direction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeTiles, EdgeUpdate, FilmWeights
from paramgraph.engine.kernels import FilmTile, RawTile, UpdateTile, read_tile
from paramgraph.engine.moments import MessageTotals
from paramgraph.engine.native import forward_natively

__all__ = ["ForwardPass"]


class ForwardPass(EdgeTiles):
    """Runs one pass.

    Args:
        edges: As for ``EdgeTiles``.
        source: Likewise.
        updates: Likewise.
        film: Likewise.
        state: Where the features after all updates are kept, if they are.

    Attributes:
        totals: Of the messages, if any are made, one row per target.
    """

    def __init__(
        self,
        edges: EdgePass,
        source: EdgeSource,
        updates: Sequence[EdgeUpdate],
        film: FilmWeights | None,
        state: Tensor | None,
    ) -> None:
        super().__init__(edges, source, updates, film, is_kept=state is not None)
        self.state = state
        self.totals: MessageTotals | None = None
        if film is not None:
            new = self.like.new_empty(4, edges.shape[0] * edges.shape[1], self.dim)
            self.totals = MessageTotals(*new.unbind())

    def run(self) -> None:
        """Fill ``state`` and ``totals``."""
        sources, updates = self.source_tiles(), self.update_tiles()
        none: list[None] = [None] * len(updates)
        kept = none if self.state is None else self.tiles.of_rows(self.state)
        films: Sequence[FilmTile | None] = none
        totals: Sequence[Sequence[Tensor]] = [()] * len(updates)
        if self.totals is not None:
            films = self.film_tiles()
            parts = (self.target_tiles(total) for total in self.totals)
            totals = list(zip(*parts, strict=True))
        for tile in zip(sources, updates, films, kept, totals, strict=True):
            self._run_tile(*tile)

    def _run_tile(
        self,
        source: Tensor | RawTile,
        updates: list[UpdateTile],
        film: FilmTile | None,
        kept: Tensor | None,
        totals: Sequence[Tensor],
    ) -> None:
        if not self.is_native or (film is None and not updates):
            x = read_tile(self.space, source, updates, kept)
            if film is not None:
                film.moments(self.space, x, totals)
            return
        x = read_tile(self.space, source, (), None if updates else kept)
        forward_natively(x, updates, film, kept if updates else None, totals)
