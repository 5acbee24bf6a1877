"""Edges of a graph network as a chain of recipes: where they start, and the updates since.

Nothing is computed until messages are made or edges are read, and then in one tiled pass. The
features in between are stored, or computed anew from the raw weights in every layer: the same
function, with memory that does not grow with the number of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.engine import (
    EdgePass,
    EdgeSource,
    EdgeUpdate,
    FilmWeights,
    edge_passes,
    film_pass,
    message_statistics,
    num_messages,
)

__all__ = ["EdgeChain"]


@dataclass(frozen=True)
class EdgeChain:
    """Features of all edges, and of the reversed ones, as they will be computed.

    Attributes:
        passes: Buckets in order, then the reversed ones if messages go both ways.
        sources: Where the features of each pass start.
        updates: What is still to be applied to them.
        pending: A linear map behind the last update. Readers are linear maps too, so both are
            multiplied first: one product of small matrices instead of one over all edges.
        is_stored: Whether features are kept when they have been computed.
    """

    passes: tuple[EdgePass, ...]
    sources: tuple[EdgeSource, ...]
    updates: tuple[EdgeUpdate, ...] = ()
    pending: nn.Linear | None = None
    is_stored: bool = True

    @staticmethod
    def start(
        batch: GraphBatch,
        up: Sequence[EdgeSource],
        down: Sequence[EdgeSource] | None,
        *,
        is_stored: bool,
    ) -> EdgeChain:
        """Edges as they are encoded.

        Args:
            batch: The networks.
            up: One source per bucket.
            down: One per bucket of reversed edges, if messages go both ways.
            is_stored: Whether features are kept when they have been computed.
        """
        passes = edge_passes(batch, is_reverse=False)
        if down is not None:
            passes += edge_passes(batch, is_reverse=True)
        return EdgeChain(tuple(passes), (*up, *(down or ())), is_stored=is_stored)

    def updated(self, own: nn.Linear, ends: Tensor, out: nn.Linear) -> EdgeChain:
        """After ``e <- out(silu(own(e) + target_i + source_j))``.

        Args:
            own: Map of the edge.
            ends: What neurons say as target and as source ``[N, 2 * dim]``.
            out: Map of the activated sum.
        """
        weight, bias = self._through(own)
        update = EdgeUpdate(weight, ends + nn.functional.pad(bias, (0, len(bias))))
        return replace(self, updates=(*self.updates, update), pending=out)

    def messages(
        self,
        film: nn.Linear,
        ends: Tensor,
        wanted: Sequence[bool],
        targets: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor, EdgeChain]:
        """Statistics of ``s * (target_i + source_j) + t``, ``[s, t] = film(e)``, per neuron.

        Args:
            film: Map to scales and shifts.
            ends: What neurons say as target and as source ``[N, 2 * dim]``.
            wanted: For each pass whether its messages are read.
            targets: First and last + 1 neuron that wanted messages reach; all when not given.

        Returns:
            Mean, min, max, std ``[n, 4 * dim]``, the number of messages ``[n, 1]``, both for the
            neurons of ``targets``, and the chain to go on with.
        """
        start, end = targets or (0, len(ends))
        chosen = [i for i, want in enumerate(wanted) if want and self.passes[i].num_edges]
        passes = [self.passes[i] for i in chosen]
        if not passes:
            nothing = ends.new_zeros(end - start, 2 * ends.shape[1])
            return nothing, nothing[:, :1], self
        weights = FilmWeights(*self._through(film), ends)
        keeps = self.is_stored and self._is_unfinished and len(chosen) == len(self.passes)
        sources = [self.sources[i] for i in chosen]
        states, totals = film_pass(
            passes,
            sources,
            self.updates,
            weights,
            keeps_state=keeps,
            reuses_state=keeps and not torch.is_grad_enabled(),
            targets=(start, end),
        )
        assert totals is not None
        count = num_messages(passes, ends.detach())[start:end]
        chain = self._with_states(states) if keeps else self
        return message_statistics(totals, count), count, chain

    def finished(self) -> EdgeChain:
        """The same features, computed and stored."""
        if not self._is_unfinished:
            return self
        return self._with_states(
            film_pass(self.passes, self.sources, self.updates, None, keeps_state=True)[0]
        )

    def _with_states(self, states: Sequence[Tensor]) -> EdgeChain:
        sources = tuple(EdgeSource(state=state) for state in states)
        return replace(self, sources=sources, updates=())

    def features(self, batch: GraphBatch) -> Tensor:
        """Features of the edges before the pending map ``[E, dim]``."""
        num = len(batch.buckets)
        chain = replace(self, passes=self.passes[:num], sources=self.sources[:num]).finished()
        return torch.cat([_state(source) for source in chain.sources])

    def read(self, features: Tensor) -> Tensor:
        """Features after the pending map."""
        return features if self.pending is None else self.pending(features)

    def value(self, batch: GraphBatch) -> Tensor:
        """Features of the edges ``[E, dim]``."""
        return self.read(self.features(batch))

    @property
    def _is_unfinished(self) -> bool:
        return bool(self.updates) or any(source.state is None for source in self.sources)

    def _through(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of ``linear`` behind the pending map."""
        if self.pending is None:
            return linear.weight, linear.bias
        weight = linear.weight @ self.pending.weight
        return weight, linear.weight @ self.pending.bias + linear.bias


def _state(source: EdgeSource) -> Tensor:
    assert source.state is not None
    return source.state
