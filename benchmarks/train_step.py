"""Time of a training step (forward and backward) of each metanetwork, on one core.

64 INRs [2, 32, 32, 1], and 64 small CNNs of 8 architectures; CPU seconds of one thread, the median
over repeats, because wall time on a shared machine says little. The flat MLP is the yardstick of
the same run.

    python -m benchmarks.train_step
"""

import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch

import paramgraph as pg
from paramgraph.nn import make_metanetwork

NUM_NETWORKS = 64
REPEATS = 7


def main() -> None:
    """Measure, print, and append one JSON line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table: dict[str, dict[str, float]] = {}
    for name, batch in (("INRs [2, 32, 32, 1]", _inrs()), ("CNNs of 8 architectures", _cnns())):
        rows = {}
        for metanetwork in ("operator", "ng-gnn", "statnn", "flat-mlp"):
            if metanetwork == "flat-mlp" and len(batch.parts) > 1:
                continue
            rows[metanetwork] = _step_ms(metanetwork, batch)
            print(
                f"{name:24s} {metanetwork:10s} {rows[metanetwork]:8.1f} CPU ms per step", flush=True
            )
        table[name] = rows
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    record = {
        "benchmark": "train_step",
        "num_networks": NUM_NETWORKS,
        "cpu_ms": table,
        "commit": commit.stdout.strip(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    out = Path(__file__).parent / "results/train_step.jsonl"
    out.parent.mkdir(exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _inrs() -> pg.GraphBatch:
    spec = pg.zoo.Siren(widths=(32, 32))
    graph = pg.capture(spec.build(), spec.example_inputs())
    states = [spec.build().state_dict() for _ in range(NUM_NETWORKS)]
    return pg.collate([(graph, graph.features(states))])


def _cnns() -> pg.GraphBatch:
    pairs = []
    for spec in pg.zoo.sample_architectures(8, seed=0):
        graph = pg.capture(spec.build(), spec.example_inputs())
        states = [spec.build().state_dict() for _ in range(NUM_NETWORKS // 8)]
        pairs.append((graph, graph.features(states)))
    return pg.collate(pairs)


def _step_ms(name: str, batch: pg.GraphBatch) -> float:
    metanetwork = make_metanetwork(name, 10)
    metanetwork.fit_statistics([batch])
    times = []
    for _ in range(REPEATS + 2):
        start = time.process_time()
        metanetwork.zero_grad(set_to_none=True)
        metanetwork(batch).square().mean().backward()
        times.append((time.process_time() - start) * 1e3)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
