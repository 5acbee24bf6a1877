"""Architectures of zoo networks: frozen dataclasses that build ordinary PyTorch modules.

An architecture is data. It goes to JSON and back through a fixed table of two kinds, so opening a
zoo never imports or evaluates anything named in a file.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paramgraph.errors import ZooError

__all__ = ["CNN", "Architecture", "Siren", "architecture_from_json", "architecture_to_json"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
_NORMS = ("none", "batch", "layer", "group")
_HEADS = ("pool", "flatten")
_NUM_GROUPS = 4  # of the norm "group"
_SMALLEST_SIDE = 4  # layers halve the image until its side is at most this


class _ConvNetwork(nn.Module):
    """Convolutions with optional norms and residual additions, then pool or flatten, then linear."""

    def __init__(self, spec: "CNN") -> None:
        super().__init__()
        channels = (spec.in_channels, *spec.widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
            for c_in, c_out, kernel, stride in zip(
                channels, spec.widths, spec.kernel_sizes, spec.strides, strict=False
            )
        )
        self.norms = nn.ModuleList(_make_norm(spec.norm, width) for width in spec.widths)
        self.activation = _ACTIVATIONS[spec.activation]()
        self.is_residual = spec.is_residual_layer
        self.pools = spec.head == "pool"
        self.head = nn.Linear(spec.head_dim, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, is_residual in zip(self.convs, self.norms, self.is_residual, strict=True):
            h = self.activation(norm(conv(x)))
            x = x + h if is_residual else h
        return self.head(x.mean(dim=(2, 3)) if self.pools else x.flatten(1))


class _SirenNetwork(nn.Module):
    """Coordinates to values through sine layers: ``x <- sin(omega (W x + b))``."""

    def __init__(self, spec: "Siren") -> None:
        super().__init__()
        self.omega = spec.omega
        self.output_offset = spec.output_offset
        dims = spec.dims
        self.layers = nn.ModuleList(
            nn.Linear(d_in, d_out) for d_in, d_out in zip(dims[:-1], dims[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x) + self.output_offset


@dataclass(frozen=True, kw_only=True)
class CNN:
    """A small convolutional classifier of square images.

    Each layer is convolution, norm, activation. A layer has stride 2 as long as the image is wider
    than 4 pixels, so an 8 x 8 image is 4 x 4 from the first layer on. With ``residual``, the input
    of a layer is added to its output wherever the two have the same shape.

    Attributes:
        in_channels: 1 for grey images, 3 for colour.
        num_classes: Number of outputs.
        widths: Output channels of each convolution.
        kernel_sizes: One odd number per convolution.
        activation: ``relu``, ``leaky_relu``, ``elu``, ``gelu``, ``silu``, ``softplus``, ``tanh``
            or ``sigmoid``.
        norm: ``none``; ``batch``; ``layer`` (over channels and positions, ``GroupNorm(1, C)``);
            ``group`` (``GroupNorm(4, C)``).
        residual: Whether equal-shaped layers have a skip connection.
        head: ``pool`` (mean over positions) or ``flatten``, before the last linear layer.
        image_size: Height and width of the images.

    Raises:
        ZooError: A field has a value outside the lists above.

    Example:
        >>> cnn = CNN(widths=(8, 8), kernel_sizes=(3, 3), residual=True)
        >>> cnn.name
        'cnn-1x8-k3x8-k3-relu-none-residual-pool-8px-10'
        >>> cnn.build()(*cnn.example_inputs()).shape
        torch.Size([3, 10])
    """

    kind: ClassVar[str] = "cnn"

    in_channels: int = 1
    num_classes: int = 10
    widths: tuple[int, ...] = (16, 16, 16)
    kernel_sizes: tuple[int, ...] = (3, 3, 3)
    activation: str = "relu"
    norm: str = "none"
    residual: bool = False
    head: str = "pool"
    image_size: int = 8

    def __post_init__(self) -> None:
        _require_choice(self, "activation", tuple(_ACTIVATIONS))
        _require_choice(self, "norm", _NORMS)
        _require_choice(self, "head", _HEADS)
        _require_positive(self, "in_channels", "num_classes", "widths", "image_size")
        _require_positive(self, "kernel_sizes")
        if len(self.kernel_sizes) != len(self.widths) or any(k % 2 == 0 for k in self.kernel_sizes):
            raise ZooError(
                f"CNN: expected kernel_sizes to be {len(self.widths)} odd numbers, one per entry "
                f"of widths {self.widths}, got {self.kernel_sizes}."
            )
        if self.norm == "group" and any(width % _NUM_GROUPS for width in self.widths):
            raise ZooError(
                f"CNN: norm 'group' needs widths divisible by {_NUM_GROUPS}, got {self.widths}."
            )

    @property
    def name(self) -> str:
        """Readable name, different for different architectures."""
        layers = "x".join(
            f"{width}-k{kernel}"
            for width, kernel in zip(self.widths, self.kernel_sizes, strict=True)
        )
        residual = "-residual" if self.residual else ""
        return (
            f"cnn-{self.in_channels}x{layers}-{self.activation}-{self.norm}{residual}"
            f"-{self.head}-{self.image_size}px-{self.num_classes}"
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each convolution."""
        strides, side = [], self.image_size
        for _ in self.widths:
            strides.append(2 if side > _SMALLEST_SIDE else 1)
            side = math.ceil(side / strides[-1])
        return tuple(strides)

    @property
    def is_residual_layer(self) -> tuple[bool, ...]:
        """Whether the input of each layer is added to its output."""
        channels = (self.in_channels, *self.widths)
        return tuple(
            self.residual and stride == 1 and channels[i] == channels[i + 1]
            for i, stride in enumerate(self.strides)
        )

    @property
    def head_dim(self) -> int:
        """Number of inputs of the last linear layer."""
        side = self.image_size
        for stride in self.strides:
            side = math.ceil(side / stride)
        return self.widths[-1] * (1 if self.head == "pool" else side * side)

    def build(self) -> nn.Module:
        """Return a new network with PyTorch's default random initial weights."""
        return _ConvNetwork(self)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return a batch of three random images, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        size = (3, self.in_channels, self.image_size, self.image_size)
        return (torch.rand(size, generator=generator, dtype=torch.float32),)


