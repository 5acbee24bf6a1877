"""Positions of a drawing: a box per neuron group, a line per edge block, a band per module.

Rows follow depth from top to bottom. Within a row the boxes keep their order and their distance, and
stand as near to what they are joined with as these allow; waypoints pull hardest, so that long lines
run straight. Lines bend between rows only, so no line runs through a box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from paramgraph.graph import ParamGraph
from paramgraph.report.graph_page.layers import Rows, make_rows
from paramgraph.structure import Activation, EdgeKind, NeuronGroup, NormKind

__all__ = ["Band", "Box", "Layout", "lay_out"]

BOX_HEIGHT = 40.0
_ROW_GAP = 46.0
_GAP, _LINE_GAP = 28.0, 16.0
_NARROWEST, _WIDEST = 84.0, 236.0
_LETTER, _SMALL_LETTER = 6.8, 6.0  # width of a letter of the two lines, on average
_PADDING = 28.0
_NUM_ROUNDS = 30
_STRAIGHT = 8.0  # how much harder a long line pulls


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
    x = _across(rows, widths)
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


# Across: the x of every vertex


def _across(rows: Rows, widths: list[float]) -> list[float]:
    x = [0.0] * len(rows.row)
    for line in rows.order:
        _place_row(rows, line, widths, x, [0.0] * len(line), [1.0] * len(line))
    for turn in range(_NUM_ROUNDS):
        both = turn >= _NUM_ROUNDS - 6  # at last, look in both directions
        down = turn % 2 == 0
        for line in rows.order if down else reversed(rows.order):
            wanted, pulls = [], []
            for v in line:
                near = [*rows.above[v], *rows.below[v]] if both else []
                near = near or (rows.above[v] if down else rows.below[v])
                pull = [_pull(rows, v, u) for u in near]
                total = sum(pull)
                mean = sum(p * x[u] for p, u in zip(pull, near, strict=True)) / (total or 1.0)
                wanted.append(mean if near else x[v])
                pulls.append(total or 0.1)
            _place_row(rows, line, widths, x, wanted, pulls)
    return x


def _pull(rows: Rows, first: int, second: int) -> float:
    if rows.is_waypoint(first) and rows.is_waypoint(second):
        return _STRAIGHT
    return 1.0


def _place_row(
    rows: Rows,
    line: list[int],
    widths: list[float],
    x: list[float],
    wanted: list[float],
    pulls: list[float],
) -> None:
    """The nearest places to those wanted that keep order and distance: isotonic regression."""
    offsets, place = [], 0.0
    for index, v in enumerate(line):
        if index:
            before = line[index - 1]
            lines = rows.is_waypoint(v) or rows.is_waypoint(before)
            place += (widths[before] + widths[v]) / 2 + (_LINE_GAP if lines else _GAP)
        offsets.append(place)
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of vertices
    for goal, offset, pull in zip(wanted, offsets, pulls, strict=True):
        mean, weight, count = goal - offset, pull, 1
        while pools and pools[-1][0] > mean:
            other, other_weight, other_count = pools.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, count = weight + other_weight, count + other_count
        pools.append((mean, weight, count))
    level = [mean for mean, _, count in pools for _ in range(count)]
    for v, mean, offset in zip(line, level, offsets, strict=True):
        x[v] = mean + offset


# Lines


def _routes(
    graph: ParamGraph, rows: Rows, x: list[float], boxes: tuple[Box, ...]
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Points of every line; lines leave and enter a box beside each other."""
    kinds = list(EdgeKind)
    leaves: dict[int, set[tuple[float, int]]] = {}
    enters: dict[int, set[tuple[float, int]]] = {}
    for number, (block, path) in enumerate(zip(graph.blocks, rows.paths, strict=True)):
        # What turns right at the next row leaves at the right; the kind keeps shared lines shared.
        leaves.setdefault(path[0], set()).add((x[path[1]], kinds.index(block.kind)))
        enters.setdefault(path[-1], set()).add((x[path[-2]], number))
    left = {v: _ports(boxes[v], found) for v, found in leaves.items()}
    entered = {v: _ports(boxes[v], found) for v, found in enters.items()}
    step, half = BOX_HEIGHT + _ROW_GAP, BOX_HEIGHT / 2
    routes = []
    for number, (block, path) in enumerate(zip(graph.blocks, rows.paths, strict=True)):
        start = left[path[0]][x[path[1]], kinds.index(block.kind)]
        points = [(start, rows.row[path[0]] * step + half)]
        for v in path[1:-1]:
            middle = rows.row[v] * step
            points += [(x[v], middle - half), (x[v], middle + half)]
        points.append((entered[path[-1]][x[path[-2]], number], rows.row[path[-1]] * step - half))
        routes.append(tuple(_without_idle(points)))
    return tuple(routes)


def _ports(box: Box, found: set[tuple[float, int]]) -> dict[tuple[float, int], float]:
    """Places along the side of a box, in the order of where the lines go to."""
    width = min(box.width - 20.0, 18.0 * (len(found) - 1))
    gap = width / (len(found) - 1) if len(found) > 1 else 0.0
    start = box.x - width / 2
    return {key: start + index * gap for index, key in enumerate(sorted(found))}


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
