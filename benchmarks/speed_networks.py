"""The networks that speed is measured on: INRs, CNNs, a mixed batch, and single large INRs.

Weights are random: the time of no metanetwork depends on what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import paramgraph as pg

__all__ = ["NETWORKS", "Family", "Networks", "large", "make_networks"]


@dataclass(frozen=True)
class Family:
    """Networks of one architecture.

    Attributes:
        network: One of them.
        inputs: For ``capture``.
        states: Their weights, ``[num, ...]`` for each entry of the state dict.
        num: How many.
    """

    network: nn.Module
    inputs: tuple[Tensor, ...]
    states: dict[str, Tensor]
    num: int

    @property
    def num_parameters(self) -> int:
        """Of all of them together."""
        return sum(p.numel() for p in self.network.parameters()) * self.num


@dataclass(frozen=True)
class Networks:
    """What a batch is made of.

    Attributes:
        name: Of the set, ``"inr"`` or the like.
        families: By architecture.
        widths: Of the layers, where all are INRs of one layout.
    """

    name: str
    families: tuple[Family, ...]
    widths: tuple[int, ...] | None = None

    @property
    def num(self) -> int:
        """Number of networks."""
        return sum(family.num for family in self.families)

    @property
    def num_parameters(self) -> int:
        """Scalars of all of them."""
        return sum(family.num_parameters for family in self.families)

    def capture(self) -> list[pg.ParamGraph]:
        """One graph per architecture."""
        return [pg.capture(family.network, family.inputs) for family in self.families]

    def features(self, graphs: Sequence[pg.ParamGraph]) -> list[pg.Values]:
        """The weights of every architecture, as values."""
        pairs = zip(graphs, self.families, strict=True)
        return [graph.features(family.states) for graph, family in pairs]

    def batch(self) -> pg.GraphBatch:
        """All in one batch."""
        graphs = self.capture()
        return pg.collate(list(zip(graphs, self.features(graphs), strict=True)))


class _Vision(nn.Module):
    """A vision transformer of one block on images 8 x 8."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 5, dim))
        self.first_norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.second_norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        stream = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.positions
        packed = self.projection(self.first_norm(stream)).unflatten(-1, (3, 2, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        stream = stream + self.out(mixed.transpose(1, 2).flatten(2))
        stream = stream + self.down(nn.functional.gelu(self.up(self.second_norm(stream))))
        return self.head(stream[:, 0])


class _Recurrent(nn.Module):
    """An LSTM on series of 4 values, read at the last step."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, dim, batch_first=True)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def _perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def _family(network: nn.Module, inputs: tuple[Tensor, ...], num: int) -> Family:
    states = {}
    for name, value in network.state_dict().items():
        noise = 0.1 * torch.randn(num, *value.shape) if value.is_floating_point() else 0
        states[name] = value.expand(num, *value.shape) + noise
    return Family(network.eval(), inputs, states, num)


def _inrs(spec: pg.zoo.Siren, num: int, name: str) -> Networks:
    family = Family(spec.build(), spec.example_inputs(), spec.sample_parameters(num), num)
    return Networks(name, (family,), spec.dims)


def _cnns(num: int, num_architectures: int = 8) -> list[Family]:
    each = max(1, num // num_architectures)
    specs = pg.zoo.sample_architectures(num_architectures, seed=0)
    return [_family(spec.build(), spec.example_inputs(), each) for spec in specs]


def _mixed(num: int) -> list[Family]:
    each = max(1, num // 8)
    siren = pg.zoo.Siren()
    return [
        Family(siren.build(), siren.example_inputs(), siren.sample_parameters(2 * each), 2 * each),
        *_cnns(2 * each, 2),
        _family(_Vision(), (torch.randn(3, 1, 8, 8),), 2 * each),
        _family(_Recurrent(), (torch.randn(3, 5, 4),), each),
        _family(_perceptron(), (torch.randn(3, 8),), each),
    ]


def large(width: int, second: int | None = None) -> Networks:
    """One INR ``[2, width, second, 3]``, both widths equal when the second is not given."""
    spec = pg.zoo.Siren(widths=(width, second or width), out_dim=3)
    return _inrs(spec, 1, f"large-{width}" + (f"-{second}" if second else ""))


NETWORKS = {
    "inr": "INRs [2, 32, 32, 1]",
    "cnn": "CNNs of 8 architectures",
    "mixed": "INRs, CNNs, vision transformers, LSTMs and MLPs in one batch",
    "large": "one INR [2, H, H, 3]",
}
"""Name of a set to what is in it; ``"large-512"`` is the last one with H = 512."""


def make_networks(name: str, num: int = 64, *, seed: int = 0) -> Networks:
    """A set of networks by name.

    Args:
        name: A key of ``NETWORKS``; ``"large-H"`` or ``"large-H-K"`` with widths.
        num: About how many networks; the large one is alone.
        seed: Of the weights.

    Raises:
        ValueError: There is no such set.

    Example:
        >>> make_networks("large-8").num_parameters
        123
    """
    torch.manual_seed(seed)
    if name.startswith("large-"):
        return large(*(int(width) for width in name.split("-")[1:]))
    if name == "inr":
        return _inrs(pg.zoo.Siren(), num, name)
    if name == "cnn":
        return Networks(name, tuple(_cnns(num)))
    if name == "mixed":
        return Networks(name, tuple(_mixed(num)))
    raise ValueError(f"no set of networks is named {name!r}; choose one of {', '.join(NETWORKS)}.")
