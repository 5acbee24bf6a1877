"""A batch in the parameter encoding: values of its nodes and edges, and outputs for its entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import (
    Entries,
    GraphBatch,
    edges_by_part,
    edges_from_parts,
    neurons_by_part,
    neurons_from_parts,
)
from paramgraph.batch.layout import HashedGraph
from paramgraph.nn.run_layout import RunLayout, make_run_layout
from paramgraph.nn.standardize import Standardizer
from paramgraph.structure import NeuronRole, NormKind
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["ParameterBatch", "read_batch"]

STATISTICS = (NeuronRole.MEAN, NeuronRole.VARIANCE)
"""What nodes hold; everything else is on edges."""


@dataclass(frozen=True, eq=False)
class ParameterBatch:
    """The networks of a ``GraphBatch`` in the parameter encoding.

    Attributes:
        batch: The networks.
        layout: Which rows are whose.
        edges: Values ``[E, 1]``; links without a value hold 1.
        statistics: Running mean and variance of the nodes ``[N, 2]``, 0 where there are none.
    """

    batch: GraphBatch
    layout: RunLayout
    edges: Tensor
    statistics: Tensor

    def in_order(self, rows: Tensor) -> Tensor:
        """``[num_networks, d]`` by architecture, to the order of the batch."""
        order = torch.cat([part.rows for part in self.batch.parts]).argsort()
        return rows[order.to(rows.device)]

    def neurons_of(self, nodes: Tensor) -> Tensor:
        """Features of nodes ``[N, d]`` to the neurons of the batch, equal for shared nodes."""
        pieces, layout = self.layout.cut_nodes(nodes), self.layout
        rows = [
            [
                pieces[layout.first_piece[part] + run].reshape(copies, -1, nodes.shape[-1])
                for run in table.group_run
            ]
            for part, (table, copies) in enumerate(zip(layout.tables, layout.copies, strict=True))
        ]
        return neurons_from_parts(self.batch, rows)

    def neuron_facts(self) -> Tensor:
        """Normalisation, and number among those that share a node, of all neurons ``[N, 2]``."""
        norms, facts, sizes = list(NormKind), [], []
        for slot in self.batch.neuron_slots:
            group = self.batch.parts[slot.part].graph.neuron_groups[slot.group]
            rank = self.layout.tables[slot.part].rank[slot.group]
            facts.append((norms.index(group.norm), rank))
            sizes.append(slot.end - slot.start)
        device = self.statistics.device
        rows = torch.tensor(facts, dtype=torch.long, device=device)
        return rows.repeat_interleave(torch.tensor(sizes, device=device), dim=0)

    def entries_of(self, edges: Tensor, statistics: Tensor) -> Entries:
        """What is said of edges and nodes, as entries of the parameters.

        Args:
            edges: ``[E, K]``.
            statistics: Of running mean and variance ``[N, 2 * K]``.

        Returns:
            K sets; 0 for entries that the encoding does not have.
        """
        layout, num_sets = self.layout, edges.shape[-1]
        cut = layout.cut_nodes(statistics)
        blocks: list[list[Tensor]] = []
        columns: list[list[list[Tensor]]] = []
        for part, copies in enumerate(layout.copies):
            graph, first = self.batch.parts[part].graph, layout.first_piece[part]
            blocks.append([edges.new_zeros(copies, *b.shape, num_sets) for b in graph.blocks])
            columns.append([])
            for group, run in zip(graph.neuron_groups, layout.tables[part].group_run, strict=True):
                column = [edges.new_zeros(copies, group.size, num_sets)] * NUM_NEURON_CHANNELS
                rows = cut[first + run].reshape(copies, group.size, len(STATISTICS), num_sets)
                for feature in group.features:
                    if feature.role in STATISTICS:
                        column[feature.role.channel] = rows[:, :, STATISTICS.index(feature.role)]
                columns[part].append(column)
        for piece, values in zip(layout.edges, layout.cut_edges(edges), strict=True):
            block, number = piece.run.block, piece.run.group
            if number >= 0:
                bias = values.reshape(piece.copies, -1, num_sets)
                columns[piece.part][number][NeuronRole.BIAS.channel] = bias
            elif block >= 0:
                own = blocks[piece.part]
                own[block] = values.reshape(own[block].shape)
        neurons = [[torch.stack(column, dim=2) for column in part] for part in columns]
        return Entries(
            tuple(edges_from_parts(self.batch, blocks)), neurons_from_parts(self.batch, neurons)
        )


def read_batch(batch: GraphBatch, standardizer: Standardizer | None) -> ParameterBatch:
    """Networks as runs of edges.

    Args:
        batch: Any networks.
        standardizer: Brings values to unit scale; ``None`` leaves them as they are.

    Raises:
        BatchError: An architecture has more scalars than an explicit graph may have edges.
    """
    layout = make_run_layout(
        tuple(HashedGraph(part.graph) for part in batch.parts),
        tuple(part.values.num_networks for part in batch.parts),
        str(batch.neuron_values.device),
    )
    scaled = [b.values if standardizer is None else standardizer.edges(b) for b in batch.buckets]
    blocks = edges_by_part(batch, scaled)
    all_neurons = batch.neuron_values if standardizer is None else standardizer.neurons(batch)
    neurons = neurons_by_part(batch, all_neurons)
    values = [batch.neuron_values.new_zeros(0)]
    for piece in layout.edges:
        run = piece.run
        if run.group >= 0:
            own = neurons[piece.part][run.group][..., NeuronRole.BIAS.channel]
        elif run.block >= 0:
            own = blocks[piece.part][run.block]
        else:
            own = batch.neuron_values.new_ones(piece.copies * run.num_edges)
        values.append(own.reshape(-1))
    statistics = [
        batch.neuron_values.new_zeros(size, len(STATISTICS)) for size in layout.node_sizes
    ]
    for part, table in enumerate(layout.tables):
        groups = batch.parts[part].graph.neuron_groups
        for number, (group, place) in enumerate(zip(groups, table.group_run, strict=True)):
            if any(feature.role in STATISTICS for feature in group.features):
                # Never two per node: normalisations with statistics of their own share none.
                own = neurons[part][number][..., [role.channel for role in STATISTICS]]
                statistics[layout.first_piece[part] + place] = own.flatten(0, 1)
    return ParameterBatch(batch, layout, torch.cat(values)[:, None], torch.cat(statistics))
