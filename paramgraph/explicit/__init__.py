"""Explicit graphs: the structure of a parameter graph as nodes and edges, in two encodings.

Takes the tables of a graph; gives flat tensors with one row per node and per edge, and the exact
map between their values and ``Values``. For other graph libraries and for parity with the papers:
the metanetworks of this package read blocks and never need a list of edges.
"""

from paramgraph.explicit.expansion import MAX_EDGES, expand
from paramgraph.explicit.exports import to_networkx, to_pyg
from paramgraph.explicit.kinds import LinkKind, NodeKind, Structure
from paramgraph.explicit.tables import ExplicitGraph, ExplicitValues

__all__ = [
    "MAX_EDGES",
    "ExplicitGraph",
    "ExplicitValues",
    "LinkKind",
    "NodeKind",
    "Structure",
    "expand",
    "to_networkx",
    "to_pyg",
]
