"""Everything known of a graph as tables for a terminal, and as plain data for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paramgraph.graph import ParamGraph
from paramgraph.report.symmetry_words import SymmetryWords, part_code, shape_text
from paramgraph.structure import EdgeBlock, NormKind, ParameterLayout, ScaleKind

__all__ = ["inspect_data", "inspect_text"]

_Table = list[tuple[str, ...]]

_SIGNS = "a permuted, [a] in a fixed order, (3) of this size in a fixed order"


def inspect_text(graph: ParamGraph) -> str:
    """Totals, neuron groups, blocks, parameters, symmetries, and what could not be read.

    The axes that stand in a fixed order are marked, and the table of axis groups says why.

    Args:
        graph: What to show.

    Example:
        >>> import torch, paramgraph as pg
        >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> print(inspect_text(graph).splitlines()[0])
        Linear: 5 neurons, 6 edges, 8 parameters, 10^0.0 permutations
    """
    words = SymmetryWords(graph)
    head = (
        f"{graph.name}: {graph.num_neurons} neurons, {graph.num_edges} edges, "
        f"{graph.num_parameters} parameters, "
        f"10^{graph.log_group_size() / math.log(10):.1f} permutations"
    )
    tables = [
        _groups(graph, words),
        _blocks(graph, words),
        _parameters(graph, words),
        _axes(graph, words),
        _scales(graph, words),
    ]
    text = "\n\n".join([head, *(_aligned(rows) for rows in tables if len(rows) > 1)])
    return f"{text}\n\n{_SIGNS}{_notes(graph)}"


def inspect_data(graph: ParamGraph) -> dict[str, Any]:
    """The neuron groups and blocks with their symmetries, ready for JSON.

    Args:
        graph: What to show.

    Example:
        >>> import torch, paramgraph as pg
        >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> inspect_data(graph)["blocks"][0]["shape"]
        [1, 2, 3, 1]
    """
    words = SymmetryWords(graph)
    groups = graph.neuron_groups
    layouts = {row.name: row for row in graph.parameters}
    return {
        "neuron_groups": [
            {
                "name": group.name,
                "size": group.size,
                "kind": group.kind.value,
                "depth": group.depth,
                "activation": group.activation.value,
                "recorded_activation": group.activation_text,
                "norm": group.norm.value,
                "scale": group.scale.value,
                "axes": list(group.axes),
                "symmetry": words.factors(group.axes),
            }
            for group in groups
        ],
        "blocks": [
            {
                "name": block.name,
                "kind": block.kind.value,
                "from": groups[block.sender].name,
                "to": groups[block.receiver].name,
                "shape": list(block.shape),
                "parameter": block.view.parameter if block.view else None,
                "part": block.view.part if block.view else None,
                "constant": None if block.view else block.constant,
                "symmetry": _block_symmetry(layouts, words, block),
            }
            for block in graph.blocks
        ],
        "unknown_operations": list(graph.unknown_operations),
        "constant_parameters": list(graph.constant_parameters),
        "repairs": list(graph.repairs),
    }


def _groups(graph: ParamGraph, words: SymmetryWords) -> _Table:
    rows: _Table = [
        ("neurons", "size", "kind", "depth", "activation", "norm", "scale", "permutation")
    ]
    for group in graph.neuron_groups:
        activation = group.activation_text or "-"
        norm = "-" if group.norm is NormKind.NONE else group.norm.value
        scale = "-" if group.scale is ScaleKind.NONE else group.scale.value
        facts = (str(group.size), group.kind.value, str(group.depth), activation, norm, scale)
        rows.append((group.name, *facts, words.short(group.axes)))
    return rows


def _blocks(graph: ParamGraph, words: SymmetryWords) -> _Table:
    rows: _Table = [("edges", "kind", "from", "to", "shape", "permutation of its axes", "scale")]
    layouts = {row.name: row for row in graph.parameters}
    for block in graph.blocks:
        sender, receiver = graph.neuron_groups[block.sender], graph.neuron_groups[block.receiver]
        scale = "-"
        if block.view is not None:
            scale = words.part_scales(layouts[block.view.parameter].parts[block.view.part])
        symmetry = _block_symmetry(layouts, words, block)
        shape = shape_text(block.shape)
        rows.append(
            (block.name, block.kind.value, sender.name, receiver.name, shape, symmetry, scale)
        )
    return rows


def _block_symmetry(
    layouts: Mapping[str, ParameterLayout], words: SymmetryWords, block: EdgeBlock
) -> str:
    """The axes of the part that a block reads; a constant one follows its neurons."""
    if block.view is None:
        return f"constant {block.constant:g}"
    return words.short(layouts[block.view.parameter].parts[block.view.part].factors)


def _parameters(graph: ParamGraph, words: SymmetryWords) -> _Table:
    rows: _Table = [("parameters", "shape", "part", "permutation of its axes")]
    for layout in graph.parameters:
        name = layout.name + "".join(f" = {alias}" for alias in layout.aliases)
        if layout.members:
            name = f"{name} (stack of {len(layout.members)})"
        for number, part in enumerate(layout.parts):
            code = part_code(layout, number).rpartition(": ")[2].removeprefix(layout.name) or "-"
            shape = shape_text(layout.shape)
            first = (name, shape) if not number else ("", "")
            rows.append((*first, code, words.short(part.factors)))
    return rows


def _axes(graph: ParamGraph, words: SymmetryWords) -> _Table:
    rows: _Table = [("axis group", "size", "free", "why not, or how")]
    for row in graph.axis_groups:
        how = words.axis(row) if row.free else row.reason or "frozen"
        how += f" (given {', '.join(row.given)})" if row.given else ""
        rows.append((row.name, str(row.size), "yes" if row.free else "no", how))
    return rows


def _scales(graph: ParamGraph, words: SymmetryWords) -> _Table:
    rows: _Table = [("scale group", "size", "kind", "numbered by")]
    for row in graph.scale_groups:
        kind = f"{row.kind.value}: {words.scale_kind(row.kind)}"
        rows.append((row.name, str(row.size), kind, " x ".join(row.axes) or "one for all"))
    return rows


def _notes(graph: ParamGraph) -> str:
    lines = {
        "unused parameters": graph.unused_parameters,
        "constant parameters": graph.constant_parameters,
        "operations without a rule": graph.unknown_operations,
        "repairs": graph.repairs,
    }
    return "".join(f"\n\n{title}: {', '.join(found)}" for title, found in lines.items() if found)


def _aligned(rows: _Table) -> str:
    """Rows with a heading, all to the left, since most cells are names."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
