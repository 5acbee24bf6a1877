"""The pictures of the demonstration: predictions, INRs, learning curves, one graph."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paramgraph.report.graph_picture import draw_graph
from paramgraph.report.jobs import Job
from paramgraph.report.text import NAMES
from paramgraph.storage import write_atomic
from paramgraph.tasks.plots import figure, read_curve, scatter
from paramgraph.zoo import Zoo, image_points, load_images

__all__ = ["PICTURES", "draw_pictures", "save_figure"]

PICTURES = ("scatter.png", "inrs.png", "learning_curves.png", "graph.png")
_COLORS = {
    "operator": "#1f5fa8",
    "ng_gnn": "#c8553d",
    "statnn": "#4f8f4a",
    "flat_mlp": "#7a7a7a",
}


def draw_pictures(folder: Path, cnns: Zoo, inrs: Zoo, jobs: Sequence[Job]) -> None:
    """Draw every picture of ``PICTURES`` into a folder.

    Args:
        folder: Where to write.
        cnns: Zoo of classifiers.
        inrs: Zoo of INRs of the digits.
        jobs: Finished training runs.
    """
    save_figure(_scatter(jobs), folder / "scatter.png")
    save_figure(_inrs(inrs), folder / "inrs.png")
    save_figure(_curves(jobs), folder / "learning_curves.png")
    save_figure(draw_graph(inrs.network(0), *_siren_inputs(inrs)), folder / "graph.png")


def save_figure(made: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    data = io.BytesIO()
    made.savefig(data, format="png", dpi=110)
    write_atomic(path, data.getvalue())


def _siren_inputs(zoo: Zoo) -> tuple[torch.Tensor, ...]:
    return zoo.architectures[str(zoo.column("architecture")[0])].example_inputs()


def _scatter(jobs: Sequence[Job]) -> Any:
    """Predicted against true accuracy, one panel per metanetwork."""
    shown = [job for job in jobs if job.task == "accuracy-prediction"]
    shown.sort(key=lambda job: list(NAMES).index(job.name.split(".")[1]))
    made, axes = figure(3.2 * len(shown), 3.3, columns=len(shown))
    for axis, job in zip(axes, shown, strict=True):
        stored = json.loads((job.folder / "predictions.json").read_text())
        title = NAMES[job.name.split(".")[1]]
        scatter(axis, np.array(stored["prediction"]), np.array(stored["target"]), title)
    return made


def _inrs(zoo: Zoo) -> Any:
    """Digits, their INRs at the same pixels, and the same INRs on a grid eight times as fine."""
    height, width = zoo.info["conventions"]["image_size"]
    images = load_images("digits").x_train
    train = np.flatnonzero(zoo.column("split") == "train")  # images of this split come first
    _, first = np.unique(zoo.column("label")[train], return_index=True)
    chosen = train[first]
    made, _ = figure(1.0 * len(chosen) + 0.8, 3.3)
    made.clear()
    axes = made.subplots(3, len(chosen), squeeze=False)
    for column, number in enumerate(chosen.tolist()):
        network = zoo.network(number)
        with torch.no_grad():
            same = network(image_points(height, width)).view(height, width)
            fine = network(image_points(8 * height, 8 * width)).view(8 * height, 8 * width)
        original = images[int(zoo.column("image")[number]), 0]
        for row, picture in enumerate((original, same, fine)):
            axes[row][column].imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes[row][column].set(xticks=[], yticks=[])
    for row, text in enumerate(("digit", "its INR", "INR, 8 x finer")):
        axes[row][0].set_ylabel(text, fontsize=8)
    return made


def _curves(jobs: Sequence[Job]) -> Any:
    """Validation score over the epochs of every run, one panel per task."""
    tasks = {"accuracy-prediction": "kendall_tau", "inr-classification": "accuracy"}
    made, axes = figure(9, 3.2, columns=2)
    for axis, (task, score) in zip(axes, tasks.items(), strict=True):
        for job in jobs:
            if job.task == task:
                name = job.name.split(".")[1]
                epochs, values = read_curve(job.folder, f"val/{score}")
                axis.plot(epochs, values, label=NAMES[name], color=_COLORS[name])
        axis.set(xlabel="epoch", ylabel=f"validation {score.replace('_', ' ')}")
        axis.set_title(task.replace("-", " "), fontsize=10)
        axis.legend(frameon=False, fontsize=8)
    return made
