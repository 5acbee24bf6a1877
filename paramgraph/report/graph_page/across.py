"""Across: the x of every vertex, so that lines run straight and nothing overlaps.

Vertices that should stand under each other are joined to *columns*, in four ways (looking up or
down, starting at the left or at the right); each way is pushed together as far as distances allow,
and the middle of the four is taken: since each keeps all distances, so does the middle.

References:
    Brandes, Köpf 2001, Fast and simple horizontal coordinate assignment.
"""

from __future__ import annotations

from itertools import pairwise

from paramgraph.report.graph_page.layers import Rows

__all__ = ["place_across"]

_GAP, _LINE_GAP = 28.0, 18.0


def place_across(rows: Rows, widths: list[float]) -> list[float]:
    """The centre of each vertex.

    Args:
        rows: Vertices in rows, in order.
        widths: Of each vertex; 0 for waypoints.

    Returns:
        Places such that neighbours in a row keep a gap.

    Example:
        >>> import torch, paramgraph as pg
        >>> from paramgraph.report.graph_page.layers import make_rows
        >>> rows = make_rows(pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3)))
        >>> place_across(rows, [80.0, 90.0])
        [0.0, 0.0]
    """
    crossed = _crossed(rows)
    ways: list[list[float]] = []
    for is_down in (True, False):
        for is_left in (True, False):
            root = _columns(rows, crossed, is_down=is_down, is_left=is_left)
            ways.append(_pushed(rows, widths, root, is_left=is_left))
    sizes = [max(way, default=0.0) - min(way, default=0.0) for way in ways]
    narrowest = ways[sizes.index(min(sizes))]
    low, high = min(narrowest, default=0.0), max(narrowest, default=0.0)
    for number, way in enumerate(ways):  # all beside the narrowest: at its left or right edge
        shift = low - min(way, default=0.0) if number % 2 == 0 else high - max(way, default=0.0)
        ways[number] = [x + shift for x in way]
    return [sum(sorted(found)[1:3]) / 2 for found in zip(*ways, strict=True)]


def _crossed(rows: Rows) -> set[tuple[int, int]]:
    """Pairs that yield to a long line: they cross it, or leave it where it goes on."""
    crossed: set[tuple[int, int]] = set()
    for _, line in pairwise(rows.order):
        pairs = [(u, v) for v in line for u in rows.above[v]]
        long = [(u, v) for u, v in pairs if rows.is_waypoint(u) and rows.is_waypoint(v)]
        if not long:
            continue
        going_on = {u for u, _ in long}
        places = [(rows.place[u], rows.place[v]) for u, v in long]
        for u, v in pairs:
            if rows.is_waypoint(u) and rows.is_waypoint(v):
                continue
            upper, lower = rows.place[u], rows.place[v]
            if u in going_on or any((a - upper) * (b - lower) < 0 for a, b in places):
                crossed.add((u, v))
    return crossed


def _columns(
    rows: Rows, crossed: set[tuple[int, int]], *, is_down: bool, is_left: bool
) -> list[int]:
    """For each vertex the first one of its column; columns do not cross."""
    root = list(range(len(rows.row)))
    has_follower: set[int] = set()
    joined = rows.above if is_down else rows.below
    for line in rows.order[1:] if is_down else reversed(rows.order[:-1]):
        limit = -1 if is_left else len(rows.row)
        for v in line if is_left else reversed(line):
            near = sorted(joined[v], key=lambda u: rows.place[u])
            # A long line goes on straight before anything else follows it.
            if rows.is_waypoint(v):
                near = [u for u in near if rows.is_waypoint(u)] or near
            middle = len(near) // 2
            medians = near[middle : middle + 1] if len(near) % 2 else near[middle - 1 : middle + 1]
            for u in medians if is_left else reversed(medians):
                pair = (u, v) if is_down else (v, u)
                place = rows.place[u]
                is_behind = place > limit if is_left else place < limit
                if u in has_follower or pair in crossed or not is_behind:
                    continue
                has_follower.add(u)
                root[v] = root[u]
                limit = place
                break
    return root


def _pushed(rows: Rows, widths: list[float], root: list[int], *, is_left: bool) -> list[float]:
    """Columns pushed to one side, then back towards what stands next, where there is room."""
    right: dict[int, dict[int, float]] = {v: {} for v in set(root)}
    num_before = dict.fromkeys(right, 0)
    for line in rows.order:
        for u, v in pairwise(line):
            gap = _LINE_GAP if rows.is_waypoint(u) or rows.is_waypoint(v) else _GAP
            distance = (widths[u] + widths[v]) / 2 + gap
            if root[v] not in right[root[u]]:
                num_before[root[v]] += 1
            right[root[u]][root[v]] = max(distance, right[root[u]].get(root[v], 0.0))
    order = [column for column, number in num_before.items() if not number]
    for column in order:  # grows: columns from left to right
        for other in right[column]:
            num_before[other] -= 1
            if not num_before[other]:
                order.append(other)
    x = dict.fromkeys(right, 0.0)
    if is_left:
        for column in order:
            for other, distance in right[column].items():
                x[other] = max(x[other], x[column] + distance)
    else:
        for column in reversed(order):
            for other, distance in right[column].items():
                x[column] = min(x[column], x[other] - distance)
    _pull_back(order, right, x, is_left=is_left)
    return [x[column] for column in root]


def _pull_back(
    order: list[int], right: dict[int, dict[int, float]], x: dict[int, float], *, is_left: bool
) -> None:
    """Columns that were pushed away from all their neighbours come back to them."""
    left: dict[int, dict[int, float]] = {column: {} for column in x}
    for column, others in right.items():
        for other, distance in others.items():
            left[other][column] = distance
    if is_left:
        for column in reversed(order):
            room = [x[other] - distance for other, distance in right[column].items()]
            x[column] = max(x[column], min(room, default=x[column]))
    else:
        for column in order:
            room = [x[other] + distance for other, distance in left[column].items()]
            x[column] = min(x[column], max(room, default=x[column]))
