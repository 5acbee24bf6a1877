"""The field table of a parameter graph: axis groups, parameters, neuron groups, edge blocks.

Everything here is structure: it holds no weights, and is computed once per architecture.

| table               | one row per                                     | used for             |
|---------------------|-------------------------------------------------|----------------------|
| ``AxisGroup``       | tensor axes that must be permuted together      | permutations         |
| ``ScaleGroup``      | neurons that can be rescaled or negated         | scales and signs     |
| ``ParameterLayout`` | parameter or running statistic, in parts        | applying a symmetry  |
| ``NeuronGroup``     | activation at one place in the network          | nodes, node features |
| ``EdgeBlock``       | parameter between two neuron groups (or a skip) | edges, edge values   |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

__all__ = [
    "Activation",
    "AxisGroup",
    "EdgeBlock",
    "EdgeKind",
    "EntryView",
    "Factor",
    "NeuronFeature",
    "NeuronGroup",
    "NeuronKind",
    "NeuronRole",
    "NormKind",
    "ParameterLayout",
    "ParameterPart",
    "PartScale",
    "PartShift",
    "ScaleExponents",
    "ScaleGroup",
    "ScaleKind",
    "Split",
    "Step",
    "Take",
]

Factor = str | int
"""One factor of an axis, major to minor: the name of an axis group, or a fixed size."""

ScaleExponents = tuple[tuple[str, Fraction], ...]
"""How an axis scales: pairs (scale group, exponent); an empty tuple is "does not scale"."""


class NeuronKind(Enum):
    """Where the neurons of a group stand in the network.

    Example:
        >>> NeuronKind.INPUT.value
        'input'
    """

    INPUT = "input"
    HIDDEN = "hidden"
    OUTPUT = "output"
    FIXED = "fixed"  # rows of a table, a learned token, an initial state: read from no input


class EdgeKind(Enum):
    """What the parameter of an edge block does.

    Example:
        >>> [kind.value for kind in EdgeKind]
        ['linear', 'conv', 'scale', 'skip', 'embedding', 'gate', 'attention', 'flow']
    """

    LINEAR = "linear"
    CONV = "conv"
    SCALE = "scale"
    SKIP = "skip"
    EMBEDDING = "embedding"  # rows of a table to what is looked up
    GATE = "gate"  # a factor of a product of neurons
    ATTENTION = "attention"  # queries and keys to scores, scores to mixtures
    FLOW = "flow"  # anything else that passes from neurons to neurons without a parameter

    @property
    def has_parameters(self) -> bool:
        """Whether edges of this kind stand for parameters, rather than for constants."""
        return self not in (EdgeKind.SKIP, EdgeKind.GATE, EdgeKind.ATTENTION, EdgeKind.FLOW)


class NormKind(Enum):
    """Which normalisation a neuron group comes out of.

    Example:
        >>> NormKind("rms").value
        'rms'
    """

    NONE = "none"
    BATCH = "batch"
    LAYER = "layer"
    GROUP = "group"
    INSTANCE = "instance"
    RMS = "rms"


class NeuronRole(Enum):
    """What a neuron feature is; the order here is the order of the channels in ``Values``.

    Example:
        >>> [role.value for role in NeuronRole]
        ['bias', 'mean', 'variance']
    """

    BIAS = "bias"
    MEAN = "mean"
    VARIANCE = "variance"

    @property
    def channel(self) -> int:
        """Column of this role in the neuron values."""
        return list(NeuronRole).index(self)


class Activation(Enum):
    """The pointwise function applied to a neuron group (``OTHER``: a chain without a name).

    Example:
        >>> Activation("relu")
        <Activation.RELU: 'relu'>
    """

    NONE = "none"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    GELU = "gelu"
    SILU = "silu"
    TANH = "tanh"
    SIGMOID = "sigmoid"
    ELU = "elu"
    SELU = "selu"
    CELU = "celu"
    SOFTPLUS = "softplus"
    MISH = "mish"
    HARDTANH = "hardtanh"
    RELU6 = "relu6"
    HARDSWISH = "hardswish"
    HARDSIGMOID = "hardsigmoid"
    LOGSIGMOID = "logsigmoid"
    SOFTSIGN = "softsign"
    TANHSHRINK = "tanhshrink"
    SINE = "sine"
    COSINE = "cosine"
    EXP = "exp"
    SQUARE = "square"
    ABS = "abs"
    SOFTMAX = "softmax"
    OTHER = "other"

    @property
    def index(self) -> int:
        """Row of this activation in an embedding table."""
        return list(Activation).index(self)


class ScaleKind(Enum):
    """Which factors q keep the function when a neuron is rescaled.

    ``SIGN``: q = +-1 (tanh, sine). ``POSITIVE``: q > 0 (ReLU). ``REAL``: any q except 0
    (no activation). ``NONE``: q = 1 only. ``PHASE`` is not about neurons but about biases inside a
    sine: n half periods are added to the bias, and (-1) ** n goes to what reads the sine.

    Example:
        >>> ScaleKind.REAL.has_sign, ScaleKind.POSITIVE.has_sign
        (True, False)
    """

    NONE = "none"
    SIGN = "sign"
    POSITIVE = "positive"
    REAL = "real"
    PHASE = "phase"

    @property
    def has_sign(self) -> bool:
        """Whether q = -1 is allowed."""
        return self in (ScaleKind.SIGN, ScaleKind.REAL)

    @property
    def has_positive(self) -> bool:
        """Whether any q > 0 is allowed."""
        return self in (ScaleKind.POSITIVE, ScaleKind.REAL)


@dataclass(frozen=True)
class AxisGroup:
    """Axes that are permuted together: one factor of the permutation symmetry group.

    Attributes:
        name: Unique, derived from the first parameter that has the axis.
        size: Number of indices.
        free: Whether its indices may be permuted.
        reason: Why not, when ``free`` is false.
        given: Axis groups it depends on: for every joint index of these, the indices may be
            permuted differently (a wreath product, as channels within the groups of a GroupNorm).

    Example:
        >>> round(math.exp(AxisGroup("layers.0", 4, free=True).log_size(num_copies=1)))
        24
    """

    name: str
    size: int
    free: bool
    reason: str | None = None
    given: tuple[str, ...] = ()

    def log_size(self, num_copies: int) -> float:
        """Natural logarithm of the number of permutations, over ``num_copies`` of the group."""
        return num_copies * math.lgamma(self.size + 1) if self.free else 0.0


@dataclass(frozen=True)
class ScaleGroup:
    """Neurons that can be rescaled (``positive``), negated (``sign``) or shifted (``phase``).

    Attributes:
        name: Unique.
        size: Number of neurons, each with its own factor.
        kind: ``POSITIVE``, ``SIGN`` or ``PHASE``.
        axes: The axis groups whose joint index numbers the factors, major to minor; none when one
            factor belongs to whole parts.

    Example:
        >>> ScaleGroup("layers.0:sign", 8, ScaleKind.SIGN).size
        8
    """

    name: str
    size: int
    kind: ScaleKind
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Step of a view: an axis becomes one axis per factor (none: an axis of length 1 goes).

    Example:
        >>> Split(0, (3, 4)).sizes
        (3, 4)
    """

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Take:
    """Step of a view: some consecutive indices of an axis.

    Example:
        >>> Take(0, start=8, length=4).start
        8
    """

    axis: int
    start: int
    length: int


