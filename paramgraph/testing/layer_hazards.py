"""Hazards of single layers: groups and norms of channels, slopes, joined neurons, phases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.testing.wiring import Wired, pooled

__all__ = ["layer_hazards"]


def layer_hazards() -> list[tuple[str, nn.Module, Tensor]]:
    """Names, networks and example inputs, by the global random state.

    Example:
        >>> [name for name, _, _ in layer_hazards()][:2]
        ['siren_large_biases', 'grouped_conv']
    """
    vector, image = torch.randn(4, 3), torch.randn(3, 1, 6, 6)
    grouped = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=2), nn.ReLU())
    transposed = (nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2, 2), nn.SiLU())
    instance_norm = (nn.Conv2d(1, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.ReLU())
    rms_norm = (nn.Linear(3, 5), nn.RMSNorm(5, eps=0.01), nn.Linear(5, 4), nn.ReLU())
    prelu = (nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 2))
    return [
        ("siren_large_biases", _siren_large_biases(), torch.randn(6, 2)),
        ("grouped_conv", pooled(*grouped, num=6), image),
        ("transposed_conv", pooled(*transposed, num=4), image),
        ("instance_norm", pooled(*instance_norm, nn.Conv2d(4, 3, 2), num=3), image),
        ("rms_norm", nn.Sequential(*rms_norm, nn.Linear(4, 2)), vector),
        ("prelu", nn.Sequential(*prelu), vector),
        ("concatenation", _concatenation(), vector),
    ]


def _concatenation() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        left = torch.relu(n.left(x))
        return n.head(torch.cat([left, torch.tanh(n.right(x)), n.again(left)], 1))

    left, right, again = nn.Linear(3, 4), nn.Linear(3, 3), nn.Linear(4, 2)
    return Wired(wiring, left=left, right=right, again=again, head=nn.Linear(9, 2))


def _siren_large_biases() -> nn.Module:
    """Biases of many half periods, and one layer of sines that is read twice."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        first = torch.sin(30.0 * n.first(x))
        return n.head(torch.sin(2.0 * n.second(first))) + n.bypass(first)

    first, second, head = nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 1)
    with torch.no_grad():
        for layer in (first, second):
            layer.bias.add_(5 * torch.randn_like(layer.bias))
    bypass = nn.Linear(5, 1, bias=False)
    return Wired(wiring, first=first, second=second, head=head, bypass=bypass)