@dataclass(frozen=True, kw_only=True)
class Siren:
    """An implicit neural representation (INR): a small network that stores one signal.

    Layers ``x <- sin(omega (W x + b))``, then a linear layer and ``+ output_offset``. Initial
    weights are uniform: within ``1 / in_dim`` in the first layer, within
    ``sqrt(6 / fan_in) / omega`` after it (Sitzmann et al.); biases within ``1 / sqrt(fan_in)``, as
    in ``nn.Linear``.

    Attributes:
        in_dim: Number of coordinates, 2 for images: row, then column.
        widths: Width of each sine layer.
        out_dim: Number of values per point: 1 for grey, 3 for colour.
        omega: Frequency factor of every sine layer.
        output_offset: Added to the output, so that a zero output is mid-grey.

    Raises:
        ZooError: A size is not positive.

    Example:
        >>> siren = Siren(widths=(10, 10), omega=3.0)
        >>> siren.name
        'siren-2x10x10x1-omega3-offset0.5'
        >>> siren.build()(*siren.example_inputs()).shape
        torch.Size([3, 1])

    References:
        Sitzmann et al. 2020 (https://arxiv.org/abs/2006.09661).
    """

    kind: ClassVar[str] = "siren"

    in_dim: int = 2
    widths: tuple[int, ...] = (32, 32)
    out_dim: int = 1
    omega: float = 30.0
    output_offset: float = 0.5

    def __post_init__(self) -> None:
        _require_positive(self, "in_dim", "widths", "out_dim", "omega")

    @property
    def name(self) -> str:
        """Readable name, different for different architectures."""
        sizes = "x".join(str(dim) for dim in self.dims)
        return f"siren-{sizes}-omega{self.omega:g}-offset{self.output_offset:g}"

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of every layer, from the coordinates to the values."""
        return (self.in_dim, *self.widths, self.out_dim)

    def sample_parameters(
        self, num: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw the initial weights of ``num`` INRs at once.

        Args:
            num: Number of INRs.
            generator: Source of randomness; PyTorch's global one if None.

        Returns:
            The entries of a state dict, stacked: tensors of shape ``[num, ...]``.
        """
        state: dict[str, Tensor] = {}
        for layer, (fan_in, fan_out) in enumerate(zip(self.dims[:-1], self.dims[1:], strict=True)):
            bound = 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / self.omega
            shapes = {"weight": (bound, (fan_out, fan_in)), "bias": (fan_in**-0.5, (fan_out,))}
            for leaf, (limit, shape) in shapes.items():
                unit = torch.rand((num, *shape), generator=generator, dtype=torch.float32)
                state[f"layers.{layer}.{leaf}"] = unit.mul_(2 * limit).sub_(limit)
        return state

    def build(self) -> nn.Module:
        """Return a new network with random initial weights."""
        network = _SirenNetwork(self)
        state = self.sample_parameters(1)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(state[name][0])
        return network

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return a batch of three random points, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        points = torch.rand((3, self.in_dim), generator=generator, dtype=torch.float32)
        return (2 * points - 1,)


