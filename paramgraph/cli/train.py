"""``paramgraph train``: train a metanetwork on a zoo."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from paramgraph.cli.command import Answer, Command, UsageError, add_fields
from paramgraph.nn import CONFIGS, make_metanetwork
from paramgraph.report.plain import table
from paramgraph.tasks import RunResult, TrainConfig, train
from paramgraph.tasks.config import PRECISIONS
from paramgraph.tasks.processes import Ranks
from paramgraph.zoo import Zoo

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["TRAIN"]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--zoo", type=str, required=True, help="Folder of the zoo.")
    parser.add_argument(
        "--task",
        type=str,
        required=True,
        help="What to learn: inr-classification or accuracy-prediction.",
    )
    parser.add_argument("--out", type=str, required=True, help="Run folder.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --out.")
    add_fields(parser, TrainConfig)
    names = "; ".join(f"{name}: {config.summary}" for name, config in CONFIGS.items())
    parser.epilog = (
        f"{parser.epilog} For networks of very different sizes: --max-edges 50000 fills each step "
        "up to 50,000 edges. On 2 processes: --num-processes 2, or torchrun --nproc-per-node 2 -m "
        f"paramgraph train ... Metanetworks: {names}."
    )


def _run(arguments: Namespace) -> Answer:
    settings = {field.name: arguments[field.name] for field in fields(TrainConfig)}
    config = TrainConfig(**settings)
    _check(config)
    zoo = Zoo.open(arguments.zoo)
    result = train(zoo, arguments.task, config, out=arguments.out, resume=arguments.resume)
    if not Ranks.here().writes:  # under torchrun; one process speaks for all
        raise SystemExit(0)
    data = {
        "task": arguments.task,
        "config": asdict(config),
        "folder": result.folder,
        "num_parameters": result.num_parameters,
        "seconds": result.seconds,
        "metrics": result.metrics,
    }
    return Answer(_text(result), data)


_NOT_NEGATIVE = (
    *("weight_noise", "patience", "seed", "num_threads", "weight_decay", "clip"),
    *("max_edges", "max_neurons", "num_workers"),
)


def _check(config: TrainConfig) -> None:
    """Refuse what would fail only after the zoo was read."""
    import torch

    for name in ("epochs", "batch_size", "learning_rate", "num_processes"):
        if not getattr(config, name) > 0:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"expected {flag} above 0, got {getattr(config, name)}.")
    for name in _NOT_NEGATIVE:
        if getattr(config, name) < 0:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"expected {flag} of at least 0, got {getattr(config, name)}.")
    if not 0 <= config.warmup <= 1:
        raise UsageError(f"expected --warmup in 0..1, got {config.warmup}.")
    if config.precision not in PRECISIONS:
        raise UsageError(f"expected --precision {', '.join(PRECISIONS)}, got {config.precision!r}.")
    if config.device.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"expected --device cpu or cuda, got {config.device!r}.")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here. Use --device cpu.")
    if config.metanetwork not in CONFIGS:
        raise UsageError(
            f"no metanetwork is named {config.metanetwork!r}; choose one of {', '.join(CONFIGS)}."
        )
    try:
        make_metanetwork(config.metanetwork, 1, **config.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"--options {config.options}: {error}") from error


def _text(result: RunResult) -> str:
    names = list(result.metrics["test"])
    rows = [("split", *(name.replace("_", " ") for name in names))]
    for split, metrics in result.metrics.items():
        rows.append((split, *(f"{metrics[name]:.4f}" for name in names)))
    return "\n".join(
        [
            table(rows),
            f"{result.num_parameters:,} parameters, {result.seconds['wall']:.0f} s. "
            f"Written to {result.folder}: metrics.json, best.safetensors, metrics.csv, pictures.",
        ]
    )


TRAIN = Command(
    ("train",),
    "Train a metanetwork on a zoo of networks and write a run folder.",
    "paramgraph train --zoo demo/zoos/cnn --task accuracy-prediction --metanetwork operator "
    "--out runs/first --epochs 5 --options.hidden_dim 16",
    _add_arguments,
    _run,
)
