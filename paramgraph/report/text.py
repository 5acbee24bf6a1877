"""The results of the demonstration as tables for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paramgraph.report.plain import number, table

__all__ = ["accuracy_rows", "demo_text", "inr_rows", "verification_rows"]

_ACCURACY_PARTS = (
    ("all test networks", ""),
    ("unseen runs", "_unseen_run"),
    ("unseen architectures", "_unseen_architecture"),
)
NAMES = {
    "operator": "operator (ours)",
    "ng_gnn": "NG-GNN",
    "statnn": "StatNN",
    "flat_mlp": "flat MLP",
    "mean": "mean of training",
}


def demo_text(metrics: dict[str, Any], folder: Path) -> str:
    """Everything worth reading in a terminal, as one text."""
    seconds = metrics["seconds"]
    return "\n".join(
        [
            f"Zoos: {metrics['num_networks']:,} networks of {metrics['num_architectures']} "
            f"architectures (INRs: {metrics['inr_psnr_db']:.1f} dB PSNR on average)",
            "",
            "Symmetries found, checked on the networks in float64",
            table(verification_rows(metrics)),
            "",
            "Accuracy of a CNN, predicted from its weights (Kendall's tau and R2 on test networks)",
            table(accuracy_rows(metrics)),
            "",
            "Digit that an INR stores, classified from its weights (test images)",
            table(inr_rows(metrics)),
            "",
            f"Seconds: {seconds['build_cnn_zoo']:.0f} CNN zoo, {seconds['build_inr_zoo']:.0f} INR "
            f"zoo, {seconds['capture']:.1f} capture, {seconds['total']:.0f} this call "
            f"({metrics['cores']} cores, commit {metrics['commit'] or 'unknown'})",
            f"Written to {folder}: metrics.json, index.html (open it in a browser), pictures, "
            "zoos, runs",
        ]
    )


def verification_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per architecture, with a heading."""
    rows: list[tuple[str, ...]] = [
        ("architecture", "neurons", "edges", "parameters", "permutations", "free", "max error")
    ]
    for row in metrics["verification"]["architectures"]:
        rows.append(
            (
                row["architecture"],
                f"{row['num_neurons']:,}",
                f"{row['num_edges']:,}",
                f"{row['num_parameters']:,}",
                f"10^{row['log10_permutations']:.0f}",
                str(row["num_free_groups"]),
                f"{row['max_error']:.0e}",
            )
        )
    return rows


def accuracy_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Scores of accuracy prediction, with a heading."""
    heading = ["metanetwork"]
    for title, _ in _ACCURACY_PARTS:
        heading += [f"tau, {title}", "R2"]
    rows = [(*heading, "parameters", "seconds")]
    scores = metrics["accuracy_prediction"]
    for name in [name for name in NAMES if name in scores]:
        row = [NAMES[name]]
        for _, suffix in _ACCURACY_PARTS:
            row += [number(scores[name][f"{score}{suffix}"]) for score in ("kendall_tau", "r2")]
        rows.append((*row, *_cost(metrics, "accuracy_prediction", name)))
    return rows


def inr_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Scores of INR classification, with a heading."""
    rows: list[tuple[str, ...]] = [("metanetwork", "accuracy", "parameters", "seconds")]
    scores = metrics["inr_classification"]
    for name in [name for name in NAMES if name in scores]:
        accuracy = number(scores[name]["accuracy"])
        rows.append((NAMES[name], accuracy, *_cost(metrics, "inr_classification", name)))
    return rows


def _cost(metrics: dict[str, Any], task: str, name: str) -> tuple[str, str]:
    seconds = metrics["seconds"].get(f"{task}.{name}")
    if seconds is None:
        return "-", "-"
    return f"{metrics[task][name]['num_parameters']:,}", f"{seconds['wall']:.0f}"
