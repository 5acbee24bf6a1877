"""DWSNet: all linear maps between weights and biases that commute with hidden permutations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paramgraph.nn.chains import ChainMetanetwork
from paramgraph.nn.metanetwork import Level
from paramgraph.nn.tensor_stacks import EntryLinear, EquivariantStack, InvariantHead

__all__ = ["DWSNet"]


class DWSNet(ChainMetanetwork):
    """Equivariant linear layers between all weights and biases, ReLU between them.

    Every weight and bias is mapped to every weight and bias; inputs and outputs are told apart and
    stand in the channels. The published layer is a sum of blocks, one per pair of tensors, divided
    by their number; here those that pool to the same axes are one matrix, which is the same space
    of maps. The published batch norm is left out: a prediction would depend on batch mates.

    Args:
        out_dim: Number of outputs.
        widths: Neurons of the networks read: inputs, each hidden layer, outputs.
        num_positions: Elements of the kernel of each layer (9 for 3 x 3); 1 when not given.
        hidden_dim: Channels of each entry between the layers.
        num_layers: Equivariant layers.
        reduction: ``"max"`` as in the published experiments, ``"mean"`` for linear layers.
        head_dim: Width of the MLP that reads the means.
        dropout: Between layers.
        level: ``"graph"`` or ``"parameter"``.

    Law: the output does not change when hidden neurons are permuted; entries move with them.

    Raises:
        ValueError: Widths that make no chain, or an unknown reduction.

    Example:
        >>> DWSNet(10, widths=[2, 32, 32, 1]).promised_symmetries()
        frozenset({'permutation'})

    References:
        Navon et al. 2023, section 4 and appendix (https://arxiv.org/abs/2301.12780).
    """

    def __init__(
        self,
        out_dim: int,
        *,
        widths: Sequence[int],
        num_positions: Sequence[int] | None = None,
        hidden_dim: int = 32,
        num_layers: int = 5,
        reduction: str = "max",
        head_dim: int = 32,
        dropout: float = 0.0,
        level: Level = "graph",
    ) -> None:
        super().__init__(
            out_dim, widths=widths, num_positions=num_positions, told_apart=True, level=level
        )
        self.stack = EquivariantStack(
            self.axes,
            self.fixed,
            self.entry_channels(1),
            hidden_dim,
            num_layers,
            reduction=reduction,
            dropout=dropout,
        )
        if level == "graph":
            in_dim = sum(self.stack.out_dims)
            self.head = InvariantHead(in_dim, head_dim, out_dim, dropout=dropout)
        else:
            outputs = self.entry_channels(out_dim)
            self.last = EntryLinear(self.axes, self.fixed, hidden_dim, outputs)

    def encode(self, tensors: list[Tensor]) -> list[Tensor]:
        """Features of the entries; inputs and outputs of the networks stand in the channels."""
        features: list[Tensor] = self.stack(tensors)
        return features
