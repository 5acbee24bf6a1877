"""Where each neuron and edge of a batch goes; a function of structures and counts, so cached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from paramgraph.batch.outgoing import outgoing_scales
from paramgraph.batch.records import Bucket, NeuronSlot, Rows, Slot
from paramgraph.graph import ParamGraph
from paramgraph.structure import NeuronGroup, NeuronKind, NeuronRole, ScaleKind
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["HashedGraph", "Layout", "make_layout"]


@dataclass(frozen=True)
class Layout:
    """Everything about a batch but its weights; cached."""

    levels: tuple[tuple[int, int], ...]
    neuron_slots: tuple[NeuronSlot, ...]
    buckets: tuple[Bucket, ...]
    table: Tensor
    extra: Tensor
    has: Tensor
    local_network: Tensor
    is_read: Tensor


class HashedGraph:
    """A graph as a cache key: equal structure, equal key."""

    def __init__(self, graph: ParamGraph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return hash(self.graph.signature)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedGraph) and self.graph.signature == other.graph.signature


@lru_cache(maxsize=256)
def _neuron_table(key: HashedGraph) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each group ``[size, 6]`` facts, ``[size, 3]`` values it has, ``[size, 3]`` real facts."""
    graph = key.graph
    kinds = list(NeuronKind)
    scales = list(ScaleKind)
    counts = {NeuronKind.INPUT: 0, NeuronKind.OUTPUT: 0}
    rows = []
    outgoing = [(float(row.is_even), row.power) for row in outgoing_scales(graph)]
    for group, passed in zip(graph.neuron_groups, outgoing, strict=True):
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
        extra = torch.tensor([_phase(graph, group), *passed], dtype=torch.float64)
        rows.append((table, has, extra.expand(group.size, -1)))
    return rows


def _phase(graph: ParamGraph, group: NeuronGroup) -> float:
    """Frequency at which the bias of a group may be shifted, see ``GraphBatch.phase``."""
    layouts = {layout.name: layout for layout in graph.parameters}
    for feature in group.features:
        if feature.role is NeuronRole.BIAS:
            part = layouts[feature.view.parameter].parts[feature.view.part]
            for shift in part.shifts:
                half = abs(shift.amount - math.pi / group.omega) < 1e-9
                return math.pi / shift.amount if half else -2 * math.pi / shift.amount
    return 0.0


@lru_cache(maxsize=512)
def make_layout(keys: tuple[HashedGraph, ...], counts: tuple[int, ...], device: str) -> Layout:
    """Where every neuron and every edge goes."""
    graphs = [key.graph for key in keys]
    tables = [_neuron_table(key) for key in keys]
    offsets = [sum(counts[:i]) for i in range(len(counts))]
    depth = max(graph.depth for graph in graphs)
    starts: dict[tuple[int, int], int] = {}
    levels: list[tuple[int, int]] = []
    slots_of_neurons: list[NeuronSlot] = []
    total = 0
    for level in range(depth + 1):
        begin = total
        for part, graph in enumerate(graphs):
            for number, group in enumerate(graph.neuron_groups):
                if group.depth == level:
                    starts[part, number] = total - begin
                    end = total + counts[part] * group.size
                    slots_of_neurons.append(NeuronSlot(part, number, counts[part], total, end))
                    total = end
        levels.append((begin, total))
    order = [(slot.part, slot.group) for slot in slots_of_neurons]
    table, has, extra = (
        torch.cat([tables[p][g][i].repeat(counts[p], 1) for p, g in order]) for i in range(3)
    )
    local = torch.cat(
        [
            torch.arange(offsets[p], offsets[p] + counts[p]).repeat_interleave(
                graphs[p].neuron_groups[g].size
            )
            for p, g in order
        ]
    )
    together: dict[tuple[object, ...], list[Slot]] = {}
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
            together.setdefault(key, []).append(Slot(part, number, counts[part]))
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
            slots=tuple(slots),
        )
        edges = end
        buckets.append(bucket)
    return Layout(
        levels=tuple(levels),
        neuron_slots=tuple(slots_of_neurons),
        buckets=tuple(buckets),
        table=table.to(device),
        extra=extra.to(device),
        has=has.to(device),
        local_network=local.to(device),
        is_read=is_read.to(device),
    )


def _depths(graphs: Sequence[ParamGraph], slot: Slot) -> tuple[int, int]:
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
