"""The backward half of ``film_pass``: each tile is computed anew, then taken back to its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paramgraph.engine.edge_pass import EdgePass
from paramgraph.engine.edge_tiles import EdgeSource, EdgeTiles, EdgeUpdate, FilmWeights, TilePlace

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
        edges: The pass.
        source: As given forward.
        updates: As given forward.
        film: As given forward.
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
        moments: tuple[Sequence[Tensor], Sequence[Tensor | None]] | None,
        ties: Sequence[Tensor | None],
    ) -> None:
        """All tiles.

        Args:
            state: Features after all updates, if they were kept.
            gradient: Of these, if somebody reads them.
            moments: Statistics of the messages, and their gradients.
            ties: As counted forward.
        """
        if moments is not None and all(g is None for g in moments[1]):
            moments = None
        if moments is None and gradient is None:
            return
        if moments is not None:
            self._prepare(*moments, ties)
        for place in self.places():
            inputs, before = self._compute(place, state)
            last = inputs[-1]
            flows = None if gradient is None else gradient[place.rows]
            if moments is not None:
                flows = self._through_messages(last, flows, place)
            assert flows is not None
            for number in reversed(range(len(self.updates))):
                flows = self._through_update(number, inputs, before[number], flows, place)
            self._to_source(flows, place)
        for number, ends in enumerate(self.ends):
            ends.write_gradient(self.total.of_update(number)[1])
        if moments is not None:
            assert self.film_ends is not None
            self.film_ends.write_gradient(self.total.of_film()[2])
            self._check_ties()

    def _compute(self, place: TilePlace, state: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Features before and after each update, and what came before each activation."""
        if not self.updates and state is not None:
            return [state[place.rows]], []
        inputs, before = [self.read(place)], []
        for number in range(len(self.updates)):
            out = self.space.get(f"before {number}", place.num_rows, self.dim)
            before.append(self.update(number, inputs[-1], place, out))
            if number == len(self.updates) - 1 and state is not None:
                inputs.append(state[place.rows])
            else:
                after = self.space.get(f"input {number}", place.num_rows, self.dim)
                inputs.append(torch.ops.aten.silu.out(before[-1], out=after))
        return inputs, before

    def _prepare(
        self,
        values: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        ties: Sequence[Tensor | None],
    ) -> None:
        """Statistics and their gradients with an axis of length 1 for what was summed over."""
        num = self.num_senders if self.edges.is_reverse else self.num_receivers
        shape = (self.num_blocks, num, self.dim)
        given = [
            (torch.zeros_like(v) if g is None else g).reshape(shape).unsqueeze(self.axis)
            for v, g in zip(values, gradients, strict=True)
        ]
        self._sums, self._squares = given[0], 2 * given[1]
        self._extremes = []
        for value, gradient, count in zip(values[2:], given[2:], ties, strict=True):
            value = value.reshape(shape).unsqueeze(self.axis)
            if count is None:  # each tile has all messages of its neurons
                self._extremes.append((value, gradient, None, None))
            else:
                count = count.reshape(shape).unsqueeze(self.axis)
                self._extremes.append((value, gradient / count, count, torch.zeros_like(count)))

    def _of(self, tensor: Tensor, place: TilePlace) -> Tensor:
        """The rows of a statistic that belong to a tile."""
        part = tensor[place.blocks]
        return part if self.edges.is_reverse else part[:, place.receivers]

    def _through_messages(self, x: Tensor, flows: Tensor | None, place: TilePlace) -> Tensor:
        """Gradient of the features, from that of the statistics and ``flows``."""
        assert self.film is not None
        assert self.film_ends is not None
        messages, both, sums = self.messages(x, place)
        of_both = self.space.get("of film", place.num_rows, 2 * self.dim)
        of_scale, gradient = of_both.view(*place.shape, 2 * self.dim).chunk(2, dim=-1)
        torch.addcmul(
            self._of(self._sums, place), self._of(self._squares, place), messages, out=gradient
        )
        chosen = self.space.get("chosen", place.num_rows, self.dim).view(messages.shape)
        for number, (value, slope, _, hits) in enumerate(self._extremes):
            if hits is not None:
                torch.eq(messages, self._of(value, place), out=chosen)
                hits[place.blocks] += chosen.sum(self.axis, keepdim=True)
                gradient.addcmul_(chosen, self._of(slope, place))
                continue
            # Found anew, so that one is found even where rounding differs from the forward pass.
            extreme = (torch.amin, torch.amax)[number](messages, self.axis, keepdim=True)
            torch.eq(messages, extreme, out=chosen)
            share = self._of(slope, place) / chosen.sum(self.axis, keepdim=True)
            gradient.addcmul_(chosen, share)
        torch.mul(gradient, sums, out=of_scale)
        scale = both.view(*place.shape, 2 * self.dim)[..., : self.dim]
        torch.mul(gradient, scale, out=sums)
        self.film_ends.collect(sums, place.blocks, place.receivers)
        weight, bias, _ = self.total.of_film()
        weight.addmm_(of_both.t(), x)
        bias += of_both.sum(0)
        out = self.space.get("of features 0", place.num_rows, self.dim)
        if flows is None:
            return torch.mm(of_both, self.film.weight, out=out)
        return torch.addmm(flows, of_both, self.film.weight, out=out)

    def _through_update(
        self, number: int, inputs: list[Tensor], before: Tensor, flows: Tensor, place: TilePlace
    ) -> Tensor:
        """Gradient of the features before an update."""
        gradient = self.space.get("of before", place.num_rows, self.dim)
        torch.ops.aten.silu_backward.grad_input(flows, before, grad_input=gradient)
        shape = *place.shape, self.dim
        self.ends[number].collect(gradient.view(shape), place.blocks, place.receivers)
        x = inputs[number]
        self.total.of_update(number)[0].addmm_(gradient.t(), x)
        out = self.space.get("of features 1", place.num_rows, x.shape[1])
        if number == 0 and self.of_source[0] is not None:
            out = self.of_source[0][place.rows]
        return torch.mm(gradient, self.updates[number].weight, out=out)

    def _to_source(self, flows: Tensor, place: TilePlace) -> None:
        """Gradients of a stored state, or of the map and the weights that were read."""
        of_state, of_values, _, of_weight, of_bias = self.of_source
        if of_state is not None:
            kept = of_state[place.rows]
            if kept.data_ptr() != flows.data_ptr():
                kept.copy_(flows)
            return
        if of_bias is not None:
            of_bias += flows.sum(0)
        if self.source.weight is None or (of_weight is None and of_values is None):
            return
        features = self.features(place)
        if of_weight is not None:
            of_weight.addmm_(flows.t(), features)
        if of_values is not None:
            self._to_values(of_values, flows @ self.source.weight, features, place)

    def _to_values(
        self, out: Tensor, of_features: Tensor, features: Tensor, place: TilePlace
    ) -> None:
        assert self.source.basis is not None
        if self.source.is_wave:
            of_cos, of_sin = of_features.chunk(2, dim=1)
            cos, sin = features.chunk(2, dim=1)
            of_features = of_sin * cos - of_cos * sin
        torch.mm(of_features, self.source.basis.t(), out=out[place.rows])

    def _check_ties(self) -> None:
        """The messages that were least or largest forward must be so again."""
        for _, _, count, hits in self._extremes:
            if count is not None and hits is not None and not torch.equal(count, hits):
                raise RuntimeError(
                    "the backward pass computed other messages than the forward pass: did the "
                    "number of threads or the size of tiles change in between? Run both with the "
                    "same settings (torch.set_num_threads, paramgraph.engine.tile_bytes)."
                )
