"""SIRENs, networks that store one signal each: the architecture as data, and its module."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from paramgraph.zoo.checks import require_positive

__all__ = ["Siren"]


class _SirenNetwork(nn.Module):
    """Coordinates to values through sine layers: ``x <- sin(omega (W x + b))``."""

    def __init__(self, spec: "Siren") -> None:
        super().__init__()
        self.omega = spec.omega
        self.output_offset = spec.output_offset
        dims = spec.dims
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out) for d_in, d_out in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x) + self.output_offset


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
        require_positive(self, "in_dim", "widths", "out_dim", "omega")

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
        for layer, (fan_in, fan_out) in enumerate(pairwise(self.dims)):
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
