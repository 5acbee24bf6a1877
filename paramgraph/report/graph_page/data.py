"""What the page shows, as plain lists: everything is worded here, the script only draws it.

A *fact* is a label with pieces; a piece is text, a link ``[table, row]`` or
``[table, row, text]`` to another item, or a list of these for one line. Tables
are one letter: ``g`` neuron groups, ``b`` blocks, ``a`` axis groups, ``s`` scale groups,
``p`` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from paramgraph.capture import Verification
from paramgraph.graph import ParamGraph
from paramgraph.report.graph_page.layout import Layout, lay_out
from paramgraph.report.graph_page.totals import notes, power_of_ten, totals
from paramgraph.report.symmetry_words import SymmetryWords, part_code, shape_text
from paramgraph.structure import (
    EdgeBlock,
    EdgeKind,
    EntryView,
    Factor,
    NeuronGroup,
    ParameterLayout,
    ParameterPart,
    ScaleKind,
)

__all__ = ["page_data"]

KIND_WORDS = {
    EdgeKind.LINEAR: "matrix",
    EdgeKind.CONV: "convolution",
    EdgeKind.SCALE: "factor per neuron",
    EdgeKind.SKIP: "skip, addition",
    EdgeKind.EMBEDDING: "table look-up",
    EdgeKind.GATE: "product of neurons",
    EdgeKind.ATTENTION: "attention",
    EdgeKind.FLOW: "other, no parameter",
}

Fact = tuple[str, list[Any]]


def page_data(graph: ParamGraph, verification: Verification | None = None) -> dict[str, Any]:
    """Everything that the page shows of a graph, ready for JSON.

    Example:
        >>> import torch, paramgraph as pg
        >>> data = page_data(pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3)))
        >>> [row["kind"] for row in data["g"]], [row["name"] for row in data["b"]]
        (['input', 'output'], ['weight'])
    """
    return _Tables(graph, lay_out(graph)).data(verification)


class _Tables:
    """The tables of one graph, with the rows that each other row is joined with."""

    def __init__(self, graph: ParamGraph, layout: Layout) -> None:
        self.graph, self.layout = graph, layout
        self.words = SymmetryWords(graph)
        self.axis_row = {row.name: i for i, row in enumerate(graph.axis_groups)}
        self.scale_row = {row.name: i for i, row in enumerate(graph.scale_groups)}
        self.parameter_row = {row.name: i for i, row in enumerate(graph.parameters)}
        self.incoming: list[list[int]] = [[] for _ in graph.neuron_groups]
        self.outgoing: list[list[int]] = [[] for _ in graph.neuron_groups]
        for number, block in enumerate(graph.blocks):
            self.incoming[block.receiver].append(number)
            self.outgoing[block.sender].append(number)
        groups, blocks, rows = graph.neuron_groups, graph.blocks, graph.parameters
        self.axis_groups = _links("g", [[f for f in g.axes if isinstance(f, str)] for g in groups])
        self.axis_parameters = _links("p", [sorted(row.groups) for row in rows])
        self.scale_groups = _links("g", [[n for n, _ in g.scale_exponents] for g in groups])
        self.scale_parameters = _links(
            "p", [[name for part in row.parts for name in _scale_names(part)] for row in rows]
        )
        self.read_by = _links("b", [[b.view.parameter] if b.view else [] for b in blocks])
        self.feature_of = _links("g", [[f.view.parameter for f in g.features] for g in groups])

    def data(self, verification: Verification | None) -> dict[str, Any]:
        """All tables."""
        graph = self.graph
        used = {block.kind for block in graph.blocks}
        return {
            "title": graph.name,
            "totals": totals(graph, verification),
            "notes": notes(graph, verification),
            "kinds": [[kind.value, KIND_WORDS[kind]] for kind in EdgeKind if kind in used],
            "bands": [[b.name, b.top, b.bottom, b.lane] for b in self.layout.bands],
            "g": [self._group(i, group) for i, group in enumerate(graph.neuron_groups)],
            "b": [self._block(i, block) for i, block in enumerate(graph.blocks)],
            "a": [self._axis(i) for i in range(len(graph.axis_groups))],
            "s": [self._scale(i) for i in range(len(graph.scale_groups))],
            "p": [self._parameter(row) for row in graph.parameters],
        }

    def _group(self, number: int, group: NeuronGroup) -> dict[str, Any]:
        box = self.layout.boxes[number]
        facts: list[Fact] = [
            ("kind", [group.kind.value]),
            ("neurons", [f"{group.size:,}"]),
            ("depth", [str(group.depth)]),
            ("symmetry", [self.words.factors(group.axes)]),
            ("axis groups", self._axes(group.axes)),
            ("activation", [_activation(group)]),
            ("normalisation", [group.norm.value]),
            ("scale", [_scale_text(self.words, group)]),
        ]
        if group.scale_exponents:
            facts.append(("scale groups", self._powers(group.scale_exponents)))
        facts += [(f.role.value, self._view(f.view)) for f in group.features]
        facts.append(("incoming", self._ends(self.incoming[number], incoming=True)))
        facts.append(("outgoing", self._ends(self.outgoing[number], incoming=False)))
        return {
            "name": group.name,
            "label": box.label,
            "caption": box.caption,
            "kind": group.kind.value,
            "state": self._state(group.axes),
            "box": [box.x, box.y, box.width, box.height],
            "a": self._axis_rows(group.axes),
            "s": [self.scale_row[name] for name, _ in group.scale_exponents],
            "facts": facts,
        }

    def _block(self, number: int, block: EdgeBlock) -> dict[str, Any]:
        facts: list[Fact] = [
            ("kind", [f"{block.kind.value} ({KIND_WORDS[block.kind]})"]),
            ("from", [["g", block.sender]]),
            ("to", [["g", block.receiver]]),
            ("shape", [f"{shape_text(block.shape)} (blocks, receivers, senders, positions)"]),
            ("edges", [f"{block.num_edges:,}"]),
        ]
        axes: list[int] = []
        scales: list[int] = []
        if block.view is None:
            facts.append(("values", [f"constant: every edge is {block.constant:g}"]))
            ends = [self.graph.neuron_groups[i].axes for i in (block.receiver, block.sender)]
            for title, factors in zip(("receivers", "senders"), ends, strict=True):
                facts.append((title, [self.words.factors(factors)]))
            axes = self._axis_rows(f for factors in ends for f in factors)
        else:
            part = self.graph.parameters[self.parameter_row[block.view.parameter]].parts[
                block.view.part
            ]
            facts.append(("values", self._view(block.view)))
            facts += self._part_facts(part.factors)
            facts.append(("scale", self._part_scales(part)))
            axes = self._axis_rows(part.factors)
            scales = [self.scale_row[name] for name in _scale_names(part)]
        return {
            "name": block.name,
            "kind": block.kind.value,
            "ends": [block.sender, block.receiver],
            "route": [place for point in self.layout.routes[number] for place in point],
            "a": axes,
            "s": sorted(set(scales)),
            "p": [] if block.view is None else [self.parameter_row[block.view.parameter]],
            "facts": facts,
        }

    def _axis(self, number: int) -> dict[str, Any]:
        row = self.graph.axis_groups[number]
        copies = math.prod(self.graph.axis_groups[self.axis_row[n]].size for n in row.given)
        facts: list[Fact] = [
            ("size", [f"{row.size:,}"]),
            ("symmetry", [self.words.axis(row)]),
            ("depends on", [["a", self.axis_row[name]] for name in row.given] or ["nothing"]),
            ("permutations", [power_of_ten(row.log_size(copies))]),
            ("neurons of", self.axis_groups.get(row.name, ["no group"])),
            ("acts on", self.axis_parameters.get(row.name, ["no parameter"])),
        ]
        return {
            "name": row.name,
            "size": row.size,
            "free": row.free,
            "reason": row.reason or (f"inside {', '.join(row.given)}" if row.given else ""),
            "facts": facts,
        }

    def _scale(self, number: int) -> dict[str, Any]:
        row = self.graph.scale_groups[number]
        facts: list[Fact] = [
            ("kind", [f"{row.kind.value}: {self.words.scale_kind(row.kind)}"]),
            ("factors", [f"{row.size:,}"]),
            ("numbered by", [["a", self.axis_row[name]] for name in row.axes] or ["one for all"]),
            ("rescales", self.scale_groups.get(row.name, ["no neurons"])),
            ("acts on", self.scale_parameters.get(row.name, ["no parameter"])),
        ]
        return {"name": row.name, "size": row.size, "kind": row.kind.value, "facts": facts}

    def _parameter(self, layout: ParameterLayout) -> dict[str, Any]:
        what = "running statistic" if layout.is_buffer else "parameter"
        facts: list[Fact] = [
            ("kind", [what]),
            ("shape", [f"{shape_text(layout.shape)} ({layout.num_entries:,} numbers)"]),
        ]
        if layout.aliases:
            facts.append(("also named", list(layout.aliases)))
        if layout.members:
            facts.append(("stack of", list(layout.members)))
        for index, part in enumerate(layout.parts):
            facts.append((f"part {index}", [part_code(layout, index)]))
            facts += self._part_facts(part.factors)
            if part.scales or part.shifts:
                facts.append(("scale", self._part_scales(part)))
        blocks = self.read_by.get(layout.name, [])
        groups = self.feature_of.get(layout.name, [])
        facts.append(("stands in", [*blocks, *groups]))
        return {
            "name": layout.name,
            "size": layout.num_entries,
            "shape": shape_text(layout.shape),
            "groups": [row for _, row in groups],
            "facts": facts,
        }

    # Pieces of facts

    def _part_facts(self, factors: Sequence[Factor]) -> list[Fact]:
        facts: list[Fact] = []
        for axis, f in enumerate(factors):
            if isinstance(f, str):
                facts.append((f"axis {axis}", [["a", self.axis_row[f]], self.words.factors((f,))]))
            else:
                facts.append((f"axis {axis}", [self.words.factors((f,))]))
        return facts

    def _view(self, view: EntryView) -> list[Any]:
        row = self.parameter_row[view.parameter]
        code = part_code(self.graph.parameters[row], view.part)
        return [["p", row], *([code] if code != view.parameter else [])]

    def _axes(self, factors: Sequence[Factor]) -> list[Any]:
        return [["a", self.axis_row[f]] if isinstance(f, str) else str(f) for f in factors] or ["-"]

    def _axis_rows(self, factors: Iterable[Factor]) -> list[int]:
        return sorted({self.axis_row[f] for f in factors if isinstance(f, str)})

    def _powers(self, exponents: Sequence[tuple[str, Any]]) -> list[Any]:
        pieces: list[Any] = []
        for name, power in exponents:
            pieces.append(["s", self.scale_row[name]])
            pieces += [f"to the power {power}"] if power != 1 else []
        return pieces

    def _ends(self, blocks: Sequence[int], *, incoming: bool) -> list[Any]:
        pieces: list[Any] = []
        for number in blocks:
            block = self.graph.blocks[number]
            end = block.sender if incoming else block.receiver
            name = block.name if block.view is not None else block.kind.value
            pieces.append([["b", number, name], "from" if incoming else "to", ["g", end]])
        return pieces or ["none"]

    def _part_scales(self, part: ParameterPart) -> list[Any]:
        pieces: list[Any] = []
        for scale in part.scales:
            power = "" if scale.exponent == 1 else f"to the power {scale.exponent}"
            axis = f"along axis {scale.axis}" if scale.axis >= 0 else ""
            words = " ".join(word for word in (power, axis) if word)
            pieces.append([["s", self.scale_row[scale.group]], words])
        for shift in part.shifts:
            words = f"adds {shift.amount:.6g} n along axis {shift.axis}"
            pieces.append([["s", self.scale_row[shift.group]], words])
        return pieces or ["-"]

    def _state(self, factors: Sequence[Factor]) -> str:
        moves = [isinstance(f, str) and self.words.axes[f].free for f in factors]
        if not any(moves):
            return "frozen"
        return "free" if all(moves) else "part"


def _links(table: str, names: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
    """For each name the links to the rows that have it."""
    links: dict[str, list[Any]] = {}
    for row, found in enumerate(names):
        for name in dict.fromkeys(found):
            links.setdefault(name, []).append([table, row])
    return links


def _scale_names(part: ParameterPart) -> list[str]:
    return [s.group for s in part.scales] + [s.group for s in part.shifts]


def _activation(group: NeuronGroup) -> str:
    text = group.activation.value
    if group.activation_text and group.activation_text != text:
        text += f" (recorded: {group.activation_text})"
    return text + (f", omega {group.omega:g}" if group.omega != 1.0 else "")


def _scale_text(words: SymmetryWords, group: NeuronGroup) -> str:
    said = words.scale_kind(group.scale)
    return said if group.scale is ScaleKind.NONE else f"{group.scale.value}: {said}"
