"""One network, and the copy of the metanetwork that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from paramgraph.batch import collate
from paramgraph.graph import ParamGraph
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.testing.draws import StateDict, other_weights

__all__ = ["Case"]

NUM_OTHERS = 8
FLOOR = 1e-6  # of the output: below it, a spread may be nothing but rounding errors


@dataclass(frozen=True)
class Case:
    """What a law is measured on.

    Attributes:
        name: Of the network.
        graph: Of the network.
        state: Weights in float64.
        metanetwork: A copy in float64 and evaluation mode.
        promised: The symmetries that it promises.
        seed: Of all draws.
    """

    name: str
    graph: ParamGraph
    state: StateDict
    metanetwork: Metanetwork
    promised: frozenset[str]
    seed: int

    def generator(self) -> torch.Generator:
        """A new source of randomness, the same for each law."""
        return torch.Generator().manual_seed(self.seed)

    def read(self, states: Sequence[StateDict]) -> Tensor:
        """Outputs ``[len(states), out_dim]`` for networks of this architecture, in one batch."""
        with torch.no_grad():
            return self.metanetwork(collate([(self.graph, self.graph.features(states))]))

    @cached_property
    def outputs(self) -> Tensor:
        """Outputs for the network and for networks of other weights, the network first."""
        generator = self.generator()
        others = [other_weights(self.graph, self.state, generator) for _ in range(NUM_OTHERS)]
        return self.read([self.state, *others])

    @cached_property
    def spread(self) -> float:
        """Largest standard deviation of an output over networks of other weights."""
        return float(self.outputs.std(dim=0).max())

    @cached_property
    def size(self) -> float:
        """Root mean square of the outputs."""
        return max(float(self.outputs.square().mean().sqrt()), 1e-30)

    def change(self, expected: Tensor, got: Tensor) -> float:
        """Largest difference of two outputs, in units of the spread.

        So that an output that hardly depends on the network makes no law easier to pass.
        """
        return float((expected - got).abs().max()) / max(self.spread, FLOOR * self.size)

    def changes(self, states: Sequence[StateDict]) -> list[float]:
        """How far the output moves from that of the network when its weights are others."""
        outputs = self.read([self.state, *states])
        return [self.change(outputs[0], row) for row in outputs[1:]]
