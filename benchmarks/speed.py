"""Speed and memory of everything: one table per stage, promises, a plot; ``make bench``.

python -m benchmarks                   all of it, about 20 minutes on two cores
python -m benchmarks --quick           a few rows, fewer runs, under 3 minutes
python -m benchmarks --stage largest   networks that barely fit in 16 GB, many minutes
python -m benchmarks --stage train --rows "NG-GNN d=32" --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.roofline import Layout, ideal_step, machine_rates
from benchmarks.speed_claims import claims
from benchmarks.speed_cuda import cuda_lines
from benchmarks.speed_document import claim_table, stage_tables, write_document
from benchmarks.speed_epoch import epoch_lines
from benchmarks.speed_networks import NETWORKS
from benchmarks.speed_rows import ROWS
from benchmarks.speed_scaling import SCALING_ROWS, largest_lines, scaling_lines
from benchmarks.speed_stages import NETWORK_STAGES, ROW_STAGES, Plan, network_table, row_tables
from paramgraph.engine import native_status
from paramgraph.report import environment

__all__ = ["STAGES", "main"]

_HERE = Path(__file__).resolve().parent
STAGES = (*NETWORK_STAGES, *ROW_STAGES, "roofline", "scaling", "epoch", "largest", "cuda")
QUICK_ROWS = (
    "operator, 1 round",
    "operator, 4 rounds",
    "NG-GNN d=32",
    "NG-GNN d=32, PyG twin",
    "NG-GNN d=32, published twin",
    "NG-GNN d=32, any network",
    "StatNN",
)
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
#: Settings of glibc's malloc: freed memory is kept, large tensors come from the heap.
LARGE_ALLOCATIONS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append a line of JSON to the results, and write the document.

    Args:
        arguments: Of the command line.

    Returns:
        0, or 1 with ``--check`` where a promise is not kept.
    """
    chosen = _arguments(arguments)
    if chosen.allocator == "large" and not all(key in os.environ for key in LARGE_ALLOCATIONS):
        # malloc reads its settings when a process starts, so start again with them.
        words = sys.argv[1:] if arguments is None else list(arguments)
        command = [sys.executable, "-m", "benchmarks", *words]
        os.execve(sys.executable, command, {**os.environ, **LARGE_ALLOCATIONS})
    record = measure(chosen)
    found = claims(record["stages"])
    if chosen.json:
        lines = [{**vars(claim), "is_met": claim.is_met} for claim in found]
        print(json.dumps({**record, "claims": lines}))
    else:
        print("\n".join([*stage_tables(record["stages"]), *claim_table(found)]))
    if not chosen.no_record:
        chosen.results.parent.mkdir(parents=True, exist_ok=True)
        with chosen.results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if record["is_complete"]:
            write_document(chosen.results, chosen.document)
    return int(chosen.check and not all(claim.is_met for claim in found))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few rows, fewer runs")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only these")
    parser.add_argument("--rows", action="append", help="only rows whose name contains this")
    parser.add_argument("--networks", action="append", choices=tuple(NETWORKS), help="only these")
    parser.add_argument("--num", type=int, help="networks in a batch, at most")
    parser.add_argument("--seconds", type=float, help="for a table, beyond three runs of each row")
    parser.add_argument("--limit-gb", type=float, default=8.0, help="memory of a process")
    parser.add_argument("--allocator", choices=("default", "large"), default="default")
    parser.add_argument("--json", action="store_true", help="print JSON, no tables")
    parser.add_argument("--check", action="store_true", help="fail where a promise is not kept")
    parser.add_argument("--no-record", action="store_true", help="append nothing to the results")
    parser.add_argument("--results", type=Path, default=_HERE / "results/bench.jsonl")
    parser.add_argument("--document", type=Path, default=_HERE.parent / "docs/speed.md")
    found = parser.parse_args(arguments)
    if found.rows and not _rows(found):
        parser.error(f"no row contains {' or '.join(found.rows)}; rows: {'; '.join(ROWS)}")
    return found


