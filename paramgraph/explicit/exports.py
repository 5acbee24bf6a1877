"""Explicit graphs with their weights, as objects of PyTorch Geometric and networkx."""

from __future__ import annotations

from typing import Any

from paramgraph.errors import GraphError
from paramgraph.explicit.expansion import MAX_EDGES, expand
from paramgraph.explicit.kinds import LinkKind, NodeKind, StateDicts, Structure
from paramgraph.explicit.tables import ExplicitGraph, ExplicitValues
from paramgraph.structure import Activation, NormKind
from paramgraph.values import Values

__all__ = ["to_networkx", "to_pyg"]


def to_pyg(
    graph: Structure,
    values: Values | StateDicts,
    encoding: str = "neural",
    *,
    dataflow: bool = True,
    num_positions: int | None = None,
    max_edges: int = MAX_EDGES,
) -> Any:
    """Networks as ``torch_geometric.data.Data``.

    Args:
        graph: The parameter graph.
        values: The weights of one or several networks: ``Values`` or state dicts.
        encoding: ``"neural"`` or ``"parameter"``, see ``expand``.
        dataflow: Keep parameter-free edges that are no residuals.
        num_positions: Pad edges to this many values, so that graphs of architectures with kernels
            of other sizes fit into one batch. In the parameter encoding an edge has one value.
        max_edges: Refuse graphs with more edges than this.

    Returns:
        ``Data`` of one network, a list of ``Data`` of several, which share all but the weights:
        ``edge_index``, ``edge_attr`` (values), ``edge_mask`` (which of them exist),
        ``edge_coordinates``, ``edge_kind``, ``edge_block``, ``x`` (node values), ``node_kind``,
        ``node_group``, ``node_neuron``, ``node_position``, ``node_activation``, ``node_norm``,
        ``node_depth``, as in ``ExplicitGraph``.

    Raises:
        GraphError: PyTorch Geometric is not installed, or the graph is too large.

    Example:
        >>> import pytest, torch, paramgraph as pg
        >>> _ = pytest.importorskip("torch_geometric")
        >>> network = torch.nn.Linear(3, 2)
        >>> graph = pg.capture(network, torch.randn(4, 3))
        >>> data = to_pyg(graph, network.state_dict())
        >>> data.num_nodes, data.edge_attr.shape
        (5, torch.Size([6, 1]))
    """
    try:
        from torch_geometric.data import Data
    except ImportError as error:
        raise GraphError(
            "to_pyg needs PyTorch Geometric: pip install 'paramgraph[pyg]'."
        ) from error
    explicit = expand(graph, encoding, dataflow=dataflow, max_edges=max_edges)
    found = explicit.values(values, num_positions=num_positions)
    device = found.edges.device
    coordinates = explicit.edge_coordinates(num_positions)
    shared = {
        "edge_index": explicit.edge_index,
        "edge_coordinates": coordinates.to(found.edges.dtype),
        "edge_mask": found.mask,
        "edge_kind": explicit.edge_kind,
        "edge_block": explicit.edge_block,
        "node_kind": explicit.node_kind,
        "node_group": explicit.node_group,
        "node_neuron": explicit.node_neuron,
        "node_position": explicit.node_position,
        "node_activation": explicit.node_activation,
        "node_norm": explicit.node_norm,
        "node_depth": explicit.node_depth,
    }
    shared = {name: tensor.to(device) for name, tensor in shared.items()}
    networks = [
        Data(x=nodes, edge_attr=edges, num_nodes=explicit.num_nodes, **shared)
        for nodes, edges in zip(found.nodes, found.edges, strict=True)
    ]
    return networks[0] if len(networks) == 1 else networks


def to_networkx(
    graph: Structure,
    values: Values | StateDicts,
    encoding: str = "neural",
    *,
    dataflow: bool = True,
    max_edges: int = 1_000_000,
) -> Any:
    """One network as a ``networkx.MultiDiGraph``.

    Args:
        graph: The parameter graph.
        values: The weights of one network: ``Values`` or a state dict.
        encoding: ``"neural"`` or ``"parameter"``, see ``expand``.
        dataflow: Keep parameter-free edges that are no residuals.
        max_edges: Refuse graphs with more edges than this; networkx takes a kilobyte for each.

    Returns:
        A graph with plain Python attributes. Nodes: ``kind``, ``group`` (a name), ``neuron``,
        ``position``, ``activation``, ``norm``, ``depth``, and ``bias``, ``mean``, ``variance``
        where the encoding has them. Edges: ``kind``, ``block`` (a name or ``None``), ``value`` and
        ``coordinates`` (lists, one item per position).

    Raises:
        GraphError: networkx is not installed, the graph is too large, or there are several
            networks.

    Example:
        >>> import pytest, torch, paramgraph as pg
        >>> _ = pytest.importorskip("networkx")
        >>> network = torch.nn.Linear(3, 2)
        >>> graph = pg.capture(network, torch.randn(4, 3))
        >>> drawn = to_networkx(graph, network.state_dict(), "parameter")
        >>> drawn.nodes[5]["kind"], drawn.number_of_edges()
        ('bias', 8)
    """
    try:
        import networkx
    except ImportError as error:
        raise GraphError("to_networkx needs networkx: pip install networkx.") from error
    explicit = expand(graph, encoding, dataflow=dataflow, max_edges=max_edges)
    found = explicit.values(values)
    if found.num_networks != 1:
        raise GraphError(
            f"to_networkx takes one network, got {found.num_networks}: take one row of the "
            "values, values[i : i + 1]."
        )
    drawn = networkx.MultiDiGraph()
    drawn.add_nodes_from(_nodes(explicit, found))
    drawn.add_edges_from(_edges(explicit, found))
    return drawn


def _nodes(explicit: ExplicitGraph, found: ExplicitValues) -> list[tuple[int, dict[str, Any]]]:
    kinds, activations, norms = list(NodeKind), list(Activation), list(NormKind)
    groups = explicit.structure.neuron_groups
    roles = [role.value for role in explicit.node_roles]
    columns = [
        explicit.node_kind,
        explicit.node_group,
        explicit.node_neuron,
        explicit.node_position,
        explicit.node_activation,
        explicit.node_norm,
        explicit.node_depth,
        found.nodes[0],
    ]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        (
            node,
            {
                "kind": kinds[kind].value,
                "group": groups[group].name,
                "neuron": neuron,
                "position": position,
                "activation": activations[activation].value,
                "norm": norms[norm].value,
                "depth": depth,
                **dict(zip(roles, numbers, strict=True)),
            },
        )
        for node, (kind, group, neuron, position, activation, norm, depth, numbers) in enumerate(
            rows
        )
    ]


def _edges(explicit: ExplicitGraph, found: ExplicitValues) -> list[tuple[int, int, dict[str, Any]]]:
    kinds, blocks = list(LinkKind), explicit.structure.blocks
    slots = found.edges[0][found.mask].tolist()
    places = explicit.slot_coordinates.tolist()
    start = explicit.edge_start.tolist()
    columns = (explicit.sender, explicit.receiver, explicit.edge_kind, explicit.edge_block)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        (
            sender,
            receiver,
            {
                "kind": kinds[kind].value,
                "block": blocks[block].name if block >= 0 else None,
                "value": slots[start[edge] : start[edge + 1]],
                "coordinates": places[start[edge] : start[edge + 1]],
            },
        )
        for edge, (sender, receiver, kind, block) in enumerate(rows)
    ]
