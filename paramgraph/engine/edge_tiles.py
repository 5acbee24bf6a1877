"""A tile of edges: its features from their source, through updates, to messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass, Ends
from paramgraph.engine.tiles import Tile, tiles, workspace

__all__ = ["EdgeSource", "EdgeTiles", "EdgeUpdate", "FilmWeights", "TilePlace"]


@dataclass(frozen=True)
class EdgeSource:
    """Where the features of the edges of one pass come from.

    Attributes:
        state: Stored features ``[E, dim]``; if given, nothing else is.
        values: Raw weights ``[E, num_positions]``.
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


class TilePlace(NamedTuple):
    """A tile as slices."""

    blocks: slice
    receivers: slice
    rows: slice
    shape: tuple[int, int, int]
    num_rows: int

    @staticmethod
    def of(tile: Tile, senders: int) -> TilePlace:
        """From a tile of a bucket with so many senders."""
        num = tile.blocks[1] - tile.blocks[0], tile.receivers[1] - tile.receivers[0], senders
        rows = slice(tile.start, tile.start + tile.num_rows)
        return TilePlace(slice(*tile.blocks), slice(*tile.receivers), rows, num, tile.num_rows)


class EdgeTiles:
    """What forward and backward share: features of a tile from its source, through all updates."""

    def __init__(
        self,
        edges: EdgePass,
        source: EdgeSource,
        updates: Sequence[EdgeUpdate],
        film: FilmWeights | None,
    ) -> None:
        self.edges = edges
        self.source = source
        self.updates = updates
        self.film = film
        like = source.state if source.state is not None else source.bias
        assert like is not None
        self.like = like
        self.space = workspace(like)
        self.dim = film.weight.shape[1] if film is not None else like.shape[-1]
        self.num_blocks, self.num_receivers, self.num_senders = edges.bucket.block_shape
        self.ends = [Ends(edges, update.ends) for update in updates]
        self.film_ends = None if film is None else Ends(edges, film.ends)
        self.axis = 1 if edges.is_reverse else 2

    def places(self) -> list[TilePlace]:
        """All tiles of the bucket."""
        shape = self.edges.bucket.block_shape
        return [TilePlace.of(tile, shape[2]) for tile in tiles(*shape, self.dim, self.like)]

    @property
    def targets_meet_once(self) -> bool:
        """Whether all messages to a neuron are in one tile."""
        if not self.edges.is_reverse:
            return True
        return all(place.shape[1] == self.num_receivers for place in self.places())

    def read(self, place: TilePlace, out: Tensor | None = None) -> Tensor:
        """Features of a tile before the updates ``[n, dim]``; new ones are written to ``out``."""
        source = self.source
        if source.state is not None:
            return source.state[place.rows]
        assert source.bias is not None
        width = source.bias.shape[0]
        out = self.space.get("encoded", place.num_rows, width) if out is None else out
        if source.weight is None:
            return out.copy_(source.bias.expand(place.num_rows, -1))
        return torch.addmm(source.bias, self.features(place), source.weight.t(), out=out)

    def features(self, place: TilePlace) -> Tensor:
        """What the linear map of a raw source reads ``[n, num_features]``."""
        values, basis = self.source.values, self.source.basis
        assert values is not None
        assert basis is not None
        num = basis.shape[1]
        if not self.source.is_wave:
            phase = self.space.get("features", place.num_rows, num)
            return torch.mm(values[place.rows], basis, out=phase)
        phase = self.space.get("phase", place.num_rows, num)
        torch.mm(values[place.rows], basis, out=phase)
        both = self.space.get("features", place.num_rows, 2 * num)
        torch.cos(phase, out=both[:, :num])
        torch.sin(phase, out=both[:, num:])
        return both

    def update(self, number: int, x: Tensor, place: TilePlace, out: Tensor) -> Tensor:
        """``W x + target_i + source_j`` of one update, before the activation, into ``out``."""
        self.ends[number].add_to(out.view(*place.shape, self.dim), place.blocks, place.receivers)
        return out.addmm_(x, self.updates[number].weight.t())

    def messages(self, x: Tensor, place: TilePlace) -> tuple[Tensor, Tensor, Tensor]:
        """Messages ``[k, r, senders, dim]``, scales and shifts ``[n, 2 dim]``, and ends' sums."""
        assert self.film is not None
        assert self.film_ends is not None
        shape = *place.shape, self.dim
        both = self.space.get("film", place.num_rows, 2 * self.dim)
        torch.addmm(self.film.bias, x, self.film.weight.t(), out=both)
        sums = self.space.get("sums", place.num_rows, self.dim).view(shape)
        self.film_ends.add_to(sums, place.blocks, place.receivers)
        scale, shift = both.view(*place.shape, 2 * self.dim).chunk(2, dim=-1)
        messages = self.space.get("messages", place.num_rows, self.dim).view(shape)
        torch.addcmul(shift, scale, sums, out=messages)
        return messages, both, sums
