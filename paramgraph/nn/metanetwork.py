"""What every metanetwork has in common: statistics of the training split, names, a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.errors import CheckpointError

__all__ = ["Metanetwork", "mlp", "network_mean"]


class Metanetwork(nn.Module):
    """A module that reads a ``GraphBatch`` and predicts ``[num_networks, out_dim]``.

    Subclasses work with ``out_dim`` alone. ``symmetries`` names the laws that the class promises:
    ``"permutation"``, ``"sign"``, ``"scale"`` (positive factors); ``paramgraph.testing`` checks
    exactly these.

    Example:
        >>> Metanetwork(out_dim=2).out_dim
        2
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.config: dict[str, Any] | None = None

    def promised_symmetries(self) -> frozenset[str]:
        """The laws that this instance promises; may depend on its options."""
        return self.symmetries

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure what the metanetwork needs from the training split (scales of weights).

        Called once before training; the default needs nothing.
        """
        for _ in batches:
            return

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take over stored weights.

        Args:
            tensors: A state dict of the same class and options.
            source: Where they come from, for the message.

        Raises:
            CheckpointError: The tensors are not those of this metanetwork.
        """
        try:
            self.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise CheckpointError(
                f"{source} does not fit {type(self).__name__} with {self.config}: {error}"
            ) from error


def mlp(in_dim: int, hidden_dim: int, out_dim: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Linear, SiLU, dropout, Linear.

    Example:
        >>> import torch
        >>> mlp(3, 8, 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_dim, out_dim),
    )


def network_mean(values: Tensor, network: Tensor, num_networks: int) -> Tensor:
    """Mean of neuron values ``[n, dim]`` per network ``[num_networks, dim]`` (0 without neurons).

    Example:
        >>> import torch
        >>> network_mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [5.]])
    """
    total = values.new_zeros(num_networks, values.shape[1]).index_add(0, network, values)
    count = values.new_zeros(num_networks).index_add(0, network, values.new_ones(len(network)))
    return total / count.clamp(min=1)[:, None]
