"""Positions of a drawing: a box per neuron group, a line per edge block, a band per module.

Rows follow depth from top to bottom. Lines bend between rows only, so no line runs through a box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from paramgraph.graph import ParamGraph
from paramgraph.report.graph_page.across import place_across
from paramgraph.report.graph_page.layers import Rows, make_rows
from paramgraph.structure import Activation, EdgeKind, NeuronGroup, NormKind

__all__ = ["Band", "Box", "Layout", "lay_out"]

BOX_HEIGHT = 40.0
_ROW_GAP = 42.0
_NARROWEST, _WIDEST = 84.0, 236.0
_LETTER, _SMALL_LETTER = 6.8, 6.0  # width of a letter of the two lines, on average
_PADDING = 28.0
_PORT_GAP = 16.0

Port = tuple[float, bool, int]
"""Where a line goes next, whether that is a waypoint, and what tells lines apart."""


@dataclass(frozen=True)
class Box:
    """A neuron group in the drawing: its centre, its size, its row, its two lines of text.

    Example:
        >>> Box(0.0, 20.0, 100.0, 40.0, 0, "layers.0").row
        0
    """

    x: float
    y: float
    width: float
    height: float
    row: int
    label: str
    caption: str = ""


@dataclass(frozen=True)
class Band:
    """The rows of one module, such as a block of a transformer.

    Example:
        >>> Band("layers.0", 0.0, 100.0, lane=0).name
        'layers.0'
    """

    name: str
    top: float
    bottom: float
    lane: int


@dataclass(frozen=True)
class Layout:
    """Where everything stands.

    Attributes:
        boxes: One per neuron group.
        routes: For each block points (x, y): straight down where x stays, else a smooth bend.
        bands: Modules with rows of their own, in lanes beside each other where these overlap.
    """

    boxes: tuple[Box, ...]
    routes: tuple[tuple[tuple[float, float], ...], ...]
    bands: tuple[Band, ...]


def lay_out(graph: ParamGraph) -> Layout:
    """Compute the positions of all groups and blocks of a graph.

    Example:
        >>> import torch, paramgraph as pg
        >>> layout = lay_out(pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3)))
        >>> [box.row for box in layout.boxes], len(layout.routes)
        ([0, 1], 1)
    """
    rows = make_rows(graph)
    spans = _module_spans(graph, rows)
    labels = [_label(graph.neuron_groups[i].name, spans) for i in range(rows.num_groups)]
    captions = [_caption(group) for group in graph.neuron_groups]
    widths = [_width(*texts) for texts in zip(labels, captions, strict=True)]
    widths += [0.0] * (len(rows.row) - rows.num_groups)
    x = place_across(rows, widths)
    step = BOX_HEIGHT + _ROW_GAP
    boxes = tuple(
        Box(round(x[v], 1), rows.row[v] * step, widths[v], BOX_HEIGHT, rows.row[v], *texts)
        for v, texts in enumerate(zip(labels, captions, strict=True))
    )
    margin = BOX_HEIGHT / 2 + _ROW_GAP / 2
    bands = tuple(
        Band(name, first * step - margin, last * step + margin, lane)
        for name, (first, last, lane) in spans.items()
    )
    return Layout(boxes, _routes(graph, rows, x, boxes), bands)


# Lines


def _routes(
    graph: ParamGraph, rows: Rows, x: list[float], boxes: tuple[Box, ...]
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Points of every line; lines leave and enter a box beside each other."""
    kinds = list(EdgeKind)
    leaves: dict[int, set[Port]] = {}
    enters: dict[int, set[Port]] = {}
    ports = []
    for number, (block, path) in enumerate(zip(graph.blocks, rows.paths, strict=True)):
        after, before = path[1], path[-2]
        # What turns right at the next row leaves at the right; the kind keeps shared lines shared.
        leaving = (x[after], rows.is_waypoint(after), kinds.index(block.kind))
        entering = (x[before], rows.is_waypoint(before), number)
        leaves.setdefault(path[0], set()).add(leaving)
        enters.setdefault(path[-1], set()).add(entering)
        ports.append((leaving, entering))
    left = {v: _spread(boxes[v], found) for v, found in leaves.items()}
    entered = {v: _spread(boxes[v], found) for v, found in enters.items()}
    step, half = BOX_HEIGHT + _ROW_GAP, BOX_HEIGHT / 2
    routes = []
    for path, (leaving, entering) in zip(rows.paths, ports, strict=True):
        points = [(left[path[0]][leaving], rows.row[path[0]] * step + half)]
        for v in path[1:-1]:
            middle = rows.row[v] * step
            points += [(x[v], middle - half), (x[v], middle + half)]
        points.append((entered[path[-1]][entering], rows.row[path[-1]] * step - half))
        routes.append(tuple(_without_idle(points)))
    return tuple(routes)


