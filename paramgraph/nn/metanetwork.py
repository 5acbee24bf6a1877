"""What every metanetwork has in common: statistics of the training split, names, a head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn.pretrained import Pretrained

__all__ = ["Level", "Metanetwork", "mlp", "network_mean"]

Level = Literal["graph", "neuron", "parameter"]
"""What a metanetwork speaks about: each network, each neuron, or each entry of each parameter."""


class Metanetwork(Pretrained):
    """A module that reads a ``GraphBatch`` and predicts; at which ``level`` is its choice.

    | level | ``forward`` returns | law |
    |---|---|---|
    | ``"graph"`` | ``[num_networks, out_dim]`` | does not change under the promised symmetries |
    | ``"neuron"`` | ``[N, out_dim]``, rows as in the batch | moves with the neurons |
    | ``"parameter"`` | ``Entries`` with ``out_dim`` sets | moves and scales like the parameters |

    Subclasses work with ``out_dim`` alone. ``symmetries`` names the laws that the class promises:
    ``"permutation"``, ``"sign"``, ``"scale"`` (positive factors), ``"phase"`` (periods of the
    biases of sines); ``paramgraph.testing`` checks exactly these. ``levels`` names the levels that
    the class has.

    Args:
        out_dim: Number of outputs.
        level: What they are about.

    Raises:
        ValueError: The class does not have that level.

    Example:
        >>> Metanetwork(out_dim=2).out_dim
        2
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})
    levels: ClassVar[frozenset[str]] = frozenset({"graph"})

    def __init__(self, out_dim: int, *, level: Level = "graph") -> None:
        super().__init__()
        if level not in self.levels:
            raise ValueError(
                f"{type(self).__name__} has no outputs at level {level!r}; choose one of "
                f"{', '.join(sorted(self.levels))}."
            )
        self.out_dim = out_dim
        self.level = level

    def promised_symmetries(self) -> frozenset[str]:
        """The laws that this instance promises; may depend on its options."""
        return self.symmetries

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure what the metanetwork needs from the training split (scales of weights).

        Called once before training; the default needs nothing.
        """
        for _ in batches:
            return


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
