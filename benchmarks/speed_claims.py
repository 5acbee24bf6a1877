"""What speed and memory are promised, and what a run reached: one line per promise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.speed_rows import ROWS
from benchmarks.speed_scaling import largest_width

__all__ = ["Claim", "claims"]

_PUBLISHED, _PYG = "published twin", "PyG twin"


@dataclass(frozen=True)
class Claim:
    """A promise and what was measured.

    Attributes:
        name: What is compared.
        value: What was reached.
        sense: ``">="`` or ``"<="``.
        target: What was promised.
    """

    name: str
    value: float
    sense: str
    target: float

    @property
    def is_met(self) -> bool:
        """Whether the promise is kept."""
        return self.value >= self.target if self.sense == ">=" else self.value <= self.target


def claims(stages: dict[str, Any]) -> list[Claim]:
    """All promises that the stages of a record measured.

    Args:
        stages: Name of a stage to its lines; stages and rows that were not run are left out.
    """
    found = [*_ratios(stages), *_roofline(stages), *_scaling(stages), *_epoch(stages)]
    return [claim for claim in found if claim is not None]


def _line(stages: dict[str, Any], stage: str, networks: str, row: str) -> dict[str, Any] | None:
    for line in stages.get(stage, []):
        if (line["networks"], line["row"]) != (networks, row) or "failed" in line:
            continue
        if line["num"] == ROWS[row].num:  # promised at that batch size
            return line
    return None


def _faster(
    stages: dict[str, Any], stage: str, fast: str, slow: str, target: float
) -> Claim | None:
    lines = [_line(stages, stage, "inr", row) for row in (fast, slow)]
    if lines[0] is None or lines[1] is None:
        return None
    own, other = (line["cpu_ms"] / line["num"] for line in lines if line is not None)
    return Claim(f"{stage}: {fast} faster than {slow}", other / own, ">=", target)


def _smaller(stages: dict[str, Any], small: str, large: str, target: float) -> Claim | None:
    lines = [_line(stages, "train", "inr", row) for row in (small, large)]
    if lines[0] is None or lines[1] is None:
        return None
    if "peak_mb" not in lines[0] or "peak_mb" not in lines[1]:
        return None
    own, other = (line["peak_mb"] / line["num"] for line in lines if line is not None)
    return Claim(f"peak memory, train: {small} over {large}", own / other, "<=", target)


def _ratios(stages: dict[str, Any]) -> Iterator[Claim | None]:
    for dim in (32, 64):
        ours = f"NG-GNN d={dim}"
        yield _faster(stages, "forward", ours, f"{ours}, {_PUBLISHED}", 9.0)
        yield _faster(stages, "train", ours, f"{ours}, {_PUBLISHED}", 5.0)
        yield _faster(stages, "forward", ours, f"{ours}, {_PYG}", 3.0)
        yield _faster(stages, "train", ours, f"{ours}, {_PYG}", 3.0)
        yield _smaller(stages, ours, f"{ours}, {_PUBLISHED}", 0.25)
    slow = f"NG-GNN d=32, {_PUBLISHED}"
    yield _faster(stages, "train", "operator, 1 round", slow, 80.0)
    yield _faster(stages, "train", "operator, 4 rounds", slow, 25.0)
    for stage in ("forward", "train"):
        yield _faster(stages, stage, "NG-T", "NG-T, dense twin", 4.0)
    yield _smaller(stages, "NG-T", "NG-T, dense twin", 0.25)


def _roofline(stages: dict[str, Any]) -> Iterator[Claim | None]:
    for step in stages.get("roofline", {}).get("steps", []):
        line = _line(stages, step["stage"], "inr", step["row"])
        if line is not None:
            name = f"{step['stage']}: {step['row']}, part of the roofline"
            yield Claim(name, step["ideal_ms"] / line["cpu_ms"], ">=", 0.7)


_RECOMPUTED = "NG-GNN d=32, edges recomputed"
_PER_PARAMETER = {"NG-GNN d=32": 2.0, _RECOMPUTED: 0.2}
_LINEAR = ("operator, 1 round", *_PER_PARAMETER)


def _scaling(stages: dict[str, Any]) -> Iterator[Claim | None]:
    for line in stages.get("scaling", []):
        row = line["row"]
        for point in line["points"]:
            if point["width"] == 512 and row in _PER_PARAMETER:
                name = f"KB per parameter of a training step, [2, 512, 512, 3]: {row}"
                yield Claim(name, point["kb_per_parameter"], "<=", _PER_PARAMETER[row])
        if row not in _LINEAR or not line["points"] or line["points"][-1]["width"] < 1024:
            continue
        for quantity, label in (("cpu_s", "time"), ("peak_mb", "memory")):
            for suffix, start in (("", 64), ("_from_256", 256)):
                slope = line[f"exponent_{quantity}{suffix}"]
                if slope is not None:
                    last = line["points"][-1]["width"]
                    name = f"exponent of {label}, H = {start} to {last}, distance from 1: {row}"
                    yield Claim(name, abs(slope - 1), "<=", 0.1)
        found = largest_width(line)
        if found is not None and row == _RECOMPUTED:
            name = f"largest H of [2, H, 2H, 3] in 16 GB (from H = {found['measured_at']}): {row}"
            yield Claim(name, found["width"], ">=", 4096)
    for line in stages.get("largest", []):
        if line["row"] == _RECOMPUTED:
            name = f"H of [2, H, 2H, 3] whose training step ran in 16 GB: {_RECOMPUTED}"
            yield Claim(name, 0 if "failed" in line else line["width"], ">=", 4096)


def _epoch(stages: dict[str, Any]) -> Iterator[Claim | None]:
    lines = stages.get("epoch", [])
    most = max((line["num_threads"] for line in lines), default=0)
    for line in lines:
        target = {"NG-GNN d=32": 250.0, "operator, 1 round": 4000.0}.get(line["row"])
        if target is not None and line["num_threads"] == most:
            name = f"networks per second of training, {most} threads: {line['row']}"
            yield Claim(name, line["per_second"], ">=", target)
