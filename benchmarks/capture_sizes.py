"""Time and memory of capture on networks of real sizes, each in a process of its own.

Random weights, made from configurations of transformers; the largest one lies on the meta device,
which has shapes and no numbers. Memory is the resident size of the process, sampled while capture
runs, less what it was before; a small network is captured first, so that what torch imports when
it is first needed counts for none of them. Fails where a limit is not kept.

    python -m benchmarks capture_sizes
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import pickle
import platform
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paramgraph as pg

__all__ = ["SIZES", "Row", "main", "measure", "problems"]

_RESULTS = Path(__file__).parent / "results"
_ROOT = Path(__file__).resolve().parents[1]

MOST_SECONDS = 10.0
#: Of memory while capture runs, against that of the weights: 1 is the network itself.
MOST_MEMORY = 1.5
MOST_STRUCTURE_MB = 100.0


@dataclass(frozen=True)
class Row:
    """What was measured on one network.

    Attributes:
        name: Of the network.
        num_parameters: Scalars of its parameters.
        device: Where they lie.
        network_mb: Memory of the weights (of those that they would have, on the meta device).
        time_s: Of capture.
        extra_mb: Largest growth of the process while capture ran.
        forward_mb: The same for one forward, which is part of capture (measured afterwards).
        input_shape: Of the example inputs.
        pickled_mb: Size of the graph as a file.
        structure_mb: Memory of the graph.
        num_free: Axis groups that may be permuted.
        num_frozen: Axis groups that may not.
        log_group_size: Natural logarithm of the number of permutations.
        unknown_operations: Operations without a rule.
    """

    name: str
    num_parameters: int
    device: str
    network_mb: float
    time_s: float
    extra_mb: float
    forward_mb: float
    input_shape: tuple[int, ...]
    pickled_mb: float
    structure_mb: float
    num_free: int
    num_frozen: int
    log_group_size: float
    unknown_operations: tuple[str, ...] = ()


def _tokens(device: str = "cpu") -> dict[str, Tensor]:
    return {"input_ids": torch.arange(3, 15).reshape(2, 6).to(device)}


def _gpt2(**sizes: int) -> tuple[nn.Module, Mapping[str, Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**sizes)), _tokens()  # type: ignore[arg-type]


def _gpt2_tiny() -> tuple[nn.Module, Mapping[str, Tensor]]:
    return _gpt2(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=16)


def _bert() -> tuple[nn.Module, Mapping[str, Tensor]]:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig()), _tokens()


def _vit() -> tuple[nn.Module, Mapping[str, Tensor]]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig()), {"pixel_values": torch.randn(2, 3, 224, 224)}


def _resnet() -> tuple[nn.Module, Mapping[str, Tensor]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    network = ResNetForImageClassification(ResNetConfig())
    # One forward of two images of 224 x 224 takes more than half of the memory of the weights; the
    # structure does not depend on their size.
    return network, {"pixel_values": torch.randn(2, 3, 64, 64)}


def _llama() -> tuple[nn.Module, Mapping[str, Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    # The sizes of Llama 3.2 1B, with a smaller vocabulary.
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config), _tokens("meta")


SIZES: dict[str, Callable[[], tuple[nn.Module, Mapping[str, Tensor]]]] = {
    "GPT-2": _gpt2,
    "BERT-base": _bert,
    "ViT-B/16": _vit,
    "ResNet-50": _resnet,
    "Llama 1B (meta)": _llama,
    "GPT-2 tiny": _gpt2_tiny,
}
"""Networks by name; the tiny one is for the test of this benchmark."""

_SHOWN = [name for name in SIZES if "tiny" not in name]


def main(arguments: list[str] | None = None) -> int:
    """Measure all networks, print and write a table.

    Args:
        arguments: Of the command line.

    Returns:
        1 when a limit was not kept or a process failed, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks capture_sizes")
    parser.add_argument("--only", nargs="*", default=_SHOWN, choices=list(SIZES), help="networks")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of the results")
    parser.add_argument("--here", action="store_true", help="one network, in this process, as JSON")
    chosen = parser.parse_args([] if arguments is None else arguments)
    if importlib.util.find_spec("transformers") is None:
        print('capture_sizes: skipped, transformers is missing (pip install -e ".[coverage]")')
        return 0
    if chosen.here:
        print(json.dumps(asdict(measure(chosen.only[0]))))
        return 0
    rows: list[Row] = []
    failed: list[str] = []
    for name in chosen.only:
        row = _in_a_process(name)
        if isinstance(row, str):
            failed.append(f"{name}: {row}")
            continue
        rows.append(row)
        print(_line(row), flush=True)
    failed += [f"{row.name}: {problem}" for row in rows for problem in problems(row)]
    _write(rows, failed, chosen.out)
    print(*(f"FAILED {text}" for text in failed), sep="\n")
    print(f"Written to {chosen.out}: capture_sizes.md, capture_sizes.json")
    return 1 if failed else 0


