"""Tiles of edges in compiled code, where a C++ compiler is at hand; see ``film.cpp``."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from paramgraph.engine.compiling import address, library, type_name
from paramgraph.engine.kernels import Both, FilmTile, TileGradients, UpdateTile

__all__ = ["backward_natively", "forward_natively"]


def _named(kind: Any, *names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


class _Update(ctypes.Structure):
    """``Update`` of film.cpp, field by field."""

    _fields_ = [
        *_named(ctypes.c_void_p, "weight", "turned", "targets", "sources"),
        *_named(ctypes.c_void_p, "of_weight", "of_targets", "of_sources"),
    ]


class _Pass(ctypes.Structure):
    """``Pass`` of film.cpp, field by field."""

    _fields_ = [
        *_named(ctypes.c_long, "blocks", "targets", "sources", "dim", "num_updates"),
        ("updates", ctypes.POINTER(_Update)),
        *_named(ctypes.c_void_p, "features", "state", "film", "film_turned", "film_bias"),
        *_named(ctypes.c_void_p, "film_targets", "film_sources"),
        ("totals", ctypes.c_void_p * 4),
        *_named(ctypes.c_void_p, "flows", "of_features", "of_film", "of_film_bias"),
        *_named(ctypes.c_void_p, "of_film_targets", "of_film_sources"),
    ]


def forward_natively(
    features: Tensor,
    updates: Sequence[UpdateTile],
    film: FilmTile | None,
    out: Tensor | None,
    totals: Sequence[Tensor],
) -> None:
    """Features after all updates into ``out``, and the totals of the messages.

    Args:
        features: Before the updates ``[n, dim]``.
        updates: Of the tile.
        film: Makes messages; ``None`` makes none.
        out: ``[n, dim]``, if they are kept.
        totals: ``[k, t, dim]`` each; empty without messages.
    """
    call = _Call(features, updates, film)
    call.fields["state"] = out
    call.totals = list(totals)
    call.run(is_backward=False)


def backward_natively(
    features: Tensor,
    updates: Sequence[UpdateTile],
    film: FilmTile | None,
    state: Tensor | None,
    flows: Tensor | None,
    of_totals: Sequence[Tensor],
    out: TileGradients,
    of_features: Tensor,
) -> None:
    """What ``backward_tile`` does, from features that have been read.

    Args:
        features: Before the updates ``[n, dim]``.
        updates: Of the tile.
        film: Made messages that have a gradient.
        state: Features after all updates, if they were kept.
        flows: Their gradient, if somebody read them.
        of_totals: Gradients of the totals, each ``[k, t, 1, dim]``.
        out: Where gradients go.
        of_features: Where the gradient of ``features`` is written.
    """
    call = _Call(features, updates, film)
    call.fields |= {"state": state, "flows": flows, "of_features": of_features}
    call.totals = list(of_totals)
    for (weight, ends), update in zip(out.updates, call.updates, strict=True):
        ends.targets.zero_()
        update |= {"of_targets": ends.targets}
        call.shared += [(update, "of_weight", weight), (update, "of_sources", ends.sources)]
    if film is not None and out.film is not None:
        weight, bias, ends = out.film
        call.fields["of_film_targets"] = ends.targets
        call.shared += [
            (call.fields, "of_film", weight),
            (call.fields, "of_film_bias", bias),
            (call.fields, "of_film_sources", ends.sources),
        ]
    call.run(is_backward=True)


@functools.cache
def _threads(num: int) -> ThreadPoolExecutor:
    """Threads that stay; the interpreter is let go of while they compute."""
    return ThreadPoolExecutor(num, thread_name_prefix="paramgraph")


_MIN_EDGES = 4096
"""Of one thread: fewer are done before a second thread has begun."""

Fields = dict[str, Tensor | None]


class _Call:
    """Arguments of one call; what all threads add to is there once per thread."""

    def __init__(
        self, features: Tensor, updates: Sequence[UpdateTile], film: FilmTile | None
    ) -> None:
        ends = film.ends if film is not None else updates[0].ends
        blocks, targets, _, dim = ends.targets.shape
        self.shape = blocks, targets, ends.sources.shape[2], dim
        self.updates: list[Fields] = [
            {
                "weight": update.weight.contiguous(),
                "turned": update.weight.t().contiguous(),
                **_ends(update.ends, ""),
            }
            for update in updates
        ]
        self.fields: Fields = {"features": features.contiguous()}
        if film is not None:
            self.fields |= {
                "film": film.weight.contiguous(),
                "film_turned": film.weight.t().contiguous(),
                "film_bias": film.bias.contiguous(),
                **_ends(film.ends, "film_"),
            }
        self.totals: list[Tensor] = []
        self.shared: list[tuple[Fields, str, Tensor]] = []

    def run(self, *, is_backward: bool) -> None:
        """Split the targets over PyTorch's number of threads."""
        compiled = library("film")[0]
        assert compiled is not None
        features = self.fields["features"]
        assert features is not None
        function = getattr(compiled, f"film_{type_name(features.dtype)}")
        num_places = self.shape[0] * self.shape[1]
        num_edges = num_places * self.shape[2]
        num_threads = max(1, min(torch.get_num_threads(), num_places, num_edges // _MIN_EDGES))
        if num_threads == 1:
            for fields, name, total in self.shared:
                fields[name] = total
            function(ctypes.byref(self._struct()), int(is_backward), 0, num_places)
            return
        parts, structs = [], []
        for _ in range(num_threads):
            part = [torch.zeros_like(total) for _, _, total in self.shared]
            for (fields, name, _), own in zip(self.shared, part, strict=True):
                fields[name] = own
            parts.append(part)
            structs.append(self._struct())
        bounds = [num_places * i // num_threads for i in range(num_threads + 1)]
        calls = [
            _threads(num_threads).submit(
                function, ctypes.byref(struct), int(is_backward), *bounds[i : i + 2]
            )
            for i, struct in enumerate(structs)
        ]
        for call in calls:
            call.result()
        for part in parts:
            for (_, _, total), own in zip(self.shared, part, strict=True):
                total += own

    def _struct(self) -> _Pass:
        updates = (_Update * max(1, len(self.updates)))(
            *(_Update(**{k: address(t) for k, t in fields.items()}) for fields in self.updates)
        )
        fields = {name: address(tensor) for name, tensor in self.fields.items()}
        totals = (ctypes.c_void_p * 4)(*(address(total) for total in self.totals))
        shape = dict(zip(("blocks", "targets", "sources", "dim"), self.shape, strict=True))
        return _Pass(
            num_updates=len(self.updates), updates=updates, totals=totals, **shape, **fields
        )


def _ends(ends: Both, prefix: str) -> Fields:
    return {
        f"{prefix}targets": ends.targets.contiguous(),
        f"{prefix}sources": ends.sources.contiguous(),
    }
