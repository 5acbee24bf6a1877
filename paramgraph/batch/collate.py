"""Networks to a batch: merge those of one structure and function, lay out, stack the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paramgraph.batch.layout import HashedGraph, make_layout
from paramgraph.batch.records import GraphBatch, Part
from paramgraph.errors import BatchError
from paramgraph.graph import ParamGraph
from paramgraph.values import NUM_NEURON_CHANNELS, Values

__all__ = ["collate"]


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
        entry = merged.setdefault(graph.function_key, (graph, [], []))
        entry[1].append(values)
        entry[2].append(rows)
    if not count:
        raise BatchError("cannot collate: no network was given.")
    parts = tuple(
        Part(graph, _concatenate(values), torch.cat(rows))
        for graph, values, rows in merged.values()
    )
    first = parts[0].values.neurons[0]
    layout = make_layout(
        tuple(HashedGraph(part.graph) for part in parts),
        tuple(part.values.num_networks for part in parts),
        str(first.device),
    )
    neuron_values = torch.cat(
        [
            parts[slot.part].values.neurons[slot.group].reshape(-1, NUM_NEURON_CHANNELS)
            for slot in layout.neuron_slots
        ]
    )
    rows = torch.cat([part.rows for part in parts]).to(first.device)
    buckets = []
    for bucket in layout.buckets:
        blocks = [parts[slot.part].values.blocks[slot.block] for slot in bucket.slots]
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
        phase=layout.extra[:, 0].to(first.dtype),
        is_even=layout.extra[:, 1] > 0,
        power=layout.extra[:, 2].to(first.dtype),
        depth=depth,
        reverse_depth=reverse_depth,
        identity=identity,
        is_read=layout.is_read,
        buckets=tuple(buckets),
        parts=parts,
        neuron_slots=layout.neuron_slots,
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
