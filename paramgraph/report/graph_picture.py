"""A parameter graph drawn neuron by neuron: circles by depth, lines for weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.capture import capture
from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeKind
from paramgraph.tasks.plots import figure
from paramgraph.values import Values

__all__ = ["draw_graph"]

_POSITIVE, _NEGATIVE, _SKIP = "#1f5fa8", "#c8553d", "#bbbbbb"


def draw_graph(network: nn.Module, *inputs: Tensor) -> Any:
    """Draw the graph of a small network: columns are depths, colours the signs of weights.

    A line is a weight (for a convolution, the mean over its kernel); the thicker, the larger it is
    within its block. A circle is a neuron, filled by the sign of its bias. Skips are grey.

    Args:
        network: A network of, say, up to 60 neurons.
        inputs: Example inputs.

    Returns:
        A matplotlib figure.
    """
    graph = capture(network, inputs)
    values = graph.features(network.state_dict())
    places = _places(graph)
    tallest = max(len(rows) for rows in _columns(graph).values())
    made, axes = figure(2.6 * (graph.depth + 1), min(8.0, 1.0 + 0.42 * tallest))
    axis = axes[0]
    _draw_edges(axis, graph, values, places)
    for number, group in enumerate(graph.neuron_groups):
        bias = values.neurons[number][0, :, 0]
        for (x, y), value in zip(places[number], bias.tolist(), strict=True):
            fill = "white" if value == 0 else (_POSITIVE if value > 0 else _NEGATIVE)
            axis.plot(x, y, "o", markersize=9, color="#333333", markerfacecolor=fill, zorder=3)
        x = places[number][0][0]
        label = f"{group.name}\n{group.activation_text or group.kind.value}"
        axis.text(x, tallest / 2 + 0.8, label, ha="center", va="bottom", fontsize=8)
    axis.set_ylim(-tallest / 2 - 0.5, tallest / 2 + 2.4)
    axis.set_axis_off()
    return made


def _columns(graph: ParamGraph) -> dict[int, list[tuple[int, int]]]:
    """The neurons (group, index) at each depth."""
    columns: dict[int, list[tuple[int, int]]] = {}
    for number, group in enumerate(graph.neuron_groups):
        columns.setdefault(group.depth, []).extend((number, i) for i in range(group.size))
    return columns


def _places(graph: ParamGraph) -> list[list[tuple[float, float]]]:
    """Position of every neuron, by group."""
    places: list[list[tuple[float, float]]] = [[] for _ in graph.neuron_groups]
    for depth, neurons in _columns(graph).items():
        for row, (number, _) in enumerate(neurons):
            places[number].append((float(depth), (len(neurons) - 1) / 2 - row))
    return places


def _draw_edges(
    axis: Any, graph: ParamGraph, values: Values, places: list[list[tuple[float, float]]]
) -> None:
    from matplotlib.collections import LineCollection

    for block, weights in zip(graph.blocks, values.blocks, strict=True):
        weight = weights[0].mean(-1)
        largest = float(weight.abs().max().clamp_min(1e-12))
        lines, colors, widths = [], [], []
        for k, receiver, sender in torch.cartesian_prod(
            *(torch.arange(size) for size in weight.shape)
        ).tolist():
            value = float(weight[k, receiver, sender])
            start = places[block.sender][k * block.num_senders + sender]
            end = places[block.receiver][k * block.num_receivers + receiver]
            lines.append([start, end])
            is_skip = block.kind is EdgeKind.SKIP
            colors.append(_SKIP if is_skip else (_POSITIVE if value > 0 else _NEGATIVE))
            widths.append(1.0 if is_skip else 0.2 + 2.2 * abs(value) / largest)
        axis.add_collection(
            LineCollection(lines, colors=colors, linewidths=widths, alpha=0.7, zorder=1)
        )
