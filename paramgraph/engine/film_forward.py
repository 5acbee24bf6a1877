"""The forward half of ``film_pass``: one pass over the edges of one bucket and direction."""

from __future__ import annotations

from collections.abc import Sequence

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeTiles, EdgeUpdate, FilmWeights
from paramgraph.engine.kernels import read_tile
from paramgraph.engine.moments import BucketMoments

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
        moments: Statistics of the messages, if any are made.
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
        self.moments: BucketMoments | None = None
        if film is not None:
            blocks, targets, _ = edges.shape
            new = self.like.new_empty(4, blocks * targets, self.dim)
            self.moments = BucketMoments(*new.unbind())

    def run(self) -> None:
        """Fill ``state`` and ``moments``."""
        for tile in self.tiles():
            kept = None if self.state is None else self.state[tile.rows]
            x = read_tile(self.space, self.source_of(tile), self.updates_of(tile), kept)
            film = self.film_of(tile)
            if self.moments is not None and film is not None:
                film.moments(self.space, x, [self.of_targets(m, tile) for m in self.moments])
