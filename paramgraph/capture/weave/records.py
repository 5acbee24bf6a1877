"""What is known of one block of a tensor while the graph is woven, and the rows being made."""

from __future__ import annotations

from dataclasses import dataclass, field

from paramgraph.capture.activations import Chain
from paramgraph.capture.axes import Factor
from paramgraph.structure import EdgeKind, EntryView, NeuronKind, NeuronRole, NormKind

__all__ = [
    "Constant",
    "Group",
    "Hidden",
    "Input",
    "Labels",
    "Link",
    "Param",
    "Piece",
    "Reduced",
    "Strand",
    "identity",
]


Labels = tuple[tuple[tuple[int, ...], ...], ...]
"""For every factor of every axis of a block the axes of the parameter's part that form it."""


@dataclass(eq=False)
class Group:
    """A neuron group while the network is being read.

    Attributes:
        name: Unique.
        factors: The factors that number its neurons.
        size: Number of neurons.
        kind: Input, hidden, output or fixed.
        chain: The activation that its readers see; ``None`` until somebody reads it.
        features: Biases and running statistics.
        copies: Groups that hold the same neurons under another activation.
        norm: The normalisation that it comes out of.
        origin: Number and block of the tensor that holds its values before the activation.
    """

    name: str
    factors: tuple[Factor, ...]
    size: int
    kind: NeuronKind = NeuronKind.HIDDEN
    chain: Chain | None = None
    features: dict[NeuronRole, EntryView] = field(default_factory=dict)
    copies: dict[Chain, Group] = field(default_factory=dict)
    norm: NormKind = NormKind.NONE
    origin: tuple[int, int] | None = None


@dataclass(eq=False)
class Link:
    """An edge block while the network is being read; ``shape`` is (blocks, receivers, senders)."""

    name: str
    kind: EdgeKind
    sender: Group
    receiver: Group
    shape: tuple[int, int, int]
    positions: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    view: EntryView | None = None
    constant: float = 1.0


@dataclass(frozen=True)
class Constant:
    """Depends on neither inputs nor parameters; ``value`` when it is one number everywhere."""

    value: float | None = None


@dataclass(frozen=True)
class Input:
    """A function of the network's inputs alone; ``number`` of the tensor."""

    number: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A part of a parameter; without ``labels`` it is not known how the part lies there."""

    parameter: str
    part: int
    labels: Labels | None


@dataclass(frozen=True)
class Param:
    """A function of parameters alone, ``is_spread`` when repeated along new axes like a batch."""

    pieces: tuple[Piece, ...]
    chain: Chain = ()
    is_spread: bool = False


@dataclass(frozen=True)
class Hidden:
    """Activations of a neuron group.

    Attributes:
        group: Whose neurons they are.
        chain: Pointwise functions applied since the group was made.
        owned: Whether nothing else reads the group, so that a bias or a skip can join it.
        site: Which arrangement of positions; two values at one site can be combined elementwise.
    """

    group: Group
    chain: Chain = ()
    owned: bool = True
    site: tuple[int, int] = (-1, -1)


@dataclass(frozen=True)
class Reduced:
    """A statistic over neurons of ``source`` (a mean square); ``chain`` is what follows."""

    source: Hidden
    chain: Chain


Strand = Constant | Input | Param | Hidden | Reduced


def identity(value: Strand) -> object:
    """Equal for values that are the same neurons or parameters, wherever they stand."""
    if isinstance(value, Hidden):
        return id(value.group), value.chain
    if isinstance(value, Reduced):
        return "reduced", id(value.source.group), value.source.chain, value.chain
    return value
