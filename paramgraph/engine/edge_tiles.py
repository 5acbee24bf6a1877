"""A pass over edges: where their features come from, what happens to them, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass, Ends
from paramgraph.engine.kernels import FilmTile, RawTile, UpdateTile
from paramgraph.engine.tiles import Tile, tiles, workspace

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


class EdgeTiles:
    """What forward and backward share: the arguments of a pass, cut into tiles.

    Args:
        edges: The pass.
        source: Where features come from.
        updates: Applied to them.
        film: Makes messages of them; ``None`` makes none.
    """

    def __init__(
        self,
        edges: EdgePass,
        source: EdgeSource,
        updates: Sequence[EdgeUpdate],
        film: FilmWeights | None,
    ) -> None:
        self.edges = edges
        self.source = source
        self.film = film
        like = source.state if source.state is not None else source.bias
        assert like is not None
        self.like = like
        self.space = workspace(like)
        self.dim = like.shape[-1]
        self.weights = [update.weight for update in updates]
        self.ends = [Ends(edges, update.ends) for update in updates]
        self.film_ends = None if film is None else Ends(edges, film.ends)

    def tiles(self) -> Iterator[Tile]:
        """All tiles of the pass."""
        return tiles(*self.edges.shape, self.dim, self.like)

    def of_targets(self, rows: Tensor, tile: Tile) -> Tensor:
        """Of ``rows [num_targets, dim]`` those of a tile ``[k, t, dim]``."""
        return rows.view(*self.edges.shape[:2], self.dim)[tile.blocks, tile.targets]

    def source_of(self, tile: Tile) -> Tensor | RawTile:
        """Features before the updates, stored or raw."""
        source = self.source
        if source.state is not None:
            return source.state[tile.rows]
        assert source.bias is not None
        if source.weight is None:
            return source.bias.expand(tile.num_rows, -1).contiguous()
        assert source.values is not None
        assert source.basis is not None
        values = source.values[tile.blocks, tile.targets].reshape(tile.num_rows, -1)
        return RawTile(values, source.basis, source.is_wave, source.weight, source.bias)

    def updates_of(self, tile: Tile) -> list[UpdateTile]:
        """Weight and ends of each update."""
        return [
            UpdateTile(weight, ends.tile(tile.blocks, tile.targets))
            for weight, ends in zip(self.weights, self.ends, strict=True)
        ]

    def film_of(self, tile: Tile) -> FilmTile | None:
        """Weight, bias and ends of the messages."""
        if self.film is None or self.film_ends is None:
            return None
        ends = self.film_ends.tile(tile.blocks, tile.targets)
        return FilmTile(self.film.weight, self.film.bias, ends)
