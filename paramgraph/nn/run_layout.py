"""Where the nodes and edges of a batch lie in the parameter encoding: dense runs, cached.

Rows of nodes ``[N, d]`` lie by architecture, run, network, node; rows of edges ``[E, d]`` by
architecture, run, network, edge. So a run of B networks is a view ``[B, *shape, d]``: linear maps
work on all edges of the batch at once, and messages need no gathers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from paramgraph.batch.layout import HashedGraph
from paramgraph.nn.parameter_runs import EdgeRun, NodeFacts, ParameterTables, parameter_tables

__all__ = ["EdgePiece", "RunLayout", "make_run_layout"]


@dataclass(frozen=True, eq=False)
class EdgePiece:
    """A run of edges of all networks of one architecture.

    Attributes:
        part: Number of the architecture.
        run: The run.
        copies: Number of networks B.
        sender: Number of the piece of nodes that they leave.
        receiver: Number of the piece of nodes that they enter.
    """

    part: int
    run: EdgeRun
    copies: int
    sender: int
    receiver: int

    def cut(self, rows: Tensor) -> Tensor:
        """Its rows ``[B * num_edges, d]`` as ``[B, *shape, d]`` (a view)."""
        return rows.reshape(self.copies, *self.run.shape, rows.shape[-1])


@dataclass(frozen=True, eq=False)
class RunLayout:
    """Everything about a batch but its weights; cached.

    Attributes:
        tables: Of each architecture.
        copies: Number of networks of each.
        edges: The pieces of edges, in order.
        edge_sizes: Rows of each of them.
        node_sizes: Rows of each piece of nodes.
        node_parts: Architecture of each piece of nodes.
        first_piece: For each architecture its first piece of nodes.
        nodes: Facts of all nodes.
        network: ``[N]`` number of each node's network, counted by architecture.
        coordinates: ``[C, 3]`` of all runs, one after the other (each architecture once).
        kinds: Kind of the edges of each run ``[num_runs]``.
        depths: Depth of their receivers ``[num_runs]``.
    """

    tables: tuple[ParameterTables, ...]
    copies: tuple[int, ...]
    edges: tuple[EdgePiece, ...]
    edge_sizes: tuple[int, ...]
    node_sizes: tuple[int, ...]
    node_parts: tuple[int, ...]
    first_piece: tuple[int, ...]
    nodes: NodeFacts
    network: Tensor
    coordinates: Tensor
    kinds: Tensor
    depths: Tensor

    @property
    def num_networks(self) -> int:
        """Number of networks."""
        return sum(self.copies)

    def cut_edges(self, rows: Tensor) -> list[Tensor]:
        """``[E, d]`` to ``[B, *shape, d]`` for each piece (views)."""
        pieces = rows.split(self.edge_sizes)
        return [edges.cut(piece) for edges, piece in zip(self.edges, pieces, strict=True)]

    def cut_nodes(self, rows: Tensor) -> tuple[Tensor, ...]:
        """``[N, d]`` to the pieces ``[B * size, d]`` (views)."""
        return rows.split(self.node_sizes)

    def part_nodes(self, rows: Tensor) -> list[Tensor]:
        """``[N, d]`` to ``[B, n, d]`` for each architecture."""
        pieces, found = self.cut_nodes(rows), []
        for part, (table, copies) in enumerate(zip(self.tables, self.copies, strict=True)):
            first = self.first_piece[part]
            own = pieces[first : first + len(table.node_sizes)]
            found.append(torch.cat([p.reshape(copies, -1, rows.shape[-1]) for p in own], dim=1))
        return found

    def from_part_nodes(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of ``part_nodes``."""
        pieces = [
            piece.flatten(0, 1)
            for table, rows in zip(self.tables, parts, strict=True)
            for piece in rows.split(table.node_sizes, dim=1)
        ]
        return torch.cat(pieces)

    def join_edges(self, pieces: Sequence[Tensor], like: Tensor) -> Tensor:
        """The inverse of ``cut_edges``; ``like`` for a batch without edges."""
        if not pieces:
            return like.new_zeros(0, like.shape[-1])
        return torch.cat([piece.flatten(0, 4) for piece in pieces])

    def sums(self, messages: Sequence[Tensor], like: Tensor, *, to_senders: bool = False) -> Tensor:
        """Sum messages ``[B, *shape, d]`` of each piece at one of their ends ``[N, d]``.

        Args:
            messages: For each piece.
            like: Nodes ``[N, d]``.
            to_senders: Sum at the nodes that the edges leave.
        """
        totals = [
            piece.run.to_senders(rows) if to_senders else piece.run.to_receivers(rows)
            for piece, rows in zip(self.edges, messages, strict=True)
        ]
        return self.join_ends(totals, like, at_senders=to_senders)

    def join_ends(
        self, totals: Sequence[Tensor], like: Tensor, *, at_senders: bool = False
    ) -> Tensor:
        """Add up what arrives from each piece.

        Args:
            totals: For each piece of edges ``[rows of its receivers, d]``.
            like: Nodes ``[N, d]``.
            at_senders: It arrives at the nodes that the edges leave.

        Returns:
            ``[N, d]``, 0 where nothing arrives.
        """
        found: list[Tensor | None] = [None] * len(self.node_sizes)
        for piece, rows in zip(self.edges, totals, strict=True):
            end = piece.sender if at_senders else piece.receiver
            before = found[end]
            found[end] = rows if before is None else before + rows
        zero = like.new_zeros(1, like.shape[-1])
        return torch.cat(
            [
                zero.expand(size, -1) if rows is None else rows
                for rows, size in zip(found, self.node_sizes, strict=True)
            ]
        )

    def num_ends(self, like: Tensor, *, at_senders: bool = False) -> Tensor:
        """``[N, 1]`` number of edges that enter (leave) each node."""
        return (self.nodes.num_out if at_senders else self.nodes.num_in).to(like.dtype)

    def mean_edges(self, edges: Tensor) -> Tensor:
        """Mean of ``[E, d]`` for each network ``[num_networks, d]``, by architecture."""
        totals = [edges.new_zeros(copies, edges.shape[-1]) for copies in self.copies]
        for piece, rows in zip(self.edges, self.cut_edges(edges), strict=True):
            totals[piece.part] = totals[piece.part] + rows.flatten(1, 4).sum(1)
        means = [
            total / max(table.num_edges, 1)
            for total, table in zip(totals, self.tables, strict=True)
        ]
        return torch.cat(means)

    def mean_nodes(self, nodes: Tensor) -> Tensor:
        """Mean of ``[N, d]`` for each network ``[num_networks, d]``, by architecture."""
        totals = [nodes.new_zeros(copies, nodes.shape[-1]) for copies in self.copies]
        for part, rows in zip(self.node_parts, self.cut_nodes(nodes), strict=True):
            totals[part] = totals[part] + rows.reshape(self.copies[part], -1, rows.shape[-1]).sum(1)
        means = [
            total / sum(table.node_sizes) for total, table in zip(totals, self.tables, strict=True)
        ]
        return torch.cat(means)