def measure(name: str) -> Row:
    """Build one network and capture it, in this process.

    Args:
        name: One of ``SIZES``.
    """
    warnings.filterwarnings("ignore")  # of transformers about its own configurations
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    pg.capture(small, torch.randn(4, 2))
    network, inputs = SIZES[name]()
    network.eval()
    gc.collect()
    with _watched() as memory:
        start = time.perf_counter()
        graph = pg.capture(network, inputs)
        time_s = time.perf_counter() - start
    with _watched() as forward, torch.no_grad():
        network(**inputs)
    parameters = list(network.parameters())
    num_free = sum(group.free for group in graph.axis_groups)
    return Row(
        name=name,
        num_parameters=sum(p.numel() for p in parameters),
        device=parameters[0].device.type,
        network_mb=sum(p.numel() * p.element_size() for p in parameters) / 2**20,
        time_s=time_s,
        extra_mb=memory[0],
        forward_mb=forward[0],
        input_shape=tuple(next(iter(inputs.values())).shape),
        pickled_mb=len(pickle.dumps(graph)) / 2**20,
        structure_mb=_deep_size(graph, set()) / 2**20,
        num_free=num_free,
        num_frozen=len(graph.axis_groups) - num_free,
        log_group_size=graph.log_group_size(),
        unknown_operations=graph.unknown_operations,
    )


def problems(row: Row) -> list[str]:
    """The limits that a network does not keep.

    Args:
        row: What was measured.
    """
    limits = [
        ("time", row.time_s, MOST_SECONDS, "s"),
        ("extra memory", row.extra_mb, (MOST_MEMORY - 1) * row.network_mb, "MB"),
        ("structure", max(row.pickled_mb, row.structure_mb), MOST_STRUCTURE_MB, "MB"),
    ]
    return [
        f"{what} {found:.1f} {unit}, allowed {most:.1f} {unit}"
        for what, found, most, unit in limits
        if found >= most
    ]


@contextmanager
def _watched() -> Iterator[list[float]]:
    """Samples the memory of the process; afterwards the list holds its largest growth in MB."""
    before, peak, is_over = _resident_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.001):
            peak[0] = max(peak[0], _resident_mb() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()
        peak[0] = max(peak[0], _resident_mb() - before)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _deep_size(value: Any, seen: set[int]) -> int:
    """Bytes of an object and all that it holds, each once."""
    if id(value) in seen or isinstance(value, type):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        inside: list[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, tuple | list | set | frozenset):
        inside = list(value)
    elif is_dataclass(value):
        inside = [getattr(value, one.name) for one in fields(value)]
    else:
        inside = []
    return size + sum(_deep_size(item, seen) for item in inside)


def _in_a_process(name: str) -> Row | str:
    """The row of a network, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.capture_sizes", "--here", "--only", name]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Row(**{**values, **lists})


def _line(row: Row) -> str:
    return (
        f"{row.name:16s} {row.num_parameters / 1e6:7.1f} M parameters  {row.time_s:5.2f} s  "
        f"extra {row.extra_mb:6.1f} MB ({row.extra_mb / row.network_mb:.2f} of the network)  "
        f"graph {row.structure_mb:.1f} MB  {row.num_free} free, {row.num_frozen} frozen"
    )


def _write(rows: Sequence[Row], failed: Sequence[str], folder: Path) -> None:
    environment = _environment()
    text = ["# Capture on networks of real sizes", ""]
    text += [f"{name}: {value}  " for name, value in environment.items()]
    text += [
        "",
        "| network | input | parameters | weights, MB | capture, s | extra memory, MB "
        "| of the weights | one forward, MB | graph in memory, MB | pickled, MB "
        "| groups free / frozen | log group size |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    text += [
        f"| {row.name} | {' x '.join(map(str, row.input_shape))} | {row.num_parameters:,} "
        f"| {row.network_mb:,.0f} | {row.time_s:.2f} | {row.extra_mb:.0f} "
        f"| {row.extra_mb / row.network_mb:.2f} | {row.forward_mb:.0f} "
        f"| {row.structure_mb:.1f} | {row.pickled_mb:.1f} "
        f"| {row.num_free} / {row.num_frozen} | {row.log_group_size:,.0f} |"
        for row in rows
    ]
    limits = f"{MOST_SECONDS:.0f} s, {MOST_MEMORY - 1:.1f} of the weights, "
    text += ["", f"Limits: {limits}{MOST_STRUCTURE_MB:.0f} MB for the graph."]
    text += ["", "Extra memory holds that of one forward, so it grows with the example inputs."]
    text += ["", f"## Failed: {len(failed)}", "", *(f"- {one}" for one in failed)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "capture_sizes.md").write_text("\n".join(text).rstrip() + "\n")
    data = {"environment": environment, "rows": [asdict(row) for row in rows], "failed": failed}
    (folder / "capture_sizes.json").write_text(json.dumps(data, indent=1) + "\n")


def _environment() -> dict[str, str]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
