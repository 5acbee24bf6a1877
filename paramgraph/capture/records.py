"""What the rules know while a network is being read: tensors, neuron groups and blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from paramgraph.capture.activations import Chain
from paramgraph.capture.axes import Axis
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.errors import CaptureError
from paramgraph.structure import EdgeKind, EntryView, NeuronKind, NeuronRole

__all__ = [
    "Constant",
    "FlowBlock",
    "FlowFeature",
    "FlowGroup",
    "Hidden",
    "Input",
    "Parameter",
    "Value",
    "entry_refs",
    "leaf_name",
    "unsupported",
    "where",
]


@dataclass(frozen=True)
class FlowFeature:
    """One value per neuron; ``axis`` is the parameter's axis that numbers the neurons."""

    view: EntryView
    axis: int


@dataclass(eq=False)
class FlowGroup:
    """A neuron group while the network is being read.

    Attributes:
        name: Unique.
        axis: The factors that number its neurons (``Leaf`` or fixed).
        size: Number of neurons.
        kind: Input, hidden or output.
        chain: The activation that its readers see; ``None`` until somebody reads it.
        features: Biases and running statistics.
        copies: Groups that hold the same neurons under another activation.
    """

    name: str
    axis: Axis
    size: int
    kind: NeuronKind = NeuronKind.HIDDEN
    chain: Chain | None = None
    features: dict[NeuronRole, FlowFeature] = field(default_factory=dict)
    copies: dict[Chain, FlowGroup] = field(default_factory=dict)
    scale_class: FlowGroup | None = None
    no_positive: bool = False
    no_sign: bool = False

    def scale_root(self) -> FlowGroup:
        """The group that stands for all groups rescaled together with this one."""
        group = self
        while group.scale_class is not None:
            group = group.scale_class
        return group

    def scale_with(self, other: FlowGroup) -> None:
        """Neurons of both groups must be rescaled by the same factors."""
        a, b = self.scale_root(), other.scale_root()
        if a is not b:
            b.scale_class = a
            a.no_positive |= b.no_positive
            a.no_sign |= b.no_sign

    def forbid_scale(self, *, positive: bool = True, sign: bool = True) -> None:
        """Exclude positive factors, the sign, or both."""
        root = self.scale_root()
        root.no_positive |= positive
        root.no_sign |= sign


@dataclass(eq=False)
class FlowBlock:
    """An edge block while the network is being read.

    Attributes:
        axes: The parameter's axes that number receivers and senders (the same one for a diagonal).
    """

    name: str
    kind: EdgeKind
    sender: FlowGroup
    receiver: FlowGroup
    shape: tuple[int, int, int]
    positions: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    view: EntryView | None = None
    axes: tuple[int, int] = (0, 1)
    constant: float = 1.0


@dataclass(frozen=True)
class Value:
    """What is known of one tensor: its axes."""

    ref: TensorRef
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.ref.shape


@dataclass(frozen=True)
class Constant(Value):
    """A tensor whose value does not depend on inputs or parameters.

    ``is_stored``: it comes from a buffer of the state dict, so another network may hold others.
    """

    tensor: Tensor
    is_stored: bool = False

    def scalar(self) -> float | None:
        """Its value when it is one number, else ``None``."""
        flat = self.tensor.reshape(-1)
        if self.is_stored and flat.numel() > 1:
            return None  # equal values here may differ per neuron in another network
        if flat.numel() and bool((flat == flat[0]).all()):
            return float(flat[0])
        return None


@dataclass(frozen=True)
class Input(Value):
    """A function of the network's inputs alone."""


@dataclass(frozen=True)
class Parameter(Value):
    """A parameter, possibly transposed: ``dims[i]`` are the parameter's axes that form axis i."""

    name: str
    dims: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Hidden(Value):
    """Activations of a neuron group.

    Attributes:
        group: Whose neurons they are.
        chain: Pointwise functions applied since the group was made.
        owned: Whether nothing else reads the group, so that a bias or a skip can join it.
        site: Which arrangement of positions; two values at one site can be combined elementwise.
    """

    group: FlowGroup
    chain: Chain = ()
    owned: bool = True
    site: int = -1


def where(entry: TapeEntry) -> str:
    """Operation and module, for messages."""
    return f"{entry.operation} in module {entry.module or 'top level'!r}"


def leaf_name(parameter: str, axis: int) -> str:
    """Name of the axis group that a parameter introduces: ``0.weight`` gives ``0``."""
    if axis:
        return f"{parameter}.{axis}"
    return parameter.removesuffix(".weight").removesuffix(".bias")


def unsupported(entry: TapeEntry, what: str) -> CaptureError:
    """The error for something that capture cannot read yet; names operation and module."""
    shapes = [ref.shape for ref in entry_refs(entry.args)]
    return CaptureError(
        f"operation {entry.operation!r} in module {entry.module or 'top level'!r} "
        f"(input shapes {', '.join(map(str, shapes)) or 'none'}) {what}. Without a rule its neuron "
        "symmetries are unknown, and a wrong graph would look valid. Rewrite this step, or add a "
        "rule (CONTRIBUTING.md, 'Adding an operation')."
    )


def entry_refs(value: object) -> list[TensorRef]:
    """All tensor references in the arguments of an operation, in order."""
    if isinstance(value, TensorRef):
        return [value]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in entry_refs(item)]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in entry_refs(item)]
    return []