@lru_cache(maxsize=64)
def make_run_layout(
    keys: tuple[HashedGraph, ...], copies: tuple[int, ...], device: str
) -> RunLayout:
    """Layout of a batch; cached."""
    tables = tuple(parameter_tables(key) for key in keys)
    edges: list[EdgePiece] = []
    node_sizes: list[int] = []
    node_parts: list[int] = []
    first_piece, facts, networks = [], [], []
    for part, (table, num) in enumerate(zip(tables, copies, strict=True)):
        first = len(node_sizes)
        first_piece.append(first)
        node_sizes += [num * size for size in table.node_sizes]
        node_parts += [part] * len(table.node_sizes)
        edges += [
            EdgePiece(part, run, num, first + run.sender, first + run.receiver)
            for run in table.runs
        ]
        columns = torch.cat([table.nodes.table, table.nodes.num_in, table.nodes.num_out], dim=1)
        number = sum(copies[:part]) + torch.arange(num)
        for rows in columns.split(table.node_sizes):
            facts.append(rows.repeat(num, 1))
            networks.append(number.repeat_interleave(len(rows)))
    all_facts = torch.cat(facts).to(device)
    runs = [run for table in tables for run in table.runs]
    places = [torch.zeros(0, 3), *(run.coordinates.reshape(-1, 3) for run in runs)]
    return RunLayout(
        tables=tables,
        copies=copies,
        edges=tuple(edges),
        edge_sizes=tuple(piece.copies * piece.run.num_edges for piece in edges),
        node_sizes=tuple(node_sizes),
        node_parts=tuple(node_parts),
        first_piece=tuple(first_piece),
        nodes=NodeFacts(all_facts[:, :5], all_facts[:, 5:6], all_facts[:, 6:]),
        network=torch.cat(networks).to(device),
        coordinates=torch.cat(places).to(device),
        kinds=torch.tensor([run.kind.index for run in runs], dtype=torch.long, device=device),
        depths=torch.tensor([run.depth for run in runs], dtype=torch.long, device=device),
    )
