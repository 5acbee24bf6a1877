"""Tiles of edges in compiled code, where a C++ compiler is at hand; see ``film.cpp``.

The source is compiled once per processor and kept in the user's cache. Nothing is downloaded; where
there is no compiler, or ``PARAMGRAPH_NATIVE=0`` is set, PyTorch does the same (``kernels.py``), in
about twice the time.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramgraph.engine.kernels import Both, FilmTile, TileGradients, UpdateTile

__all__ = ["backward_natively", "forward_natively", "native_status", "runs_natively"]

_SOURCE = Path(__file__).with_name("film.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi")
_VECTOR_BYTES = 64
_NAMES = {torch.float32: "film_float", torch.float64: "film_double"}


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


def native_status() -> str:
    """Whether compiled code is used, and if not why.

    Example:
        >>> native_status().split()[0] in ("compiled", "PyTorch:")
        True
    """
    library, reason = _library()
    return "compiled code" if library is not None else f"PyTorch: {reason}"


def runs_natively(like: Tensor) -> bool:
    """Whether edges with features like a tensor ``[..., dim]`` are computed by compiled code."""
    is_whole = like.shape[-1] * like.element_size() % _VECTOR_BYTES == 0
    is_known = like.device.type == "cpu" and like.dtype in _NAMES
    return is_known and is_whole and _library()[0] is not None


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, or why there is none."""
    if os.environ.get("PARAMGRAPH_NATIVE", "1") == "0":
        return None, "PARAMGRAPH_NATIVE=0"
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None, "no C++ compiler (g++ or clang++) is on the path"
    try:
        return ctypes.CDLL(str(_compiled(compiler))), ""
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        reason = f"{compiler} failed: {text.strip().splitlines()[0]}"
        logging.getLogger(__name__).warning("edges are computed by PyTorch: %s", reason)
        return None, reason


def _compiled(compiler: str) -> Path:
    """Path of the library for this source, compiler and processor; made if it is not there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    parts = (_SOURCE.read_text(), version.stdout, *_FLAGS, platform.machine(), _processor())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paramgraph"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.stat()
    if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & 0o022):
        raise OSError(f"{folder} can be written by others; code is not loaded from there")
    path = folder / f"film-{name}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            made.replace(path)  # atomic: another process sees the whole file or none
    return path


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


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
        library = _library()[0]
        assert library is not None
        features = self.fields["features"]
        assert features is not None
        function = getattr(library, _NAMES[features.dtype])
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
            *(_Update(**{k: _address(t) for k, t in fields.items()}) for fields in self.updates)
        )
        fields = {name: _address(tensor) for name, tensor in self.fields.items()}
        totals = (ctypes.c_void_p * 4)(*(_address(total) for total in self.totals))
        shape = dict(zip(("blocks", "targets", "sources", "dim"), self.shape, strict=True))
        return _Pass(
            num_updates=len(self.updates), updates=updates, totals=totals, **shape, **fields
        )


def _ends(ends: Both, prefix: str) -> Fields:
    return {
        f"{prefix}targets": ends.targets.contiguous(),
        f"{prefix}sources": ends.sources.contiguous(),
    }


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"compiled code needs contiguous tensors, got strides {tensor.stride()}.")
    return tensor.data_ptr()
