"""All networks of one architecture that laws compare with each other, in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch, collate
from paramgraph.graph import ParamGraph
from paramgraph.nn.metanetwork import Level
from paramgraph.structure import ParameterLayout
from paramgraph.symmetry import Symmetry
from paramgraph.testing.draws import (
    SCALE_KINDS,
    StateDict,
    draw_kinds,
    groups_of_kind,
    other_weights,
)
from paramgraph.testing.moves import Move, move_of
from paramgraph.views import get_parameter, set_parameter

__all__ = ["STEPS", "Sample", "symmetry_kinds"]

NUM_DRAWS = 3
NUM_OTHERS = 8
# The larger step has smaller rounding errors, the smaller one hardly ever a kink in between.
STEPS = (1e-6, 1e-7)


def symmetry_kinds(graph: ParamGraph, promised: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """For each law of symmetry that applies the kinds of symmetries that are drawn for it.

    Args:
        graph: The architecture.
        promised: What a metanetwork promises.

    Returns:
        Law to kinds; ``"combined"`` is there if two or more others are.
    """
    kinds = []
    if any(group.free and group.size > 1 for group in graph.axis_groups):
        kinds.append("permutation")
    kinds += [promise for promise in SCALE_KINDS if groups_of_kind(graph, promise)]
    laws: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in kinds if kind in promised}
    if len(laws) > 1:
        laws["combined"] = tuple(laws)
    return laws


class Network(Protocol):
    """What a sample is drawn for."""

    @property
    def graph(self) -> ParamGraph:
        """Its structure."""

    @property
    def state(self) -> StateDict:
        """Its weights."""

    @property
    def seed(self) -> int:
        """Of all draws."""

    def computes_the_same(self, state: StateDict) -> bool:
        """Whether other weights give the same function."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A batch whose first network is the one that is checked.

    Attributes:
        batch: The networks, all of one architecture.
        rows: For each law (or other name) which of the networks are for it.
        names: For laws about single tensors their names, one per row.
        symmetries: For laws of symmetry what the networks were made with, one per row.
        directions: Tensors along which the weights were moved for finite differences.
    """

    graph: ParamGraph
    batch: GraphBatch
    rows: Mapping[str, slice]
    names: Mapping[str, tuple[str, ...]]
    symmetries: Mapping[str, tuple[Symmetry, ...]]
    directions: tuple[Mapping[str, Tensor], ...]
    _moves: dict[tuple[str, Level], tuple[Move, ...]] = field(default_factory=dict)

    def moves(self, law: str, level: Level) -> tuple[Move, ...]:
        """How outputs at a level must move under each symmetry of a law."""
        if (law, level) not in self._moves:
            self._moves[law, level] = tuple(
                move_of(symmetry, self.graph, level) for symmetry in self.symmetries[law]
            )
        return self._moves[law, level]

    @staticmethod
    def draw(network: Network, promised: frozenset[str]) -> Sample:
        """Draw everything; each law has the same draws whatever the others are.

        Args:
            network: The network that is checked.
            promised: What the metanetwork promises.
        """
        graph, state, seed = network.graph, network.state, network.seed
        states: list[StateDict] = [state]
        rows: dict[str, slice] = {}

        def add(name: str, new: Sequence[StateDict]) -> None:
            rows[name] = slice(len(states), len(states) + len(new))
            states.extend(new)

        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(seed)

        source = generator()
        others = [other_weights(graph, state, source) for _ in range(NUM_OTHERS)]
        add("others", others)
        symmetries = {}
        for law, kinds in symmetry_kinds(graph, promised).items():
            source = generator()
            drawn = tuple(draw_kinds(graph, kinds, source) for _ in range(NUM_DRAWS))
            symmetries[law] = drawn
            add(law, [symmetry.apply(state) for symmetry in drawn])

        names = {}

        def add_replaced(name: str, layouts: list[ParameterLayout], other: StateDict) -> None:
            # A bias that a norm takes out again need not be seen.
            found = {layout.name: _replaced(state, layout, other) for layout in layouts}
            found = {row: new for row, new in found.items() if not network.computes_the_same(new)}
            names[name] = tuple(found)
            add(name, list(found.values()))

        trained = [row for row in graph.parameters if not row.is_buffer]
        add_replaced("sensitive", trained, others[0])
        buffers = [row for row in graph.parameters if row.is_buffer]
        add_replaced("running statistics", buffers, others[0])
        moved = draw_kinds(graph, ("permutation",), generator()).apply(state)
        changed = [r for r in trained if not get_parameter(moved, r).equal(get_parameter(state, r))]
        add_replaced("wrong permutation", changed, moved)

        directions = tuple(_direction(graph, state, source) for _ in range(NUM_DRAWS))
        for step in STEPS:
            for name, signed in ((f"ahead {step}", step), (f"behind {step}", -step)):
                add(name, [_stepped(graph, state, along, signed) for along in directions])
        batch = collate([(graph, graph.features(states))])
        return Sample(graph, batch, rows, names, symmetries, directions)


def _replaced(state: StateDict, layout: ParameterLayout, source: StateDict) -> StateDict:
    """The weights, with one tensor (under all its names) taken from elsewhere."""
    result = dict(state)
    set_parameter(result, layout, get_parameter(source, layout))
    return result


def _direction(
    graph: ParamGraph, state: StateDict, generator: torch.Generator
) -> dict[str, Tensor]:
    """A random direction for each parameter, as large as the parameter."""
    result = {}
    for layout in graph.parameters:
        noise = torch.randn(layout.shape, generator=generator, dtype=torch.float64)
        result[layout.name] = noise * get_parameter(state, layout).square().mean().sqrt()
    return result


def _stepped(
    graph: ParamGraph, state: StateDict, along: Mapping[str, Tensor], step: float
) -> StateDict:
    result = dict(state)
    for layout in graph.parameters:
        value = get_parameter(state, layout) + step * along[layout.name]
        set_parameter(result, layout, value)
    return result
