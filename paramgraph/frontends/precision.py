"""Numbers that a file fixed at its export: how they follow the network to another precision.

An exported graph says "cast to float32" where the network said "cast to the type of my weights".
When the loaded network is moved, say by ``network.double()`` (as ``verify`` does), such casts must
move too.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

__all__ = ["Precision"]


class Precision:
    """The floating-point type and the device that a network has now, and the type of its file.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> precision = Precision(network)
        >>> precision.update(network.double())
        >>> precision.dtype(torch.float32), precision.dtype(torch.float16)
        (torch.float64, torch.float16)
    """

    def __init__(self, network: nn.Module) -> None:
        """Remember the type that most numbers of the network have."""
        counts: Counter[torch.dtype] = Counter()
        for tensor in _floating(network):
            counts[tensor.dtype] += tensor.numel()
        self.stored = counts.most_common(1)[0][0] if counts else torch.float32
        self.index = next(
            (i for i, tensor in enumerate(_floating(network)) if tensor.dtype == self.stored), None
        )
        self.current = self.stored
        self.device = torch.device("cpu")

    def update(self, network: nn.Module) -> None:
        """Look at the network again, before each run."""
        found = _floating(network)
        if self.index is not None and self.index < len(found):
            self.current = found[self.index].dtype
        any_tensor = next(iter(network.parameters()), next(iter(network.buffers()), None))
        if any_tensor is not None:
            self.device = any_tensor.device

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type to use where the file says ``dtype``."""
        return self.current if dtype == self.stored else dtype


def _floating(network: nn.Module) -> list[Tensor]:
    tensors = [*network.parameters(), *network.buffers()]
    return [tensor for tensor in tensors if tensor.is_floating_point()]
