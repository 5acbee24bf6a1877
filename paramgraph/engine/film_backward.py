"""The backward half of ``film_pass``: each tile is computed anew, then taken back to its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeTiles, EdgeUpdate, FilmWeights
from paramgraph.engine.kernels import (
    Both,
    FilmTile,
    RawTile,
    TileGradients,
    UpdateTile,
    backward_tile,
    read_tile,
)
from paramgraph.engine.moments import MessageTotals
from paramgraph.engine.native import backward_natively

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
        is_kept: Whether the features after all updates were kept.
    """

    def __init__(
        self,
        edges: EdgePass,
        source: EdgeSource,
        updates: Sequence[EdgeUpdate],
        film: FilmWeights | None,
        total: Gradients,
        wanted: Sequence[bool],
        *,
        is_kept: bool,
    ) -> None:
        super().__init__(edges, source, updates, film, is_kept=is_kept)
        self.total = total
        self.is_constant = source.state is None and source.weight is None
        # States and values are written, weights and biases added to.
        given = (source.state, source.values, None, source.weight, source.bias)
        new = (torch.empty_like, torch.empty_like, None, torch.zeros_like, torch.zeros_like)
        self.of_source = [
            make(t) if t is not None and make is not None and want else None
            for t, make, want in zip(given, new, wanted, strict=True)
        ]
        total.sources.append(self.of_source)

    def run(
        self, state: Tensor | None, gradient: Tensor | None, of_totals: MessageTotals | None
    ) -> None:
        """All tiles.

        Args:
            state: Features after all updates, if they were kept.
            gradient: Of these, if somebody reads them.
            of_totals: Gradients of the totals of the messages, if there are any.
        """
        if of_totals is None and gradient is None:
            self.of_source[:] = [None] * len(self.of_source)  # nothing was written
            return
        sources, updates = self.source_tiles(), self.update_tiles()
        none: list[Any] = [None] * len(updates)
        films, of_films = none, none
        totals: list[list[Tensor]] = [[] for _ in updates]
        if of_totals is not None:
            films, of_films = self.film_tiles(), self._film_gradients()
            parts = [self.target_tiles(total) for total in of_totals]
            totals = [[part.unsqueeze(2) for part in tile] for tile in zip(*parts, strict=True)]
        out = [
            TileGradients(*tile)
            for tile in zip(
                *self._source_gradients(), self._update_gradients(), of_films, strict=True
            )
        ]
        arguments = zip(
            sources,
            updates,
            films,
            none if state is None else self.tiles.of_rows(state),
            none if gradient is None else self.tiles.of_rows(gradient.contiguous()),
            totals,
            out,
            strict=True,
        )
        of_values = none if self.of_source[1] is None else self.tiles.of_targets(self.of_source[1])
        for tile, part in zip(arguments, of_values, strict=True):
            flows = self._run_tile(*tile)
            source = tile[0]
            if part is not None and isinstance(source, RawTile):
                part.copy_(source.values_gradient(self.space, flows).view(part.shape))
            elif self.is_constant and self.of_source[4] is not None:
                self.of_source[4].add_(flows.sum(0))
        for number, ends in enumerate(self.ends):
            ends.write_gradient(self.total.of_update(number)[1])
        if of_totals is not None and self.film_ends is not None:
            self.film_ends.write_gradient(self.total.of_film()[2])

    def _run_tile(
        self,
        source: Tensor | RawTile,
        updates: list[UpdateTile],
        film: FilmTile | None,
        state: Tensor | None,
        flows: Tensor | None,
        of_totals: Sequence[Tensor],
        out: TileGradients,
    ) -> Tensor:
        """Gradient of the features before all updates."""
        if not self.is_native or (film is None and not updates):
            return backward_tile(self.space, source, updates, film, state, flows, of_totals, out)
        if isinstance(source, RawTile) and state is not None and not updates:
            x = state
        else:
            x = read_tile(self.space, source, (), None)
        of_x = self.space.get("of input", x.shape) if out.source is None else out.source
        backward_natively(x, updates, film, state, flows, of_totals, out, of_x)
        if isinstance(source, RawTile):
            source.add_gradients(self.space, of_x, out.raw)
        return of_x

    def _source_gradients(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """Where the gradients of states go, and those of weight and bias of a raw source."""
        of_state, _, _, *of_raw = self.of_source
        num = len(self.tiles.num_rows)
        states = [None] * num if of_state is None else self.tiles.of_rows(of_state)
        return states, [tuple(of_raw)] * num

    def _update_gradients(self) -> list[list[tuple[Tensor, Both]]]:
        each = [
            [(self.total.of_update(number)[0], both) for both in ends.cut_gradient(self.tiles)]
            for number, ends in enumerate(self.ends)
        ]
        if not each:
            return [[] for _ in self.tiles.num_rows]
        return [list(tile) for tile in zip(*each, strict=True)]

    def _film_gradients(self) -> list[tuple[Tensor, Tensor, Both]]:
        assert self.film_ends is not None
        weight, bias, _ = self.total.of_film()
        return [(weight, bias, both) for both in self.film_ends.cut_gradient(self.tiles)]
