"""The field table of a batch: rows of a level, buckets of edge blocks, parts, the batch itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeKind
from paramgraph.values import Values

__all__ = [
    "ROLES",
    "BlockRole",
    "Bucket",
    "GraphBatch",
    "NeuronSlot",
    "Part",
    "Rows",
    "Slot",
    "fan_in",
]

BlockRole = tuple[EdgeKind, str]
"""What a block is for normalisation: its kind, and whether it starts at an input, ends at an
output, or lies between hidden neurons."""


ROLES = tuple((kind, place) for kind in EdgeKind for place in ("first", "hidden", "last"))
"""All block roles, in the order of tables of scales."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a level: a slice where they lie side by side, an index where they do not.

    Attributes:
        start: First row, if they are contiguous.
        length: Number of rows.
        index: Row numbers ``[length]``, if they are not contiguous.
    """

    start: int
    length: int
    index: Tensor | None

    def take(self, level: Tensor) -> Tensor:
        """The rows ``[length, dim]`` of a level (a view where possible)."""
        if self.index is None:
            return level[self.start : self.start + self.length]
        return level.index_select(0, self.index)

    def numbers(self, device: torch.device) -> Tensor:
        """The row numbers ``[length]``."""
        if self.index is not None:
            return self.index
        return torch.arange(self.start, self.start + self.length, device=device)


@dataclass(frozen=True)
class Slot:
    """One edge block of one architecture, as part of a bucket.

    Attributes:
        part: Number in ``GraphBatch.parts``.
        block: Number in ``ParamGraph.blocks``.
        copies: Number of networks.
    """

    part: int
    block: int
    copies: int


@dataclass(frozen=True)
class NeuronSlot:
    """The neurons of one group of one architecture: rows ``start`` to ``end`` of a batch.

    Attributes:
        part: Number in ``GraphBatch.parts``.
        group: Number in ``ParamGraph.neuron_groups``.
        copies: Number of networks; network is the slow index, neuron the fast one.
        start: First row.
        end: Last row + 1.
    """

    part: int
    group: int
    copies: int
    start: int
    end: int


@dataclass(frozen=True)
class Bucket:
    """Edge blocks of equal shape, side by side.

    Attributes:
        kind: Of the edges.
        role: For normalisation.
        sender_depth: Level of the senders.
        receiver_depth: Level of the receivers.
        positions: Coordinates of kernel elements or image positions.
        senders: Rows of the sender level, ``m * num_blocks * num_senders`` of them.
        receivers: Rows of the receiver level.
        values: ``[m, num_blocks, num_receivers, num_senders, num_positions]``.
        edges: First and last + 1 position in the flat edge order.
        slots: Whose blocks these are, in order of the first axis of ``values``.
    """

    kind: EdgeKind
    role: BlockRole
    sender_depth: int
    receiver_depth: int
    positions: tuple[tuple[float, float], ...]
    senders: Rows
    receivers: Rows
    values: Tensor
    edges: tuple[int, int]
    slots: tuple[Slot, ...]

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """(m * num_blocks, num_receivers, num_senders)."""
        m, blocks, receivers, senders, _ = self.values.shape
        return m * blocks, receivers, senders


@dataclass(frozen=True)
class Part:
    """The networks of one architecture in a batch.

    Attributes:
        graph: Their structure.
        values: Their weights.
        rows: Their places in the batch ``[num_networks]``.
    """

    graph: ParamGraph
    values: Values
    rows: Tensor


@dataclass(frozen=True)
class GraphBatch:
    """Networks to be read together; a prediction never depends on batch mates.

    Attributes:
        num_networks: Number of networks.
        levels: For each depth the first and last + 1 neuron.
        neuron_values: ``[N, 3]`` bias, running mean, running variance.
        neuron_has: ``[N, 3]`` which of these the neuron has (0 or 1).
        network: ``[N]`` which network a neuron belongs to.
        activation: ``[N]`` ``Activation.index``.
        kind: ``[N]`` 0 input, 1 hidden, 2 output.
        scale: ``[N]`` position in ``ScaleKind``.
        phase: ``[N]`` pi / (half a period of the bias) where a bias inside a sine may be shifted by
            half periods, -2 pi / period where only by whole ones, 0 elsewhere.
        is_even: ``[N]`` whether readers do not see the sign of a neuron (abs, cosine, square).
        power: ``[N]`` power of a positive factor of a neuron that readers see (2 for a square).
        depth: ``[N]`` level.
        reverse_depth: ``[N]`` depth of the network minus level.
        is_read: ``[N]`` whether a neuron has outgoing edges.
        identity: ``[N]`` number among the network's inputs or outputs, -1 for hidden neurons.
        buckets: The edges.
        parts: The networks by architecture.
        neuron_slots: Which rows belong to which group of which architecture, in order of the rows.

    Example:
        >>> import paramgraph as pg
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> graph = pg.capture(network, torch.randn(3, 2))
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))] * 3)
        >>> batch.num_networks, batch.num_neurons, batch.num_edges
        (3, 21, 36)
    """

    num_networks: int
    levels: tuple[tuple[int, int], ...]
    neuron_values: Tensor
    neuron_has: Tensor
    network: Tensor
    activation: Tensor
    kind: Tensor
    scale: Tensor
    phase: Tensor
    is_even: Tensor
    power: Tensor
    depth: Tensor
    reverse_depth: Tensor
    identity: Tensor
    is_read: Tensor
    buckets: tuple[Bucket, ...]
    parts: tuple[Part, ...]
    neuron_slots: tuple[NeuronSlot, ...]

    @property
    def num_neurons(self) -> int:
        """Number of neurons N."""
        return self.network.shape[0]

    @property
    def num_edges(self) -> int:
        """Number of (receiver, sender) pairs E."""
        return self.buckets[-1].edges[1] if self.buckets else 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.neuron_values.dtype

    def split(self, neurons: Tensor) -> list[Tensor]:
        """Cut a flat ``[N, ...]`` tensor into levels (views).

        One ``torch.split``, not slices: the gradient of each slice would fill a whole flat tensor.
        """
        return list(neurons.split([end - start for start, end in self.levels]))

    def split_edges(self, edges: Tensor) -> list[Tensor]:
        """Cut a flat ``[E, dim]`` tensor into buckets ``[m * num_blocks, R, S, dim]`` (views)."""
        flat = edges.split([bucket.edges[1] - bucket.edges[0] for bucket in self.buckets])
        return [
            part.reshape(*bucket.block_shape, -1)
            for part, bucket in zip(flat, self.buckets, strict=True)
        ]


def fan_in(bucket: Bucket) -> int:
    """Number of weights that a receiver sums over in this bucket."""
    return math.prod(bucket.values.shape[3:])
