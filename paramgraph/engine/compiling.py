"""C++ sources of this folder, compiled once per processor and kept in the user's cache.

Nothing is downloaded. Where there is no compiler, or ``PARAMGRAPH_NATIVE=0`` is set, PyTorch does
the same in more time.
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
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["address", "library", "native_status", "runs_natively", "type_name"]

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi")
_VECTOR_BYTES = 64
_NAMES = {torch.float32: "float", torch.float64: "double"}


def native_status() -> str:
    """Whether compiled code is used, and if not why.

    Example:
        >>> native_status().split()[0] in ("compiled", "PyTorch:")
        True
    """
    found, reason = library("film")
    return "compiled code" if found is not None else f"PyTorch: {reason}"


def runs_natively(like: Tensor, source: str = "film") -> bool:
    """Whether features like a tensor ``[..., dim]`` are computed by compiled code.

    Args:
        like: For the width, dtype and device.
        source: Name of the C++ file.
    """
    is_whole = like.shape[-1] * like.element_size() % _VECTOR_BYTES == 0
    is_known = like.device.type == "cpu" and like.dtype in _NAMES
    return is_known and is_whole and library(source)[0] is not None


def type_name(dtype: torch.dtype) -> str:
    """How functions for a dtype are called in C++."""
    return _NAMES[dtype]


def address(tensor: Tensor | None) -> int | None:
    """Where the numbers of a contiguous tensor lie; ``None`` stays.

    Raises:
        ValueError: It is not contiguous.
    """
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"compiled code needs contiguous tensors, got strides {tensor.stride()}.")
    return tensor.data_ptr()


@functools.cache
def library(source: str) -> tuple[ctypes.CDLL | None, str]:
    """The library made of a C++ file, or why there is none.

    Args:
        source: Name of the file.
    """
    if os.environ.get("PARAMGRAPH_NATIVE", "1") == "0":
        return None, "PARAMGRAPH_NATIVE=0"
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None, "no C++ compiler (g++ or clang++) is on the path"
    try:
        return ctypes.CDLL(str(_compiled(compiler, source))), ""
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        reason = f"{compiler} failed: {text.strip().splitlines()[0]}"
        logging.getLogger(__name__).warning("%s is computed by PyTorch: %s", source, reason)
        return None, reason


def _compiled(compiler: str, source: str) -> Path:
    """Path of the library for this source, compiler and processor; made if it is not there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    code = [(_FOLDER / name).read_text() for name in (f"{source}.cpp", "vectors.h")]
    parts = (*code, version.stdout, *_FLAGS, platform.machine(), _processor())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paramgraph"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.stat()
    if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & 0o022):
        raise OSError(f"{folder} can be written by others; code is not loaded from there")
    path = folder / f"{source}-{name}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            command = [compiler, *_FLAGS, str(_FOLDER / f"{source}.cpp"), "-o", str(made)]
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
