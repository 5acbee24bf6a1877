"""GraphBatch: many networks, of one or many architectures, as flat tensors and dense blocks.

Neurons are ordered by depth, then architecture, network, neuron; edge blocks of equal shape between
the same depths lie side by side (a *bucket*), whichever architecture they come from. So per-neuron
and per-edge maps run on one flat tensor, and message passing runs on a few dense blocks. A batch of
B networks of one architecture is the special case where every bucket is one block with B copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from paramgraph.errors import BatchError
from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeKind, NeuronKind, ScaleKind
from paramgraph.values import NUM_NEURON_CHANNELS, Values

__all__ = ["Bucket", "GraphBatch", "Part", "Rows", "collate"]

BlockRole = tuple[EdgeKind, str]
"""What a block is for normalisation: its kind, and whether it starts at an input, ends at an
output, or lies between hidden neurons."""


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
        depth: ``[N]`` level.
        reverse_depth: ``[N]`` depth of the network minus level.
        is_read: ``[N]`` whether a neuron has outgoing edges.
        identity: ``[N]`` number among the network's inputs or outputs, -1 for hidden neurons.
        buckets: The edges.
        parts: The networks by architecture.

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
    depth: Tensor
    reverse_depth: Tensor
    identity: Tensor
    is_read: Tensor
    buckets: tuple[Bucket, ...]
    parts: tuple[Part, ...]

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


@dataclass(frozen=True)
class _Slot:
    """One edge block of one architecture inside a bucket."""

    part: int
    block: int


@dataclass(frozen=True)
class _Layout:
    """Everything about a batch but its weights; cached."""

    levels: tuple[tuple[int, int], ...]
    group_order: tuple[tuple[int, int], ...]
    buckets: tuple[tuple[Bucket, tuple[_Slot, ...]], ...]
    table: Tensor
    has: Tensor
    local_network: Tensor
    is_read: Tensor


def collate(
    networks: Iterable[tuple[ParamGraph, Values]],
) -> GraphBatch:
    """Put networks of the same or of different architectures into one batch.

    Args:
        networks: Pairs (graph, values); values may hold several networks.

    Returns:
        A batch; network i is the i-th one given.

    Raises:
        BatchError: No network, values that do not fit their graph, or several dtypes or devices.
    """
    merged: dict[str, tuple[ParamGraph, list[Values], list[Tensor]]] = {}
    count = 0
    like: Tensor | None = None
    for graph, values in networks:
        _check(graph, values)
        like = values.neurons[0] if like is None else like
        _check_tensor(graph, values.neurons[0], like)
        rows = torch.arange(count, count + values.num_networks)
        count += values.num_networks
        entry = merged.setdefault(graph.signature, (graph, [], []))
        entry[1].append(values)
        entry[2].append(rows)
    if not count:
        raise BatchError("cannot collate: no network was given.")
    parts = tuple(
        Part(graph, _concatenate(values), torch.cat(rows))
        for graph, values, rows in merged.values()
    )
    first = parts[0].values.neurons[0]
    layout = _layout(
        tuple(_Hashed(part.graph) for part in parts),
        tuple(part.values.num_networks for part in parts),
        str(first.device),
    )
    neuron_values = torch.cat(
        [parts[p].values.neurons[g].reshape(-1, NUM_NEURON_CHANNELS) for p, g in layout.group_order]
    )
    rows = torch.cat([part.rows for part in parts]).to(first.device)
    buckets = []
    for bucket, slots in layout.buckets:
        blocks = [parts[slot.part].values.blocks[slot.block] for slot in slots]
        together = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        buckets.append(replace(bucket, values=together))
    activation, kind, scale, depth, reverse_depth, identity = layout.table.unbind(1)
    return GraphBatch(
        num_networks=count,
        levels=layout.levels,
        neuron_values=neuron_values,
        neuron_has=layout.has.to(first.dtype),
        network=rows[layout.local_network],
        activation=activation,
        kind=kind,
        scale=scale,
        depth=depth,
        reverse_depth=reverse_depth,
        identity=identity,
        is_read=layout.is_read,
        buckets=tuple(buckets),
        parts=parts,
    )


def _check(graph: ParamGraph, values: Values) -> None:
    expected = [(b.shape) for b in graph.blocks], [g.size for g in graph.neuron_groups]
    got = [tuple(b.shape[1:]) for b in values.blocks], [n.shape[1] for n in values.neurons]
    if got != expected:
        raise BatchError(
            f"the values do not fit the graph of {graph.name!r}: blocks {got[0]}, expected "
            f"{expected[0]}; neuron groups {got[1]}, expected {expected[1]}. Use "
            "graph.features(state_dict) of the same graph."
        )


def _check_tensor(graph: ParamGraph, tensor: Tensor, like: Tensor) -> None:
    if (tensor.dtype, tensor.device) != (like.dtype, like.device):
        raise BatchError(
            f"cannot collate: the values of {graph.name!r} are {tensor.dtype} on {tensor.device}, "
            f"those of the first network {like.dtype} on {like.device}. Convert them with "
            "values.to(...)."
        )


def _concatenate(values: Sequence[Values]) -> Values:
    if len(values) == 1:
        return values[0]
    return Values(
        tuple(torch.cat(blocks) for blocks in zip(*(v.blocks for v in values), strict=True)),
        tuple(torch.cat(neurons) for neurons in zip(*(v.neurons for v in values), strict=True)),
    )


class _Hashed:
    """A graph as a cache key: equal structure, equal key."""

    def __init__(self, graph: ParamGraph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return hash(self.graph.signature)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.graph.signature == other.graph.signature


@lru_cache(maxsize=256)
def _neuron_table(key: _Hashed) -> list[tuple[Tensor, Tensor]]:
    """For each group of a graph ``[size, 6]`` facts and ``[size, 3]`` which values it has."""
    graph = key.graph
    kinds = list(NeuronKind)
    scales = list(ScaleKind)
    counts = {NeuronKind.INPUT: 0, NeuronKind.OUTPUT: 0}
    rows = []
    for group in graph.neuron_groups:
        identity = torch.full((group.size,), -1)
        if group.kind in counts:
            identity = torch.arange(counts[group.kind], counts[group.kind] + group.size)
            counts[group.kind] += group.size
        facts = (
            group.activation.index,
            kinds.index(group.kind),
            scales.index(group.scale),
            group.depth,
            graph.depth - group.depth,
        )
        table = torch.cat([torch.tensor(facts).expand(group.size, -1), identity[:, None]], dim=1)
        has = torch.zeros(group.size, NUM_NEURON_CHANNELS)
        for feature in group.features:
            has[:, feature.role.channel] = 1
        rows.append((table, has))
    return rows


@lru_cache(maxsize=512)
def _layout(keys: tuple[_Hashed, ...], counts: tuple[int, ...], device: str) -> _Layout:
    """Where every neuron and every edge goes."""
    graphs = [key.graph for key in keys]
    tables = [_neuron_table(key) for key in keys]
    offsets = [sum(counts[:i]) for i in range(len(counts))]
    depth = max(graph.depth for graph in graphs)
    starts: dict[tuple[int, int], int] = {}
    levels: list[tuple[int, int]] = []
    order: list[tuple[int, int]] = []
    total = 0
    for level in range(depth + 1):
        begin = total
        for part, graph in enumerate(graphs):
            for number, group in enumerate(graph.neuron_groups):
                if group.depth == level:
                    starts[part, number] = total - begin
                    order.append((part, number))
                    total += counts[part] * group.size
        levels.append((begin, total))
    table = torch.cat([tables[p][g][0].repeat(counts[p], 1) for p, g in order])
    has = torch.cat([tables[p][g][1].repeat(counts[p], 1) for p, g in order])
    local = torch.cat(
        [
            torch.arange(offsets[p], offsets[p] + counts[p]).repeat_interleave(
                graphs[p].neuron_groups[g].size
            )
            for p, g in order
        ]
    )
    together: dict[tuple[object, ...], list[_Slot]] = {}
    for part, graph in enumerate(graphs):
        for number, block in enumerate(graph.blocks):
            key = (
                graph.neuron_groups[block.receiver].depth,
                graph.neuron_groups[block.sender].depth,
                block.kind,
                _role(graph, number),
                block.shape,
                block.positions,
            )
            together.setdefault(key, []).append(_Slot(part, number))
    buckets = []
    edges = 0
    is_read = torch.zeros(total, dtype=torch.bool)
    for slots in sorted(together.values(), key=lambda s: _depths(graphs, s[0])):
        block = graphs[slots[0].part].blocks[slots[0].block]
        receiver_depth, sender_depth = _depths(graphs, slots[0])
        senders, receivers, copies = [], [], 0
        for slot in slots:
            here = graphs[slot.part].blocks[slot.block]
            num = counts[slot.part]
            copies += num
            senders.append(
                (starts[slot.part, here.sender], num * block.num_blocks * block.num_senders)
            )
            first = levels[sender_depth][0] + senders[-1][0]
            is_read[first : first + senders[-1][1]] = True
            receivers.append(
                (starts[slot.part, here.receiver], num * block.num_blocks * block.num_receivers)
            )
        end = edges + copies * block.num_edges
        bucket = Bucket(
            kind=block.kind,
            role=(block.kind, _role(graphs[slots[0].part], slots[0].block)),
            sender_depth=sender_depth,
            receiver_depth=receiver_depth,
            positions=block.positions,
            senders=_rows(senders, device),
            receivers=_rows(receivers, device),
            values=torch.empty(0),
            edges=(edges, end),
        )
        edges = end
        buckets.append((bucket, tuple(slots)))
    return _Layout(
        levels=tuple(levels),
        group_order=tuple(order),
        buckets=tuple(buckets),
        table=table.to(device),
        has=has.to(device),
        local_network=local.to(device),
        is_read=is_read.to(device),
    )


def _depths(graphs: Sequence[ParamGraph], slot: _Slot) -> tuple[int, int]:
    graph = graphs[slot.part]
    block = graph.blocks[slot.block]
    return graph.neuron_groups[block.receiver].depth, graph.neuron_groups[block.sender].depth


def _role(graph: ParamGraph, number: int) -> str:
    block = graph.blocks[number]
    if graph.neuron_groups[block.sender].kind is NeuronKind.INPUT:
        return "first"
    if graph.neuron_groups[block.receiver].kind is NeuronKind.OUTPUT:
        return "last"
    return "hidden"


def _rows(ranges: Sequence[tuple[int, int]], device: str) -> Rows:
    """One slice where the ranges follow each other, else an index."""
    length = sum(num for _, num in ranges)
    contiguous = all(a + n == b for (a, n), (b, _) in pairwise(ranges))
    if contiguous:
        return Rows(ranges[0][0], length, None)
    index = torch.cat([torch.arange(start, start + num) for start, num in ranges])
    return Rows(-1, length, index.to(device))


ROLES = tuple((kind, place) for kind in EdgeKind for place in ("first", "hidden", "last"))
"""All block roles, in the order of tables of scales."""


def fan_in(bucket: Bucket) -> int:
    """Number of weights that a receiver sums over in this bucket."""
    return math.prod(bucket.values.shape[3:])
