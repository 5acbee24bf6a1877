"""Cost against the size of the network: a training step on one INR [2, H, H, 3], H doubling.

Every point is a process of its own, ended where it would need more memory than allowed. The
exponent is the slope of a line through the points in logarithms. A line that never came to the
largest size says where it stopped, and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import peak_in_a_process

__all__ = [
    "LARGEST",
    "SCALING_ROWS",
    "draw",
    "exponent",
    "largest_lines",
    "largest_width",
    "scaling_lines",
]

SCALING_ROWS = (
    "operator, 1 round",
    "NG-GNN d=32",
    "NG-GNN d=32, edges recomputed",
    "NG-GNN d=32, PyG twin",
    "NG-GNN d=32, published twin",
    "NG-T",
    "NG-T, dense twin",
    "GMN",
    "ScaleGMN",
    "DWSNet",
    "NFN-NP",
    "flat MLP",
)

#: [2, H, K, 3] that are run to show that a training step fits: row, H, K.
LARGEST = (
    ("NG-GNN d=32", 1024, 2048),
    ("NG-GNN d=32, edges recomputed", 4096, 8192),
    ("operator, 1 round", 8192, 16384),
)


def num_parameters(first: int, second: int) -> int:
    """Scalars of an INR ``[2, first, second, 3]``.

    Example:
        >>> num_parameters(8, 8)
        123
    """
    return 3 * first + (first + 1) * second + 3 * (second + 1)


def scaling_lines(
    rows: Sequence[str],
    *,
    widths: Sequence[int],
    limit_gb: float,
    most_seconds: float,
    progress: Callable[[str], object] = lambda text: None,
) -> list[dict[str, Any]]:
    """Points of every row until a step takes too long or needs too much.

    Args:
        rows: Keys of ``ROWS``.
        widths: H, rising.
        limit_gb: Memory of a process.
        most_seconds: A row whose next step would take longer (four times the last) ends.
        progress: Called after each point.
    """
    lines = []
    for row in rows:
        points: list[dict[str, Any]] = []
        stopped = None
        for width in widths:
            if points:
                growth = (width / points[-1]["width"]) ** 2
                if points[-1]["cpu_s"] * growth > most_seconds:
                    stopped = f"H = {width} would take more than {most_seconds:.0f} s"
                    break
            request = {"row": row, "networks": f"large-{width}", "num": 1, "stages": ["train"]}
            found = peak_in_a_process({**request, "limit_gb": limit_gb, "repeats": 3})
            progress(f"{row}, H = {width}")
            if "failed" in found:
                stopped = f"H = {width}: {found['failed']}"
                break
            step = found["train"]
            points.append(
                {
                    "width": width,
                    "num_parameters": found["num_parameters"],
                    "cpu_s": step["cpu_s"],
                    "peak_mb": step["peak_mb"],
                    "kb_per_parameter": step["peak_mb"] * 1024 / found["num_parameters"],
                }
            )
        line: dict[str, Any] = {"row": row, "points": points, "stopped": stopped}
        for name in ("cpu_s", "peak_mb"):
            line[f"exponent_{name}"] = exponent(points, name)
            # Below that size a step is mostly what it costs to call PyTorch at all.
            line[f"exponent_{name}_from_256"] = exponent(points, name, least_width=256)
        lines.append(line)
    return lines


def exponent(points: Sequence[dict[str, Any]], name: str, *, least_width: int = 0) -> float | None:
    """Slope of the logarithm of a quantity over that of the number of parameters.

    Returns:
        The slope of the line of least squares; ``None`` with fewer than three points.

    Example:
        >>> points = [{"width": n, "num_parameters": n, "cpu_s": 3.0 * n * n} for n in (1, 2, 4)]
        >>> round(exponent(points, "cpu_s"), 6)
        2.0
    """
    chosen = [p for p in points if p["width"] >= least_width and p[name] > 0]
    if len(chosen) < 3:
        return None
    x = np.log([p["num_parameters"] for p in chosen])
    y = np.log([p[name] for p in chosen])
    return float(np.polyfit(x, y, 1)[0])


def largest_width(line: dict[str, Any], *, memory_gb: float = 16.0) -> dict[str, Any] | None:
    """The largest [2, H, 2H, 3] whose training step fits, by the memory per parameter measured.

    Memory is taken to be linear in the parameters beyond the largest size measured, where it is
    extrapolated; ``measured_at`` says from where.

    Args:
        line: Of ``scaling_lines``.
        memory_gb: What fits.
    """
    points = line["points"]
    if not points:
        return None
    last = points[-1]
    fitting = memory_gb * 2**20 / last["kb_per_parameter"]
    # 3 H + 2 H (H + 1) + 3 (2 H + 1) parameters: solve for H.
    width = int((-11 + math.sqrt(121 + 8 * (fitting - 3))) / 4)
    return {
        "row": line["row"],
        "width": width,
        "num_parameters": num_parameters(width, 2 * width),
        "kb_per_parameter": last["kb_per_parameter"],
        "measured_at": last["width"],
    }


def largest_lines(
    *, limit_gb: float = 16.0, progress: Callable[[str], object] = lambda text: None
) -> list[dict[str, Any]]:
    """Run a training step on each layout of ``LARGEST``; takes minutes.

    Args:
        limit_gb: Memory of the process.
        progress: Called after each.
    """
    lines = []
    for row, first, second in LARGEST:
        request = {"row": row, "networks": f"large-{first}-{second}", "num": 1}
        request |= {"stages": ["train"], "limit_gb": limit_gb}
        found = peak_in_a_process(request, timeout_s=3600)
        line: dict[str, Any] = {"row": row, "width": first, "second": second, "limit_gb": limit_gb}
        if "failed" in found:
            line["failed"] = found["failed"]
        else:
            line |= {"num_parameters": found["num_parameters"], **found["train"]}
        lines.append(line)
        progress(f"{row}, [2, {first}, {second}, 3]")
    return lines


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time and peak memory against the number of parameters.

    Args:
        lines: Of ``scaling_lines``.
        path: Of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    quantities = (("cpu_s", "CPU seconds of one thread"), ("peak_mb", "peak memory, MB"))
    colours = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for ax, (name, label) in zip(axes, quantities, strict=True):
        for number, line in enumerate(lines):
            points = [p for p in line["points"] if p[name] > 0]
            slope = line[f"exponent_{name}_from_256"] or line[f"exponent_{name}"]
            ax.loglog(
                [p["num_parameters"] for p in points],
                [p[name] for p in points],
                marker="o",
                markersize=4,
                color=colours[number % len(colours)],
                label=line["row"] + (f" (exponent {slope:.2f})" if slope else ""),
            )
        ax.set_xlabel("parameters of the network [2, H, H, 3]")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    figure.suptitle("A training step on one network")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
