"""One table per stage: capture, features, collate, forward, training step, embed.

The first three concern networks alone; their reference is a forward pass of the networks, or one
copy of all weights. The others have a line per metanetwork, and a metanetwork as reference. All
lines of a table run in turns in one process; memory is measured in a process for each line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import paramgraph as pg
from benchmarks.measuring import Timing, interleaved, peak_in_a_process
from benchmarks.speed_networks import NETWORKS, Networks, make_networks
from benchmarks.speed_rows import ROWS, Subject, make_subject

__all__ = ["NETWORK_STAGES", "REFERENCES", "ROW_STAGES", "Plan", "network_table", "row_tables"]

NETWORK_STAGES = ("capture", "features", "collate")
ROW_STAGES = ("forward", "train", "embed")
#: What the times of others are divided by, per set of networks.
REFERENCES = {
    "inr": "NG-GNN d=32, PyG twin",
    "large": "NG-GNN d=32, PyG twin",
    "cnn": "NG-GNN d=32, any network",
    "mixed": "NG-GNN d=32, any network",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sets: Names of sets of networks, ``"large"`` with its width.
        rows: Names of rows.
        num: Networks in a batch, at most.
        seconds: For a table, and once more on all threads; every line runs ``least`` times.
        least: Runs at least.
        limit_gb: Lines that need more memory are not run.
        whole: Sets of networks with memory and wall time on all threads; all when not given.
        progress: Called after each measurement.
    """

    sets: tuple[str, ...]
    rows: tuple[str, ...]
    num: int = 64
    seconds: float = 20.0
    least: int = 3
    limit_gb: float = 6.0
    whole: tuple[str, ...] | None = None
    progress: Callable[[str], object] = field(default=lambda text: None)

    def is_whole(self, name: str) -> bool:
        """Whether memory and wall time on all threads are measured too."""
        return self.whole is None or name in self.whole

    def rows_of(self, name: str) -> list[str]:
        """The rows that read a set of networks."""
        return [row for row in self.rows if ROWS[row].can_read(name)]


def reference_of(name: str, rows: Iterable[str]) -> str:
    """The reference of a set if it is among these rows, else the first of them."""
    found = list(rows)
    wanted = REFERENCES[name.split("-")[0]]
    return wanted if wanted in found else found[0]


def network_table(stage: str, plan: Plan) -> list[dict[str, Any]]:
    """The lines of a stage that concerns networks alone, one per set.

    Args:
        stage: One of ``NETWORK_STAGES``.
        plan: How much is measured.
    """
    lines = []
    for name in plan.sets:
        networks = make_networks(name, plan.num)
        task, reference = _network_tasks(stage, networks)
        tasks = {"own": task, "reference": reference}
        seconds = plan.seconds / len(plan.sets)
        one = interleaved(tasks, seconds=seconds, least_repeats=plan.least)
        every = _on_all_threads(tasks, seconds, name, plan)
        # Capture depends on architectures, not on how many networks have them.
        num = len(networks.families) if stage == "capture" else networks.num
        lines.append(
            {
                "networks": name,
                "row": NETWORKS[name.split("-")[0]],
                "num": num,
                **_times(one["own"], every.get("own"), num),
                "reference": "a forward pass" if stage == "capture" else "one copy of the weights",
                "times_slower": one["own"].cpu_ms / one["reference"].cpu_ms,
            }
        )
        plan.progress(f"{stage} {name}")
    return lines


def _network_tasks(
    stage: str, networks: Networks
) -> tuple[Callable[[], object], Callable[[], object]]:
    def copy() -> list[torch.Tensor]:
        return [v.clone() for family in networks.families for v in family.states.values()]

    def run() -> None:
        with torch.no_grad():
            for family in networks.families:
                family.network(*family.inputs)

    if stage == "capture":
        return networks.capture, run
    graphs = networks.capture()
    if stage == "features":
        return (lambda: networks.features(graphs)), copy
    pairs = list(zip(graphs, networks.features(graphs), strict=True))
    return (lambda: pg.collate(pairs)), copy


