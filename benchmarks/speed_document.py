"""Results to words: tables for the terminal, and docs/speed.md from the latest complete runs.

python -m benchmarks.speed_document    writes the document again, measures nothing
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed_claims import Claim, claims
from benchmarks.speed_networks import NETWORKS
from benchmarks.speed_scaling import draw, largest_width

__all__ = ["claim_table", "latest_stages", "render", "stage_tables", "write_document"]

_TEXT = Path(__file__).parent / "speed_text.md"
_TITLES = {
    "capture": "Capture: a graph of each architecture",
    "features": "Features: state dicts to values",
    "collate": "Collate: values to a batch",
    "forward": "Forward",
    "train": "Training step: forward and backward, no optimizer",
    "embed": "Embed: features, collate and forward; twins read weights as they are",
}


def stage_tables(stages: dict[str, Any]) -> list[str]:
    """Every stage as Markdown, in the order of the line.

    Args:
        stages: Name of a stage to its lines.
    """
    text: list[str] = []
    for stage, title in _TITLES.items():
        if stages.get(stage):
            text += ["", f"## {title}", ""]
            text += _network_table(stages[stage]) if _is_networks(stage) else _rows(stages[stage])
    if "cuda" in stages:
        text += ["", "## On the GPU", "", *_cuda(stages["cuda"])]
    if "roofline" in stages:
        text += ["", "## Roofline", "", *_roofline(stages)]
    if "scaling" in stages:
        text += ["", "## Cost against size: a training step on one INR [2, H, H, 3]", ""]
        text += [*_scaling(stages["scaling"]), "", *_largest(stages["scaling"])]
    if "largest" in stages:
        text += ["", "## Large networks that were run within 16 GB", "", *_ran(stages["largest"])]
    if "epoch" in stages:
        text += ["", "## Training throughput on INRs [2, 32, 32, 1]", "", *_epoch(stages["epoch"])]
    return text


def claim_table(found: Sequence[Claim]) -> list[str]:
    """Promises and what was reached."""
    rows = [
        [claim.name, _number(claim.value), f"{claim.sense} {claim.target:g}", _met(claim)]
        for claim in found
    ]
    return ["", "## Promises", "", *_table(["what", "reached", "promised", ""], rows)]


def latest_stages(results: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Of each stage the lines of the last complete run that has it, and that run's record.

    Args:
        results: The file of JSON lines.
    """
    stages: dict[str, Any] = {}
    records: dict[str, dict[str, Any]] = {}
    for line in results.read_text().splitlines():
        record = json.loads(line)
        if record["is_complete"]:
            stages |= record["stages"]
            records |= dict.fromkeys(record["stages"], record)
    return stages, records


def render(results: Path) -> str:
    """The text of the document.

    Args:
        results: The file of JSON lines.
    """
    stages, records = latest_stages(results)
    text = [_TEXT.read_text().rstrip(), *claim_table(claims(stages)), *stage_tables(stages)]
    text += ["", "## Where this was measured", ""]
    text += _table(
        ["stages", "when", "commit", "machine", "torch", "malloc"],
        [
            [", ".join(names), record["time"], record["environment"]["commit"], *_where(record)]
            for names, record in _grouped(records)
        ],
    )
    return "\n".join(text) + "\n"


def write_document(results: Path, document: Path) -> None:
    """Write the document, and beside it the picture in ``images/``.

    Args:
        results: The file of JSON lines.
        document: The Markdown file.
    """
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(render(results))
    stages, _ = latest_stages(results)
    if stages.get("scaling"):
        draw(stages["scaling"], document.parent / "images/speed.png")


def _grouped(
    records: dict[str, dict[str, Any]],
) -> Iterable[tuple[list[str], dict[str, Any]]]:
    groups: dict[int, tuple[list[str], dict[str, Any]]] = {}
    for stage, record in records.items():
        groups.setdefault(id(record), ([], record))[0].append(stage)
    return groups.values()


def _where(record: dict[str, Any]) -> list[str]:
    machine, settings = record["machine"], record["environment"]
    what = f"{settings['cores']} cores of {machine['cpu']} ({machine['vector']}), "
    what += f"{machine['memory_gb']} GB" + (f", {machine['gpu']}" if machine["gpu"] else "")
    malloc = "default" if not any(record["allocator"].values()) else "large allocations"
    return [what, settings["versions"]["torch"], malloc]


def _is_networks(stage: str) -> bool:
    return stage in ("capture", "features", "collate")


def _network_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            *(_title(line["networks"]), str(line["num"]), _number(line["cpu_ms"])),
            *(_number(line.get("wall_ms_all_threads")), _number(line["per_second"])),
            f"{_number(line['times_slower'])} x {line['reference']}",
        ]
        for line in lines
    ]
    head = ["networks", "number", "CPU ms", "wall ms, all threads", "per second", "takes"]
    return _table(head, rows)


