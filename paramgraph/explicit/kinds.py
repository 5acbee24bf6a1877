"""Kinds of nodes and edges in an explicit graph, and what such a graph is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

from torch import Tensor

from paramgraph.structure import AxisGroup, EdgeBlock, NeuronGroup, ParameterLayout
from paramgraph.values import Values

__all__ = ["Encoding", "LinkKind", "NodeKind", "StateDicts", "Structure"]

StateDicts = Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]
"""One state dict, a list of them, or one of stacked tensors ``[B, ...]``."""


class Encoding(Enum):
    """How a structure is written as nodes and edges.

    Example:
        >>> Encoding("parameter")
        <Encoding.PARAMETER: 'parameter'>
    """

    NEURAL = "neural"
    PARAMETER = "parameter"


class NodeKind(Enum):
    """What a node stands for: a neuron (its ``NeuronKind``), or a node of the parameter encoding.

    Example:
        >>> NodeKind("bias").index
        4
    """

    INPUT = "input"
    HIDDEN = "hidden"
    OUTPUT = "output"
    FIXED = "fixed"
    BIAS = "bias"  # sends the biases of one layer
    GAIN = "gain"  # sends the gains of one normalisation
    SHIFT = "shift"  # sends its shifts

    @property
    def index(self) -> int:
        """The number that stands for this kind in ``node_kind``."""
        return list(NodeKind).index(self)


class LinkKind(Enum):
    """What an edge stands for: its ``EdgeKind``, or what a node of the parameter encoding sends.

    Example:
        >>> LinkKind("skip").index, LinkKind("bias").index
        (3, 8)
    """

    LINEAR = "linear"
    CONV = "conv"
    SCALE = "scale"
    SKIP = "skip"
    EMBEDDING = "embedding"
    GATE = "gate"
    ATTENTION = "attention"
    FLOW = "flow"
    BIAS = "bias"
    GAIN = "gain"
    SHIFT = "shift"

    @property
    def index(self) -> int:
        """The number that stands for this kind in ``edge_kind``."""
        return list(LinkKind).index(self)


class Structure(Protocol):
    """What an explicit graph is made of: the tables of a ``ParamGraph``."""

    @property
    def neuron_groups(self) -> tuple[NeuronGroup, ...]:
        """Nodes."""

    @property
    def blocks(self) -> tuple[EdgeBlock, ...]:
        """Edges."""

    @property
    def axis_groups(self) -> tuple[AxisGroup, ...]:
        """Permutations."""

    @property
    def parameters(self) -> tuple[ParameterLayout, ...]:
        """Parameters and running statistics."""

    def features(self, state_dicts: StateDicts, /) -> Values:
        """State dicts to values."""

    def write_back(self, values: Values, /, *, tied: str = "mean") -> dict[str, Tensor]:
        """Values to stacked parameters."""
