"""Several processes train as one: same losses, one writer, and no waiting for the dead."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_zoos import tiny_cnns
from torch import Tensor

from paramgraph.nn import Metanetwork
from paramgraph.tasks import TrainConfig, TrainingError, evaluate, train
from paramgraph.tasks import training as training_file
from paramgraph.tasks.processes import Ranks, launch, sum_over_ranks
from paramgraph.zoo import Zoo

pytestmark = pytest.mark.timeout(240)
TASK = "accuracy-prediction"
CONFIG = TrainConfig(
    "operator",
    options={"hidden_dim": 8, "num_rounds": 1},
    epochs=3,
    batch_size=4,
    seed=3,
    num_threads=1,
    precision="64",
)


def _zoo() -> Zoo:
    """15 networks in training: after a step of 4 + 4 there is one of 4 + 3, means of two sizes."""
    zoo = tiny_cnns()
    train = (zoo.column("split") == "train").nonzero()[0]
    kept = zoo.select([i for i in range(len(zoo)) if i not in train[15:]])
    assert len(kept.split("train")) == 15
    return kept


def _rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _weights(folder: Path) -> dict[str, Tensor]:
    return Metanetwork.load_file(folder / "best.safetensors")[0].state_dict()


# --- who this process is


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.here() == Ranks(0, 1, 1)
    assert Ranks.here().writes
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Ranks.here() == Ranks(5, 8, 4)
    assert not Ranks.here().writes


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="sets WORLD_SIZE but not RANK, LOCAL_RANK"):
        Ranks.here()


# --- processes without training


def _connect() -> Ranks:
    ranks = Ranks.here()
    torch.distributed.init_process_group("gloo", rank=ranks.rank, world_size=ranks.num_ranks)
    return ranks


def _add_up_and_die(folder: Path) -> None:
    ranks = _connect()
    total = sum_over_ranks(torch.tensor([1.0, ranks.rank]))
    (folder / f"{ranks.rank}").write_text(json.dumps([*total.tolist(), Ranks.here() == ranks]))
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(200)  # a process that would not notice by itself


def test_processes_add_up_and_a_killed_one_ends_the_run(tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(TrainingError, match="process 1 of 2 ended with signal SIGKILL"):
        launch(2, _add_up_and_die, tmp_path)
    assert [json.loads((tmp_path / f"{rank}").read_text()) for rank in (0, 1)] == [
        [2.0, 1.0, True]
    ] * 2
    assert time.perf_counter() - start < 100


# --- training


def _train_and_die(
    zoo: Zoo, task: str, config: TrainConfig, folder: Path, resume: bool, progress: bool
) -> None:
    """As a process of ``train``, but the second one is killed in the middle of the third epoch."""
    from paramgraph.tasks import lightning

    step = lightning._Module.training_step

    def killed(module: Any, prepared: Any, index: int) -> Tensor:
        if Ranks.here().rank == 1 and module.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(module, prepared, index)

    lightning._Module.training_step = killed  # type: ignore[method-assign, assignment]
    training_file._train_rank(zoo, task, config, folder, resume, progress)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    pytest.importorskip("lightning")
    folder = tmp_path_factory.mktemp("runs") / "two"
    config = replace(CONFIG, num_processes=2)
    result = train(_zoo(), TASK, config, out=folder, progress=False)
    assert result.folder == folder
    return folder


def test_two_processes_train_as_one_with_the_doubled_batch(two: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, batch_size=8)
    one = train(_zoo(), TASK, config, out=tmp_path / "one", progress=False)
    expected, found = _rows(one.folder), _rows(two)
    assert [row["epoch"] for row in found] == [0, 1, 2]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-10)
    assert len({row["train/loss"] for row in found}) == 3
    first, second = _weights(one.folder), _weights(two)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-8, atol=1e-10)
    stored = json.loads((two / "metrics.json").read_text())
    for split, metrics in one.metrics.items():
        assert stored[split] == pytest.approx(metrics, rel=1e-8)
    predictions = [
        json.loads((folder / "predictions.json").read_text()) for folder in (two, one.folder)
    ]
    assert predictions[0]["target"] == predictions[1]["target"]
    assert predictions[0]["prediction"] == pytest.approx(predictions[1]["prediction"], rel=1e-8)
    again = evaluate(two, _zoo(), split="val")
    assert again == pytest.approx(stored["val"], rel=1e-8)
    assert stored["seconds"]["cpu"] > 0


@pytest.mark.slow
def test_a_killed_run_of_two_is_resumed_as_it_was(two: Path, tmp_path: Path) -> None:
    config, folder = replace(CONFIG, num_processes=2), tmp_path / "killed"
    with pytest.raises(TrainingError, match="process 1 of 2 ended with signal SIGKILL"):
        launch(2, _train_and_die, _zoo(), TASK, config, folder, False, False)
    assert len(_rows(folder)) == 2
    assert not (folder / "metrics.json").exists()
    train(_zoo(), TASK, config, out=folder, resume=True, progress=False)
    assert (folder / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    first, second = _weights(two), _weights(folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_an_error_in_a_process_is_told(tmp_path: Path) -> None:
    config = replace(CONFIG, num_processes=2, options={"hidden_dim": -1})
    with pytest.raises(TrainingError, match=r"process \d of 2 failed, .*\n(.*\n)*.*hidden_dim"):
        train(_zoo(), TASK, config, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_the_processes(tmp_path: Path) -> None:
    """By budget and with a worker each; one process prints, one writes."""
    words = [
        *("train", "--zoo", str(tiny_cnns().path), "--task", TASK, "--out", str(tmp_path / "run")),
        *("--epochs", "2", "--max-edges", "2000", "--num-workers", "1", "--num-threads", "1"),
        *("--options.hidden_dim", "8", "--options.num_rounds", "1", "--json"),
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "paramgraph", *words], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert len(_rows(tmp_path / "run")) == 2
    assert report["metrics"]["test"]["mae"] > 0