Step = Split | Take


@dataclass(frozen=True)
class PartScale:
    """How a part of a parameter scales with a scale group: factor ** exponent.

    Attributes:
        group: Name of the scale group.
        exponent: Power of the factor.
        axis: The axis of the part that numbers the neurons (with the groups it depends on), -1 when
            one factor belongs to the whole part.

    Example:
        >>> PartScale("0:positive", Fraction(-1), 1).exponent
        Fraction(-1, 1)
    """

    group: str
    exponent: Fraction
    axis: int


@dataclass(frozen=True)
class PartShift:
    """How a part of a parameter, a bias inside a sine, is shifted: ``n * amount`` is added.

    Attributes:
        group: Name of the scale group, of kind ``PHASE``.
        amount: Half a period, or a whole one where half a period is no symmetry.
        axis: The axis of the part that numbers the neurons (with the groups it depends on).

    Example:
        >>> PartShift("0:phase", math.pi / 30, 0).axis
        0
    """

    group: str
    amount: float
    axis: int


@dataclass(frozen=True)
class ParameterPart:
    """A piece of a parameter with one axis per factor: the queries in a packed projection.

    Attributes:
        steps: What turns the parameter into the part; always a view of its memory.
        factors: For each axis of the part the axis group that permutes it, or its size.
        scales: How it scales.
        shifts: How it is shifted, after it is scaled.

    Example:
        >>> ParameterPart((), ("a", 3)).factors
        ('a', 3)
    """

    steps: tuple[Step, ...]
    factors: tuple[Factor, ...]
    scales: tuple[PartScale, ...] = ()
    shifts: tuple[PartShift, ...] = ()


