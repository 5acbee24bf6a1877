"""Hazards of functions: those that lose a sign, or turn a factor into another one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.testing.wiring import Wired

__all__ = ["pointwise_hazards"]


def pointwise_hazards() -> list[tuple[str, nn.Module, Tensor]]:
    """Names, networks and example inputs, by the global random state.

    Example:
        >>> [name for name, _, _ in pointwise_hazards()]
        ['cosine', 'absolute', 'square']
    """
    vector = torch.randn(4, 3)
    return [
        ("cosine", _between(lambda x: torch.cos(3.0 * x)), vector),
        ("absolute", _between(torch.abs), vector),
        ("square", _between(torch.square), vector),
    ]


def _between(function: Any) -> nn.Module:
    """Two layers with a function after each."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(function(n.second(function(n.first(x)))))

    return Wired(wiring, first=nn.Linear(3, 4), second=nn.Linear(4, 5), head=nn.Linear(5, 2))
