"""NFN: neural functional networks, with inputs and outputs exchangeable (NP) or not (HNP)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paramgraph.nn.chains import ChainMetanetwork
from paramgraph.nn.metanetwork import Level
from paramgraph.nn.tensor_stacks import (
    EntryLinear,
    EquivariantStack,
    InvariantHead,
    ValueWaves,
    with_end_waves,
)

__all__ = ["NFN"]


class NFN(ChainMetanetwork):
    """Neural functional network: equivariant linear layers between all weights and biases.

    Variant ``"HNP"`` permutes hidden neurons only, with inputs and outputs in the channels;
    ``"NP"`` permutes inputs and outputs too, has fewer maps, none of which depends on the widths,
    and tells inputs and outputs apart by waves that are added to their weights. Values enter as
    Fourier features. HNP layers are the same space of maps as those of ``DWSNet``. (The published
    HNP layer has some of them twice and lacks the one from the last hidden bias to the last
    weight; published layers also keep a kernel's elements apart between the layers.)

    Args:
        out_dim: Number of outputs.
        widths: Neurons of the networks read: inputs, each hidden layer, outputs.
        num_positions: Elements of the kernel of each layer (9 for 3 x 3); 1 when not given.
        variant: ``"NP"`` or ``"HNP"``.
        hidden_dim: Channels of each entry between the layers.
        num_layers: Equivariant layers.
        num_frequencies: Random Fourier features of weights and biases; 0 uses the values.
        sigma: Spread of their frequencies.
        num_waves: Channels that tell inputs and outputs apart, for ``"NP"`` (an even number).
        head_dim: Width of the MLP that reads the means.
        dropout: Between layers.
        level: ``"graph"`` or ``"parameter"``.

    Law: the output does not change when hidden neurons are permuted; entries move with them.

    Raises:
        ValueError: An unknown variant, an odd number of waves, or widths that make no chain.

    Example:
        >>> NFN(10, widths=[2, 32, 32, 1], variant="NP").variant
        'NP'

    References:
        Zhou et al. 2023, section 3 (https://arxiv.org/abs/2302.14040).
    """

    def __init__(
        self,
        out_dim: int,
        *,
        widths: Sequence[int],
        num_positions: Sequence[int] | None = None,
        variant: str = "HNP",
        hidden_dim: int = 64,
        num_layers: int = 3,
        num_frequencies: int = 16,
        sigma: float = 0.1,
        num_waves: int = 16,
        head_dim: int = 256,
        dropout: float = 0.0,
        level: Level = "graph",
    ) -> None:
        if variant not in ("NP", "HNP"):
            raise ValueError(f"variant must be 'NP' or 'HNP', got {variant!r}.")
        if num_waves % 2:
            raise ValueError(f"num_waves must be even (sines and cosines), got {num_waves}.")
        super().__init__(
            out_dim,
            widths=widths,
            num_positions=num_positions,
            told_apart=variant == "HNP",
            level=level,
        )
        self.variant = variant
        self.num_waves = num_waves if variant == "NP" else 0
        self.waves = ValueWaves(num_frequencies, sigma)
        channels = self.entry_channels(self.waves.per_value)
        for place in (0, len(self.num_positions) - 1, -1):
            channels[place] += self.num_waves
        self.stack = EquivariantStack(
            self.axes, self.fixed, channels, hidden_dim, num_layers, dropout=dropout
        )
        if level == "graph":
            in_dim = sum(self.stack.out_dims)
            self.head = InvariantHead(in_dim, head_dim, out_dim, dropout=dropout)
        else:
            outputs = self.entry_channels(out_dim)
            self.last = EntryLinear(self.axes, self.fixed, hidden_dim, outputs)

    def encode(self, tensors: list[Tensor]) -> list[Tensor]:
        """Features of the entries, with told-apart inputs and outputs in the channels (HNP)."""
        values = [self.waves(tensor) for tensor in tensors]
        features: list[Tensor] = self.stack(with_end_waves(values, self.num_waves))
        return features
