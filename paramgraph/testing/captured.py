"""Networks captured once, with all draws of the laws: many metanetworks can be checked on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch, collate
from paramgraph.capture import capture
from paramgraph.capture.verify import Probe
from paramgraph.graph import ParamGraph
from paramgraph.testing.draws import StateDict, double_state, other_weights
from paramgraph.testing.hazards import ExampleNetwork
from paramgraph.testing.sample import Sample

__all__ = ["CapturedNetwork", "CapturedNetworks", "Seating", "capture_networks"]


@dataclass(frozen=True, eq=False)
class CapturedNetwork:
    """A network that laws are measured on, and others of its architecture.

    Attributes:
        name: Shown in reports.
        graph: Its structure.
        state: Its weights in float64.
        seed: Of all draws.
        probe: Runs the network with other weights.
    """

    name: str
    graph: ParamGraph
    state: StateDict
    seed: int
    probe: Probe
    _samples: dict[frozenset[str], Sample] = field(default_factory=dict)

    def sample(self, promised: frozenset[str]) -> Sample:
        """Everything of this architecture that laws compare, in one batch; drawn once."""
        if promised not in self._samples:
            self._samples[promised] = Sample.draw(self, promised)
        return self._samples[promised]

    def computes_the_same(self, state: StateDict) -> bool:
        """Whether the network computes the same function with other weights (on its inputs)."""
        largest = max(float(out.abs().max()) for out in self._function)
        return all(
            float((one - two).abs().max()) <= self.probe.tolerance * largest
            for one, two in zip(self._function, self.probe.outputs(state), strict=True)
        )

    @cached_property
    def _function(self) -> list[Tensor]:
        return self.probe.outputs(self.state)

    @cached_property
    def mate(self) -> StateDict:
        """Weights of another network of the architecture."""
        return other_weights(self.graph, self.state, torch.Generator().manual_seed(self.seed + 1))

    @cached_property
    def alone(self) -> GraphBatch:
        """The network by itself."""
        return collate([(self.graph, self.graph.features([self.state]))])

    @cached_property
    def behind_its_mate(self) -> GraphBatch:
        """The mate, then the network."""
        return collate([(self.graph, self.graph.features([self.mate, self.state]))])


@dataclass(frozen=True)
class Seating:
    """A batch of several architectures.

    Attributes:
        text: How the networks were put together.
        seats: For each place in the batch the number of the network, and whether its mate has it.
        batch: The networks.
    """

    text: str
    seats: tuple[tuple[int, bool], ...]
    batch: GraphBatch

    @property
    def has_mates(self) -> bool:
        """Whether there are two networks of each architecture."""
        return any(is_mate for _, is_mate in self.seats)


@dataclass(frozen=True, eq=False)
class CapturedNetworks:
    """Networks to check metanetworks on; made by ``capture_networks``.

    Attributes:
        networks: The networks.
        seed: Of all draws.
    """

    networks: tuple[CapturedNetwork, ...]
    seed: int

    @cached_property
    def in_order(self) -> Seating:
        """All networks in one batch, in the order given."""
        return self._seating("in the order given", [(i, False) for i in range(len(self.networks))])

    @cached_property
    def seatings(self) -> tuple[Seating, ...]:
        """Further batches of several architectures."""
        own = [(number, False) for number in range(len(self.networks))]
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(own), generator=generator).tolist()
        # No two of one architecture side by side, so that an order by architecture is another one.
        twice = [(number, is_mate) for is_mate in (True, False) for number in order]
        return (
            self._seating("every other network, in reverse", own[::-2]),
            self._seating("shuffled, with other weights between", twice),
        )

    def of(self, numbers: Sequence[int]) -> CapturedNetworks:
        """Some of the networks, with the draws that they have."""
        return CapturedNetworks(tuple(self.networks[i] for i in numbers), self.seed)

    def _seating(self, text: str, seats: Sequence[tuple[int, bool]]) -> Seating:
        pairs = []
        for number, is_mate in seats:
            network = self.networks[number]
            state = network.mate if is_mate else network.state
            pairs.append((network.graph, network.graph.features(state)))
        return Seating(text, tuple(seats), collate(pairs))


def capture_networks(networks: Sequence[ExampleNetwork], *, seed: int = 0) -> CapturedNetworks:
    """Capture networks for several calls of ``check_metanetwork``, which then share all draws.

    Args:
        networks: What to check on; their weights only say how large the drawn weights are.
        seed: Of all draws.

    Returns:
        What ``check_metanetwork`` takes in place of the networks.

    Raises:
        CaptureError: A network cannot be captured.

    Example:
        >>> from paramgraph.testing import hazard_networks
        >>> [row.name for row in capture_networks(hazard_networks()[:2]).networks]
        ['mlp', 'no_bias']
    """
    captured = []
    for name, network, inputs in networks:
        graph = capture(network, inputs)
        generator = torch.Generator().manual_seed(seed)
        state = other_weights(graph, double_state(network), generator)
        probe = Probe(network, graph, inputs)
        captured.append(CapturedNetwork(name, graph, state, seed, probe))
    return CapturedNetworks(tuple(captured), seed)
