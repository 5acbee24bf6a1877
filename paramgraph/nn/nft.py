"""NFT: attention between the rows and columns of neighbouring weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paramgraph.nn.chains import ChainMetanetwork
from paramgraph.nn.metanetwork import Level
from paramgraph.nn.tensor_stacks import (
    InvariantHead,
    PerTensorLinear,
    ValueWaves,
    with_end_waves,
)

__all__ = ["NFT", "WeightSpaceAttention"]


class WeightSpaceAttention(nn.Module):
    """Rows and columns that share an axis attend to each other; entries attend to tensors' means.

    For each axis a the rows of W_a, the columns of W_{a-1} and the bias b_{a-1} are vectors over
    the neurons of that axis, hence tokens. Their scores are ``sum_n q_n k_n / sqrt(N d)`` over its
    N neurons, their mixtures are vectors over the axis again, so nothing depends on the order of
    neurons. A weight gets what its row and its column got; a bias what its token got. The published
    third term, attention of each entry to all entries, is quadratic in the number of parameters;
    here an entry attends to the means of all weights and biases instead.

    Args:
        dim: Channels of each entry.
        num_heads: Attention heads; must divide ``dim``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Example:
        >>> layer = WeightSpaceAttention(8, 2)
        >>> [t.shape for t in layer([torch.zeros(7, 3, 2, 8), torch.zeros(7, 3, 8)])]
        [torch.Size([7, 3, 2, 8]), torch.Size([7, 3, 8])]

    References:
        Zhou et al. 2023b, section 3 (https://arxiv.org/abs/2305.13546).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide hidden_dim, got {num_heads} and {dim}.")
        self.num_heads = num_heads
        # Queries, keys and values of tokens over senders (rows), of tokens over receivers
        # (columns), and of entries.
        self.rows = nn.Linear(dim, 3 * dim, bias=False)
        self.columns = nn.Linear(dim, 3 * dim, bias=False)
        self.entries = nn.Linear(dim, dim, bias=False)
        self.means = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(3 * dim, dim)

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Map ``[B, receivers, senders, dim]`` and ``[B, receivers, dim]`` to the same shapes."""
        num = len(tensors) // 2
        weights, biases = tensors[:num], tensors[num:]
        rows, columns = [self.rows(w) for w in weights], [self.columns(w) for w in weights]
        single = [self.columns(b) for b in biases]
        over_senders: list[Tensor] = []
        over_receivers: list[Tensor] = []
        at_biases: list[Tensor] = []
        for axis in range(num + 1):
            # Tokens [B, tokens, neurons of the axis, 3 * dim].
            tokens = [rows[axis]] if axis < num else []
            if axis > 0:
                tokens += [columns[axis - 1].transpose(1, 2), single[axis - 1].unsqueeze(1)]
            mixed = self._attend(torch.cat(tokens, dim=1))
            parts = mixed.split([token.shape[1] for token in tokens], dim=1)
            if axis < num:
                over_senders.append(parts[0])
            if axis > 0:
                over_receivers.append(parts[-2].transpose(1, 2))
                at_biases.append(parts[-1].squeeze(1))
        summary = self._summary(tensors)
        results = [
            self.out(torch.cat([s, r, self._attend_to_means(w, summary)], dim=-1))
            for s, r, w in zip(over_senders, over_receivers, weights, strict=True)
        ]
        for bias, at in zip(biases, at_biases, strict=True):
            mean = self._attend_to_means(bias, summary)
            results.append(self.out(torch.cat([torch.zeros_like(at), at, mean], dim=-1)))
        return results

    def _attend(self, tokens: Tensor) -> Tensor:
        """Attention among tokens ``[B, T, N, 3 * dim]`` that are vectors over N neurons."""
        batch, num_tokens, size, width = tokens.shape
        heads, dim = self.num_heads, width // 3
        # [B, heads, T, N * d] for each of queries, keys and values
        q, k, v = (
            part.reshape(batch, num_tokens, size, heads, -1).permute(0, 3, 1, 2, 4).flatten(3)
            for part in tokens.chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)  # scaled by sqrt(N * d)
        mixed = mixed.unflatten(3, (size, -1)).permute(0, 2, 3, 1, 4)
        return mixed.reshape(batch, num_tokens, size, dim)

    def _summary(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, heads, 2 L, d]`` of the means of all tensors."""
        means = [t.mean(tuple(range(1, t.ndim - 1))) for t in tensors]
        keys, values = self.means(torch.stack(means, dim=1)).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def _heads(self, rows: Tensor) -> Tensor:
        """``[B, rows, dim]`` to ``[B, heads, rows, d]``."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend_to_means(self, tensor: Tensor, summary: tuple[Tensor, Tensor]) -> Tensor:
        queries = self._heads(self.entries(tensor).flatten(1, -2))
        mixed = nn.functional.scaled_dot_product_attention(queries, *summary)
        return mixed.transpose(1, 2).reshape(tensor.shape)


class _Block(nn.Module):
    """Attention, then an MLP per entry, each behind a norm of the entry's own channels."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WeightSpaceAttention(dim, num_heads)
        self.map = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        changes = self.attention([self.first(tensor) for tensor in tensors])
        moved = [t + self.dropout(c) for t, c in zip(tensors, changes, strict=True)]
        return [tensor + self.dropout(self.map(self.second(tensor))) for tensor in moved]


class NFT(ChainMetanetwork):
    """Neural functional transformer: equivariant attention along rows and columns.

    Inputs and outputs are told apart by waves that are added to their weights, layers by learned
    vectors; the attention itself is shared by all layers and does not depend on the widths.

    Args:
        out_dim: Number of outputs.
        widths: Neurons of the networks read: inputs, each hidden layer, outputs.
        num_positions: Elements of the kernel of each layer (9 for 3 x 3); 1 when not given.
        hidden_dim: Channels of each entry.
        num_layers: Blocks of attention and MLP.
        num_heads: Attention heads; must divide ``hidden_dim``.
        num_frequencies: Random Fourier features of weights and biases; 0 uses the values.
        sigma: Spread of their frequencies.
        num_waves: Channels that tell inputs and outputs apart (an even number).
        head_dim: Width of the MLP that reads the means.
        dropout: In the blocks.
        level: ``"graph"`` or ``"parameter"``.

    Law: the output does not change when hidden neurons are permuted; entries move with them.

    Raises:
        ValueError: Heads that do not divide the width, an odd number of waves, no layers, or widths
            that make no chain.

    Example:
        >>> NFT(10, widths=[2, 32, 32, 1]).promised_symmetries()
        frozenset({'permutation'})

    References:
        Zhou et al. 2023b (https://arxiv.org/abs/2305.13546).
    """

    def __init__(
        self,
        out_dim: int,
        *,
        widths: Sequence[int],
        num_positions: Sequence[int] | None = None,
        hidden_dim: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        num_frequencies: int = 16,
        sigma: float = 0.1,
        num_waves: int = 16,
        head_dim: int = 256,
        dropout: float = 0.0,
        level: Level = "graph",
    ) -> None:
        if num_waves % 2:
            raise ValueError(f"num_waves must be even (sines and cosines), got {num_waves}.")
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}.")
        super().__init__(
            out_dim, widths=widths, num_positions=num_positions, told_apart=False, level=level
        )
        self.num_waves = num_waves
        self.waves = ValueWaves(num_frequencies, sigma)
        channels = self.entry_channels(self.waves.per_value)
        for place in (0, len(self.num_positions) - 1, -1):
            channels[place] += num_waves
        dims = [hidden_dim] * len(channels)
        self.lift = PerTensorLinear(channels, dims)
        self.blocks = nn.ModuleList(
            _Block(hidden_dim, num_heads, dropout) for _ in range(num_layers)
        )
        if level == "graph":
            self.head = InvariantHead(sum(dims), head_dim, out_dim, dropout=dropout)
        else:
            self.last = PerTensorLinear(dims, self.entry_channels(out_dim))

    def encode(self, tensors: list[Tensor]) -> list[Tensor]:
        """Features ``[B, *axes, hidden_dim]`` of the entries."""
        values = [self.waves(tensor) for tensor in tensors]
        features: list[Tensor] = self.lift(with_end_waves(values, self.num_waves))
        for block in self.blocks:
            features = block(features)
        return features
