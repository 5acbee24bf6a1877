"""Small networks from layers and a function: what example networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

__all__ = ["Wired", "multilayer", "pooled"]


class Wired(nn.Module):
    """Layers or parameters, and a function of them and the inputs as forward.

    Example:
        >>> import torch
        >>> Wired(lambda n, x: n.first(x).sum(), first=nn.Linear(2, 3))(torch.zeros(4, 2)).shape
        torch.Size([])
    """

    def __init__(self, wiring: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.wiring = wiring
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the function."""
        return self.wiring(self, *inputs)


def multilayer(act: type[nn.Module], *sizes: int, bias: bool = True) -> nn.Module:
    """Linear layers of these sizes with an activation between them.

    Example:
        >>> len(multilayer(nn.ReLU, 3, 5, 2))
        3
    """
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(sizes):
        layers += [nn.Linear(num_in, num_out, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def pooled(*layers: nn.Module, num: int, pool: nn.Module | None = None) -> nn.Module:
    """Convolutional layers, the mean over all places, and a linear layer with two outputs.

    Example:
        >>> import torch
        >>> pooled(nn.Conv2d(1, 3, 2), num=3)(torch.zeros(4, 1, 5, 5)).shape
        torch.Size([4, 2])
    """
    pool = nn.AdaptiveAvgPool2d(1) if pool is None else pool
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(num, 2))
