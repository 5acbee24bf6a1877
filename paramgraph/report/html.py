"""The results of the demonstration as one self-contained page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from paramgraph.report.pictures import PICTURES
from paramgraph.report.text import accuracy_rows, inr_rows, verification_rows
from paramgraph.storage import write_atomic
from paramgraph.tasks import TrainConfig
from paramgraph.zoo import Zoo

__all__ = ["html_table", "write_page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } figure { margin: 1rem 0; }
figcaption, footer { color: #555; font-size: 0.9rem; }
pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem; }
"""

_CAPTIONS = {
    "scatter.png": "Test networks: predicted against true accuracy. On the line, both are equal.",
    "inrs.png": "Digits, the INRs fitted to them, and the same INRs on a finer grid.",
    "learning_curves.png": "Validation score after each epoch.",
    "graph.png": "An INR as a graph. Circles are neurons, filled by the sign of the bias; lines "
    "are weights, blue above zero and red below.",
}


def write_page(
    folder: Path,
    metrics: dict[str, Any],
    zoos: Sequence[Zoo],
    configs: Mapping[str, TrainConfig],
) -> None:
    """Write ``index.html``: tables, pictures, settings and environment; it loads nothing else.

    Args:
        folder: Holds the pictures; the page is written here.
        metrics: As in ``metrics.json``.
        zoos: The zoos, for their summaries.
        configs: Settings of each run.
    """
    images = {
        name: base64.b64encode((folder / name).read_bytes()).decode("ascii") for name in PICTURES
    }
    parts = [
        "<p>Networks in, graphs of their parameters, and metanetworks that read the graphs. "
        f"{metrics['num_networks']:,} networks of {metrics['num_architectures']} architectures "
        "were trained on scikit-learn's digits, and six metanetworks on these networks.</p>",
        "<h2>How accurate is a classifier? Read from its weights</h2>",
        "<p>Kendall's tau and R2 on test networks: all of them, those of unseen training runs, and "
        "those of unseen architectures.</p>",
        html_table(accuracy_rows(metrics)),
        _figure(images, "scatter.png"),
        "<h2>Which digit does an INR store? Read from its weights</h2>",
        f"<p>The INRs reproduce their images with {metrics['inr_psnr_db']:.1f} dB PSNR on "
        "average; test images were never seen in training.</p>",
        html_table(inr_rows(metrics)),
        _figure(images, "inrs.png"),
        _figure(images, "learning_curves.png"),
        "<h2>Graphs and their symmetries</h2>",
        "<p>Every architecture was captured; random elements of the symmetry group found were "
        "applied to networks in float64. The last column is the largest relative change of an "
        "output.</p>",
        html_table(verification_rows(metrics)),
        _figure(images, "graph.png"),
        "<h2>Zoos</h2>",
        *[f"<pre>{escape(_summary(zoo, folder))}</pre>" for zoo in zoos],
        "<h2>Settings and environment</h2>",
        f"<pre>{escape(_settings(metrics, configs))}</pre>",
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>paramgraph demo</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>paramgraph: demonstration</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )
    write_atomic(folder / "index.html", page.encode())


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as an HTML table; the first is the heading.

    Example:
        >>> html_table([("a",), ("<b>",)])
        '<table><tr><th>a</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """
    lines = [
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th"] + ["td"] * (len(rows) - 1), rows, strict=True)
    ]
    return f"<table>{''.join(lines)}</table>"


def _figure(images: Mapping[str, str], name: str) -> str:
    caption = escape(_CAPTIONS[name])
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{images[name]}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _summary(zoo: Zoo, folder: Path) -> str:
    return zoo.summary().replace(str(zoo.path), str(zoo.path.relative_to(folder)))


def _settings(metrics: dict[str, Any], configs: Mapping[str, TrainConfig]) -> str:
    usual = asdict(TrainConfig())
    runs = {
        name: {key: value for key, value in asdict(config).items() if value != usual[key]}
        for name, config in configs.items()
    }
    keys = ("seed", "scale", "commit", "versions", "system", "cores", "seconds", "reused_runs")
    lines = [f"{key}: {json.dumps(metrics[key])}" for key in keys]
    lines += ["", "Runs (settings that differ from the defaults of TrainConfig)"]
    return "\n".join(lines + [f"{name}: {json.dumps(config)}" for name, config in runs.items()])