@dataclass(frozen=True)
class ParameterLayout:
    """How a symmetry acts on one parameter or running statistic.

    Attributes:
        name: Key in the state dict.
        shape: Shape of the tensor.
        parts: Pieces that do not overlap and together are the whole parameter.
        aliases: Other keys of the state dict that hold the same tensor (tied parameters).
        is_buffer: Whether it is a running statistic rather than a trained parameter.
        members: Names of the parameters that it is a stack of (the same weight of experts that are
            modules of their own); ``name`` is the first of them. Empty for a parameter by itself.

    Example:
        >>> ParameterLayout("w", (2, 3), (ParameterPart((), ("a", 3)),)).num_entries
        6
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[ParameterPart, ...]
    aliases: tuple[str, ...] = ()
    is_buffer: bool = False
    members: tuple[str, ...] = ()

    @property
    def num_entries(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def groups(self) -> frozenset[str]:
        """Names of the axis groups that act on it."""
        return frozenset(f for part in self.parts for f in part.factors if isinstance(f, str))


@dataclass(frozen=True)
class EntryView:
    """An exact, invertible map between a part of a parameter and a block or feature.

    The axes of the part are reordered to ``order`` and reshaped to ``shape``; ``shape[0]``... are
    the axes of the block or feature.

    Attributes:
        parameter: Key in the state dict.
        part: Which of its parts.
        order: Permutation of the axes of the part.
        shape: Final shape.

    Example:
        >>> EntryView("w", 0, (1, 0), (1, 3, 2, 1)).inverse_order
        (1, 0)
    """

    parameter: str
    part: int
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def inverse_order(self) -> tuple[int, ...]:
        """The permutation that undoes ``order``."""
        inverse = [0] * len(self.order)
        for position, axis in enumerate(self.order):
            inverse[axis] = position
        return tuple(inverse)


@dataclass(frozen=True)
class NeuronFeature:
    """One value per neuron: a bias or a running statistic.

    Example:
        >>> NeuronFeature(NeuronRole.BIAS, EntryView("b", 0, (0,), (3,))).role.value
        'bias'
    """

    role: NeuronRole
    view: EntryView


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one activation at one place in the network.

    Attributes:
        name: Unique, the module that produces it.
        size: Number of neurons.
        kind: Input, hidden, output, or fixed (rows of a table, tokens, initial states).
        activation: Applied to the group before others read it.
        activation_text: The same as recorded, with constants (``mul(30) sin``).
        omega: Frequency of a sine, 1 otherwise.
        depth: Longest path from the inputs, in edge blocks.
        axes: Factors of the neuron index, major to minor.
        scale: Which rescalings of its neurons keep the function.
        scale_exponents: The scale groups that rescale it.
        features: Biases and running statistics.
        norm: The normalisation that it comes out of.

    Example:
        >>> NeuronGroup("in", 2, NeuronKind.INPUT).activation.value
        'none'
    """

    name: str
    size: int
    kind: NeuronKind
    activation: Activation = Activation.NONE
    activation_text: str = ""
    omega: float = 1.0
    depth: int = 0
    axes: tuple[Factor, ...] = ()
    scale: ScaleKind = ScaleKind.NONE
    scale_exponents: ScaleExponents = ()
    features: tuple[NeuronFeature, ...] = ()
    norm: NormKind = NormKind.NONE


@dataclass(frozen=True)
class EdgeBlock:
    """The edges between two neuron groups, as one dense tensor.

    Values have the shape ``[num_blocks, num_receivers, num_senders, num_positions]``. Neuron
    ``k * num_receivers + r`` of the receiver group is joined with neuron ``k * num_senders + s`` of
    the sender group for every block ``k``: ``num_blocks = 1`` is a dense layer, ``num_blocks =
    channels`` a depthwise convolution, a normalisation scale or a skip.

    Attributes:
        name: Unique, the parameter or the skip.
        kind: What the parameter does.
        sender: Index of the sending neuron group.
        receiver: Index of the receiving neuron group.
        num_blocks: See above.
        num_receivers: Receivers per block.
        num_senders: Senders per block.
        positions: Coordinates (row, column) of kernel elements or image positions, in pixels from
            the centre; ``((0.0, 0.0),)`` for a plain matrix.
        view: Where the values come from; ``None`` for a constant.
        constant: Value of every edge when ``view`` is ``None`` (1 for a skip).

    Example:
        >>> EdgeBlock("w", EdgeKind.LINEAR, 0, 1, 1, 3, 2).shape
        (1, 3, 2, 1)
    """

    name: str
    kind: EdgeKind
    sender: int
    receiver: int
    num_blocks: int
    num_receivers: int
    num_senders: int
    positions: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    view: EntryView | None = None
    constant: float = field(default=1.0)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the values of one network."""
        return (self.num_blocks, self.num_receivers, self.num_senders, self.num_positions)

    @property
    def num_positions(self) -> int:
        """Number of kernel elements or image positions."""
        return len(self.positions)

    @property
    def num_edges(self) -> int:
        """Number of (receiver, sender) pairs."""
        return self.num_blocks * self.num_receivers * self.num_senders
