"""Messages that edges scale and shift, their statistics, and edge updates, in one tiled pass.

For every edge: its feature x, from a stored state or from the raw weight; then any number of
updates ``x <- silu(W x + b + source_i + target_j)``; then the message ``m = s * (A_i + B_j) + t``
with ``[s, t] = F x + f``; then the sum, the sum of squares, the least and the largest message per
neuron. A tile of edges passes through all of it while it is in cache. The backward pass computes
the tile anew, so nothing is kept per edge but the states that the caller asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paramgraph.engine.autocast import in_full, without_autocast
from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeUpdate, FilmWeights
from paramgraph.engine.film_backward import BackwardPass, Gradients
from paramgraph.engine.film_forward import ForwardPass
from paramgraph.engine.moments import MessageTotals
from paramgraph.engine.totals import TotalGradients, join_totals

__all__ = ["film_pass"]


def film_pass(
    passes: Sequence[EdgePass],
    sources: Sequence[EdgeSource],
    updates: Sequence[EdgeUpdate],
    film: FilmWeights | None,
    *,
    keeps_state: bool,
    reuses_state: bool = False,
    targets: tuple[int, int] | None = None,
) -> tuple[list[Tensor], MessageTotals | None]:
    """Run some passes over the edges.

    Args:
        passes: Buckets and directions.
        sources: One per pass.
        updates: Applied one after the other to the features of every edge.
        film: What makes messages; ``None`` makes none.
        keeps_state: Whether the features after all updates are returned.
        reuses_state: Whether new states may be written where stored sources are, which are not read
            again; only where no gradient is wanted.
        targets: First and last + 1 neuron that may be sent messages; all when not given.

    Returns:
        For each pass the features after all updates ``[E, dim]`` if they were asked for, and what
        arrives at the neurons of ``targets`` if there are messages. Gradients flow to all tensors
        given, but to ``basis``; they cannot be differentiated once more.

    References:
        Kofinas et al. 2024, eqs. 3 and 4.
    """
    tensors: list[Tensor | None] = []
    for update in updates:
        tensors += [update.weight, update.ends]
    tensors += [None, None, None] if film is None else [film.weight, film.bias, film.ends]
    for source in sources:
        tensors += [source.state, source.values, source.basis, source.weight, source.bias]
    if film is not None and targets is None:
        targets = 0, film.ends.shape[0]
    waves = tuple(source.is_wave for source in sources)
    if not passes:
        raise ValueError("film_pass needs at least one pass.")
    if reuses_state and torch.is_grad_enabled():
        raise ValueError("film_pass cannot reuse states that the backward pass will read.")
    targets = targets if film else None
    spec = _Spec(tuple(passes), len(updates), targets, keeps_state, reuses_state, waves)
    flat: tuple[Tensor, ...] = _FilmFunction.apply(spec, *map(in_full, tensors))
    num_states = len(passes) if keeps_state else 0
    totals = None if film is None else MessageTotals(*flat[num_states:])
    return list(flat[:num_states]), totals


@dataclass(frozen=True)
class _Spec:
    """What is no tensor about a call; ``targets`` is ``None`` without messages."""

    passes: tuple[EdgePass, ...]
    num_updates: int
    targets: tuple[int, int] | None
    keeps_state: bool
    reuses_state: bool
    is_wave: tuple[bool, ...]

    @property
    def num_shared(self) -> int:
        """Tensors that all passes read."""
        return 2 * self.num_updates + 3

    def read(
        self, tensors: Sequence[Tensor | None]
    ) -> tuple[list[EdgeUpdate], FilmWeights | None, list[EdgeSource]]:
        """The arguments of ``film_pass`` back from the flat list."""
        place = 2 * self.num_updates
        updates = [EdgeUpdate(*tensors[i : i + 2]) for i in range(0, place, 2)]  # type: ignore[arg-type]
        film = None if self.targets is None else FilmWeights(*tensors[place : place + 3])  # type: ignore[arg-type]
        place += 3
        sources = []
        for is_wave in self.is_wave:
            state, values, basis, weight, bias = tensors[place : place + 5]
            sources.append(EdgeSource(state, values, basis, is_wave, weight, bias))
            place += 5
        return updates, film, sources


class _FilmFunction(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, spec: _Spec, *tensors: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        updates, film, sources = spec.read(tensors)
        states: list[Tensor] = []
        parts: list[MessageTotals] = []
        for edges, source in zip(spec.passes, sources, strict=True):
            state = source.state if spec.reuses_state and updates else None
            if spec.keeps_state and state is None:
                like = source.like
                state = like.new_empty(edges.num_edges, like.shape[-1])
            run = ForwardPass(edges, source, updates, film, state if spec.keeps_state else None)
            run.run()
            if run.state is not None:
                states.append(run.state)
            if run.totals is not None:
                parts.append(run.totals)
        totals: tuple[Tensor, ...] = ()
        if spec.targets is not None:
            totals = join_totals(spec.passes, parts, spec.targets)
        ctx.set_materialize_grads(False)
        ctx.spec = spec
        # Sums are not needed again.
        extremes = [t for part in parts for t in (part.lows, part.highs)]
        ctx.save_for_backward(*tensors, *states, *totals, *extremes)
        return (*states, *totals)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        spec: _Spec = ctx.spec
        saved = list(ctx.saved_tensors)
        num = spec.num_shared + 5 * len(spec.passes)
        tensors, saved = saved[:num], saved[num:]
        num_states = len(spec.passes) if spec.keeps_state else 0
        states, saved = saved[:num_states], saved[num_states:]
        of_states, of_totals = gradients[:num_states], gradients[num_states:]
        updates, film, sources = spec.read(tensors)
        given = None
        if spec.targets is not None and any(g is not None for g in of_totals):
            totals, saved = MessageTotals(*saved[:4]), saved[4:]
            # Of each pass the extremes alone are looked at.
            parts = [MessageTotals(*saved[i : i + 2] * 2) for i in range(0, len(saved), 2)]
            given = TotalGradients(spec.passes, parts, totals, of_totals, spec.targets)
        needs = ctx.needs_input_grad[1:]
        total = Gradients(tensors[: spec.num_shared])
        for number, (edges, source) in enumerate(zip(spec.passes, sources, strict=True)):
            wanted = needs[spec.num_shared + 5 * number :][:5]
            run = BackwardPass(
                edges, source, updates, film, total, wanted, is_kept=spec.keeps_state
            )
            run.run(
                states[number] if states else None,
                of_states[number] if of_states else None,
                None if given is None else given.of_pass(number),
            )
        return (None, *total.of_all(len(spec.passes)))
