"""Every architecture in a process of its own: a crash or an endless loop is one failed row."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.measuring import Measurement, measure

__all__ = ["run_all"]

_PRELOAD = ["torch", "transformers", "torch_geometric", "benchmarks.coverage.measuring"]

Measure = Callable[[Architecture], Measurement]


def run_all(
    architectures: Sequence[Architecture],
    finished: Callable[[Measurement], None],
    *,
    num_jobs: int,
    time_limit_s: float,
    measure: Measure = measure,
) -> list[Measurement]:
    """Measure architectures, several at a time.

    Args:
        architectures: What to measure.
        finished: Called with each row when it is there.
        num_jobs: Processes at a time.
        time_limit_s: A process that takes longer is ended.
        measure: Measures one architecture.

    Returns:
        The rows, in the order of the architectures.
    """
    # Processes start as copies of one that has imported everything and run nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    waiting = list(enumerate(architectures))[::-1]
    running: dict[Connection, _Job] = {}
    rows: dict[int, Measurement] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                place, architecture = waiting.pop()
                job = _Job(context, place, architecture, measure)
                running[job.connection] = job
            deadline = min(job.start for job in running.values()) + time_limit_s
            ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
            for connection, job in list(running.items()):
                if connection not in ready and job.time_s <= time_limit_s:
                    continue
                del running[connection]
                rows[job.place] = job.result(time_limit_s)
                finished(rows[job.place])
    finally:
        for job in running.values():
            job.process.kill()
    return [rows[place] for place in range(len(architectures))]


class _Job:
    """A process that measures one architecture."""

    def __init__(
        self, context: Any, place: int, architecture: Architecture, measure: Measure
    ) -> None:
        self.place, self.architecture = place, architecture
        self.connection, sender = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_work, args=(sender, architecture.title, measure), daemon=True
        )
        self.start = time.monotonic()
        self.process.start()
        sender.close()

    @property
    def time_s(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.start

    def result(self, time_limit_s: float) -> Measurement:
        """What the process sent, or a failed row that says why it sent nothing."""
        try:
            if self.connection.poll():
                return self.connection.recv()
            problem = f"took longer than {time_limit_s:.0f} s"
        except EOFError:
            self.process.join(5)
            problem = f"the process ended with code {self.process.exitcode}"
        finally:
            self.process.kill()
            self.connection.close()
        row = Measurement(self.architecture.name, self.architecture.family)
        row.problems.append(problem)
        row.time_s = self.time_s
        return row


def _work(sender: Connection, title: str, measure: Measure) -> None:
    """In the new process: find the architecture by its title, as functions cannot be sent."""
    import torch

    from benchmarks.coverage.architectures import all_architectures

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with pathlib.Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        sender.send(measure(all_architectures()[title]))
    sender.close()