def _rows(lines: Sequence[dict[str, Any]]) -> list[str]:
    text: list[str] = []
    for name in dict.fromkeys(line["networks"] for line in lines):
        of_set = [line for line in lines if line["networks"] == name]
        reference = next((line["reference"] for line in of_set if "reference" in line), "")
        text += [f"**{_title(name)}**", ""]
        rows = []
        for line in of_set:
            if "failed" in line:
                rows.append([line["row"], *["–"] * 6, line["failed"]])
                continue
            peak = line.get("peak_mb")
            rows.append(
                [
                    *(line["row"], str(line["num"]), _number(line["cpu_ms"])),
                    *(_number(line.get("wall_ms_all_threads")), _number(line["per_second"])),
                    "–" if peak is None else _number(peak),
                    "–" if peak is None else _number(line["kb_per_parameter"]),
                    _number(line["times_faster"]),
                ]
            )
        head = ["metanetwork", "batch", "CPU ms", "wall ms, all threads", "networks/s per core"]
        head += ["peak MB", "KB per parameter", f"times as fast as {reference}"]
        text += [*_table(head, rows), ""]
    return text[:-1]


def _cuda(lines: Sequence[dict[str, Any]]) -> list[str]:
    head = ["networks", "stage", "metanetwork", "batch", "ms", "networks/s", "peak MB", "ratio"]
    rows = [
        [
            *(_title(line["networks"]), line["stage"], line["row"], str(line["num"])),
            *(_number(line["gpu_ms"]), _number(line["per_second"]), _number(line["peak_mb"])),
            _number(line["times_faster"]),
        ]
        for line in lines
    ]
    return _table(head, rows)


def _roofline(stages: dict[str, Any]) -> list[str]:
    roofline = stages["roofline"]
    times = {
        (line["row"], stage): line["cpu_ms"]
        for stage in ("forward", "train")
        for line in stages.get(stage, [])
        if line["networks"] == "inr" and "failed" not in line
    }
    rows = []
    for step in roofline["steps"]:
        taken = times.get((step["row"], step["stage"]))
        parts = [
            "–" if taken is None else f"{step[ideal] / taken:.0%}"
            for ideal in ("ideal_ms", "ideal_tall_ms")
        ]
        products = sum(p["amount"] for p in step["parts"] if p["unit"] == "GFLOP")
        cells = [_number(products), _number(step["ideal_ms"]), _number(step["ideal_tall_ms"])]
        rows.append([step["row"], step["stage"], *cells, _number(taken), *parts])
    head = ["metanetwork", "stage", "GFLOP of products", "ideal ms", "with tall products"]
    head += ["CPU ms", "part of the ideal", "of that with tall products"]
    text = [*_table(head, rows), ""]
    rates = [[name, _number(rate)] for name, rate in roofline["rates"].items()]
    return [*text, *_table(["ceiling of one thread", "rate"], rates)]


def _scaling(lines: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for line in lines:
        points = line["points"]
        if not points:
            rows.append([line["row"], *["–"] * 6, line["stopped"] or ""])
            continue
        last = points[-1]
        time, memory = (
            " / ".join(_number(line[f"exponent_{name}{end}"]) for end in ("", "_from_256"))
            for name in ("cpu_s", "peak_mb")
        )
        rows.append(
            [
                *(line["row"], str(last["width"]), _number(last["cpu_s"])),
                *(_number(last["peak_mb"]), _number(last["kb_per_parameter"])),
                *(time, memory, line["stopped"] or "the largest asked for"),
            ]
        )
    head = ["metanetwork", "largest H run", "CPU s", "peak MB", "KB per parameter"]
    head += ["exponent of time: all / H from 256", "of memory", "why it ends there"]
    return [*_table(head, rows), "", "![Time and memory against size](images/speed.png)"]


def _largest(lines: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for line in lines:
        found = largest_width(line)
        if found is not None:
            layout = f"[2, {found['width']}, {2 * found['width']}, 3]"
            number = f"{found['num_parameters']:,}"
            rows.append([line["row"], layout, number, f"H = {found['measured_at']}"])
    head = ["metanetwork", "largest in 16 GB", "parameters", "extrapolated linearly from"]
    return _table(head, rows)


def _ran(lines: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for line in lines:
        layout = f"[2, {line['width']}, {line['second']}, 3]"
        if "failed" in line:
            rows.append([line["row"], layout, *["–"] * 3, line["failed"]])
            continue
        cells = [f"{line['num_parameters']:,}", _number(line["cpu_s"]), _number(line["peak_mb"])]
        rows.append([line["row"], layout, *cells, "fits"])
    return _table(["metanetwork", "layout", "parameters", "CPU s", "peak MB", ""], rows)


def _epoch(lines: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            *(line["row"], str(line["num_threads"]), str(line["batch_size"]), f"{line['num']:,}"),
            *(_number(line["per_second"]), _number(line["per_cpu_second"])),
            _number(line["epoch_s"]),
        ]
        for line in lines
    ]
    head = ["metanetwork", "threads", "batch", "networks run", "networks/s (wall)"]
    head += ["networks per CPU second", "60,000 would take, s"]
    return _table(head, rows)


def _title(name: str) -> str:
    if not name.startswith("large-"):
        return NETWORKS[name]
    widths = name.split("-")[1:]
    return f"one INR [2, {', '.join(widths if len(widths) > 1 else widths * 2)}, 3]"


def _met(claim: Claim) -> str:
    return "kept" if claim.is_met else "**missed**"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    _HERE = Path(__file__).resolve().parent
    write_document(_HERE / "results/bench.jsonl", _HERE.parent / "docs/speed.md")
