"""The demonstration: two zoos, their graphs, six trained metanetworks, one page of results."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paramgraph.errors import CheckpointError, ZooError
from paramgraph.report.environment import environment
from paramgraph.report.jobs import Job, run_jobs
from paramgraph.report.plain import to_json
from paramgraph.report.scores import accuracy_scores, inr_scores, mean_scores, verify_zoos
from paramgraph.report.text import demo_text
from paramgraph.storage import write_atomic
from paramgraph.tasks import TrainConfig
from paramgraph.zoo import Zoo, digits_cnn_recipe, digits_inr_recipe

__all__ = ["DEMO_RUNS", "DemoResult", "run_demo"]

DEMO_RUNS: dict[str, TrainConfig] = {
    "inr_classification.ng_gnn": TrainConfig(
        "ng-gnn",
        {"readout": "outputs", "magnitudes": True},
        epochs=30,
        learning_rate=2e-3,
        sign_flips=True,
    ),
    "accuracy_prediction.ng_gnn": TrainConfig(
        "ng-gnn",
        {"hidden_dim": 16, "readout": "mean-edges", "magnitudes": True},
        epochs=22,
        batch_size=32,
        learning_rate=3e-3,
        weight_noise=0.05,
    ),
    "inr_classification.operator": TrainConfig("operator", epochs=14, learning_rate=4e-3),
    "accuracy_prediction.operator": TrainConfig(
        "operator", {"dropout": 0.1}, epochs=20, learning_rate=3e-3, weight_noise=0.1
    ),
    "accuracy_prediction.statnn": TrainConfig("statnn", {"dropout": 0.1}, epochs=40),
    "inr_classification.flat_mlp": TrainConfig("flat-mlp", epochs=10, learning_rate=1e-3),
}
"""Task and metanetwork to settings; they are trained in this order, so the longest stand first."""

TINY_RUNS: dict[str, TrainConfig] = {
    name: replace(config, epochs=2, batch_size=16, options={"hidden_dim": 8})
    for name, config in DEMO_RUNS.items()
}
"""The same for tests: seconds, and numbers without meaning."""

_SCALES = {"demo": DEMO_RUNS, "tiny": TINY_RUNS}


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured.

    Attributes:
        folder: Where everything was written; open ``index.html``.
        metrics: The content of ``metrics.json``.
        text: The tables, for a terminal.
    """

    folder: Path
    metrics: dict[str, Any]
    text: str


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    scale: str = "demo",
    num_workers: int = 2,
    progress: bool = True,
) -> DemoResult:
    """Build two zoos of digits, read their networks as graphs, and train six metanetworks.

    What is already in ``out`` is used again: finished parts as they are, interrupted ones are
    continued.

    Args:
        out: Folder of the results.
        seed: Everything random follows from it.
        scale: ``"demo"``, or ``"tiny"`` for tests.
        num_workers: Metanetworks trained at a time, one processor core each.
        progress: Tell on stderr what is going on.

    Returns:
        The metrics and a text of tables.

    Raises:
        ZooError: Unknown scale, or ``out`` holds a zoo of other settings.
        CheckpointError: ``out`` cannot be written, or holds another demonstration.
        GraphError: A symmetry found does not hold on its network.
    """
    from paramgraph.report.html import write_page
    from paramgraph.report.pictures import draw_pictures

    if scale not in _SCALES:
        raise ZooError(f"expected scale to be one of {', '.join(_SCALES)}, got {scale!r}.")
    if num_workers < 1:
        raise ZooError(f"expected at least one worker, got {num_workers}.")
    start = time.perf_counter()
    folder = Path(out)
    stages = _Stages(folder, {"scale": scale, "seed": seed}, progress)
    cnns = stages.zoo("build_cnn_zoo", digits_cnn_recipe, "cnn", scale, seed)
    inrs = stages.zoo("build_inr_zoo", digits_inr_recipe, "inr", scale, seed)

    stages.say("Capturing and verifying every architecture ...")
    began = time.perf_counter()
    checks = verify_zoos([cnns, inrs])
    stages.seconds["capture"] = time.perf_counter() - began
    worst = max(row["max_error"] for row in checks)
    stages.say(f"  {len(checks)} architectures, largest error {worst:.1e}")

    zoos = {"accuracy_prediction": cnns, "inr_classification": inrs}
    jobs = [
        Job(
            name,
            zoos[name.split(".")[0]].path,
            name.split(".")[0].replace("_", "-"),
            replace(config, seed=seed, num_threads=1),
            folder / "runs" / name,
        )
        for name, config in _SCALES[scale].items()
    ]
    stages.say(f"Training {len(jobs)} metanetworks, {num_workers} at a time ...")
    reused = run_jobs(jobs, num_workers=num_workers, report=stages.say, progress=progress)

    training = {job.name: json.loads((job.folder / "metrics.json").read_text()) for job in jobs}
    metrics: dict[str, Any] = {
        "accuracy_prediction": {"mean": mean_scores(cnns)},
        "inr_classification": {},
        "inr_psnr_db": float(inrs.column("psnr").mean()),
        "num_networks": len(cnns) + len(inrs),
        "num_architectures": len(checks),
        "verification": {"max_error": worst, "architectures": checks},
        "seconds": {
            **stages.seconds,
            **{name: found["seconds"] for name, found in training.items()},
        },
        "reused_runs": reused,
        "seed": seed,
        "scale": scale,
        **environment(),
    }
    for job in jobs:
        task, name = job.name.split(".")
        found = (
            accuracy_scores(job.folder, cnns)
            if task == "accuracy_prediction"
            else inr_scores(job.folder)
        )
        metrics[task][name] = {**found, "num_parameters": training[job.name]["num_parameters"]}
    stages.say("Drawing ...")
    draw_pictures(folder, cnns, inrs, jobs)
    metrics["seconds"]["total"] = time.perf_counter() - start
    text = demo_text(metrics, folder)
    write_atomic(folder / "metrics.json", (to_json(metrics) + "\n").encode())
    write_page(folder, metrics, [cnns, inrs], {job.name: job.config for job in jobs})
    return DemoResult(folder, metrics, text)


