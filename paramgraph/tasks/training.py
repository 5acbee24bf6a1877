"""One training entry for all tasks, on Lightning; exact resume, best checkpoint, plots."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramgraph.errors import CheckpointError, ZooError
from paramgraph.graph import ParamGraph
from paramgraph.nn import Metanetwork, make_metanetwork
from paramgraph.storage import write_atomic
from paramgraph.tasks.data import LoadedNetworks, as_tensor, capture_zoo, load_networks
from paramgraph.tasks.orders import EpochOrder
from paramgraph.tasks.task import Task, make_task
from paramgraph.zoo import Zoo

__all__ = ["RunResult", "TrainConfig", "predict_all", "train"]

CHECKPOINTS = "checkpoints"
"""Subfolder for what the trainer needs to resume; results stand beside it."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        metanetwork: Name (see ``paramgraph.nn.CONFIGS``).
        options: Constructor options of the metanetwork.
        epochs: Passes over the training split.
        batch_size: Networks per step.
        learning_rate: Highest rate of a one-cycle schedule.
        warmup: Fraction of the steps in which the rate rises.
        weight_decay: Of AdamW.
        clip: Largest gradient norm.
        weight_noise: Relative Gaussian noise on the weights that are read, in training only.
        sign_flips: Negate random neurons whose sign is free (the function stays), in training only.
        patience: Epochs without a better validation score before stopping; 0 never stops.
        seed: Of initial weights, order and noise.
        device: ``cpu`` or ``cuda``.
        num_threads: Threads on a CPU; 0 leaves PyTorch's choice.
    """

    metanetwork: str = "operator"
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 1e-2
    clip: float = 1.0
    weight_noise: float = 0.0
    sign_flips: bool = False
    patience: int = 0
    seed: int = 0
    device: str = "cpu"
    num_threads: int = 0


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        folder: Run folder: config.json, metrics.json, best.safetensors, metrics.csv, plots.
        metrics: Metrics of the best checkpoint by split.
        seconds: Wall and CPU time of training.
        num_parameters: Of the metanetwork.
    """

    folder: Path
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    num_parameters: int


