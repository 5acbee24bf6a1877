"""Pictures of a run: learning curve, and predictions against the truth."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["plot_learning_curve", "plot_predictions", "read_curve", "scatter"]


def read_curve(folder: Path, column: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one column of a run's metrics.csv."""
    epochs, values = [], []
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            if row.get(column):
                epochs.append(int(row["epoch"]) + 1)
                values.append(float(row[column]))
    return epochs, values


def figure(width: float, height: float, *, columns: int = 1) -> tuple[Any, Any]:
    """A figure without a display, with axes that keep out of the way."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes


def plot_learning_curve(folder: Path, score: str) -> None:
    """Training loss and validation score over the epochs, as learning_curve.png."""
    made, axes = figure(7, 2.8, columns=2)
    for axis, column, label in zip(
        axes, ("train/loss", f"val/{score}"), ("training loss", f"validation {score}"), strict=True
    ):
        epochs, values = read_curve(folder, column)
        axis.plot(epochs, values, marker=".", color="#1f5fa8")
        axis.set_xlabel("epoch")
        axis.set_title(label.replace("_", " "), fontsize=10)
    made.savefig(folder / "learning_curve.png", dpi=130)


def plot_predictions(folder: Path, task: str) -> None:
    """Predicted against true values of the test split, as predictions.png."""
    stored = json.loads((folder / "predictions.json").read_text())
    prediction, target = np.array(stored["prediction"]), np.array(stored["target"])
    made, axes = figure(3.6, 3.4)
    if task == "inr-classification":
        _confusion(axes[0], prediction, target)
    else:
        scatter(axes[0], prediction, target)
    made.savefig(folder / "predictions.png", dpi=130)


def scatter(axis: Any, prediction: NDArray[Any], target: NDArray[Any], title: str = "") -> None:
    """Predicted against true accuracy, with the line where both are equal."""
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=0)
    axis.scatter(target, prediction, s=7, alpha=0.45, linewidths=0, color="#1f5fa8")
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="true accuracy", ylabel="predicted accuracy")
    axis.set_aspect("equal")
    axis.set_title(title, fontsize=10)


def _confusion(axis: Any, prediction: NDArray[Any], target: NDArray[Any]) -> None:
    num = int(max(prediction.max(), target.max())) + 1
    table = np.zeros((num, num))
    np.add.at(table, (target, prediction), 1)
    table /= np.maximum(table.sum(1, keepdims=True), 1)
    axis.imshow(table, cmap="Blues", vmin=0, vmax=1)
    ticks: Sequence[int] = range(num)
    axis.set(xticks=ticks, yticks=ticks, xlabel="predicted class", ylabel="true class")
    axis.spines[["top", "right"]].set_visible(True)
