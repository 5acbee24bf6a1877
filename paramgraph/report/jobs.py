"""Training runs in worker processes of one thread each; finished runs are reused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paramgraph.errors import ParamGraphError
from paramgraph.storage import write_atomic
from paramgraph.tasks import TrainConfig, train
from paramgraph.zoo import Zoo

__all__ = ["Job", "run_jobs"]

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_POLL_S = 2.0


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: Shown to the user.
        zoo: Folder of a finished zoo.
        task: As in ``train``.
        config: Settings.
        folder: Where the run goes.
    """

    name: str
    zoo: Path
    task: str
    config: TrainConfig
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds a finished run of exactly this job."""
        done = self.folder / "metrics.json"
        return done.is_file() and self._began_here()

    @property
    def can_resume(self) -> bool:
        """Whether the folder holds an interrupted run of exactly this job."""
        last = self.folder / "checkpoints" / "last.ckpt"
        return last.is_file() and self._began_here()

    def _began_here(self) -> bool:
        return _read(self.folder / "job.json") == self.identity()

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON data: settings and zoo."""
        digest = hashlib.sha256()
        for record in sorted(self.zoo.glob("*.json")):
            digest.update(record.read_bytes())
        facts = {"task": self.task, "config": asdict(self.config), "zoo": digest.hexdigest()}
        return json.loads(json.dumps(facts))


def run_jobs(
    jobs: Sequence[Job], *, num_workers: int, report: Callable[[str], None], progress: bool
) -> list[str]:
    """Run all jobs, ``num_workers`` at a time, in the order given.

    Args:
        jobs: What to train; the longest first leaves the workers idle least.
        num_workers: Processes at a time.
        report: Called with one line when a job ends.
        progress: Show a progress bar of all epochs.

    Returns:
        Names of the jobs that were finished before and were reused.

    Raises:
        ParamGraphError: A worker process was killed.
    """
    from paramgraph.zoo.building import show_progress

    reused = [job.name for job in jobs if job.is_finished]
    for name in reused:
        report(f"  {name}: finished before, reused")
    todo = [job for job in jobs if job.name not in reused]
    if not todo:
        return reused
    total = sum(job.config.epochs for job in todo)
    with (
        _environment(_ONE_THREAD),
        show_progress("Training", total, "epochs", enabled=progress) as advance,
        ProcessPoolExecutor(
            num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        ) as pool,
    ):
        shown = 0
        pending: dict[Future[None], Job] = {pool.submit(_run, job): job for job in todo}
        try:
            while pending:
                done, _ = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    job = pending.pop(future)
                    future.result()
                    report(f"  {job.name}: {_summary(job)}")
                epochs = sum(_num_epochs(job) for job in todo)
                advance(max(0, epochs - shown))
                shown = max(shown, epochs)
        except BrokenProcessPool as error:
            raise ParamGraphError(
                "a training process was killed (out of memory?). Repeat the command: finished "
                "runs are used again, interrupted ones go on."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return reused


def _run(job: Job) -> None:
    """In a worker: resume, or start afresh."""
    zoo = Zoo.open(job.zoo)
    if job.can_resume:
        try:
            train(zoo, job.task, job.config, out=job.folder, resume=True, progress=False)
            return
        except Exception as error:  # a checkpoint cut off by the kill: whatever torch raises
            print(f"{job.name}: cannot resume ({error}); starting again.", file=sys.stderr)
    if job.folder.exists():
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True)
    write_atomic(job.folder / "job.json", json.dumps(job.identity(), indent=2).encode())
    train(zoo, job.task, job.config, out=job.folder, progress=False)


def _start_worker() -> None:
    """Keep standard output for results, and end with the parent, however that ends."""
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process of the terminal
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would write to the folders of a new call."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for processes started inside (a spawned one loads torch before our code)."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _num_epochs(job: Job) -> int:
    """Epochs that a run has finished, from the lines of its metrics.csv."""
    try:
        return max(0, len((job.folder / "metrics.csv").read_text().splitlines()) - 1)
    except OSError:
        return 0


def _summary(job: Job) -> str:
    stored = _read(job.folder / "metrics.json")
    test = stored["test"]
    score = "kendall_tau" if "kendall_tau" in test else "accuracy"
    return (
        f"test {score.replace('_', ' ')} {test[score]:.3f}, {_num_epochs(job)} epochs, "
        f"{stored['num_parameters']:,} parameters, {stored['seconds']['wall']:.0f} s"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
