"""From finished runs to the numbers of the demonstration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paramgraph.capture import capture, verify
from paramgraph.errors import GraphError
from paramgraph.tasks.task import regression_metrics
from paramgraph.zoo import Zoo

__all__ = ["accuracy_scores", "inr_scores", "mean_scores", "verify_zoos"]

_PARTS = ("", "_unseen_architecture", "_unseen_run")
_REPORTED = ("kendall_tau", "r2", "mae")


def verify_zoos(zoos: Sequence[Zoo]) -> list[dict[str, Any]]:
    """Capture every architecture and check the symmetries found on the network itself.

    Returns:
        One row per architecture: sizes of the graph, and what ``verify`` measured.

    Raises:
        GraphError: A symmetry changes a network by more than 1e-10, or none was found.
    """
    rows = []
    for zoo in zoos:
        for name, spec in zoo.architectures.items():
            network, inputs = spec.build(), spec.example_inputs()
            graph = capture(network, inputs)
            checked = verify(network, graph, inputs)
            if not checked.passed or not checked.num_free_groups:
                raise GraphError(f"architecture {name!r}: {checked}.")
            rows.append(
                {
                    "architecture": name,
                    "num_neurons": graph.num_neurons,
                    "num_edges": graph.num_edges,
                    "num_parameters": graph.num_parameters,
                    "log10_permutations": graph.log_group_size() / np.log(10),
                    **asdict(checked),
                }
            )
    return rows


def accuracy_scores(run: Path, zoo: Zoo) -> dict[str, float]:
    """Scores of an accuracy-prediction run: all test networks, and by what was unseen."""
    prediction, target = _predictions(run)
    return _scores_by_part(prediction, target, zoo.split("test"))


def mean_scores(zoo: Zoo) -> dict[str, float]:
    """Scores of predicting the mean accuracy of the training split for every network.

    Its predictions are all equal, so Kendall's tau is undefined (nan).
    """
    mean = float(zoo.split("train").column("test_accuracy").mean())
    test = zoo.split("test")
    target = test.column("test_accuracy")
    return _scores_by_part(np.full(len(test), mean), target, test)


def inr_scores(run: Path) -> dict[str, float]:
    """Test accuracy of an INR classification run."""
    prediction, target = _predictions(run)
    return {"accuracy": float((prediction == target).mean())}


def _predictions(run: Path) -> tuple[np.ndarray, np.ndarray]:
    stored = json.loads((run / "predictions.json").read_text())
    return np.array(stored["prediction"]), np.array(stored["target"])


def _scores_by_part(prediction: np.ndarray, target: np.ndarray, test: Zoo) -> dict[str, float]:
    unseen = test.column("unseen_architecture").astype(bool)
    masks = (np.ones(len(unseen), bool), unseen, ~unseen)
    scores: dict[str, float] = {}
    for suffix, mask in zip(_PARTS, masks, strict=True):
        measured = (
            regression_metrics(torch.as_tensor(prediction[mask]), torch.as_tensor(target[mask]))
            if mask.sum() > 1
            else dict.fromkeys(_REPORTED, float("nan"))
        )
        scores |= {f"{name}{suffix}": measured[name] for name in _REPORTED}
    return scores