def train(
    zoo: Zoo,
    task: str,
    config: TrainConfig,
    *,
    out: str | os.PathLike[str],
    graphs: dict[str, ParamGraph] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> RunResult:
    """Train a metanetwork on a zoo and write a run folder.

    Args:
        zoo: With splits ``train``, ``val`` and ``test``.
        task: ``inr-classification`` or ``accuracy-prediction``.
        config: Settings.
        out: Run folder; it must not hold a run unless ``resume``.
        graphs: Graphs of the architectures, if they are known already.
        resume: Go on with the last epoch in ``out``.
        progress: Show a progress bar.

    Returns:
        Metrics of the checkpoint with the best validation score, on every split.

    Raises:
        ZooError: The zoo does not fit the task, or has an empty split.
        CheckpointError: ``out`` holds another run, or there is nothing to resume.
    """
    folder = Path(out)
    _check_folder(folder, config, task, resume)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    made_task = make_task(task, zoo)
    graphs = capture_zoo(zoo) if graphs is None else graphs
    splits = {}
    for name in ("train", "val", "test"):
        part = zoo.split(name)
        splits[name] = load_networks(part, made_task.label, graphs, device=config.device)
    torch.manual_seed(config.seed)
    metanetwork = make_metanetwork(config.metanetwork, made_task.out_dim, **config.options)
    # Scales of weights from at most 1,024 training networks, spread over all architectures.
    probe = EpochOrder(splits["train"].architecture, 256, seed=config.seed)
    sample = [splits["train"].batch(as_tensor(n))[0] for n, _ in zip(probe, range(4), strict=False)]
    metanetwork.to(config.device).fit_statistics(sample)
    _begin_folder(folder, config, task)
    seconds = _fit(metanetwork, made_task, splits, config, folder, resume, progress)
    metrics, outputs = {}, {}
    for name, networks in splits.items():
        outputs[name] = predict_all(metanetwork, networks)
        metrics[name] = made_task.metrics(outputs[name], networks.target)
    num_parameters = sum(p.numel() for p in metanetwork.parameters())
    facts = {"task": task, "zoo": str(zoo.info.get("recipe", "")), "metrics": metrics}
    metanetwork.cpu().save_file(folder / "best.safetensors", facts)
    report = {
        "task": task,
        "metanetwork": config.metanetwork,
        "num_parameters": num_parameters,
        "seconds": seconds,
        **metrics,
    }
    _write_json(folder / "metrics.json", report)
    test = splits["test"]
    _write_json(
        folder / "predictions.json",
        {
            "split": "test",
            "prediction": made_task.predict(outputs["test"]).tolist(),
            "target": test.target.tolist(),
        },
    )
    from paramgraph.tasks.plots import plot_learning_curve, plot_predictions

    plot_learning_curve(folder, made_task.score)
    plot_predictions(folder, made_task.name)
    return RunResult(folder, metrics, seconds, num_parameters)


@torch.no_grad()
def predict_all(
    metanetwork: Metanetwork, networks: LoadedNetworks, *, batch_size: int = 256
) -> Tensor:
    """Raw outputs for all networks, in the order of the zoo ``[num_networks, out_dim]``."""
    metanetwork.eval()
    outputs, numbers = [], []
    for batch, which in networks.batches(batch_size):
        outputs.append(metanetwork(batch))
        numbers.append(which)
    return torch.cat(outputs)[torch.cat(numbers).argsort()]


def _check_folder(folder: Path, config: TrainConfig, task: str, resume: bool) -> None:
    """Refuse a run folder that cannot be used; nothing is written yet."""
    settings = {"task": task, **asdict(config)}
    if resume:
        if not (folder / CHECKPOINTS / "last.ckpt").is_file():
            raise CheckpointError(
                f"nothing to resume: {folder} has no checkpoints/last.ckpt. "
                "Start it without --resume."
            )
        try:
            stored = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot resume: {folder}/config.json cannot be read ({error}). "
                "Choose another folder."
            ) from error
        if stored != json.loads(json.dumps(settings)):
            changed = {k: (stored.get(k), v) for k, v in settings.items() if stored.get(k) != v}
            raise CheckpointError(
                f"{folder} was started with other settings (stored, given): {changed}. Resume with "
                "the same ones, or choose another folder."
            )
        return
    # A run that was stopped before its first epoch ended has nothing to keep: start it again.
    if any((folder / name).exists() for name in ("metrics.json", f"{CHECKPOINTS}/last.ckpt")):
        raise CheckpointError(
            f"{folder} already holds a run. Resume it with --resume, or choose another --out."
        )
    parents = [path for path in (folder, *folder.parents) if path.exists()]
    if parents and not parents[0].is_dir():
        raise CheckpointError(
            f"cannot make the run folder {folder}: {parents[0]} is a file. Choose another folder."
        )


def _begin_folder(folder: Path, config: TrainConfig, task: str) -> None:
    """Make the run folder and write its configuration, once the input is known to be usable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the run folder {folder}: {error.strerror}.") from error
    _write_json(folder / "config.json", {"task": task, **asdict(config)})


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=True) + "\n").encode())


def _fit(
    metanetwork: Metanetwork,
    task: Task,
    splits: dict[str, LoadedNetworks],
    config: TrainConfig,
    folder: Path,
    resume: bool,
    progress: bool,
) -> dict[str, float]:
    """Run Lightning; afterwards the metanetwork holds the best checkpoint. Returns the seconds."""
    from paramgraph.tasks.lightning import make_module, make_trainer

    for name, networks in splits.items():
        if not len(networks):
            raise ZooError(f"split {name!r} of the zoo is empty, so there is nothing to train on.")
    order = EpochOrder(splits["train"].architecture, config.batch_size, seed=config.seed)
    module = make_module(metanetwork, task, splits, config, order, folder)
    trainer, best, seconds = make_trainer(task, config, folder, progress=progress)
    numbers: Any = range(len(splits["train"]))  # a data set of the numbers themselves
    batch_sampler: Any = order
    loader: torch.utils.data.DataLoader[int] = torch.utils.data.DataLoader(
        numbers, batch_sampler=batch_sampler, collate_fn=as_tensor
    )
    with warnings.catch_warnings():
        # The loader only hands out numbers, so worker processes would not help.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # when resuming
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        trainer.fit(
            module,
            train_dataloaders=loader,
            ckpt_path=str(folder / CHECKPOINTS / "last.ckpt") if resume else None,
            weights_only=True if resume else None,
        )
    took = seconds()
    stored = torch.load(best(), map_location=config.device, weights_only=True)
    prefix = "metanetwork."
    metanetwork.load_state_dict(
        {k.removeprefix(prefix): v for k, v in stored["state_dict"].items() if k.startswith(prefix)}
    )
    metanetwork.to(config.device)
    return took
