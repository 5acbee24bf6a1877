"""The parameter encoding of one architecture as runs: dense blocks of edges between runs of nodes.

The explicit graph lists edges and nodes one by one, but its edges lie in *runs*: all edges of a
block, of a bias node, of a gain node. A run is a dense block between two runs of nodes, so features
of its ends are broadcast and messages are summed over an axis. The tables are made once per
architecture and keep no list of edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from paramgraph.batch.layout import HashedGraph
from paramgraph.errors import BatchError, GraphError
from paramgraph.explicit import ExplicitGraph, LinkKind
from paramgraph.explicit.merging import merge_groups

__all__ = ["EdgeRun", "NodeFacts", "ParameterTables", "parameter_tables"]


@dataclass(frozen=True, eq=False)
class EdgeRun:
    """Edges that lie side by side and form a dense block.

    Attributes:
        kind: Of the edges.
        sender: Number of the run of nodes that they leave.
        receiver: Number of the run of nodes that they enter.
        shape: ``(num_blocks, receivers, senders, positions)``, as in ``EdgeBlock``.
        block: Edge block whose values they hold, -1 for none.
        group: Neuron group whose biases they hold, -1 for none.
        coordinates: ``[num_blocks, 1, senders, positions, 3]``, with 1 for axes along which they
            are equal.
        depth: Depth of the receivers.
    """

    kind: LinkKind
    sender: int
    receiver: int
    shape: tuple[int, int, int, int]
    block: int
    group: int
    coordinates: Tensor
    depth: int

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return math.prod(self.shape)

    def from_senders(self, rows: Tensor) -> Tensor:
        """``[B * num_blocks * senders, d]`` to ``[B, num_blocks, 1, senders, 1, d]``."""
        return rows.reshape(-1, self.shape[0], 1, self.shape[2], 1, rows.shape[-1])

    def from_receivers(self, rows: Tensor) -> Tensor:
        """``[B * num_blocks * receivers, d]`` to ``[B, num_blocks, receivers, 1, 1, d]``."""
        return rows.reshape(-1, *self.shape[:2], 1, 1, rows.shape[-1])

    def to_receivers(self, messages: Tensor) -> Tensor:
        """Sum ``[B, *shape, d]`` at the receivers ``[B * num_blocks * receivers, d]``."""
        return messages.sum((3, 4)).flatten(0, 2)

    def to_senders(self, messages: Tensor) -> Tensor:
        """Sum ``[B, *shape, d]`` at the senders ``[B * num_blocks * senders, d]``."""
        return messages.sum((2, 4)).flatten(0, 2)


@dataclass(frozen=True, eq=False)
class NodeFacts:
    """What is known of nodes without weights, a row per node; see ``ExplicitGraph``.

    Attributes:
        table: ``[n, 5]`` kind, depth, activation, normalisation, position.
        num_in: ``[n, 1]`` number of edges that enter each node.
        num_out: ``[n, 1]`` number of edges that leave it.
    """

    table: Tensor
    num_in: Tensor
    num_out: Tensor


@dataclass(frozen=True, eq=False)
class ParameterTables:
    """The parameter encoding of one architecture.

    Attributes:
        node_sizes: Length of each run of nodes; a bias, gain or shift node is a run of its own.
        nodes: Facts of the nodes, in the order of the encoding.
        runs: The edges, in the order of the encoding.
        group_run: For each neuron group the run of nodes that stands for it.
        rank: For each neuron group its number among those that share its nodes.
    """

    node_sizes: tuple[int, ...]
    nodes: NodeFacts
    runs: tuple[EdgeRun, ...]
    group_run: tuple[int, ...]
    rank: tuple[int, ...]

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return sum(run.num_edges for run in self.runs)


@lru_cache(maxsize=256)
def parameter_tables(key: HashedGraph) -> ParameterTables:
    """Tables of an architecture; cached.

    Raises:
        BatchError: The architecture has more scalars than an explicit graph may have edges.
    """
    graph = key.graph
    try:
        explicit = graph.expand("parameter")
    except GraphError as error:
        raise BatchError(
            f"{graph.name!r} is too large to be read with one edge per scalar: it has "
            f"{graph.num_parameters:,} parameters. Read it with a metanetwork that works on "
            "blocks, such as OperatorMetanetwork or NeuralGraphGNN."
        ) from error
    is_hub = explicit.node_neuron < 0
    starts = is_hub | (explicit.node_neuron == 0)
    node_run = starts.long().cumsum(0) - 1
    merging = merge_groups(graph.neuron_groups, graph.blocks)
    first = starts & ~is_hub
    run_of_root = dict(
        zip(explicit.node_group[first].tolist(), node_run[first].tolist(), strict=True)
    )
    num_members: dict[int, int] = {}
    rank = []
    for root in merging.root:
        rank.append(num_members.get(root, 0))
        num_members[root] = rank[-1] + 1
    facts = (
        explicit.node_kind,
        explicit.node_depth,
        explicit.node_activation,
        explicit.node_norm,
        explicit.node_position,
    )
    num_in, num_out = (
        torch.bincount(ends, minlength=explicit.num_nodes)[:, None]
        for ends in (explicit.receiver, explicit.sender)
    )
    return ParameterTables(
        node_sizes=tuple(torch.bincount(node_run).tolist()),
        nodes=NodeFacts(torch.stack(facts, dim=1), num_in, num_out),
        runs=tuple(_runs(explicit, node_run, torch.nonzero(starts)[:, 0], is_hub)),
        group_run=tuple(run_of_root[root] for root in merging.root),
        rank=tuple(rank),
    )


def _runs(
    explicit: ExplicitGraph, node_run: Tensor, first_node: Tensor, is_hub: Tensor
) -> list[EdgeRun]:
    """Consecutive edges of one kind, one block and one bias, gain or shift node."""
    if not explicit.num_edges:
        return []
    hub = torch.where(is_hub[explicit.sender], explicit.sender, -1)
    keys = torch.stack([explicit.edge_kind, explicit.edge_block, hub])
    starts = [0, *(torch.nonzero((keys.diff(dim=1) != 0).any(0))[:, 0] + 1).tolist()]
    runs = []
    for start, end in zip(starts, [*starts[1:], explicit.num_edges], strict=True):
        block, number = int(explicit.edge_block[start]), end - start
        sender, receiver = int(explicit.sender[start]), int(explicit.receiver[start])
        from_hub = bool(is_hub[sender])
        if from_hub:
            shape = (1, number, 1, 1)
        elif block < 0:
            shape = (number, 1, 1, 1)  # a link from each neuron to its normalised self
        else:
            shape = explicit.structure.blocks[block].shape
        run = EdgeRun(
            kind=list(LinkKind)[int(explicit.edge_kind[start])],
            sender=int(node_run[sender]),
            receiver=int(node_run[receiver]),
            shape=shape,
            block=block,
            group=int(explicit.node_group[sender]) if from_hub and block < 0 else -1,
            coordinates=_without_copies(
                explicit.slot_coordinates[start:end].reshape(*shape, 3)[:, :1]
            ),
            depth=int(explicit.node_depth[receiver]),
        )
        _assert_dense(explicit, run, slice(start, end), first_node)
        runs.append(run)
    return runs


def _without_copies(coordinates: Tensor) -> Tensor:
    """Only the first along each axis on which all are equal."""
    for axis in range(coordinates.ndim - 1):
        first = coordinates.narrow(axis, 0, 1)
        if torch.equal(coordinates, first.expand_as(coordinates)):
            coordinates = first
    return coordinates.clone()


def _assert_dense(explicit: ExplicitGraph, run: EdgeRun, edges: slice, first_node: Tensor) -> None:
    """The encoding lists the edges of a run in the order of a dense block."""
    blocks, receivers, senders, _ = run.shape
    row = torch.arange(blocks)[:, None, None, None]
    r = (row * receivers + torch.arange(receivers)[:, None, None]).expand(run.shape).reshape(-1)
    s = (row * senders + torch.arange(senders)[:, None]).expand(run.shape).reshape(-1)
    assert torch.equal(explicit.receiver[edges], r + first_node[run.receiver]), run
    assert torch.equal(explicit.sender[edges], s + first_node[run.sender]), run
