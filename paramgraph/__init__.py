"""paramgraph: any PyTorch network in, a graph of its parameters out, and networks that read it.

The data flows along one line: ``capture`` (network to ``ParamGraph``), ``features`` (weights to
``Values``), ``collate`` (many networks to a ``GraphBatch``), a metanetwork from ``paramgraph.nn``.
"""

from paramgraph import frontends, nn, testing, zoo
from paramgraph.batch import GraphBatch, collate
from paramgraph.capture import Verification, capture, repair, verify
from paramgraph.errors import (
    BatchError,
    CaptureError,
    CheckpointError,
    GraphError,
    ParamGraphError,
    ZooError,
)
from paramgraph.explicit import ExplicitGraph
from paramgraph.graph import ParamGraph
from paramgraph.nn import Metanetwork, NetworkEditor, embed_streamed, from_config
from paramgraph.structure import AxisGroup, EdgeBlock, NeuronGroup, ScaleGroup
from paramgraph.symmetry import Symmetry
from paramgraph.values import Values
from paramgraph.zoo import Zoo

__version__ = "0.1.0"

__all__ = [
    "AxisGroup",
    "BatchError",
    "CaptureError",
    "CheckpointError",
    "EdgeBlock",
    "ExplicitGraph",
    "GraphBatch",
    "GraphError",
    "Metanetwork",
    "NetworkEditor",
    "NeuronGroup",
    "ParamGraph",
    "ParamGraphError",
    "ScaleGroup",
    "Symmetry",
    "Values",
    "Verification",
    "Zoo",
    "ZooError",
    "capture",
    "collate",
    "embed_streamed",
    "from_config",
    "frontends",
    "nn",
    "repair",
    "testing",
    "verify",
    "zoo",
]
