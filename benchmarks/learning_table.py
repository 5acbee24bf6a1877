"""Writes docs/learning.md: the table of the learning check, and what is to be seen in it.

python -m benchmarks.learning_table
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results/learning_check.jsonl"
NOTES = Path(__file__).parent / "learning_notes.md"
OUT = Path(__file__).parents[1] / "docs/learning.md"

_COLUMNS = (
    "metanetwork",
    "test accuracy",
    "train accuracy",
    "parameters",
    "batch",
    "steps",
    "epochs",
    "steps per CPU s",
    "CPU ms per network",
    "CPU s",
)


def main() -> int:
    """Write the document from all results; the last run of a subject, seed and budget counts."""
    rows = latest(RESULTS.read_text().splitlines())
    OUT.write_text(document(rows, NOTES.read_text()))
    print(f"{len(rows)} runs: {OUT}")
    return 0


def latest(lines: list[str]) -> list[dict[str, Any]]:
    """The last row of each subject, seed and budget, best accuracy first."""
    found: dict[tuple[str, int, float], dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        found[row["subject"], row["seed"], row["budget"]] = row
    return sorted(found.values(), key=lambda row: -float(row["test_accuracy"]))


def document(rows: list[dict[str, Any]], notes: str) -> str:
    """The whole page."""
    first = rows[0]
    error = 100 * math.sqrt(0.25 / first["num_test"])
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        "# Which metanetwork learns most in the same time\n\n"
        f"Classification of {first['num_train']:,} INRs of {first['images']} images (SIRENs "
        "[2, 32, 32, 1], omega 30, each from its own random weights, mean PSNR "
        f"{first['psnr']} dB), tested on {first['num_test']:,} others. Same zoo, split, seed, "
        "schedule and weight noise, and the same CPU seconds of training on one thread, give "
        "or take what a step varies. The "
        f"standard error of an accuracy is at most {error:.1f} points; chance is about 10 %. "
        "Written by `python -m benchmarks.learning_table` from the results of `python -m "
        f"benchmarks.learning_check` at {commits} ({first['machine']}, PyTorch "
        f"{first['torch']}).\n\n"
        + "".join(
            f"## {budget:.0f} CPU seconds\n\n"
            + _table([row for row in rows if row["budget"] == budget])
            + "\n"
            for budget in sorted({row["budget"] for row in rows}, reverse=True)
        )
        + notes
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    for row in rows:
        cells = (
            row["subject"],
            f"{100 * row['test_accuracy']:.1f} %",
            f"{100 * row['train_accuracy']:.1f} %",
            f"{row['num_parameters']:,}",
            row["batch_size"],
            f"{row['num_steps']:,}",
            row["epochs"],
            row["steps_per_cpu_second"],
            row["cpu_ms_per_network"],
            round(row["cpu_seconds"]),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