def row_tables(stages: Sequence[str], plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The lines of stages that concern metanetworks, by stage.

    Args:
        stages: Some of ``ROW_STAGES``.
        plan: How much is measured.
    """
    tables: dict[str, list[dict[str, Any]]] = {stage: [] for stage in stages}
    if not stages:
        return tables
    for name in plan.sets:
        rows = plan.rows_of(name)
        peaks: dict[str, dict[str, Any]] = {}
        fitting = []
        measured = [stage for stage in stages if stage != "embed"] or ["forward"]
        for row in rows:
            if not plan.is_whole(name):
                peaks[row] = {}
                fitting.append(row)
                continue
            num = min(plan.num, ROWS[row].num)
            request = {"row": row, "networks": name, "num": num, "stages": measured}
            peaks[row] = peak_in_a_process({**request, "limit_gb": plan.limit_gb})
            if "failed" not in peaks[row]:
                fitting.append(row)
            plan.progress(f"memory {name}: {row}")
        subjects = _subjects(fitting, name, plan)
        for stage in stages:
            tables[stage] += _lines(stage, name, subjects, peaks, plan)
    return tables


def _subjects(rows: Sequence[str], name: str, plan: Plan) -> dict[str, tuple[Subject, Networks]]:
    """Rows with equal batch sizes share a batch."""
    batches: dict[int, tuple[Networks, pg.GraphBatch]] = {}
    found = {}
    for row in rows:
        num = min(plan.num, ROWS[row].num)
        if num not in batches:
            networks = make_networks(name, num)
            batches[num] = networks, networks.batch()
        found[row] = make_subject(row, *batches[num]), batches[num][0]
    return found


def _lines(
    stage: str,
    name: str,
    subjects: dict[str, tuple[Subject, Networks]],
    peaks: dict[str, dict[str, Any]],
    plan: Plan,
) -> list[dict[str, Any]]:
    tasks: dict[str, Callable[[], object]] = {}
    for row, (subject, networks) in subjects.items():
        if stage != "embed":
            tasks[row] = subject.stage(stage)
        else:
            tasks[row] = _embedding(subject, networks)
    lines: list[dict[str, Any]] = [
        {"networks": name, "row": row, "failed": peak["failed"]}
        for row, peak in peaks.items()
        if "failed" in peak
    ]
    if not tasks:
        return lines
    one = interleaved(tasks, seconds=plan.seconds, least_repeats=plan.least)
    plan.progress(f"{stage} {name}, one thread")
    every = _on_all_threads(tasks, plan.seconds / 2, name, plan)
    plan.progress(f"{stage} {name}, all threads")
    reference = reference_of(name, tasks)
    per_network = {row: one[row].cpu_ms / subjects[row][0].num_networks for row in tasks}
    for row in tasks:
        subject, networks = subjects[row]
        line = {
            "networks": name,
            "row": row,
            "num": subject.num_networks,
            **_times(one[row], every.get(row), subject.num_networks),
            "reference": reference,
            "times_faster": per_network[reference] / per_network[row],
        }
        peak = peaks[row].get(stage)
        if peak is not None:
            line["peak_mb"] = peak["peak_mb"]
            line["memory_by"] = peak["how"]
            line["kb_per_parameter"] = peak["peak_mb"] * 1024 / networks.num_parameters
        lines.append(line)
    return lines


def _embedding(subject: Subject, networks: Networks) -> Callable[[], object]:
    """From weights to predictions: features, collate, forward. Structure is captured before.

    A twin reads the weights as they are.
    """
    if ROWS[subject.name].twin is not None:
        return subject.forward
    graphs = networks.capture()

    def embed() -> object:
        values = networks.features(graphs)
        subject.read = pg.collate(list(zip(graphs, values, strict=True)))
        return subject.forward()

    return embed


def _on_all_threads(
    tasks: dict[str, Callable[[], object]], seconds: float, name: str, plan: Plan
) -> dict[str, Timing]:
    """After the pass on one thread, so there is nothing left to warm up."""
    if not plan.is_whole(name):
        return {}
    return interleaved(
        tasks,
        num_threads=num_cores(),
        seconds=seconds,
        least_repeats=max(1, plan.least - 1),
        most_repeats=7,
        warm_up=False,
    )


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _times(one: Timing, every: Timing | None, num: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cpu_ms": one.cpu_ms,
        "per_second": 1e3 * num / one.cpu_ms,
        "repeats": one.repeats,
        "spread": one.spread,
    }
    if every is not None:
        found["wall_ms_all_threads"] = every.wall_ms
        found["per_second_all_threads"] = 1e3 * num / every.wall_ms
    return found
