"""The same lines on a CUDA device: time by events, memory by PyTorch's allocator."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.speed_networks import Family, Networks, make_networks
from benchmarks.speed_rows import ROWS, make_subject
from benchmarks.speed_stages import Plan, reference_of

__all__ = ["cuda_lines", "on_device"]


def on_device(networks: Networks, device: torch.device) -> Networks:
    """The same networks with their weights on a device; the modules stay where they are."""

    def move(family: Family) -> Family:
        states = {name: value.to(device) for name, value in family.states.items()}
        return replace(family, states=states)

    return replace(networks, families=tuple(move(family) for family in networks.families))


def cuda_lines(stage: str, plan: Plan, *, repeats: int = 10) -> list[dict[str, Any]]:
    """Lines of ``forward`` or ``train`` on the CUDA device.

    Args:
        stage: Which.
        plan: Sets, rows and batch sizes.
        repeats: Runs of each row, in turns; medians.

    Raises:
        RuntimeError: There is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device: rows on a GPU need one; leave out the stage 'cuda'.")
    device = torch.device("cuda")
    lines = []
    for name in plan.sets:
        tasks: dict[str, tuple[Callable[[], object], int]] = {}
        for row in plan.rows_of(name):
            networks = on_device(make_networks(name, min(plan.num, ROWS[row].num)), device)
            subject = make_subject(row, networks, device=device)
            tasks[row] = subject.stage(stage), subject.num_networks
        peaks = {row: _peak_mb(task) for row, (task, _) in tasks.items()}
        taken: dict[str, list[float]] = {row: [] for row in tasks}
        for _ in range(repeats):
            for row, (task, _) in tasks.items():
                taken[row].append(_milliseconds(task))
        per_network = {row: statistics.median(taken[row]) / tasks[row][1] for row in tasks}
        for row, (_, num) in tasks.items():
            reference = reference_of(name, tasks)
            lines.append(
                {
                    "networks": name,
                    "row": row,
                    "num": num,
                    "stage": stage,
                    "gpu_ms": per_network[row] * num,
                    "per_second": 1e3 / per_network[row],
                    "peak_mb": peaks[row],
                    "reference": reference,
                    "times_faster": per_network[reference] / per_network[row],
                }
            )
        plan.progress(f"{stage} {name}, CUDA")
    return lines


def _peak_mb(task: Callable[[], object]) -> float:
    task()  # libraries allocate at first use
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    task()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _milliseconds(task: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    task()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)
