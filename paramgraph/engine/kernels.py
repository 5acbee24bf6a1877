"""What happens to one tile of edges: from its source through updates to messages, and back.

Everything is written into buffers that are used again for the next tile: fresh memory costs more
than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from paramgraph.engine.tiles import Workspace, rows_of_tile

__all__ = [
    "Both",
    "FilmTile",
    "RawTile",
    "TileGradients",
    "UpdateTile",
    "backward_tile",
    "read_tile",
]

_silu = torch.ops.aten.silu.out
_silu_backward = torch.ops.aten.silu_backward.grad_input


class Both(NamedTuple):
    """What targets and sources of a tile say.

    Attributes:
        targets: ``[k, t, 1, dim]``.
        sources: ``[k, 1, s, dim]``.
    """

    targets: Tensor
    sources: Tensor

    def sums(self, space: Workspace, name: str) -> Tensor:
        """``a_i + b_j`` ``[k, t, s, dim]``, in a buffer."""
        num, targets, _, dim = self.targets.shape
        out = space.get(name, (num, targets, self.sources.shape[2], dim))
        return torch.add(self.targets, self.sources, out=out)


class RawTile(NamedTuple):
    """Raw weights of a tile, and how they are read; see ``EdgeSource``.

    Attributes:
        values: ``[n, num_positions]``.
        basis: ``[num_positions, num_rows]``.
        is_wave: Whether cos and sin are read.
        weight: ``[dim, num_features]``.
        bias: ``[dim]``.
    """

    values: Tensor
    basis: Tensor
    is_wave: bool
    weight: Tensor
    bias: Tensor

    def chunks(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Values and tensors with as many rows, in chunks whose features stay in cache."""
        step = rows_of_tile(self.basis.shape[1], self.basis)
        return zip(self.values.split(step), *(r.split(step) for r in rows), strict=True)

    def parts(self, space: Workspace, values: Tensor) -> tuple[Tensor, ...]:
        """What the linear map reads of some values, in parts ``[n, num_rows]``."""
        shape = values.shape[0], self.basis.shape[1]
        phase = space.get("phase", shape)
        if values.shape[1] == 1:  # an outer product is no matrix product to the libraries
            torch.mul(values, self.basis, out=phase)
        else:
            torch.mm(values, self.basis, out=phase)
        if not self.is_wave:
            return (phase,)
        cos = torch.cos(phase, out=space.get("cos", shape))
        return cos, phase.sin_()

    def read(self, space: Workspace, out: Tensor) -> Tensor:
        """Features ``[n, dim]``."""
        first_weight, *weights = self.weight.t().chunk(1 + self.is_wave)
        for values, rows in self.chunks(out):
            first, *others = self.parts(space, values)
            torch.addmm(self.bias, first, first_weight, out=rows)
            for part, weight in zip(others, weights, strict=True):
                rows.addmm_(part, weight)
        return out

    def add_gradients(
        self, space: Workspace, flows: Tensor, out: tuple[Tensor | None, Tensor | None]
    ) -> None:
        """Add the gradients of weight and bias, where wanted, from that of the features."""
        weight, bias = out
        if bias is not None:
            bias.add_(flows.sum(0))
        if weight is not None:
            of_parts = weight.chunk(1 + self.is_wave, dim=1)
            for values, rows in self.chunks(flows):
                for part, of_part in zip(self.parts(space, values), of_parts, strict=True):
                    of_part.addmm_(rows.t(), part)

    def values_gradient(self, space: Workspace, flows: Tensor) -> Tensor:
        """Gradient of the values, from that of the features."""
        of_features = flows @ self.weight
        if self.is_wave:
            of_cos, of_sin = of_features.chunk(2, dim=1)
            cos, sin = self.parts(space, self.values)
            of_features = of_sin * cos - of_cos * sin
        return of_features @ self.basis.t()


class UpdateTile(NamedTuple):
    """One update ``x <- silu(W x + a_i + b_j)`` of a tile."""

    weight: Tensor
    ends: Both

    def before(self, space: Workspace, x: Tensor, name: str) -> Tensor:
        """What is activated ``[n, dim]``."""
        out = self.ends.sums(space, name).view(x.shape[0], -1)
        return out.addmm_(x, self.weight.t())


