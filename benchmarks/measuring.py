"""How time and memory are measured: interleaved runs, medians, and a fresh process for memory."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Peak", "Timing", "interleaved", "peak_in_a_process", "peak_of"]

_ROOT = Path(__file__).resolve().parents[1]
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Timing:
    """Medians of one task.

    Attributes:
        cpu_ms: CPU time of all threads.
        wall_ms: Wall time.
        repeats: Of how many runs.
        spread: Interquartile range of the CPU time, over its median.
    """

    cpu_ms: float
    wall_ms: float
    repeats: int
    spread: float


def interleaved(
    tasks: Mapping[str, Callable[[], object]],
    *,
    num_threads: int = 1,
    seconds: float = 10.0,
    most_repeats: int = 15,
    least_repeats: int = 3,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Run tasks in turns (A, B, A, B, ...) in this process and take medians.

    A slow spell of the machine then hits all of them alike.

    Args:
        tasks: Name to what is run.
        num_threads: Of torch.
        seconds: No further turn starts after that time, once there were ``least_repeats``.
        most_repeats: Turns at most.
        least_repeats: Turns at least.
        warm_up: Whether a turn that does not count comes first.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    try:
        for task in tasks.values() if warm_up else ():
            task()
        end = time.perf_counter() + seconds
        for turn in range(most_repeats):
            if turn >= least_repeats and time.perf_counter() > end:
                break
            for name, task in tasks.items():
                gc.collect()
                cpu, wall = time.process_time(), time.perf_counter()
                task()
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    finally:
        torch.set_num_threads(before)
    return {name: _medians(runs) for name, runs in taken.items()}


def _medians(runs: list[tuple[float, float]]) -> Timing:
    cpu, wall = ([1e3 * run[i] for run in runs] for i in range(2))
    middle = statistics.median(cpu)
    low, _, high = statistics.quantiles(cpu, n=4) if len(cpu) > 1 else (middle, middle, middle)
    spread = (high - low) / middle if middle else 0.0
    return Timing(middle, statistics.median(wall), len(runs), spread)


@dataclass(frozen=True)
class Peak:
    """Largest growth of a process over what it was before.

    Attributes:
        mb: Growth in MB (2**20 bytes).
        how: ``"VmHWM"`` (reset before) or ``"ru_maxrss"`` (of the whole life of the process).
    """

    mb: float
    how: str


def peak_of(task: Callable[[], object]) -> Peak:
    """Growth of the resident memory while ``task`` runs; for a process made for that."""
    gc.collect()
    _return_free_memory()
    if _reset_peak():
        before = _status_kb("VmRSS")
        task()
        return Peak((_status_kb("VmHWM") - before) / 1024, "VmHWM")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KB on Linux
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    task()
    return Peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before_mb, "ru_maxrss")


def _return_free_memory() -> None:
    """Free memory that the C library keeps would hide what the task needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _reset_peak() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()


def _status_kb(field: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1])
    raise OSError(f"{_STATUS} has no line {field!r}, which memory is read from.")


def peak_in_a_process(request: Mapping[str, Any], *, timeout_s: float = 900.0) -> dict[str, Any]:
    """Run ``benchmarks.memory_probe`` on a request and return what it measured.

    Returns:
        What the process printed; ``{"failed": why}`` where it failed.
    """
    command = [sys.executable, "-m", "benchmarks.memory_probe", json.dumps(dict(request))]
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {timeout_s:.0f} s"}
    if done.returncode:
        lines = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
        return {"failed": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
