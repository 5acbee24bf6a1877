"""Settings and results of a training run, and the error of one that cannot go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paramgraph.errors import ParamGraphError

__all__ = ["CHECKPOINTS", "RunResult", "TrainConfig", "TrainingError"]

CHECKPOINTS = "checkpoints"
"""Subfolder for what the trainer needs to resume; results stand beside it."""

PRECISIONS = ("32", "bf16", "64")


class TrainingError(ParamGraphError):
    """A metanetwork cannot be trained with these settings, or a process of the run died."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        metanetwork: Name (see ``paramgraph.nn.CONFIGS``).
        options: Constructor options of the metanetwork.
        epochs: Passes over the training split.
        batch_size: Networks per step and process; not used where a budget is given.
        max_edges: Instead of a batch size: most edges per step and process, so that zoos of large
            and small networks train at even speed and memory; 0 is no limit.
        max_neurons: The same for neurons; both can be given.
        learning_rate: Highest rate of a one-cycle schedule.
        warmup: Fraction of the steps in which the rate rises.
        weight_decay: Of AdamW.
        clip: Largest gradient norm.
        weight_noise: Relative Gaussian noise on the weights that are read, in training only.
        sign_flips: Negate random neurons whose sign is free (the function stays), in training only.
        patience: Epochs without a better validation score before stopping; 0 never stops.
        seed: Of initial weights, order and noise.
        device: ``cpu`` or ``cuda``.
        num_threads: Threads on a CPU, of each process; 0 leaves PyTorch's choice.
        num_workers: Processes that make the next mini-batches meanwhile; the run stays the same.
            Worth it for zoos of many architectures where a core is free; 0 makes them in turn.
        precision: 32, bf16 (matrix products in bfloat16, for GPUs; refused where a metanetwork
            loses more than 5 % by it) or 64.
        checkpoint_layers: Keep only what enters each layer, and run layers again for their
            gradient: less memory, about a third more time, the same result.
        num_processes: Processes that share each step (data parallel), on one machine; each reads
            ``batch_size`` networks. Under torchrun its processes are used instead.
    """

    metanetwork: str = "operator"
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    batch_size: int = 64
    max_edges: int = 0
    max_neurons: int = 0
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
    num_workers: int = 0
    precision: str = "32"
    checkpoint_layers: bool = False
    num_processes: int = 1


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        folder: Run folder: config.json, metrics.json, best.safetensors, metrics.csv, plots.
        metrics: Metrics of the best checkpoint by split.
        seconds: Wall time of training, and CPU time of all its processes.
        num_parameters: Of the metanetwork.
    """

    folder: Path
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    num_parameters: int
