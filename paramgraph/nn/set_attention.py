"""Attention over the neurons of one network through a few learned points: no pairs of neurons.

Networks of a batch have any number of neurons, so softmax and sums run over the flat tensor of all
neurons, cut by the network that each belongs to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SetTransformer"]


class SetTransformer(nn.Module):
    """A set of vectors per network to one vector: points ask the neurons, seeds ask the points.

    ``H = points + attention(points, X)``, ``X' = X + attention(X, H)``, and a seed vector per
    output that attends to all ``X'``; each step has layer norms and a two-layer map. Cost is the
    number of neurons times the number of points, not the number of pairs of neurons.

    Args:
        dim: Width of the vectors, a multiple of ``num_heads``.
        num_points: Learned points per block.
        num_heads: Attention heads.
        num_blocks: Blocks before the seed.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Example:
        >>> pool = SetTransformer(8)
        >>> pool(torch.zeros(5, 8), torch.tensor([0, 0, 1, 1, 1]), 2).shape
        torch.Size([2, 8])

    References:
        Lee et al. 2019, section 3 (ISAB and PMA; https://arxiv.org/abs/1810.00825); used as a
        readout by Kofinas et al. 2024.
    """

    def __init__(
        self, dim: int, *, num_points: int = 8, num_heads: int = 4, num_blocks: int = 1
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got {num_heads} and {dim}.")
        self.dim = dim
        self.blocks = nn.ModuleList(_Block(dim, num_points, num_heads) for _ in range(num_blocks))
        self.seed = nn.Parameter(torch.randn(1, dim) * dim**-0.5)
        self.pool = _Attention(dim, num_heads)

    def forward(self, x: Tensor, network: Tensor, num_networks: int) -> Tensor:
        """Pool ``[n, dim]`` of networks ``[n]`` to ``[num_networks, dim]``."""
        for block in self.blocks:
            x = block(x, network, num_networks)
        return self.pool.from_neurons(self.seed.expand(num_networks, -1, -1), x, network)[:, 0]


class _Block(nn.Module):
    """Learned points gather from all neurons of a network, then neurons ask the points."""

    def __init__(self, dim: int, num_points: int, num_heads: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(num_points, dim) * dim**-0.5)
        self.gather, self.spread = _Attention(dim, num_heads), _Attention(dim, num_heads)

    def forward(self, x: Tensor, network: Tensor, num_networks: int) -> Tensor:
        found = self.gather.from_neurons(self.points.expand(num_networks, -1, -1), x, network)
        return self.spread.from_points(x, found, network)


class _Attention(nn.Module):
    """Multi-head attention, then a two-layer map, each with residual and layer norm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.map = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.scale = (dim // num_heads) ** -0.5

    def from_neurons(self, asking: Tensor, x: Tensor, network: Tensor) -> Tensor:
        """Queries ``[B, q, dim]`` of each network attend to all its neurons ``x [n, dim]``."""
        query, key, value = self._project(asking, x)
        scores = torch.einsum("nqhc,nhc->nqh", query[network], key) * self.scale
        largest = scores.new_zeros(len(asking), *scores.shape[1:]).scatter_reduce(
            0,
            network[:, None, None].expand_as(scores),
            scores.detach(),
            "amax",
            include_self=False,
        )
        weight = (scores - largest[network]).exp()
        total = torch.zeros_like(largest).index_add(0, network, weight)
        mixed = weight[..., None] * value[:, None]
        mean = mixed.new_zeros(len(asking), *mixed.shape[1:]).index_add(0, network, mixed)
        return self._finish(asking, mean / total[..., None])

    def from_points(self, asking: Tensor, points: Tensor, network: Tensor) -> Tensor:
        """Neurons ``[n, dim]`` attend to the points ``[B, p, dim]`` of their network."""
        query, key, value = self._project(asking, points)
        scores = torch.einsum("nhc,nphc->nph", query, key[network]) * self.scale
        mean = torch.einsum("nph,nphc->nhc", scores.softmax(1), value[network])
        return self._finish(asking, mean)

    def _project(self, asking: Tensor, answering: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.num_heads, -1)
        return (
            self.query(asking).unflatten(-1, heads),
            self.key(answering).unflatten(-1, heads),
            self.value(answering).unflatten(-1, heads),
        )

    def _finish(self, asking: Tensor, found: Tensor) -> Tensor:
        x = self.first(asking + self.out(found.flatten(-2)))
        return self.second(x + self.map(x))
