"""What is known of a neuron and never changes under a symmetry: activation, place, variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.structure import Activation

__all__ = ["NeuronFacts"]


class NeuronFacts(nn.Module):
    """Learned activation embedding, distances from both ends, kind, running variance.

    Args:
        dim: Width of the embedding; facts are ``dim + 6`` wide (``width``).

    Example:
        >>> NeuronFacts(24).width
        30
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.activation = nn.Embedding(len(Activation), dim)
        self.width = dim + 6

    def forward(self, batch: GraphBatch, variance: Tensor) -> Tensor:
        """Facts ``[N, width]``.

        Args:
            batch: The neurons.
            variance: Running variance at unit scale ``[N]``.
        """
        dtype = batch.dtype
        depth, back = batch.depth.to(dtype), batch.reverse_depth.to(dtype)
        plain = torch.stack(
            [
                1 / (1 + depth),
                1 / (1 + back),
                (batch.kind == 0).to(dtype),
                (batch.kind == 2).to(dtype),
                batch.neuron_has[:, 2],
                # A variance is never negative; its logarithm tells magnitudes apart.
                (variance.clamp(min=0) + 1e-6).log() * batch.neuron_has[:, 2],
            ],
            dim=1,
        )
        return torch.cat([self.activation(batch.activation).to(dtype), plain], dim=1)
