"""What is known of a neuron and never changes under a symmetry: activation, place, variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn.per_layout import per_layout
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
        kinds, plain, of_row = per_layout(batch, "facts", lambda: _of_groups(batch))
        groups = torch.cat([self.activation(kinds).to(dtype), plain], dim=1)
        # A variance is never negative; its logarithm tells magnitudes apart.
        size = (variance.clamp(min=0) + 1e-6).log() * batch.neuron_has[:, 2]
        return torch.cat([groups.index_select(0, of_row), size[:, None]], dim=1)


def _of_groups(batch: GraphBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Activations and plain facts of the neuron groups, and the group of each neuron.

    All neurons of a group have the same facts but the variance, and gradients of a few rows are
    summed faster than those of one row per neuron.
    """
    device, dtype = batch.network.device, batch.dtype
    first = torch.tensor([slot.start for slot in batch.neuron_slots], device=device)
    sizes = torch.tensor([slot.end - slot.start for slot in batch.neuron_slots], device=device)
    of_row = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
    kind = batch.kind[first]
    plain = torch.stack(
        [
            1 / (1 + batch.depth[first].to(dtype)),
            1 / (1 + batch.reverse_depth[first].to(dtype)),
            (kind == 0).to(dtype),
            (kind == 2).to(dtype),
            batch.neuron_has[first, 2],
        ],
        dim=1,
    )
    return batch.activation[first], plain, of_row
