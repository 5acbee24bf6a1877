"""A structure to its explicit graph: the neural and the parameter encoding."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.explicit.coordinates import is_fixed, slot_coordinates
from paramgraph.explicit.kinds import Encoding, LinkKind, NodeKind, Structure
from paramgraph.explicit.merging import Merging, merge_groups
from paramgraph.explicit.tables import ExplicitGraph
from paramgraph.structure import (
    Activation,
    EdgeKind,
    NeuronGroup,
    NeuronRole,
    NormKind,
)
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["MAX_EDGES", "expand"]

MAX_EDGES = 50_000_000
"""Larger graphs are refused, unless the caller allows them: a row of an edge takes 60 bytes."""

_NORMS = list(NormKind)


def expand(
    graph: Structure,
    encoding: str = "neural",
    *,
    dataflow: bool = True,
    max_edges: int = MAX_EDGES,
) -> ExplicitGraph:
    """Write a parameter graph as nodes and edges.

    In both encodings every entry of every parameter stands in the graph exactly once per place
    where the network uses it (once, unless parameters are tied).

    Args:
        graph: The parameter graph.
        encoding: ``"neural"`` (Kofinas et al. 2024): a bias is a node value, a kernel is one edge
            with a value per position, a normalisation is a layer of neurons reached by diagonal
            edges. ``"parameter"`` (Lim et al. 2024): every scalar parameter is an edge. Biases come
            from one bias node per layer, gains and shifts of a normalisation from one node each,
            and a normalisation has no neurons of its own; kernel elements are parallel edges with
            coordinates. Running statistics are node values in both.
        dataflow: Keep parameter-free edges that are no residuals: gates, attention and other
            flow. The papers have none.
        max_edges: Refuse graphs with more edges than this.

    Returns:
        The explicit graph.

    Raises:
        GraphError: There is no such encoding, or the graph is too large.

    Example:
        >>> import torch, paramgraph as pg
        >>> graph = pg.capture(torch.nn.Conv2d(1, 2, 3), torch.randn(2, 1, 8, 8))
        >>> expand(graph, "neural").num_edges, expand(graph, "parameter").num_edges
        (2, 20)

    References:
        Kofinas et al. 2024, section 2 (https://arxiv.org/abs/2403.12143); Lim et al. 2024,
        section 3 (https://arxiv.org/abs/2312.04501).
    """
    if encoding not in [kind.value for kind in Encoding]:
        raise GraphError(f"encoding must be 'neural' or 'parameter', got {encoding!r}.")
    is_neural = Encoding(encoding) is Encoding.NEURAL
    kept = [
        number
        for number, block in enumerate(graph.blocks)
        if dataflow or block.kind.has_parameters or block.kind is EdgeKind.SKIP
    ]
    num_edges = sum(
        graph.blocks[number].num_edges * (1 if is_neural else graph.blocks[number].num_positions)
        for number in kept
    )
    if not is_neural:
        num_edges += sum(group.size for group in graph.neuron_groups if _has_bias(group))
    if num_edges > max_edges:
        raise GraphError(
            f"the {encoding} encoding of this graph has {num_edges:,} edges, more than max_edges = "
            f"{max_edges:,}. Metanetworks of this package need no list of edges: give them "
            "pg.collate([(graph, graph.features(state_dicts))]). Else raise max_edges; an edge "
            "takes about 60 bytes."
        )
    merging = _unmerged(graph) if is_neural else merge_groups(graph.neuron_groups, graph.blocks)
    weaver = _Expansion(graph, Encoding(encoding), merging)
    for number in kept:
        weaver.add_block(number)
    if not is_neural:
        for number in range(len(graph.neuron_groups)):
            weaver.add_biases(number)
    return weaver.finish()


def _has_bias(group: NeuronGroup) -> bool:
    return any(feature.role is NeuronRole.BIAS for feature in group.features)


def _unmerged(graph: Structure) -> Merging:
    groups = graph.neuron_groups
    depths = tuple(group.depth for group in groups)
    return Merging(tuple(range(len(groups))), depths, frozenset(), frozenset())


@dataclass
class _Expansion:
    """Nodes and edges while they are being collected."""

    graph: Structure
    encoding: Encoding
    merging: Merging
    edges: list[tuple[Tensor, ...]] = field(default_factory=list)
    hubs: list[tuple[NodeKind, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        groups, blocks = self.graph.neuron_groups, self.graph.blocks
        is_root = [root == number for number, root in enumerate(self.merging.root)]
        sizes = [g.size if own else 0 for g, own in zip(groups, is_root, strict=True)]
        first = [0, *itertools.accumulate(sizes)]
        self.num_neurons = first[-1]
        self.first_node = [first[root] for root in self.merging.root]
        counts = [block.num_edges * block.num_positions for block in blocks]
        self.block_source = [0, *itertools.accumulate(counts)]
        channels = [group.size * NUM_NEURON_CHANNELS for group in groups]
        self.neuron_source = [
            self.block_source[-1] + n for n in (0, *itertools.accumulate(channels))
        ]
        self.zero, self.one = self.neuron_source[-1], self.neuron_source[-1] + 1

    def add_block(self, number: int) -> None:
        """The edges of a block."""
        block = self.graph.blocks[number]
        if number in self.merging.silent:
            return
        source = torch.arange(self.block_source[number], self.block_source[number + 1])
        if number in self.merging.gains:
            hub = self._hub(NodeKind.GAIN, block.receiver)
            receiver = self.first_node[block.receiver] + torch.arange(block.num_blocks)
            self._add(torch.full_like(receiver, hub), receiver, LinkKind.GAIN, number, source)
            if self.merging.root[block.sender] != self.merging.root[block.receiver]:
                # The neurons could not be merged: a link says what is normalised.
                sender = self.first_node[block.sender] + torch.arange(block.num_blocks)
                constant = torch.full_like(source, self.one)
                self._add(sender, receiver, LinkKind.SKIP, -1, constant)
            return
        shape = block.shape[:3]
        row = torch.arange(block.num_blocks)[:, None, None]
        receiver = row * block.num_receivers + torch.arange(block.num_receivers)[:, None]
        sender = row * block.num_senders + torch.arange(block.num_senders)
        receiver = self.first_node[block.receiver] + receiver.expand(shape).reshape(-1)
        sender = self.first_node[block.sender] + sender.expand(shape).reshape(-1)
        length = block.num_positions
        coordinates = slot_coordinates(self.graph, block)
        if self.encoding is Encoding.PARAMETER and length > 1:
            sender, receiver = (t.repeat_interleave(length) for t in (sender, receiver))
            length = 1
        kind = LinkKind(block.kind.value)
        self._add(sender, receiver, kind, number, source, coordinates, length)

    def add_biases(self, number: int) -> None:
        """A node that sends the biases of a layer, or the shifts of a normalisation."""
        group = self.graph.neuron_groups[number]
        if not _has_bias(group):
            return
        is_norm = group.norm is not NormKind.NONE
        hub = self._hub(NodeKind.SHIFT if is_norm else NodeKind.BIAS, number)
        neurons = torch.arange(group.size)
        source = self.neuron_source[number] + neurons * NUM_NEURON_CHANNELS
        kind = LinkKind.SHIFT if is_norm else LinkKind.BIAS
        receiver = self.first_node[number] + neurons
        source = source + NeuronRole.BIAS.channel
        self._add(torch.full_like(receiver, hub), receiver, kind, -1, source)

    def _hub(self, kind: NodeKind, group: int) -> int:
        self.hubs.append((kind, group))
        return self.num_neurons + len(self.hubs) - 1

    def _add(
        self,
        sender: Tensor,
        receiver: Tensor,
        kind: LinkKind,
        block: int,
        source: Tensor,
        coordinates: Tensor | None = None,
        length: int = 1,
    ) -> None:
        places = torch.zeros(len(source), 3) if coordinates is None else coordinates
        columns = [torch.full_like(sender, value) for value in (kind.index, block, length)]
        self.edges.append((sender, receiver, *columns, source, places))

    def finish(self) -> ExplicitGraph:
        """All tables."""
        empty = (torch.zeros(0, dtype=torch.long),) * 6 + (torch.zeros(0, 3),)
        columns = [torch.cat(column) for column in zip(empty, *self.edges, strict=True)]
        sender, receiver, kind, block, length, source, coordinates = columns
        start = torch.cat([length.new_zeros(1), length.cumsum(0)])
        roles = list(NeuronRole)
        if self.encoding is Encoding.PARAMETER:
            roles.remove(NeuronRole.BIAS)
        node_kind, group, neuron, position, activation, norm, depth = self._nodes()
        return ExplicitGraph(
            encoding=self.encoding,
            structure=self.graph,
            node_kind=node_kind,
            node_group=group,
            node_neuron=neuron,
            node_position=position,
            node_activation=activation,
            node_norm=norm,
            node_depth=depth,
            sender=sender,
            receiver=receiver,
            edge_kind=kind,
            edge_block=block,
            edge_start=start,
            slot_source=source,
            slot_coordinates=coordinates,
            node_source=self._node_source(roles),
            node_roles=tuple(roles),
        )

    def _nodes(self) -> list[Tensor]:
        """Kind, group, neuron, position, activation, normalisation and depth of each node."""
        members: dict[int, list[NeuronGroup]] = {}
        for number, root in enumerate(self.merging.root):
            members.setdefault(root, []).append(self.graph.neuron_groups[number])
        rows: list[Tensor] = []
        next_position = dict.fromkeys(NodeKind, 0)
        for root in sorted(members):
            neurons = torch.arange(members[root][0].size)
            own = self.graph.neuron_groups[root]
            kinds = {NodeKind(group.kind.value) for group in members[root]} - {NodeKind.HIDDEN}
            kind = kinds.pop() if kinds else NodeKind.HIDDEN
            position = torch.full_like(neurons, -1)
            if kind in (NodeKind.INPUT, NodeKind.OUTPUT) or (
                kind is NodeKind.FIXED and is_fixed(self.graph, own)
            ):
                position = neurons + next_position[kind]
                next_position[kind] += len(neurons)
            activation = next(
                (g.activation for g in members[root] if g.activation is not Activation.NONE),
                Activation.NONE,
            )
            norm = next((g.norm for g in members[root] if g.norm is not NormKind.NONE), own.norm)
            values = (activation.index, _NORMS.index(norm), self.merging.depths[root])
            rows.append(
                torch.stack(
                    [
                        torch.full_like(neurons, kind.index),
                        torch.full_like(neurons, root),
                        neurons,
                        position,
                        *(torch.full_like(neurons, value) for value in values),
                    ]
                )
            )
        for hub, number in self.hubs:
            group = self.graph.neuron_groups[number]
            norm = NormKind.NONE if hub is NodeKind.BIAS else group.norm
            depth = self.merging.depths[number] - 1
            row = [hub.index, number, -1, -1, Activation.NONE.index, _NORMS.index(norm), depth]
            rows.append(torch.tensor(row)[:, None])
        if not rows:
            return [torch.zeros(0, dtype=torch.long)] * 7
        return list(torch.cat(rows, dim=1).unbind())

    def _node_source(self, roles: list[NeuronRole]) -> Tensor:
        """Where the values of the nodes come from; nodes without a value read the 0."""
        sources = torch.full((self.num_neurons + len(self.hubs), len(roles)), self.zero)
        for number, group in enumerate(self.graph.neuron_groups):
            for feature in group.features:
                if feature.role in roles:
                    start = self.neuron_source[number] + feature.role.channel
                    nodes = slice(self.first_node[number], self.first_node[number] + group.size)
                    column = torch.arange(group.size) * NUM_NEURON_CHANNELS + start
                    sources[nodes, roles.index(feature.role)] = column
        return sources