class FilmTile(NamedTuple):
    """Messages ``m = s * (a_i + b_j) + t`` of a tile, ``[s, t] = F x + f``."""

    weight: Tensor
    bias: Tensor
    ends: Both

    def messages(self, space: Workspace, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Messages, scales, and sums of both ends, each ``[k, t, s, dim]``."""
        sums = self.ends.sums(space, "sums")
        both = space.get("film", (x.shape[0], self.weight.shape[0]))
        torch.addmm(self.bias, x, self.weight.t(), out=both)
        scale, shift = both.view(*sums.shape[:3], -1).chunk(2, dim=-1)
        message = torch.addcmul(shift, scale, sums, out=space.get("messages", sums.shape))
        return message, scale, sums

    def moments(self, space: Workspace, x: Tensor, out: Sequence[Tensor]) -> None:
        """Sum, sum of squares, least and largest message per target, into ``[k, t, dim]`` each."""
        message, _, square = self.messages(space, x)
        torch.mul(message, message, out=square)
        torch.sum(message, 2, out=out[0])
        torch.sum(square, 2, out=out[1])
        torch.amin(message, 2, out=out[2])
        torch.amax(message, 2, out=out[3])


class TileGradients(NamedTuple):
    """Where gradients of a tile are added, or written.

    Attributes:
        source: Features before all updates ``[n, dim]``; ``None`` if they are not stored.
        raw: Weight and bias of a raw source, added to; each ``None`` if not wanted.
        updates: Weight (added to), ends (written) of each update.
        film: Weight, bias (added to), ends (written).
    """

    source: Tensor | None
    raw: tuple[Tensor | None, Tensor | None]
    updates: Sequence[tuple[Tensor, Both]]
    film: tuple[Tensor, Tensor, Both] | None


def read_tile(
    space: Workspace, source: Tensor | RawTile, updates: Sequence[UpdateTile], out: Tensor | None
) -> Tensor:
    """Features after all updates ``[n, dim]``, in ``out`` if given."""
    if isinstance(source, RawTile):
        shape = source.values.shape[0], source.bias.shape[0]
        kept = None if updates else out
        x = source.read(space, space.get("read", shape) if kept is None else kept)
    else:
        x = source
    for number, update in enumerate(updates):
        before = update.before(space, x, "before")
        is_last = number == len(updates) - 1
        after = out if is_last else None
        # The one before is still read.
        after = space.get(f"after {number % 2}", x.shape) if after is None else after
        x = _silu(before, out=after)
    if out is not None and x.data_ptr() != out.data_ptr():
        out.copy_(x)
    return x


def backward_tile(
    space: Workspace,
    source: Tensor | RawTile,
    updates: Sequence[UpdateTile],
    film: FilmTile | None,
    state: Tensor | None,
    flows: Tensor | None,
    of_moments: Sequence[Tensor],
    out: TileGradients,
) -> Tensor:
    """Take gradients of a tile back; all that was not kept is computed anew.

    Args:
        space: Buffers.
        source: As given forward.
        updates: As given forward.
        film: As given forward, if the statistics have a gradient.
        state: Features after all updates, if they were kept.
        flows: Their gradient, if somebody read them.
        of_moments: Gradients of the statistics, each ``[k, t, 1, dim]``.
        out: Where gradients go.

    Returns:
        Gradient of the features before all updates ``[n, dim]``.
    """
    if isinstance(source, Tensor):
        x = source
    elif state is not None and not updates:
        x = state
    else:
        shape = source.values.shape[0], source.bias.shape[0]
        x = source.read(space, space.get("read", shape))
    inputs, before = [x], []
    for number, update in enumerate(updates):
        before.append(update.before(space, inputs[-1], f"before {number}"))
        if state is not None and number == len(updates) - 1:
            inputs.append(state)
        else:
            inputs.append(_silu(before[-1], out=space.get(f"input {number}", x.shape)))
    if film is not None and out.film is not None:
        flows = _through_messages(space, inputs[-1], film, of_moments, flows, out.film)
    assert flows is not None
    for number in reversed(range(len(updates))):
        inner, x = before[number], inputs[number]
        gradient = _silu_backward(flows, inner, grad_input=space.get("of before", x.shape))
        weight, ends = out.updates[number]
        _to_ends(gradient, ends)
        weight.addmm_(gradient.t(), x)
        kept = out.source if number == 0 else None
        kept = space.get("of input", x.shape) if kept is None else kept
        flows = torch.mm(gradient, updates[number].weight, out=kept)
    if isinstance(source, RawTile):
        source.add_gradients(space, flows, out.raw)
    elif out.source is not None and flows.data_ptr() != out.source.data_ptr():
        out.source.copy_(flows)
    return flows


def _through_messages(
    space: Workspace,
    x: Tensor,
    film: FilmTile,
    of_moments: Sequence[Tensor],
    flows: Tensor | None,
    out: tuple[Tensor, Tensor, Both],
) -> Tensor:
    """Gradient of the features, with ``flows`` added."""
    of_sums, of_squares, of_lows, of_highs = of_moments
    message, scale, sums = film.messages(space, x)
    of_both = space.get("of film", (x.shape[0], film.weight.shape[0]))
    of_scale, gradient = of_both.view(*sums.shape[:3], -1).chunk(2, dim=-1)
    torch.addcmul(of_sums, of_squares, message, value=2, out=gradient)
    chosen = space.get("chosen", sums.shape)
    for extreme, slope in ((torch.amin, of_lows), (torch.amax, of_highs)):
        # Found anew, so that some are found even if rounding differs from the forward pass.
        torch.eq(message, extreme(message, 2, keepdim=True), out=chosen)
        # Messages that share the least or the largest value share its gradient.
        gradient.addcmul_(chosen, slope / chosen.sum(2, keepdim=True))
    torch.mul(gradient, sums, out=of_scale)
    _to_ends(torch.mul(gradient, scale, out=sums), out[2])
    out[0].addmm_(of_both.t(), x)
    out[1].add_(of_both.sum(0))
    of_x = space.get("of features", x.shape)
    if flows is None:
        return torch.mm(of_both, film.weight, out=of_x)
    return torch.addmm(flows, of_both, film.weight, out=of_x)


def _to_ends(gradient: Tensor, out: Both) -> None:
    """Sum over the edges of a target, and add those of a source."""
    num, targets, _, dim = out.targets.shape
    gradient = gradient.view(num, targets, -1, dim)
    torch.sum(gradient, 2, keepdim=True, out=out.targets)
    out.sources.add_(gradient.sum(1, keepdim=True))
