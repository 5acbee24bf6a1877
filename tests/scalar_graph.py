"""The computation graph of a network, one node per number: the ground truth about symmetries.

Nodes are sums, products and maxima of any number of arguments (their order does not matter) and
functions of one argument. Two nodes that compute the same from the same nodes are one node. An
automorphism that keeps inputs, outputs, constants and functions, and moves entries only within
their parameter, is therefore known by what it does to the parameters: a *neural DAG automorphism*
(Lim et al. 2024, https://arxiv.org/abs/2312.04501), and the permutation of parameters that it
induces leaves the function unchanged. ``automorphisms`` counts them with BLISS.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Automorphisms", "ScalarGraph", "automorphisms"]

Key = tuple[Any, tuple[int, ...]]


class ScalarGraph:
    """Nodes by number, each made once; ``values`` holds what each one computed."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.values: list[float] = []
        self.depths: list[int] = []
        self._known: dict[Key, int] = {}

    def _node(self, kind: Any, arguments: Iterable[int], value: float) -> int:
        key = (kind, tuple(sorted(arguments)))
        if key not in self._known:
            self._known[key] = len(self.keys)
            self.keys.append(key)
            self.values.append(value)
            self.depths.append(1 + max((self.depths[i] for i in key[1]), default=-1))
        return self._known[key]

    def constant(self, value: float) -> int:
        # Rounded, so that the order of summation does not make two constants of one.
        return self._node(("constant", float(f"{value:.11g}") + 0.0), (), value)

    def leaf(self, name: str, index: int, value: float) -> int:
        """An input or an entry of a parameter."""
        return self._node(("leaf", name, index), (), value)

    def is_constant(self, node: int) -> bool:
        return self.keys[node][0][0] == "constant"

    def function(self, name: str, argument: int, value: float) -> int:
        if self.is_constant(argument):
            return self.constant(value)
        return self._node((name,), (argument,), value)

    def add(self, terms: Iterable[int]) -> int:
        """A sum; sums of sums are one sum, and equal terms are counted."""
        counts, constant = Counter[int](), 0.0
        for term in self._flat("sum", terms):
            if self.is_constant(term):
                constant += self.values[term]
            else:
                counts[term] += 1
        if not math.isfinite(constant):
            return self.constant(constant)
        parts = [t if n == 1 else self.multiply([t, self.constant(n)]) for t, n in counts.items()]
        if constant or not parts:
            parts.append(self.constant(constant))
        value = math.fsum(self.values[part] for part in parts)
        return parts[0] if len(parts) == 1 else self._node(("sum",), parts, value)

    def multiply(self, factors: Iterable[int]) -> int:
        """A product; products of products are one product, and equal factors are counted."""
        counts, constant = Counter[int](), 1.0
        for factor in self._flat("product", factors):
            if self.is_constant(factor):
                constant *= self.values[factor]
            else:
                counts[factor] += 1
        if constant == 0.0:
            return self.constant(0.0)
        powers = [(f, n, self.values[f] ** n) for f, n in counts.items()]
        parts = [f if n == 1 else self.function(f"power {n}", f, v) for f, n, v in powers]
        if constant != 1.0 or not parts:
            parts.append(self.constant(constant))
        value = math.prod(self.values[part] for part in parts)
        return parts[0] if len(parts) == 1 else self._node(("product",), parts, value)

    def maximum(self, arguments: Iterable[int]) -> int:
        parts = {a for a in self._flat("maximum", arguments) if self.values[a] != -math.inf}
        if not parts:
            return self.constant(-math.inf)
        value = max(self.values[part] for part in parts)
        return parts.pop() if len(parts) == 1 else self._node(("maximum",), parts, value)

    def reaching(self, outputs: Sequence[int]) -> list[int]:
        """All nodes that outputs depend on, arguments first."""
        live, stack = set(outputs), list(outputs)
        while stack:
            for argument in self.keys[stack.pop()][1]:
                if argument not in live:
                    live.add(argument)
                    stack.append(argument)
        return sorted(live)

    def _flat(self, kind: str, nodes: Iterable[int]) -> Iterable[int]:
        for node in nodes:
            if self.keys[node][0] == (kind,):
                yield from self.keys[node][1]
            else:
                yield node


@dataclass(frozen=True)
class Automorphisms:
    """The group that BLISS found.

    Attributes:
        count: Number of elements.
        generators: For each generator what it does to each parameter that it moves: entry ``i`` of
            the result is entry ``order[i]`` of the input.
        num_nodes: Size of the graph that was searched.
    """

    count: int
    generators: list[dict[str, Tensor]]
    num_nodes: int


def automorphisms(
    graph: ScalarGraph, outputs: Iterable[int], sizes: Mapping[str, int]
) -> Automorphisms:
    """Search the part of a graph that reaches the outputs.

    Args:
        graph: The nodes.
        outputs: Nodes that must stay where they are, like inputs and constants.
        sizes: Number of entries of each parameter; other leaves are inputs.

    Returns:
        The automorphisms. Entries that no output depends on do not move.
    """
    igraph = importlib.import_module("igraph")  # ships no types
    outputs = list(outputs)
    place = {node: number for number, node in enumerate(graph.reaching(outputs))}
    # Depth tells the two ends of an edge apart, so that the graph need not be directed.
    colours: dict[Any, int] = {}
    colour = []
    for node in place:
        kind = graph.keys[node][0]
        if kind[0] == "leaf" and kind[1] in sizes:
            kind = ("parameter", kind[1])  # may move within its parameter
        colour.append(colours.setdefault((kind, graph.depths[node]), len(colours)))
    edges = [(place[node], place[a]) for node in place for a in graph.keys[node][1]]
    for number, node in enumerate(outputs):
        edges.append((len(colour), place[node]))
        colour.append(colours.setdefault(("output", number), len(colours)))
    searched = igraph.Graph(n=len(colour), edges=edges)
    count = searched.count_automorphisms(color=colour)
    moves = searched.automorphism_group(color=colour)
    return Automorphisms(
        round(count), [_induced(graph, place, m, sizes) for m in moves], len(colour)
    )


def _induced(
    graph: ScalarGraph, place: Mapping[int, int], move: list[int], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """What a relabelling of the nodes does to the parameters."""
    nodes = list(place)
    orders: dict[str, Tensor] = {}
    for node, number in place.items():
        kind = graph.keys[node][0]
        if kind[0] == "leaf" and kind[1] in sizes and move[number] != number:
            _, name, index = kind
            order = orders.setdefault(name, torch.arange(sizes[name]))
            order[graph.keys[nodes[move[number]]][0][2]] = index
    return orders
