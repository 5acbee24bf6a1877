"""Rows of a drawing: which group stands in which row, in which order, and where lines pass.

A line over several rows passes each row in between at a place of its own, a *waypoint*. Lines of
one kind that leave the same group share their waypoints: a residual stream is one line with
branches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeKind, NeuronKind

__all__ = ["Rows", "make_rows"]

_NUM_SWEEPS = 24


@dataclass
class Rows:
    """Vertices in rows; the first ones are the neuron groups, the others waypoints.

    Attributes:
        row: Row of each vertex.
        order: The vertices of each row, from left to right.
        above: For each vertex those it is joined with in the row above.
        below: The same for the row below.
        paths: For each block its vertices, from sender to receiver.
        num_groups: How many vertices are neuron groups.
        place: Place of each vertex within its row.
    """

    row: list[int]
    order: list[list[int]]
    above: list[list[int]]
    below: list[list[int]]
    paths: list[list[int]]
    num_groups: int
    place: list[int] = field(default_factory=list)

    def is_waypoint(self, vertex: int) -> bool:
        """Whether a vertex only lets a line pass."""
        return vertex >= self.num_groups


def make_rows(graph: ParamGraph) -> Rows:
    """Rows by depth, waypoints for long lines, and an order with few crossings.

    Example:
        >>> import torch, paramgraph as pg
        >>> rows = make_rows(pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3)))
        >>> rows.order, rows.paths
        ([[0], [1]], [[0, 1]])
    """
    row = _row_of_groups(graph)
    rows = Rows(row, [], [], [], [], len(row))
    rails: dict[tuple[int, EdgeKind], list[int]] = {}
    for block in graph.blocks:
        rail = rails.setdefault((block.sender, block.kind), [])
        first = row[block.sender] + 1
        for level in range(first + len(rail), row[block.receiver]):
            rail.append(len(row))
            row.append(level)
        passed = rail[: max(0, row[block.receiver] - first)]
        rows.paths.append([block.sender, *passed, block.receiver])
    rows.above, rows.below = [[] for _ in row], [[] for _ in row]
    for start, end in sorted({pair for path in rows.paths for pair in pairwise(path)}):
        rows.below[start].append(end)
        rows.above[end].append(start)
    rows.order = _first_order(rows)
    _reduce_crossings(rows)
    return rows


def _row_of_groups(graph: ParamGraph) -> list[int]:
    """The depth; a table or a token, which nothing leads to, stands just above what reads it."""
    readers: dict[int, int] = {}
    for block in graph.blocks:
        depth = graph.neuron_groups[block.receiver].depth
        readers[block.sender] = min(depth, readers.get(block.sender, depth))
    led_to = {block.receiver for block in graph.blocks}
    return [
        readers[index] - 1
        if group.kind is NeuronKind.FIXED and index in readers and index not in led_to
        else group.depth
        for index, group in enumerate(graph.neuron_groups)
    ]


def _first_order(rows: Rows) -> list[list[int]]:
    """Depth first from the sources, so that what belongs together starts side by side."""
    order: list[list[int]] = [[] for _ in range(max(rows.row, default=-1) + 1)]
    seen: set[int] = set()
    sources = [v for v in range(rows.num_groups) if not rows.above[v]]
    stack = [*reversed(sources)]
    while stack:
        vertex = stack.pop()
        if vertex in seen:
            continue
        seen.add(vertex)
        order[rows.row[vertex]].append(vertex)
        stack.extend(reversed(rows.below[vertex]))
    return order


def _reduce_crossings(rows: Rows) -> None:
    """Barycentre sweeps, down and up; the best order found is kept."""
    rows.place = [0] * len(rows.row)
    for line in rows.order:
        _number(rows, line)
    best, fewest = [list(line) for line in rows.order], _num_crossings(rows)
    for sweep in range(_NUM_SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        for line in rows.order if down else reversed(rows.order):
            joined = rows.above if down else rows.below
            line.sort(key=lambda v: (_mean_place(rows, joined[v], rows.place[v]), rows.place[v]))
            _number(rows, line)
        number = _num_crossings(rows)
        if number < fewest:
            best, fewest = [list(line) for line in rows.order], number
    rows.order = best
    for line in rows.order:
        _number(rows, line)


def _number(rows: Rows, line: list[int]) -> None:
    for place, vertex in enumerate(line):
        rows.place[vertex] = place


def _mean_place(rows: Rows, joined: list[int], own: int) -> float:
    return sum(rows.place[v] for v in joined) / len(joined) if joined else float(own)


def _num_crossings(rows: Rows) -> int:
    """Pairs of lines that cross, counted row by row with a binary indexed tree."""
    total = 0
    for line, following in pairwise(rows.order):
        tree = [0] * (len(following) + 1)
        counted = 0
        for vertex in line:
            ends = sorted(rows.place[v] for v in rows.below[vertex])
            for end in ends:
                index, not_right = end + 1, 0
                while index:
                    not_right += tree[index]
                    index &= index - 1
                total += counted - not_right
            for end in ends:
                index = end + 1
                while index < len(tree):
                    tree[index] += 1
                    index += index & -index
            counted += len(ends)
    return total