def _rows(chosen: argparse.Namespace) -> tuple[str, ...]:
    rows = QUICK_ROWS if chosen.quick and not chosen.rows else tuple(ROWS)
    return tuple(r for r in rows if not chosen.rows or any(part in r for part in chosen.rows))


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen stages.

    Returns:
        When, where, with which versions and settings, and the lines of every stage.
    """
    # The largest networks take many minutes; a GPU is not everywhere.
    left_out = {"largest"} | (set() if torch.cuda.is_available() else {"cuda"})
    stages = tuple(chosen.stage or (stage for stage in STAGES if stage not in left_out))
    with tqdm(desc="benchmarks", unit="step", file=sys.stderr) as bar:

        def progress(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        lines = _run(stages, chosen, progress)
    is_narrowed = bool(chosen.rows or chosen.networks or chosen.num)
    is_narrowed |= chosen.allocator != "default"  # the document compares under one setting
    return {
        "benchmark": "speed",
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "is_complete": not (chosen.quick or is_narrowed),
        "environment": environment(),
        "edges": native_status(),
        "machine": _machine(),
        "allocator": {key: os.environ.get(key) for key in LARGE_ALLOCATIONS},
        "threads": {key: os.environ.get(key) for key in _THREAD_SETTINGS},
        "stages": lines,
    }


def _run(
    stages: Sequence[str], chosen: argparse.Namespace, progress: Callable[[str], object]
) -> dict[str, Any]:
    quick = chosen.quick
    large = "large-64" if quick else "large-256"
    sets = chosen.networks or [name for name in NETWORKS if not (quick and name == "large")]
    plan = Plan(
        tuple(large if name == "large" else name for name in sets),
        _rows(chosen),
        num=chosen.num or 64,
        seconds=chosen.seconds or (0.5 if quick else 20.0),
        least=2 if quick else 3,
        limit_gb=chosen.limit_gb,
        whole=("inr",) if quick else None,
        progress=progress,
    )
    found: dict[str, Any] = {}
    for stage in stages:
        if stage in NETWORK_STAGES:
            found[stage] = network_table(stage, plan)
    found |= row_tables([stage for stage in stages if stage in ROW_STAGES], plan)
    if "roofline" in stages:
        found["roofline"] = roofline_lines(plan.num, is_quick=quick)
        progress("roofline")
    if "scaling" in stages:
        found["scaling"] = scaling_lines(
            [r for r in SCALING_ROWS if r in plan.rows and not (quick and "twin" in r)],
            widths=(64, 256) if quick else (64, 128, 256, 512, 1024, 2048, 4096),
            limit_gb=chosen.limit_gb,
            most_seconds=3.0 if quick else 60.0,
            progress=progress,
        )
    if "epoch" in stages:
        found["epoch"] = epoch_lines(
            256 if quick else 2048, repeats=1 if quick else 2, progress=progress
        )
    if "largest" in stages:
        found["largest"] = largest_lines(progress=progress)
    if "cuda" in stages:
        found["cuda"] = [line for s in ("forward", "train") for line in cuda_lines(s, plan)]
    return found


def roofline_lines(num_networks: int, *, is_quick: bool = False) -> dict[str, Any]:
    """Ceilings of the machine, and ideal steps of NG-GNN on INRs [2, 32, 32, 1].

    Args:
        num_networks: In a batch.
        is_quick: Smaller tensors, d = 32 alone.
    """
    steps = []
    for dim in (32,) if is_quick else (32, 64):
        for stage in ("forward", "train"):
            layout, train = Layout((2, 32, 32, 1), num_networks, dim), stage == "train"
            items = ideal_step(layout, train=train)
            tall = sum(item.ms for item in ideal_step(layout, train=train, is_tall=True))
            parts = [
                {"name": item.name, "amount": item.amount, "unit": item.unit, "rate": item.rate}
                for item in items
            ]
            ideal = sum(item.ms for item in items)
            step = {"row": f"NG-GNN d={dim}", "stage": stage, "ideal_ms": ideal, "parts": parts}
            steps.append({**step, "ideal_tall_ms": tall})
    rates = machine_rates(num_rows=100_000 if is_quick else 1_000_000)
    return {"rates": rates, "steps": steps, "num": num_networks}


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if info.exists():
        names = [
            line.split(":", 1)[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0].strip() if names else model
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model,
        "vector": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": memory,
        "gpu": gpu,
    }
