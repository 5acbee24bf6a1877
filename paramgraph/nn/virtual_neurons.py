"""One further neuron per network that is joined with all its neurons: a place to gather."""

from __future__ import annotations

from dataclasses import replace

import torch

from paramgraph.batch import Bucket, GraphBatch, Rows
from paramgraph.structure import EdgeKind

__all__ = ["with_virtual_neurons"]

_ROLE = (EdgeKind.FLOW, "last")


def with_virtual_neurons(batch: GraphBatch) -> GraphBatch:
    """The batch with a level of ``num_networks`` virtual neurons behind all others.

    Each of them receives one edge from every neuron of its network. Only what message passing needs
    is extended: ``levels``, ``network``, ``buckets``; the edges come last in the flat order.

    Example:
        >>> import paramgraph as pg
        >>> network = torch.nn.Linear(2, 3)
        >>> graph = pg.capture(network, torch.randn(4, 2))
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))] * 2)
        >>> larger = with_virtual_neurons(batch)
        >>> larger.num_neurons - batch.num_neurons, larger.num_edges - batch.num_edges
        (2, 10)
    """
    device = batch.network.device
    depth, start = len(batch.levels), batch.num_neurons
    together: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for slot in batch.neuron_slots:
        size = (slot.end - slot.start) // slot.copies
        if not size:
            continue
        level = batch.parts[slot.part].graph.neuron_groups[slot.group].depth
        neurons = torch.arange(slot.start, slot.end, device=device) - batch.levels[level][0]
        networks = batch.parts[slot.part].rows.to(device)
        together.setdefault((level, size), []).append((neurons, networks))
    buckets, end = [], batch.num_edges
    for (level, size), rows in together.items():
        senders, receivers = (torch.cat(part) for part in zip(*rows, strict=True))
        copies = len(receivers)
        first, end = end, end + copies * size
        buckets.append(
            Bucket(
                kind=EdgeKind.FLOW,
                role=_ROLE,
                sender_depth=level,
                receiver_depth=depth,
                positions=((0.0, 0.0),),
                senders=Rows(-1, len(senders), senders),
                receivers=Rows(-1, copies, receivers),
                values=batch.neuron_values.new_zeros(()).expand(copies, 1, 1, size, 1),
                edges=(first, end),
                slots=(),
            )
        )
    return replace(
        batch,
        levels=(*batch.levels, (start, start + batch.num_networks)),
        network=torch.cat([batch.network, torch.arange(batch.num_networks, device=device)]),
        buckets=(*batch.buckets, *buckets),
    )
