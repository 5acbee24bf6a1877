"""The page in one piece: template, style, script and data, with a policy that forbids all else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from html import escape
from importlib.resources import files
from typing import Any

from paramgraph.capture import Verification
from paramgraph.graph import ParamGraph
from paramgraph.report.graph_page.data import page_data
from paramgraph.storage import write_atomic

__all__ = ["graph_page", "write_graph_page"]

_SCRIPTS = ("draw.js", "panel.js", "events.js")


def graph_page(graph: ParamGraph, verification: Verification | None = None) -> str:
    """The page of a graph, as a string.

    Args:
        graph: What to show.
        verification: What ``verify`` measured on its network, if it was run.

    Returns:
        HTML with its style, script and data inside; it loads nothing and works offline. The same
        graph and verification give the same string.

    Example:
        >>> import torch, paramgraph as pg
        >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> graph_page(graph).splitlines()[0]
        '<!doctype html>'
    """
    style = _read("page.css")
    script = "\n".join(_read(name) for name in _SCRIPTS)
    parts = {
        "title": escape(graph.name),
        "style": style,
        "script": script,
        "data": _json(page_data(graph, verification)),
        # Nothing is fetched, and no script runs but the one whose hash this is: were a name ever
        # taken for HTML, it would still do nothing.
        "policy": f"default-src 'none'; script-src '{_digest(script)}'; "
        f"style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'",
    }
    # One pass, so that a name that looks like a placeholder stays a name.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found.group(1)], _read("page.html"))


def write_graph_page(
    path: str | os.PathLike[str], graph: ParamGraph, verification: Verification | None = None
) -> None:
    """Write the page of a graph to a file.

    Args:
        path: The file; its folder must exist.
        graph: What to show.
        verification: What ``verify`` measured on its network, if it was run.

    Raises:
        CheckpointError: The file cannot be written.

    Example:
        >>> import tempfile, torch, paramgraph as pg
        >>> from pathlib import Path
        >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_graph_page(Path(folder) / "graph.html", graph)
        ...     (Path(folder) / "graph.html").stat().st_size > 10_000
        True
    """
    write_atomic(path, graph_page(graph, verification).encode())


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start another."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _digest(text: str) -> str:
    """A hash source of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
