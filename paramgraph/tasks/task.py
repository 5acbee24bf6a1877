"""What is predicted: target column, loss and metrics, computed over a whole split at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from paramgraph.errors import ZooError
from paramgraph.zoo import Zoo

__all__ = ["AccuracyPrediction", "InrClassification", "Task", "make_task", "regression_metrics"]


class Task(Protocol):
    """Something to learn about networks."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def label(self) -> str:
        """Column of the zoo."""
        ...

    @property
    def out_dim(self) -> int:
        """Outputs of the metanetwork."""
        ...

    @property
    def score(self) -> str:
        """The metric that chooses the best checkpoint (higher is better)."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a mini-batch."""
        ...

    def predict(self, output: Tensor) -> Tensor:
        """Raw outputs to predictions."""
        ...

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Metrics of a whole split."""
        ...


@dataclass(frozen=True)
class InrClassification:
    """Which class is the image that an INR stores? Cross-entropy, top-1 accuracy.

    Example:
        >>> task = InrClassification(num_classes=2)
        >>> task.metrics(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))["accuracy"]
        0.5
    """

    num_classes: int
    name: str = "inr-classification"
    label: str = "label"
    score: str = "accuracy"

    @property
    def out_dim(self) -> int:
        """One logit per class."""
        return self.num_classes

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(output, target)

    def predict(self, output: Tensor) -> Tensor:
        """Most likely class ``[n]``."""
        return output.argmax(1)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Accuracy and mean cross-entropy."""
        accuracy = (self.predict(output) == target).double().mean()
        return {"accuracy": float(accuracy), "loss": float(self.loss(output.double(), target))}


@dataclass(frozen=True)
class AccuracyPrediction:
    """How accurate is a classifier, in [0, 1]? Sigmoid output, soft binary cross-entropy.

    Kendall's tau-b and R2 over the whole split, as in the papers; tau is nan where all predictions
    are equal.

    Example:
        >>> output, target = torch.tensor([[-1.0], [0.0], [2.0]]), torch.tensor([0.1, 0.5, 0.9])
        >>> AccuracyPrediction().metrics(output, target)["kendall_tau"]
        1.0
    """

    name: str = "accuracy-prediction"
    label: str = "test_accuracy"
    out_dim: int = 1
    score: str = "kendall_tau"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy with soft targets."""
        return functional.binary_cross_entropy_with_logits(output[:, 0], target)

    def predict(self, output: Tensor) -> Tensor:
        """Predicted accuracy ``[n]``."""
        return output[:, 0].sigmoid()

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Kendall's tau-b, R2, mean absolute error and loss."""
        return regression_metrics(self.predict(output), target)


def regression_metrics(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Kendall's tau-b, R2 and mean absolute error.

    Example:
        >>> regression_metrics(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))["r2"]
        0.0
    """
    from scipy.stats import kendalltau

    p, y = prediction.double().cpu(), target.double().cpu()
    residual, spread = (p - y).square().sum(), (y - y.mean()).square().sum()
    return {
        "kendall_tau": float(kendalltau(p.numpy(), y.numpy()).statistic),
        "r2": float(1 - residual / spread) if spread > 0 else float("nan"),
        "mae": float((p - y).abs().mean()),
    }


def make_task(name: str, zoo: Zoo) -> Task:
    """The task of that name, fitted to a zoo.

    Raises:
        ZooError: Unknown task, or a zoo without its label.
    """
    if name == "inr-classification":
        task: Task = InrClassification(num_classes=0)
    elif name == "accuracy-prediction":
        task = AccuracyPrediction()
    else:
        raise ZooError(
            f"no task is named {name!r}; choose inr-classification or accuracy-prediction."
        )
    if task.label not in zoo.columns:
        raise ZooError(
            f"task {name!r} needs the column {task.label!r}, but the zoo has "
            f"{', '.join(zoo.columns)}. It may be a zoo of another kind (this one: {zoo.kind})."
        )
    if isinstance(task, InrClassification):
        return InrClassification(num_classes=int(torch.as_tensor(zoo.column(task.label)).max()) + 1)
    return task
