"""Small convolutional classifiers: the architecture as data, and the module it builds."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from paramgraph.errors import ZooError
from paramgraph.zoo.checks import require_positive

__all__ = ["ACTIVATION_NAMES", "CNN", "NUM_GROUPS", "activation_module"]

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
ACTIVATION_NAMES = tuple(_ACTIVATIONS)
_NORMS = ("none", "batch", "layer", "group")
_HEADS = ("pool", "flatten")
NUM_GROUPS = 4  # of the norm "group"
_SMALLEST_SIDE = 4  # layers halve the image until its side is at most this


class _ConvNetwork(nn.Module):
    """Convolutions with optional norms and residual additions; pool or flatten; linear."""

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
        self.activation = activation_module(spec.activation)
        self.is_residual = spec.is_residual_layer
        self.pools = spec.head == "pool"
        self.head = nn.Linear(spec.head_dim, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, is_residual in zip(self.convs, self.norms, self.is_residual, strict=True):
            h = self.activation(norm(conv(x)))
            x = x + h if is_residual else h
        return self.head(x.mean(dim=(2, 3)) if self.pools else x.flatten(1))


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
        _require_choice(self, "activation", ACTIVATION_NAMES)
        _require_choice(self, "norm", _NORMS)
        _require_choice(self, "head", _HEADS)
        require_positive(self, "in_channels", "num_classes", "widths", "image_size")
        require_positive(self, "kernel_sizes")
        if len(self.kernel_sizes) != len(self.widths) or any(k % 2 == 0 for k in self.kernel_sizes):
            raise ZooError(
                f"CNN: expected kernel_sizes to be {len(self.widths)} odd numbers, one per entry "
                f"of widths {self.widths}, got {self.kernel_sizes}."
            )
        if self.norm == "group" and any(width % NUM_GROUPS for width in self.widths):
            raise ZooError(
                f"CNN: norm 'group' needs widths divisible by {NUM_GROUPS}, got {self.widths}."
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

    def sample_parameters(
        self, num: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw the initial weights of ``num`` networks at once, with the law of :meth:`build`.

        Args:
            num: Number of networks.
            generator: Source of randomness; PyTorch's global one if None.

        Returns:
            The entries of a state dict, stacked: tensors of shape ``[num, ...]``.
        """
        with torch.device("meta"):
            network = self.build()
        state: dict[str, Tensor] = {}
        for prefix, module in network.named_modules():
            for leaf, value in module.state_dict().items():
                if "." in leaf or not prefix:
                    continue
                size = (num, *value.shape)
                if isinstance(module, nn.Conv2d | nn.Linear):
                    bound = module.weight[0].numel() ** -0.5
                    unit = torch.rand(size, generator=generator, dtype=torch.float32)
                    entry = unit.mul_(2 * bound).sub_(bound)
                else:  # a norm starts as the identity
                    start = 1.0 if leaf in ("weight", "running_var") else 0.0
                    entry = torch.full(size, start).to(value.dtype)
                state[f"{prefix}.{leaf}"] = entry
        return state

    def build(self) -> nn.Module:
        """Return a new network with PyTorch's default random initial weights."""
        return _ConvNetwork(self)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return a batch of three random images, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        size = (3, self.in_channels, self.image_size, self.image_size)
        return (torch.rand(size, generator=generator, dtype=torch.float32),)


def activation_module(name: str) -> nn.Module:
    """Return the activation of that name, one of :data:`ACTIVATION_NAMES`."""
    return _ACTIVATIONS[name]()


def _make_norm(norm: str, width: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "layer":
        return nn.GroupNorm(1, width)
    if norm == "group":
        return nn.GroupNorm(NUM_GROUPS, width)
    return nn.Identity()


def _require_choice(spec: CNN, field: str, choices: tuple[str, ...]) -> None:
    value = getattr(spec, field)
    if value not in choices:
        raise ZooError(f"CNN: expected {field} to be one of {', '.join(choices)}, got {value!r}.")
