"""One network, and the copy of the metanetwork that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.testing.captured import CapturedNetwork
from paramgraph.testing.moves import Move, segments
from paramgraph.testing.outputs import read, round_trip
from paramgraph.testing.sample import Sample

__all__ = ["Case"]

FLOOR = 1e-6  # of the output: below it, a spread may be nothing but rounding errors
PIECE_FLOOR = 1e-3  # of the spread of all outputs, for pieces that hardly vary


@dataclass(frozen=True, eq=False)
class Case:
    """What a law is measured on. Outputs are ``[num_networks, places, out_dim]`` at every level.

    Attributes:
        network: The network, with its draws.
        metanetwork: A copy in float64 and evaluation mode.
        single: A copy in float32.
        promised: The symmetries that it promises.
        tolerance: Largest change that counts as none.
    """

    network: CapturedNetwork
    metanetwork: Metanetwork
    single: Metanetwork
    promised: frozenset[str]
    tolerance: float

    @property
    def name(self) -> str:
        """Of the network."""
        return self.network.name

    @cached_property
    def problem(self) -> str:
        """What is wrong with the form of the outputs, "" if nothing is."""
        with torch.no_grad():
            return round_trip(self.metanetwork, self.network.alone)

    def read(self, batch: GraphBatch) -> Tensor:
        """Outputs for networks of one architecture."""
        with torch.no_grad():
            return read(self.metanetwork, batch)[0]

    @cached_property
    def sample(self) -> Sample:
        """Everything of this architecture that laws compare."""
        return self.network.sample(self.promised)

    @cached_property
    def outputs(self) -> Tensor:
        """Outputs for the whole sample; the first are those for the network."""
        return self.read(self.sample.batch)

    @cached_property
    def alone(self) -> Tensor:
        """Outputs ``[places, out_dim]`` for the network by itself."""
        return self.read(self.network.alone)[0]

    @cached_property
    def behind_its_mate(self) -> Tensor:
        """Outputs ``[places, out_dim]`` for the network in a batch of two."""
        return self.read(self.network.behind_its_mate)[1]

    @cached_property
    def _others(self) -> Tensor:
        """Outputs for the network and for networks of other weights."""
        return torch.cat([self.outputs[:1], self.outputs[self.sample.rows["others"]]])

    @cached_property
    def spread(self) -> float:
        """Largest standard deviation of an output over networks of other weights."""
        return float(self._others.std(dim=0).max())

    @cached_property
    def size(self) -> float:
        """Root mean square of the outputs."""
        return max(float(self._others.square().mean().sqrt()), 1e-30)

    @cached_property
    def unit(self) -> Tensor:
        """What differences are measured in, ``[places, 1]``: the spread of each piece.

        So that an output that hardly depends on the network makes no law easier to pass.
        """
        floor = max(PIECE_FLOOR * self.spread, FLOOR * self.size)
        deviation = self._others.std(dim=0)
        pieces = deviation.split(self.pieces)
        return torch.cat([p.max().clamp(min=floor).expand(len(p), 1) for p in pieces])

    @cached_property
    def pieces(self) -> list[int]:
        """Lengths of the pieces of the outputs."""
        return segments(self.network.graph, self.metanetwork.level)

    def change(self, expected: Tensor, got: Tensor) -> float:
        """Largest difference of two outputs ``[places, out_dim]``, in units of the spread."""
        return float(((expected - got).abs() / self.unit).max())

    def moved(self, move: Move, got: Tensor) -> float:
        """Largest difference of outputs from those that a symmetry should give.

        Measured where the network had them: a factor of 100 is no error of 100.
        """
        difference = (move(self.outputs[0]) - got).abs() / move.factor.abs()
        return float((difference / self.unit).max())

    def changes(self, law: str) -> Sequence[float]:
        """How far the outputs for each network of a law are from those for the network itself."""
        rows = self.outputs[self.sample.rows[law]]
        return [self.change(self.outputs[0], row) for row in rows]

    def ordered(self, outputs: Tensor) -> Tensor:
        """Outputs sorted within each piece: what is left of them without any order."""
        return torch.cat([p.sort(dim=-2).values for p in outputs.split(self.pieces, dim=-2)], -2)
