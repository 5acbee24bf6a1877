"""The field table of an explicit graph, and its values.

| array          | shape     | meaning                                                           |
|----------------|-----------|-------------------------------------------------------------------|
| ``node_*``     | ``[N]``   | kind, group, neuron, position, activation, normalisation, depth   |
| ``sender``     | ``[E]``   | node that an edge leaves; ``receiver``: node that it enters       |
| ``edge_*``     | ``[E]``   | kind, edge block                                                  |
| ``edge_start`` | ``[E+1]`` | edge ``e``: slots ``edge_start[e]`` up to ``edge_start[e + 1]``   |
| ``slot_*``     | ``[S]``   | one value of an edge: where it comes from, its coordinates        |

An edge has one slot per kernel position in the neural encoding (any number of them, there is no
maximum), and one slot in the parameter encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.explicit.kinds import Encoding, StateDicts, Structure
from paramgraph.structure import NeuronRole
from paramgraph.symmetry import Symmetry
from paramgraph.values import NUM_NEURON_CHANNELS, Values
from paramgraph.views import set_parameter

__all__ = ["ExplicitGraph", "ExplicitValues"]


@dataclass(frozen=True)
class ExplicitValues:
    """The weights of B networks on an explicit graph.

    Attributes:
        edges: ``[B, E, P]``; 0 where ``mask`` is false.
        nodes: ``[B, N, C]``, a column per role in ``ExplicitGraph.node_roles``.
        mask: ``[E, P]``: which of the P places of an edge hold a value.

    Example:
        >>> values = (torch.zeros(7, 5, 1), torch.zeros(7, 4, 3), torch.ones(5, 1) > 0)
        >>> ExplicitValues(*values).num_networks
        7
    """

    edges: Tensor
    nodes: Tensor
    mask: Tensor

    @property
    def num_networks(self) -> int:
        """Number of networks B."""
        return self.edges.shape[0]


@dataclass(frozen=True, eq=False)
class ExplicitGraph:
    """One structure as nodes and edges; it holds no weights.

    Attributes:
        encoding: Which encoding.
        structure: The parameter graph that it was made of.
        node_kind: ``NodeKind`` by index.
        node_group: Index of the neuron group; of a bias, gain or shift node the group it sends to.
        node_neuron: Which neuron of the group, -1 for a bias, gain or shift node.
        node_position: Which input, output or row of a table; -1 for nodes that can be permuted.
        node_activation: ``Activation`` by index.
        node_norm: ``NormKind`` by index: the normalisation that a neuron comes out of, or that a
            gain or shift node belongs to.
        node_depth: Longest path, in groups of neurons; each edge leads to a larger one.
        sender: Node that each edge leaves.
        receiver: Node that each edge enters.
        edge_kind: ``LinkKind`` by index.
        edge_block: Index of the edge block, -1 for biases, shifts and added links.
        edge_start: First slot of each edge, and the number of slots.
        slot_source: Where the value of a slot stands in the flat values (see ``values``).
        slot_coordinates: ``[S, 3]``, kernel offsets (0, row, column) in pixels from the centre, or
            the place of the sender in its grid, from -1 to 1.
        node_source: ``[N, C]``, as ``slot_source``.
        node_roles: What the columns of the node values are.

    Example:
        >>> import torch, paramgraph as pg
        >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> explicit = graph.expand("parameter")
        >>> explicit.num_nodes, explicit.num_edges  # a bias node; 6 weights and 2 biases
        (6, 8)
    """

    encoding: Encoding
    structure: Structure
    node_kind: Tensor
    node_group: Tensor
    node_neuron: Tensor
    node_position: Tensor
    node_activation: Tensor
    node_norm: Tensor
    node_depth: Tensor
    sender: Tensor
    receiver: Tensor
    edge_kind: Tensor
    edge_block: Tensor
    edge_start: Tensor
    slot_source: Tensor
    slot_coordinates: Tensor
    node_source: Tensor
    node_roles: tuple[NeuronRole, ...]

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return len(self.node_kind)

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return len(self.sender)

    @property
    def edge_index(self) -> Tensor:
        """``[2, E]``: senders, receivers."""
        return torch.stack([self.sender, self.receiver])

    @cached_property
    def num_positions(self) -> int:
        """Largest number of slots of an edge."""
        lengths = self.edge_start.diff()
        return int(lengths.max()) if len(lengths) else 1

    @cached_property
    def _slot_place(self) -> tuple[Tensor, Tensor]:
        """Edge of each slot, and place in it."""
        edge = torch.arange(self.num_edges).repeat_interleave(self.edge_start.diff())
        return edge, torch.arange(len(edge)) - self.edge_start[edge]

    def edge_mask(self, num_positions: int | None = None) -> Tensor:
        """``[E, P]``: which places of an edge hold a value when all edges have P places."""
        width = self._width(num_positions)
        return torch.arange(width) < self.edge_start.diff()[:, None]

    def edge_coordinates(self, num_positions: int | None = None) -> Tensor:
        """``[E, P, 3]``: coordinates of the places of an edge, 0 where there is no value."""
        dense = torch.zeros(self.num_edges, self._width(num_positions), 3)
        dense[self._slot_place] = self.slot_coordinates
        return dense

    def _width(self, num_positions: int | None) -> int:
        if num_positions is None:
            return self.num_positions
        if num_positions < self.num_positions:
            raise GraphError(
                f"num_positions is {num_positions}, but an edge of this graph has "
                f"{self.num_positions} positions; give at least that many."
            )
        return num_positions

    def values(
        self, values: Values | StateDicts, *, num_positions: int | None = None
    ) -> ExplicitValues:
        """The weights of B networks on nodes and edges.

        Args:
            values: What ``graph.features`` gives or takes.
            num_positions: Pad edges to this many places instead of to the longest one, so that
                graphs of several architectures fit together.

        Returns:
            Differentiable functions of the values.

        Raises:
            GraphError: The values belong to another graph, or ``num_positions`` is too small.
        """
        known = values if isinstance(values, Values) else self.structure.features(values)
        flat = self._flat(known)
        slots = flat[:, self.slot_source.to(flat.device)]
        mask = self.edge_mask(num_positions).to(flat.device)
        edges = flat.new_zeros(len(flat), *mask.shape)
        # Slots lie in the order of the mask: by edge, then by place.
        edges = edges.masked_scatter(mask, slots)
        return ExplicitValues(edges, flat[:, self.node_source.to(flat.device)], mask)

    def write_back(self, edges: Tensor, nodes: Tensor, *, tied: str = "mean") -> dict[str, Tensor]:
        """Turn values into stacked parameters ``[B, ...]``, the inverse of ``values``.

        Args:
            edges: ``[B, E, P]``; places without a value and parameter-free edges are ignored.
            nodes: ``[B, N, C]``.
            tied: A parameter with several edges gets their ``"mean"`` or their ``"sum"``.

        Returns:
            For each parameter and alias a tensor ``[B, *shape]``.

        Raises:
            GraphError: The values belong to another graph.
        """
        expected = (self.num_edges, self.num_nodes, len(self.node_roles))
        if (edges.shape[1], *nodes.shape[1:]) != expected or edges.ndim != 3:
            raise GraphError(
                f"cannot write: edges are {tuple(edges.shape)} and nodes {tuple(nodes.shape)}, "
                f"expected B x {expected[0]} x P and B x {expected[1]} x {expected[2]}. They "
                "belong to another graph or encoding."
            )
        mask = self.edge_mask(edges.shape[2]).to(edges.device)
        flat = edges.new_zeros(len(edges), self._num_flat)
        flat = flat.index_copy(1, self.slot_source.to(edges.device), edges[:, mask])
        source = self.node_source.to(edges.device).reshape(-1)
        # What stands at the constants, several times, is not read again.
        flat = flat.index_copy(1, source, nodes.flatten(1))
        return self.structure.write_back(self._unflat(flat), tied=tied)

    def node_order(self, symmetry: Symmetry) -> Tensor:
        """Node ``i`` of the network after a symmetry is node ``node_order(symmetry)[i]`` before.

        Args:
            symmetry: An element of the group of the structure.
        """
        order = torch.arange(self.num_nodes)
        is_neuron = self.node_neuron >= 0
        for group in self.node_group[is_neuron].unique().tolist():
            nodes = torch.nonzero((self.node_group == group) & is_neuron).reshape(-1)
            order[nodes] = nodes[symmetry.neuron_order(group)]
        return order

    @cached_property
    def slot_entry(self) -> Tensor:
        """``[S]``: entry of all parameters, one after the other, that a slot holds; -1: none."""
        return self._entries[self.slot_source]

    @cached_property
    def node_entry(self) -> Tensor:
        """``[N, C]``: the same for node values."""
        return self._entries[self.node_source]

    @cached_property
    def _entries(self) -> Tensor:
        """Entry of all parameters at each place of the flat values, -1 for none."""
        numbered: dict[str, Tensor] = {}
        start = 1
        for layout in self.structure.parameters:
            entries = torch.arange(start, start + layout.num_entries)
            set_parameter(numbered, layout, entries.reshape(1, *layout.shape), lead=1)
            start += layout.num_entries
        if not numbered:
            return torch.full((self._num_flat,), -1)
        values = self.structure.features(numbered)
        # A constant is no entry, whatever its value.
        blocks = [
            torch.zeros_like(entries) if block.view is None else entries
            for block, entries in zip(self.structure.blocks, values.blocks, strict=True)
        ]
        flat = self._flat(Values(tuple(blocks), values.neurons))[0] - 1
        flat[-2:] = -1
        return flat

    @property
    def _num_flat(self) -> int:
        """Number of flat values: all blocks, all neuron channels, a 0 and a 1."""
        neurons = sum(group.size for group in self.structure.neuron_groups)
        blocks = sum(block.num_edges * block.num_positions for block in self.structure.blocks)
        return blocks + neurons * NUM_NEURON_CHANNELS + 2

    def _flat(self, values: Values) -> Tensor:
        """All values of B networks in one row, and a 0 and a 1 for what has no value."""
        rows = [tensor.flatten(1) for tensor in (*values.blocks, *values.neurons)]
        constants = torch.tensor([0, 1]).to(rows[0]).expand(values.num_networks, 2)
        flat = torch.cat([*rows, constants], dim=1)
        if flat.shape[1] != self._num_flat:
            raise GraphError(
                f"the values have {flat.shape[1] - 2} numbers per network, the graph has "
                f"{self._num_flat - 2}. They belong to another graph."
            )
        return flat

    def _unflat(self, flat: Tensor) -> Values:
        """The inverse of ``_flat``."""
        sizes = [block.num_edges * block.num_positions for block in self.structure.blocks]
        sizes += [group.size * NUM_NEURON_CHANNELS for group in self.structure.neuron_groups]
        rows = flat.split([*sizes, 2], dim=1)[:-1]
        count = len(self.structure.blocks)
        return Values(
            tuple(
                row.reshape(len(flat), *block.shape)
                for row, block in zip(rows[:count], self.structure.blocks, strict=True)
            ),
            tuple(row.reshape(len(flat), -1, NUM_NEURON_CHANNELS) for row in rows[count:]),
        )
