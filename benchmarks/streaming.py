"""Time and memory of reading a large network from files with the operator metanetwork.

Random weights of a network in the shape of GPT-2 (124 M parameters: fused queries, keys and values
as transposed matrices, tied embeddings) or of Llama 3.2 (1 B: grouped keys, SwiGLU, RMSNorm, rotary
positions) are written shard by shard; nothing ever holds the network. The structure is captured on
the meta device. Beside the time of the metanetwork stands that of reading each matrix once and
multiplying it with as many columns, from the same files with the same threads. Fails where a limit
is not kept.

    python -m benchmarks.streaming [--parameters 124M|1B] [--folder DIR] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import paramgraph as pg
from benchmarks.streaming_networks import Gpt2, Llama, Sizes
from paramgraph.nn import make_metanetwork
from paramgraph.nn.streaming import embed_streamed

__all__ = ["main"]

MOST_MB = 2048.0
MOST_TIMES = 20.0
NUM_THREADS = 2
DIM = 32
SHARD_BYTES = 2**29
REPEATS = 3
_WAIT = "OMP_WAIT_POLICY"
_ROOT = Path(__file__).resolve().parent.parent


NETWORKS = {
    "124M": (Gpt2, Sizes(768, 12, 12, 50257, 3072, context=1024)),
    "1B": (Llama, Sizes(2048, 16, 32, 32000, 8192, num_key_heads=8)),
}


def main(arguments: list[str] | None = None) -> int:
    """Write, read, print, and append one JSON line per network.

    Args:
        arguments: Of the command line.

    Returns:
        1 when a limit was not kept, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming")
    parser.add_argument("--parameters", nargs="*", default=["124M", "1B"], choices=list(NETWORKS))
    parser.add_argument("--folder", type=Path, help="where the files are written")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    chosen = parser.parse_args([] if arguments is None else arguments)
    if _WAIT not in os.environ:
        # Threads that spin while they wait take the cores from those that work, on both sides.
        command = [sys.executable, "-m", "benchmarks.streaming", *(arguments or [])]
        waiting = {**os.environ, _WAIT: "PASSIVE"}
        return subprocess.run(command, env=waiting, cwd=_ROOT, check=False).returncode
    torch.set_num_threads(NUM_THREADS)
    is_kept = True
    for name in chosen.parameters:
        folder = Path(tempfile.mkdtemp(prefix=f"streaming-{name}-", dir=chosen.folder))
        try:
            row = _measured(name, folder, getattr(torch, chosen.dtype))
        finally:
            if not chosen.keep:
                shutil.rmtree(folder)
        is_kept = is_kept and row["extra_mb"] <= MOST_MB and row["times"] <= MOST_TIMES
        print(json.dumps(row, indent=1), flush=True)
        _append(row)
    print("limits kept" if is_kept else f"FAILED: over {MOST_MB:.0f} MB or {MOST_TIMES} times")
    return 0 if is_kept else 1


def _measured(name: str, folder: Path, dtype: torch.dtype) -> dict[str, float | str]:
    kind, sizes = NETWORKS[name]
    with torch.device("meta"):
        network = kind(sizes)
        inputs = torch.zeros(2, 8, dtype=torch.long)
    num_parameters = sum(p.numel() for p in network.parameters())
    paths = _write(network, folder, dtype)
    with _watched() as of_capture:
        start = time.perf_counter()
        graph = pg.capture(network, inputs)
        capture_s = time.perf_counter() - start
    torch.manual_seed(0)
    metanetwork = make_metanetwork("operator", 16, hidden_dim=DIM).eval()
    with _watched() as memory:
        result = embed_streamed(metanetwork, graph, paths)
    assert bool(result.isfinite().all())
    # In turns, so that what else runs on the machine slows both alike.
    once, whole = [], []
    for _ in range(REPEATS):
        once.append(_timed(lambda: _read_once(paths)))
        whole.append(_timed(lambda: embed_streamed(metanetwork, graph, paths)))
    (once_s, once_cpu_s), (time_s, cpu_s) = (
        [statistics.median(part) for part in zip(*rows, strict=True)] for rows in (once, whole)
    )
    return {
        "benchmark": "streaming",
        "network": f"{kind.__name__} {name}",
        "num_parameters": num_parameters,
        "num_neurons": graph.num_neurons,
        "file_dtype": str(dtype).removeprefix("torch."),
        "file_gb": sum(path.stat().st_size for path in paths) / 2**30,
        "time_s": time_s,
        "once_s": once_s,
        "times": time_s / once_s,
        "cpu_s": cpu_s,
        "once_cpu_s": once_cpu_s,
        "cpu_times": cpu_s / once_cpu_s,
        "extra_mb": memory[0],
        "capture_s": capture_s,
        "capture_extra_mb": of_capture[0],
    }


def _write(network: nn.Module, folder: Path, dtype: torch.dtype) -> list[Path]:
    """Random weights in shards, each written before the next is drawn."""
    generator = torch.Generator().manual_seed(0)
    paths: list[Path] = []
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        if shard:
            paths.append(folder / f"model-{len(paths):05d}.safetensors")
            save_file(shard, paths[-1])
            shard.clear()

    size = 0
    for name, parameter in network.named_parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
        values = torch.empty(parameter.shape, dtype=dtype)
        shard[name] = values.normal_(std=spread, generator=generator)
        size += values.nbytes
        if size >= SHARD_BYTES:
            flush()
            size = 0
    flush()
    return paths


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of all cores."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


@torch.no_grad()
def _read_once(paths: list[Path]) -> None:
    """Read each matrix from the files and multiply it with ``DIM`` columns."""
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                matrix = file.get_tensor(name)
                if matrix.ndim == 2:
                    torch.mm(matrix, torch.ones(matrix.shape[1], DIM, dtype=matrix.dtype))


@contextmanager
def _watched() -> Iterator[list[float]]:
    """Samples the memory of the process that is no file; holds its largest growth in MB."""
    before, peak, is_over = _anonymous_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            peak[0] = max(peak[0], _anonymous_mb() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()
        peak[0] = max(peak[0], _anonymous_mb() - before)


def _anonymous_mb() -> float:
    """Pages of mapped files are the system's: it drops them when it needs the memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def _append(row: dict[str, float | str]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    record = {
        **row,
        "num_threads": NUM_THREADS,
        "dim": DIM,
        "commit": commit.stdout.strip(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    out = Path(__file__).parent / "results/streaming.jsonl"
    out.parent.mkdir(exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
