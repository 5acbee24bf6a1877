"""Every metanetwork on every hazard network, all laws: writes docs/laws.md.

Each metanetwork that has a name is checked at each of its levels, small, in float64, on one core.
Fails where a law is broken that is not known to be out of reach.

    python -m benchmarks laws
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.laws_document import markdown
from benchmarks.laws_subjects import Subject, check, subjects, unexplained
from paramgraph.testing import LawReport, capture_networks, hazard_networks

__all__ = ["main"]

_DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "laws.md"


def main() -> int:
    """Check all, write the document, print what is broken.

    Returns:
        1 if a law is broken that is not out of reach, else 0.
    """
    torch.set_num_threads(1)
    networks = capture_networks(hazard_networks())
    reports: dict[Subject, LawReport] = {}
    bar = tqdm(subjects(), unit="metanetwork", disable=None)
    for subject in bar:
        bar.set_postfix_str(subject.title)
        reports[subject] = check(subject, networks)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    _DOCUMENT.write_text(markdown(reports, networks, commit))
    num_broken = 0
    for subject, report in reports.items():
        for row in unexplained(subject, report):
            num_broken += 1
            print(f"{subject.title}: {row}", file=sys.stderr)
    num_checks = sum(row.applies for report in reports.values() for row in report.rows)
    print(f"{num_checks} checks of {len(reports)} metanetworks, {num_broken} broken: {_DOCUMENT}")
    return 1 if num_broken else 0


if __name__ == "__main__":
    sys.exit(main())
