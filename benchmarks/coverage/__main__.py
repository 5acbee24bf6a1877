"""The coverage report: ``python -m benchmarks.coverage`` (``make coverage-report``)."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.coverage.architectures import all_architectures
from benchmarks.coverage.measuring import Measurement
from benchmarks.coverage.report import line, totals, write
from benchmarks.coverage.running import run_all

#: Share of the permutations of one tensor alone that may change nothing although weights live.
_MOST_UNEXPLAINED = 0.02
_RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    """Measure all architectures, show each, write the report.

    Args:
        arguments: Of the command line.

    Returns:
        1 when an architecture failed, none was chosen, or permutations of one tensor alone were
        not noticed more often than ``_MOST_UNEXPLAINED``, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--only", default="", help="regular expression of 'family: name'")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of the report")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes")
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds per architecture")
    parser.add_argument("--list", action="store_true", help="list the architectures and stop")
    chosen = parser.parse_args(arguments)
    rows = [row for row in all_architectures().values() if re.search(chosen.only, row.title)]
    if chosen.list:
        print(*(row.title for row in rows), sep="\n")
        return 0
    start = time.perf_counter()
    done: list[Measurement] = []

    def show(row: Measurement) -> None:
        done.append(row)
        print(f"[{len(done):3d}/{len(rows)}] {line(row)}", flush=True)

    results = run_all(rows, show, num_jobs=chosen.jobs, time_limit_s=chosen.time_limit)
    environment = {**_environment(), "seconds": f"{time.perf_counter() - start:.0f}"}
    write(results, environment, chosen.out)
    failed = [row for row in results if not row.passed]
    print(
        "",
        *(f"FAILED {row.family}: {row.name}: {'; '.join(row.problems)}" for row in failed),
        sep="\n",
    )
    counts = totals(results)
    print(*(f"{number:>12,} {name}" for name, number in counts.items()), sep="\n")
    print(f"Written to {chosen.out}: coverage.md, coverage.json")
    tried, unexplained = counts["pairs permuted in one tensor only"], counts["of these unexplained"]
    is_blunt = unexplained > _MOST_UNEXPLAINED * tried
    if is_blunt:
        print(f"FAILED {unexplained} of {tried} wrong permutations changed nothing")
    return 1 if failed or is_blunt or not results else 0


def _environment() -> dict[str, str]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "torch_geometric")
    }
    return {
        "commit": commit.stdout.strip(),
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "cores": str(os.cpu_count()),
        **versions,
    }


if __name__ == "__main__":
    sys.exit(main())
