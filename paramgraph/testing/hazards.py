"""Small networks with one hazard each: what the laws are checked on when no others are given."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paramgraph.capture.running import ExampleInputs
from paramgraph.testing.layer_hazards import layer_hazards
from paramgraph.testing.pointwise_hazards import pointwise_hazards
from paramgraph.testing.sequence_hazards import sequence_hazards
from paramgraph.testing.wiring import Wired, multilayer, pooled

__all__ = ["ExampleNetwork", "hazard_networks"]


class ExampleNetwork(NamedTuple):
    """A network to check laws on, and what to call it with.

    Attributes:
        name: Shown in reports.
        network: Any module that ``capture`` reads.
        example_inputs: As for ``capture``; a batch of two or more.

    Example:
        >>> ExampleNetwork("tiny", nn.Linear(3, 2), torch.randn(4, 3)).name
        'tiny'
    """

    name: str
    network: nn.Module
    example_inputs: ExampleInputs


def _residual() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(n.first(x))
        return n.head(hidden + torch.relu(n.block(hidden)))

    return Wired(wiring, first=nn.Linear(3, 5), block=nn.Linear(5, 5), head=nn.Linear(5, 2))


def _projection_skip() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stem = torch.relu(n.stem(x))
        joined = torch.relu(n.norm(n.conv(stem)) + n.projection(stem))
        return n.head(joined.mean((2, 3)))

    return Wired(
        wiring,
        stem=nn.Conv2d(1, 2, 3),
        conv=nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False),
        norm=nn.BatchNorm2d(3),
        projection=nn.Conv2d(2, 3, 1, stride=2),
        head=nn.Linear(3, 2),
    )


def _tied() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(
        *(nn.Linear(3, 4), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2))
    )


def _siren() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(torch.sin(30.0 * n.second(torch.sin(30.0 * n.first(x)))))

    return Wired(wiring, first=nn.Linear(2, 5), second=nn.Linear(5, 5), head=nn.Linear(5, 1))


def _two_inputs() -> nn.Module:
    def wiring(n: Any, x: Tensor, y: Tensor) -> Tensor:
        return n.head(torch.relu(n.left(x) + n.right(y)))

    left, right = nn.Linear(3, 5), nn.Linear(2, 5, bias=False)
    return Wired(wiring, left=left, right=right, head=nn.Linear(5, 2))


def hazard_networks(seed: int = 0) -> list[ExampleNetwork]:
    """Networks of fewer than 300 parameters, each with one thing that can go wrong.

    Args:
        seed: Of the weights and inputs; the global random state is left alone.

    Returns:
        Networks in evaluation mode. No gain is 1 and no bias or running statistic is 0, so that a
        wrong permutation cannot hide.

    Example:
        >>> [row.name for row in hazard_networks()][:3]
        ['mlp', 'no_bias', 'mixed_activations']
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vector, image, series = torch.randn(4, 3), torch.randn(3, 1, 6, 6), torch.randn(3, 2, 12)
        mixed = nn.Sequential(
            *(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU()),
            *(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)),
        )
        strided = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 4, 2, stride=2),
            nn.SiLU(),
        )
        one_dim = (nn.Conv1d(2, 4, 3), nn.LeakyReLU(), nn.Conv1d(4, 3, 2, stride=2), nn.Tanh())
        depthwise = (nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU())
        flatten = (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
        batch_norm = (nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
        layer_norm = (nn.Linear(3, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 2))
        group_norm = (nn.Conv2d(1, 6, 2), nn.GroupNorm(3, 6), nn.SiLU())
        networks: list[tuple[str, nn.Module, ExampleInputs]] = [
            ("mlp", multilayer(nn.ReLU, 3, 5, 4, 2), vector),
            ("no_bias", multilayer(nn.LeakyReLU, 3, 5, 2, bias=False), vector),
            ("mixed_activations", mixed, vector),
            ("strided_cnn", pooled(*strided, num=4), image),
            ("cnn_1d", pooled(*one_dim, num=3, pool=nn.AdaptiveAvgPool1d(1)), series),
            ("depthwise", pooled(*depthwise, num=4), image),
            ("flatten", nn.Sequential(*flatten), image),
            ("residual", _residual(), vector),
            ("projection_skip", _projection_skip(), image),
            ("batch_norm", nn.Sequential(*batch_norm), vector),
            ("layer_norm", nn.Sequential(*layer_norm), vector),
            ("group_norm", pooled(*group_norm, num=6), image),
            ("tied", _tied(), vector),
            ("siren", _siren(), torch.randn(6, 2)),
            ("two_inputs", _two_inputs(), (vector, torch.randn(4, 2))),
        ]
        found = [ExampleNetwork(name, _disturb(net), inputs) for name, net, inputs in networks]
        # Each list is made after those before it have got their weights, which thus stay the same.
        for make in (lambda: [*layer_hazards(), *sequence_hazards()], pointwise_hazards):
            found += [ExampleNetwork(name, _disturb(net), inputs) for name, net, inputs in make()]
        return found


@torch.no_grad()
def _disturb(network: nn.Module) -> nn.Module:
    """Move every parameter and running statistic away from its default, by the global seed."""
    for parameter in network.parameters():
        parameter.add_(0.4 * torch.randn_like(parameter))
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point():
            noise = torch.randn_like(buffer)
            buffer.copy_(noise.exp() if name.endswith("running_var") else noise)
    return network.eval()