def _spread(box: Box, found: set[Port]) -> dict[Port, float]:
    """Places along the side of a box: below a long line where there is one, else in the middle."""
    room = max(0.0, box.width / 2 - 12.0)
    gap = min(_PORT_GAP, 2 * room / max(1, len(found) - 1))
    keys = sorted(found)
    wanted = [x if is_long else box.x for x, is_long, _ in keys]
    places = spaced(wanted, [8.0 if is_long else 1.0 for _, is_long, _ in keys], gap)
    low, high = box.x - room, box.x + room - gap * (len(keys) - 1)
    return {
        key: min(high, max(low, place - index * gap)) + index * gap
        for index, (key, place) in enumerate(zip(keys, places, strict=True))
    }


def spaced(wanted: list[float], pulls: list[float], gap: float) -> list[float]:
    """The nearest places to those wanted that stand in order with a gap (isotonic regression).

    Example:
        >>> spaced([0.0, 0.0, 50.0], [1.0, 1.0, 1.0], 10.0)
        [-5.0, 5.0, 50.0]
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of places
    for index, (goal, pull) in enumerate(zip(wanted, pulls, strict=True)):
        mean, weight, count = goal - index * gap, pull, 1
        while pools and pools[-1][0] > mean:
            other, other_weight, other_count = pools.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, count = weight + other_weight, count + other_count
        pools.append((mean, weight, count))
    level = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + index * gap for index, mean in enumerate(level)]


def _without_idle(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Rounded points without those in the middle of a straight line."""
    kept: list[tuple[float, float]] = []
    for x, y in points:
        point = (round(x, 1), round(y, 1))
        if len(kept) > 1 and kept[-1][0] == kept[-2][0] == point[0]:
            kept.pop()
        kept.append(point)
    return kept


# Labels and bands


def _module_spans(graph: ParamGraph, rows: Rows) -> dict[str, tuple[int, int, int]]:
    """Modules that occur in a row of modules (``layers.3``): first row, last row, lane."""
    found: dict[str, list[int]] = {}
    for index, group in enumerate(graph.neuron_groups):
        name = _module(group.name)
        if name:
            found.setdefault(name, []).append(rows.row[index])
    spans: dict[str, tuple[int, int, int]] = {}
    lanes: list[int] = []  # last row of each lane
    several = [(min(r), max(r), name) for name, r in found.items() if len(r) > 1]
    for first, last, name in sorted(several):
        free = [number for number, end in enumerate(lanes) if end < first]
        lane = free[0] if free else len(lanes)
        if lane > 2:  # modules side by side: bands would say nothing
            continue
        lanes[lane : lane + 1] = [last]
        spans[name] = (first, last, lane)
    return spans


def _module(name: str) -> str | None:
    """A name up to its first number; the name of a group that is no member of a list has none."""
    found = re.match(r"(.*?[^.]\.\d+)(\.|#|$)", name)
    return found.group(1) if found else None


def _label(name: str, spans: dict[str, tuple[int, int, int]]) -> str:
    module = _module(name)
    short = name.removeprefix(f"{module}.") if module in spans else name
    most = int((_WIDEST - _PADDING) / _LETTER)
    return short if len(short) <= most else "…" + short[-most + 1 :]


def _caption(group: NeuronGroup) -> str:
    """Size, normalisation and activation: ``64 · batch norm · relu``."""
    words = [f"{group.size:,}"]
    if group.norm is not NormKind.NONE:
        words.append(f"{group.norm.value} norm")
    if group.activation is Activation.OTHER:
        words.append(group.activation_text)
    elif group.activation is not Activation.NONE:
        words.append(group.activation.value)
    most = int((_WIDEST - _PADDING) / _SMALL_LETTER)
    text = " · ".join(words)
    return text if len(text) <= most else text[: most - 1] + "…"


def _width(label: str, caption: str) -> float:
    text = max(_LETTER * len(label), _SMALL_LETTER * len(caption))
    return round(min(_WIDEST, max(_NARROWEST, _PADDING + text)), 1)