Architecture = CNN | Siren
_KINDS: dict[str, type[CNN] | type[Siren]] = {"cnn": CNN, "siren": Siren}


def architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    """Turn an architecture into plain JSON data; the inverse of :func:`architecture_from_json`.

    Example:
        >>> architecture_to_json(Siren(widths=(4,)))["kind"]
        'siren'
    """
    fields = dataclasses.asdict(architecture)
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}
    return {"kind": architecture.kind, **plain}


def architecture_from_json(data: Mapping[str, Any]) -> Architecture:
    """Rebuild an architecture from the JSON data that :func:`architecture_to_json` made.

    Args:
        data: ``kind`` and every field of that kind.

    Returns:
        The architecture.

    Raises:
        ZooError: Unknown kind, or missing, additional or unsuitable fields.

    Example:
        >>> spec = Siren(widths=(4,))
        >>> architecture_from_json(architecture_to_json(spec)) == spec
        True
    """
    cls = _KINDS.get(str(data.get("kind")))
    if cls is None:
        raise ZooError(
            f"unknown architecture kind {data.get('kind')!r}; this version knows "
            f"{', '.join(sorted(_KINDS))}. A newer paramgraph may have written this zoo."
        )
    expected = {field.name for field in dataclasses.fields(cls)}
    got = set(data) - {"kind"}
    if got != expected:
        raise ZooError(
            f"architecture of kind '{cls.kind}': expected the fields {sorted(expected)}; "
            f"missing {sorted(expected - got)}, additional {sorted(got - expected)}."
        )
    fields = {key: data[key] for key in expected}
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})


def _make_norm(norm: str, width: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "layer":
        return nn.GroupNorm(1, width)
    if norm == "group":
        return nn.GroupNorm(_NUM_GROUPS, width)
    return nn.Identity()


def _require_choice(spec: CNN, field: str, choices: tuple[str, ...]) -> None:
    value = getattr(spec, field)
    if value not in choices:
        raise ZooError(f"CNN: expected {field} to be one of {', '.join(choices)}, got {value!r}.")


def _require_positive(spec: Architecture, *fields: str) -> None:
    for field in fields:
        value = getattr(spec, field)
        values = value if isinstance(value, tuple) else (value,)
        whole = field != "omega"
        if not values or any(
            isinstance(v, bool) or not isinstance(v, int if whole else int | float) or v <= 0
            for v in values
        ):
            number = "whole numbers" if whole else "a number"
            raise ZooError(
                f"{type(spec).__name__}: expected {field} to be positive {number}, got {value!r}."
            )
