"""NG-GNN against its two slow twins, interleaved in one process, and the memory of each.

python -m benchmarks.compare_ng_gnn --hidden-dim 32
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.measuring import interleaved, peak_in_a_process
from benchmarks.speed_networks import make_networks
from benchmarks.speed_rows import make_subject

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Print forward and train times, ratios to ours, and peak memory of a training step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-dim", type=int, default=32, choices=(32, 64))
    parser.add_argument("--num", type=int, default=64, help="networks in a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="per stage")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--only-ours", action="store_true")
    chosen = parser.parse_args(arguments)
    ours = f"NG-GNN d={chosen.hidden_dim}"
    names = [ours] if chosen.only_ours else [ours, f"{ours}, PyG twin", f"{ours}, published twin"]
    networks = make_networks("inr", chosen.num)
    batch = networks.batch()
    subjects = [make_subject(name, networks, batch) for name in names]
    print(f"{networks.num} INRs [2, 32, 32, 1]; CPU ms of one thread, medians")
    for stage in ("forward", "train"):
        tasks = {subject.name: subject.stage(stage) for subject in subjects}
        found = interleaved(tasks, seconds=chosen.seconds)
        for name, timing in found.items():
            ratio = timing.cpu_ms / found[ours].cpu_ms
            print(
                f"{stage:8s} {name:28s} {timing.cpu_ms:9.1f} ms  x {ratio:5.2f}  "
                f"(spread {timing.spread:.0%}, {timing.repeats} runs)",
                flush=True,
            )
    if not chosen.no_memory:
        peaks = {}
        for name in names:
            request = {"row": name, "networks": "inr", "num": chosen.num, "stages": ["train"]}
            peak = peak_in_a_process(request)
            if "failed" in peak:
                print(f"FAILED {name}: {peak['failed']}", file=sys.stderr)
                return 1
            peaks[name] = peak["train"]["peak_mb"]
            ratio = peaks[name] / peaks[ours]
            print(f"{'memory':8s} {name:28s} {peaks[name]:9.0f} MB  x {ratio:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
