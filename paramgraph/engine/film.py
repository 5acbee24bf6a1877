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

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeUpdate, FilmWeights
from paramgraph.engine.film_backward import BackwardPass, Gradients
from paramgraph.engine.film_forward import ForwardPass
from paramgraph.engine.moments import BucketMoments

__all__ = ["FilmResult", "film_pass"]


@dataclass(frozen=True)
class FilmResult:
    """What a pass returns.

    Attributes:
        state: Features after all updates ``[E, dim]``, if they were asked for.
        moments: Statistics of the messages, if there are any.
    """

    state: Tensor | None
    moments: BucketMoments | None


def film_pass(
    passes: Sequence[EdgePass],
    sources: Sequence[EdgeSource],
    updates: Sequence[EdgeUpdate],
    film: FilmWeights | None,
    *,
    keeps_state: bool,
) -> list[FilmResult]:
    """Run some passes over the edges.

    Args:
        passes: Buckets and directions.
        sources: One per pass.
        updates: Applied one after the other to the features of every edge.
        film: What makes messages; ``None`` makes none.
        keeps_state: Whether the features after all updates are returned.

    Returns:
        One result per pass. Gradients flow to all tensors given, but to ``basis``; they cannot be
        differentiated once more.

    References:
        Kofinas et al. 2024, eqs. 3 and 4.
    """
    tensors: list[Tensor | None] = []
    for update in updates:
        tensors += [update.weight, update.ends]
    tensors += [None, None, None] if film is None else [film.weight, film.bias, film.ends]
    for source in sources:
        tensors += [source.state, source.values, source.basis, source.weight, source.bias]
    spec = _Spec(
        tuple(passes),
        len(updates),
        film is not None,
        keeps_state,
        tuple(s.is_wave for s in sources),
    )
    flat: tuple[Tensor | None, ...] = _FilmFunction.apply(spec, *tensors)
    results, place = [], 0
    for _ in passes:
        state = flat[place] if keeps_state else None
        place += keeps_state
        moments = None
        if film is not None:
            moments = BucketMoments(*flat[place : place + 4])  # type: ignore[arg-type]
            place += 4
        results.append(FilmResult(state, moments))
    return results


@dataclass(frozen=True)
class _Spec:
    """What is no tensor about a call."""

    passes: tuple[EdgePass, ...]
    num_updates: int
    has_film: bool
    keeps_state: bool
    is_wave: tuple[bool, ...]

    def read(
        self, tensors: Sequence[Tensor | None]
    ) -> tuple[list[EdgeUpdate], FilmWeights | None, list[EdgeSource]]:
        """The arguments of ``film_pass`` back from the flat list."""
        place = 2 * self.num_updates
        updates = [EdgeUpdate(*tensors[i : i + 2]) for i in range(0, place, 2)]  # type: ignore[arg-type]
        film = FilmWeights(*tensors[place : place + 3]) if self.has_film else None  # type: ignore[arg-type]
        place += 3
        sources = []
        for is_wave in self.is_wave:
            state, values, basis, weight, bias = tensors[place : place + 5]
            sources.append(EdgeSource(state, values, basis, is_wave, weight, bias))
            place += 5
        return updates, film, sources


class _FilmFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spec: _Spec, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        updates, film, sources = spec.read(tensors)
        out: list[Tensor] = []
        states: list[Tensor] = []
        for edges, source in zip(spec.passes, sources, strict=True):
            run = ForwardPass(edges, source, updates, film, keeps_state=spec.keeps_state)
            run.run()
            if run.state is not None:
                out.append(run.state)
                states.append(run.state)
            if run.moments is not None:
                out += run.moments
        ctx.set_materialize_grads(False)
        ctx.spec = spec
        ctx.save_for_backward(*tensors, *states)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        spec: _Spec = ctx.spec
        num = 2 * spec.num_updates + 3 + 5 * len(spec.passes)
        saved = ctx.saved_tensors
        tensors, states = saved[:num], iter(saved[num:])
        given = iter(gradients)
        updates, film, sources = spec.read(tensors)
        needs = ctx.needs_input_grad[1:]
        total = Gradients(tensors[: 2 * spec.num_updates + 3])
        for number, (edges, source) in enumerate(zip(spec.passes, sources, strict=True)):
            state = gradient = moments = None
            if spec.keeps_state:
                state, gradient = next(states), next(given)
            if film is not None:
                moments = [next(given) for _ in range(4)]
            wanted = needs[2 * spec.num_updates + 3 + 5 * number :][:5]
            run = BackwardPass(edges, source, updates, film, total, wanted)
            run.run(state, gradient, moments)
        return (None, *total.of_all(len(spec.passes)))
