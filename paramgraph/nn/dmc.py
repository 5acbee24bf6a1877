"""Deep meta-classifier: a one-dimensional CNN on the flat parameters of any network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch, edges_by_part, neurons_by_part
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.tensor_stacks import InvariantHead, end_waves
from paramgraph.values import Values

__all__ = ["DeepMetaClassifier", "flat_parameters"]


def flat_parameters(batch: GraphBatch, standardizer: Standardizer) -> list[Tensor]:
    """For each architecture all parameters and running statistics ``[B, num]``, at unit scale.

    Example:
        >>> import paramgraph as pg
        >>> network = nn.Linear(2, 3)
        >>> graph = pg.capture(network, torch.randn(4, 2))
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))])
        >>> [flat.shape for flat in flat_parameters(batch, Standardizer())]
        [torch.Size([1, 9])]
    """
    edges = edges_by_part(batch, [standardizer.edges(bucket) for bucket in batch.buckets])
    neurons = neurons_by_part(batch, standardizer.neurons(batch))
    found = []
    for part, blocks, groups in zip(batch.parts, edges, neurons, strict=True):
        tensors = part.graph.write_back(Values(tuple(blocks), tuple(groups)))
        found.append(
            torch.cat([tensors[row.name].flatten(1) for row in part.graph.parameters], dim=1)
        )
    return found


class DeepMetaClassifier(Metanetwork):
    """A 1-D CNN that slides over the flattened parameters (DMC); it knows no symmetry.

    The flat vector is cut into chunks; the CNN reads each chunk, and the means over the chunks,
    each told its number by fixed waves, are read by an MLP. So it reads networks of any
    architecture and length in one batch. Parameters stand in the order of ``ParamGraph.parameters``
    at unit scale. The published batch norm is left out: a prediction would depend on batch mates.

    Args:
        out_dim: Number of outputs per network.
        hidden_dim: Channels of the CNN.
        num_layers: Convolutions; all but the first have stride 2.
        kernel_size: Of the convolutions, an odd number.
        chunk_size: Entries per chunk; the last chunk is filled up with zeros.
        num_waves: Channels that number the chunks (an even number).
        head_dim: Width of the MLP.
        dropout: In the MLP.

    Raises:
        ValueError: An even kernel, an odd number of waves, or a size below 1.

    Example:
        >>> DeepMetaClassifier(out_dim=10).promised_symmetries()
        frozenset()

    References:
        Eilertsen et al. 2020, section 4 (https://arxiv.org/abs/2002.05688).
    """

    symmetries: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        out_dim: int,
        *,
        hidden_dim: int = 128,
        num_layers: int = 5,
        kernel_size: int = 9,
        chunk_size: int = 256,
        num_waves: int = 16,
        head_dim: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(out_dim)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
        if num_waves % 2:
            raise ValueError(f"num_waves must be even (sines and cosines), got {num_waves}.")
        if num_layers < 1 or chunk_size < 1:
            raise ValueError(
                f"num_layers and chunk_size must be at least 1, got {num_layers} and {chunk_size}."
            )
        self.chunk_size, self.num_waves = chunk_size, num_waves
        self.standardizer = Standardizer()
        layers: list[nn.Module] = []
        for number in range(num_layers):
            conv = nn.Conv1d(
                hidden_dim if number else 1,
                hidden_dim,
                kernel_size,
                stride=2 if number else 1,
                padding=kernel_size // 2,
            )
            fan_in = conv.in_channels * kernel_size
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_in))
            assert conv.bias is not None
            nn.init.normal_(conv.bias, std=0.1)
            layers += [conv, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.chunks = nn.Sequential(nn.Linear(2 * hidden_dim + num_waves, hidden_dim), nn.ReLU())
        self.head = InvariantHead(hidden_dim, head_dim, out_dim, dropout=dropout)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure scales of weights, and of what the head reads, on the training split."""
        several = list(batches)
        self.standardizer.fit(several)
        if several:
            self.head.fit(torch.cat([self._features(batch) for batch in several]))

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predict ``[num_networks, out_dim]``."""
        return self.head.read(self._features(batch))

    def _features(self, batch: GraphBatch) -> Tensor:
        """Means over the chunks of each network ``[num_networks, hidden_dim]``."""
        chunks, counts = [], []
        for flat in flat_parameters(batch, self.standardizer):
            num = -(-flat.shape[1] // self.chunk_size)
            padded = nn.functional.pad(flat, (0, num * self.chunk_size - flat.shape[1]))
            chunks.append(padded.reshape(-1, 1, self.chunk_size))
            counts.append((flat.shape[0], num))
        found = self.layers(torch.cat(chunks))
        found = torch.cat([found.mean(2), found.amax(2)], dim=1)
        numbers = end_waves(max(num for _, num in counts), self.num_waves, found)
        waves = [numbers[:num].repeat(copies, 1) for copies, num in counts]
        found = self.chunks(torch.cat([found, torch.cat(waves)], dim=1))
        parts = found.split([copies * num for copies, num in counts])
        means = [
            part.reshape(copies, num, -1).mean(1)
            for part, (copies, num) in zip(parts, counts, strict=True)
        ]
        order = torch.cat([part.rows for part in batch.parts]).argsort()
        return torch.cat(means)[order.to(found.device)]