class _Stages:
    """The folder of a demonstration: what it was begun with, and how long finished stages took."""

    def __init__(self, folder: Path, settings: dict[str, Any], progress: bool) -> None:
        self.folder = folder
        self.progress = progress
        self._settings = settings
        self.seconds: dict[str, float] = {}
        path = folder / "demo.json"
        if path.is_file():
            self._take_over(path)
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"cannot make the folder {folder}: {error.strerror}. Choose another --out."
                ) from error
        self._write()

    def _take_over(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text())
            settings, seconds = dict(stored["settings"]), dict(stored["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"cannot read {path}: {error}. Delete the folder, or choose another --out."
            ) from error
        if settings != self._settings:
            raise CheckpointError(
                f"{self.folder} holds a demonstration with {settings}, this one has "
                f"{self._settings}. Choose another --out, or delete that folder."
            )
        self.seconds = {name: float(value) for name, value in seconds.items()}

    def _write(self) -> None:
        facts = {"settings": self._settings, "seconds": self.seconds}
        write_atomic(self.folder / "demo.json", json.dumps(facts, indent=2).encode())

    def say(self, line: str) -> None:
        """One line on stderr."""
        if self.progress:
            print(line, file=sys.stderr, flush=True)

    def zoo(self, stage: str, recipe: Callable[..., Zoo], name: str, scale: str, seed: int) -> Zoo:
        """Build a zoo, or go on with it; time is added up over interrupted calls."""
        self.say(f"Building the zoo of {name.upper()}s ...")
        began = time.perf_counter()
        (self.folder / "zoos").mkdir(exist_ok=True)
        zoo = recipe(self.folder / "zoos" / name, scale=scale, seed=seed, progress=self.progress)
        took = time.perf_counter() - began
        # A finished zoo is only opened: then the time it took at first is the one to tell.
        self.seconds[stage] = max(self.seconds.get(stage, 0.0), took)
        self._write()
        self.say(f"  {len(zoo):,} networks, {math.ceil(took)} s")
        return zoo
