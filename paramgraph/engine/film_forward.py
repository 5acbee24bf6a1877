"""The forward half of ``film_pass``: one pass over the edges of one bucket and direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeTiles, EdgeUpdate, FilmWeights, TilePlace
from paramgraph.engine.moments import BucketMoments

__all__ = ["ForwardPass"]


class ForwardPass(EdgeTiles):
    """Runs one pass.

    Attributes:
        state: Features after all updates, if they are kept.
        moments: Statistics of the messages, if any are made.
        ties: How many messages share the least and the largest value, where a neuron's messages
            are spread over tiles (otherwise the backward pass counts them itself).
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
        self.ties: tuple[Tensor | None, Tensor | None] = None, None
        self._new = None
        if film is not None:
            new = self.like.new_zeros(4, edges.num_targets, self.dim)
            self.moments = BucketMoments(*new.unbind())
            self._once = self.targets_meet_once
            if not self._once:
                self.moments.lows.fill_(torch.inf)
                self.moments.highs.fill_(-torch.inf)
                self.ties = torch.zeros_like(new[0]), torch.zeros_like(new[0])

    def run(self) -> None:
        """Fill ``state`` and ``moments``."""
        for place in self.places():
            x = self._edges_of(place)
            if self.film is not None:
                self._reduce(self.messages(x, place)[0], place)

    def _edges_of(self, place: TilePlace) -> Tensor:
        """Features of a tile after all updates; they are written to ``state``."""
        kept = None if self.state is None else self.state[place.rows]
        if not self.updates:
            x = self.read(place, kept)
            return x if kept is None or x.data_ptr() == kept.data_ptr() else kept.copy_(x)
        x = self.read(place)
        for number in range(len(self.updates)):
            is_last = number == len(self.updates) - 1
            before = self.space.get("before", place.num_rows, self.dim)
            self.update(number, x, place, before)
            name = f"after {number % 2}"  # the one before is still read
            out = kept if is_last and kept is not None else None
            out = self.space.get(name, place.num_rows, self.dim) if out is None else out
            x = torch.ops.aten.silu.out(before, out=out)
        return x

    def _reduce(self, messages: Tensor, place: TilePlace) -> None:
        assert self.moments is not None
        num = self.num_senders if self.edges.is_reverse else self.num_receivers
        parts = [part.view(self.num_blocks, num, self.dim)[place.blocks] for part in self.moments]
        square = self.space.get("sums", place.num_rows, self.dim).view(messages.shape)
        torch.mul(messages, messages, out=square)
        if self._once:
            parts = parts if self.edges.is_reverse else [part[:, place.receivers] for part in parts]
            torch.sum(messages, self.axis, out=parts[0])
            torch.sum(square, self.axis, out=parts[1])
            torch.amin(messages, self.axis, out=parts[2])
            torch.amax(messages, self.axis, out=parts[3])
            return
        parts[0] += messages.sum(self.axis)
        parts[1] += square.sum(self.axis)
        for part, ties, extreme, better in (
            (parts[2], self.ties[0], torch.amin, torch.minimum),
            (parts[3], self.ties[1], torch.amax, torch.maximum),
        ):
            assert ties is not None
            here = extreme(messages, self.axis, keepdim=True)
            num_here = torch.eq(messages, here, out=square).sum(self.axis)
            new = better(part, here.squeeze(self.axis))
            count = ties.view(self.num_blocks, num, self.dim)[place.blocks]
            count.mul_(part == new).add_(num_here * (here.squeeze(self.axis) == new))
            part.copy_(new)
