"""A pass over edges: where their features come from, what happens to them, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from paramgraph.engine.compiling import runs_natively
from paramgraph.engine.edge_pass import EdgePass, Ends
from paramgraph.engine.kernels import FilmTile, RawTile, UpdateTile
from paramgraph.engine.tiles import Tiles, rows_of_tile, workspace

__all__ = ["EdgeSource", "EdgeTiles", "EdgeUpdate", "FilmWeights"]


@dataclass(frozen=True)
class EdgeSource:
    """Where the features of the edges of one pass come from.

    Attributes:
        state: Stored features ``[E, dim]`` in the order of the pass; if given, nothing else is.
        values: Raw weights ``[blocks, targets, sources, num_positions]``, see ``EdgePass.arrange``.
        basis: Fixed directions ``[num_positions, num_rows]`` that they are projected on.
        is_wave: Whether cos and sin of the projections are read, or the projections.
        weight: ``[dim, num_features]`` of the linear map that reads them; ``None`` reads nothing.
        bias: ``[dim]``.
    """

    state: Tensor | None = None
    values: Tensor | None = None
    basis: Tensor | None = None
    is_wave: bool = True
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def like(self) -> Tensor:
        """A tensor with the width, dtype and device of the features.

        Raises:
            ValueError: There is neither a state nor a bias.
        """
        like = self.bias if self.state is None else self.state
        if like is None:
            raise ValueError("an EdgeSource needs a state or a bias.")
        return like


class EdgeUpdate(NamedTuple):
    """``x <- silu(W x + target_i + source_j)``; a bias is part of what the ends say.

    Attributes:
        weight: W ``[dim, dim]``.
        ends: ``[N, 2 * dim]`` target, source.
    """

    weight: Tensor
    ends: Tensor


class FilmWeights(NamedTuple):
    """``m = s * (target_i + source_j) + t`` with ``[s, t] = F x + f``.

    Attributes:
        weight: F ``[2 * dim, dim]``.
        bias: f ``[2 * dim]``.
        ends: ``[N, 2 * dim]`` target, source.
    """

    weight: Tensor
    bias: Tensor
    ends: Tensor


_NATIVE_TILES = 8
"""Compiled code is called for so many tiles at once: a call costs as much as some hundred edges."""


class EdgeTiles:
    """What forward and backward share: the arguments of a pass, cut into tiles.

    Args:
        edges: The pass.
        source: Where features come from.
        updates: Applied to them.
        film: Makes messages of them; ``None`` makes none.
        is_kept: Whether the features after all updates are stored.
    """

    def __init__(
        self,
        edges: EdgePass,
        source: EdgeSource,
        updates: Sequence[EdgeUpdate],
        film: FilmWeights | None,
        *,
        is_kept: bool,
    ) -> None:
        self.edges = edges
        self.source = source
        self.film = film
        self.like = like = source.like
        self.space = workspace(like)
        self.dim = like.shape[-1]
        self.is_native = runs_natively(like)
        # Compiled code has few edges in hand at a time, so what it reads need not be cut if stored.
        is_stored = source.state is not None or (is_kept and not updates)
        rows = rows_of_tile(self.dim, like)
        if self.is_native:
            rows = max(1, edges.num_edges) if is_stored else _NATIVE_TILES * rows
        self.tiles = Tiles(edges.shape, rows)
        self.weights = [update.weight for update in updates]
        self.ends = [Ends(edges, update.ends) for update in updates]
        self.film_ends = None if film is None else Ends(edges, film.ends)

    def source_tiles(self) -> Sequence[Tensor | RawTile]:
        """Features before the updates, stored or raw, of each tile."""
        source = self.source
        if source.state is not None:
            return self.tiles.of_rows(source.state)
        assert source.bias is not None
        if source.weight is None:
            return [source.bias.expand(num, -1).contiguous() for num in self.tiles.num_rows]
        assert source.values is not None
        assert source.basis is not None
        parts = source.basis, source.is_wave, source.weight, source.bias
        return [
            RawTile(values.reshape(-1, values.shape[-1]), *parts)
            for values in self.tiles.of_targets(source.values)
        ]

    def update_tiles(self) -> list[list[UpdateTile]]:
        """Weight and ends of each update, for each tile."""
        of_updates = [
            [UpdateTile(weight, ends) for ends in each.cut(self.tiles)]
            for weight, each in zip(self.weights, self.ends, strict=True)
        ]
        if not of_updates:
            return [[] for _ in self.tiles.num_rows]
        return [list(tile) for tile in zip(*of_updates, strict=True)]

    def film_tiles(self) -> list[FilmTile]:
        """Weight, bias and ends of the messages, for each tile."""
        assert self.film is not None
        assert self.film_ends is not None
        weight, bias, _ = self.film
        return [FilmTile(weight, bias, ends) for ends in self.film_ends.cut(self.tiles)]

    def target_tiles(self, rows: Tensor) -> Sequence[Tensor]:
        """Of ``rows [num_targets, dim]`` those of each tile ``[k, t, dim]``."""
        return self.tiles.of_targets(rows.view(*self.edges.shape[:2], self.dim))
