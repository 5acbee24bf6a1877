"""Score a finished run on a zoo."""

from __future__ import annotations

import os
from pathlib import Path

from paramgraph.errors import CheckpointError
from paramgraph.nn import Metanetwork
from paramgraph.tasks.data import capture_zoo, load_networks
from paramgraph.tasks.task import make_task
from paramgraph.tasks.training import predict_all
from paramgraph.zoo import Zoo

__all__ = ["evaluate"]


def evaluate(
    run: str | os.PathLike[str], zoo: Zoo, *, split: str = "test", device: str = "cpu"
) -> dict[str, float]:
    """Metrics of a run's best checkpoint on a split of a zoo.

    Args:
        run: Run folder.
        zoo: Any zoo with the run's label, also one it was not trained on.
        split: Which split; ``"all"`` takes every network.
        device: ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: ``run`` holds no finished run.
        ZooError: The zoo does not fit the task.
    """
    path = Path(run) / "best.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{run} holds no finished run: it has no best.safetensors.")
    metanetwork, facts = Metanetwork.load_file(path)
    if "task" not in facts:
        raise CheckpointError(f"{path} was not written by a training run: its header has no task.")
    task = make_task(facts["task"], zoo)
    part = zoo if split == "all" else zoo.split(split)
    dtype = next(metanetwork.parameters()).dtype
    networks = load_networks(part, task.label, capture_zoo(part), device=device, dtype=dtype)
    return task.metrics(predict_all(metanetwork.to(device), networks), networks.target)
