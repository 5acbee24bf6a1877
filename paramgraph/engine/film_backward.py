"""The backward half of ``film_pass``: each tile is computed anew, then taken back to its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeTiles, EdgeUpdate, FilmWeights
from paramgraph.engine.kernels import Both, RawTile, TileGradients, backward_tile
from paramgraph.engine.tiles import Tile

__all__ = ["BackwardPass", "Gradients"]


class Gradients:
    """Gradients of weights and ends, summed over passes, and those of sources, one per pass.

    Args:
        shared: Weight and ends of each update, then weight, bias and ends of the messages.
    """

    def __init__(self, shared: Sequence[Tensor | None]) -> None:
        self.shared = [None if t is None else torch.zeros_like(t) for t in shared]
        self.sources: list[list[Tensor | None]] = []

    def of_update(self, number: int) -> tuple[Tensor, Tensor]:
        """Of its weight and its ends."""
        weight, ends = self.shared[2 * number : 2 * number + 2]
        assert weight is not None
        assert ends is not None
        return weight, ends

    def of_film(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of weight, bias and ends."""
        weight, bias, ends = self.shared[-3:]
        assert weight is not None
        assert bias is not None
        assert ends is not None
        return weight, bias, ends

    def of_all(self, num_passes: int) -> list[Tensor | None]:
        """In the order of the arguments."""
        assert len(self.sources) == num_passes
        return [*self.shared, *(t for source in self.sources for t in source)]


class BackwardPass(EdgeTiles):
    """Takes gradients of one pass back.

    Args:
        edges: As given forward.
        source: Likewise.
        updates: Likewise.
        film: Likewise.
        total: Where gradients are added.
        wanted: Which of the tensors of ``source`` need one.
    """

    def __init__(
        self,
        edges: EdgePass,
        source: EdgeSource,
        updates: Sequence[EdgeUpdate],
        film: FilmWeights | None,
        total: Gradients,
        wanted: Sequence[bool],
    ) -> None:
        super().__init__(edges, source, updates, film)
        self.total = total
        given = (source.state, source.values, None, source.weight, source.bias)
        self.of_source = [
            torch.zeros_like(t) if t is not None and want else None
            for t, want in zip(given, wanted, strict=True)
        ]
        total.sources.append(self.of_source)

    def run(
        self,
        state: Tensor | None,
        gradient: Tensor | None,
        of_moments: Sequence[Tensor | None] | None,
    ) -> None:
        """All tiles.

        Args:
            state: Features after all updates, if they were kept.
            gradient: Of these, if somebody reads them.
            of_moments: Gradients of the statistics of the messages, if there are any.
        """
        given: list[Tensor] = []
        if of_moments is not None and any(g is not None for g in of_moments):
            blocks, targets, _ = self.edges.shape
            zero = self.like.new_zeros(()).expand(blocks * targets, self.dim)
            given = [(zero if g is None else g).contiguous() for g in of_moments]
        if not given and gradient is None:
            return
        of_state, of_values, _, of_weight, of_bias = self.of_source
        for tile in self.tiles():
            source = self.source_of(tile)
            out = TileGradients(
                None if of_state is None else of_state[tile.rows],
                (of_weight, of_bias),
                [
                    (self.total.of_update(number)[0], ends.gradient_tile(tile.blocks, tile.targets))
                    for number, ends in enumerate(self.ends)
                ],
                self._of_film(tile) if given else None,
            )
            flows = backward_tile(
                self.space,
                source,
                self.updates_of(tile),
                self.film_of(tile) if given else None,
                None if state is None else state[tile.rows],
                None if gradient is None else gradient[tile.rows],
                [self.of_targets(g, tile).unsqueeze(2) for g in given],
                out,
            )
            if of_values is not None and isinstance(source, RawTile):
                part = of_values[tile.blocks, tile.targets]
                part.copy_(source.values_gradient(self.space, flows).view(part.shape))
            elif self.source.state is None and self.source.weight is None and of_bias is not None:
                of_bias.add_(flows.sum(0))  # a constant source is nothing but a bias
        for number, ends in enumerate(self.ends):
            ends.write_gradient(self.total.of_update(number)[1])
        if given and self.film_ends is not None:
            self.film_ends.write_gradient(self.total.of_film()[2])

    def _of_film(self, tile: Tile) -> tuple[Tensor, Tensor, Both]:
        assert self.film_ends is not None
        weight, bias, _ = self.total.of_film()
        return weight, bias, self.film_ends.gradient_tile(tile.blocks, tile.targets)
