"""Pure probing: what networks return on learned inputs, and nothing else about them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch, Part
from paramgraph.errors import BatchError
from paramgraph.nn.identities import identity_vectors
from paramgraph.nn.metanetwork import Level, Metanetwork
from paramgraph.nn.probes import Generator, ProbePoints, answers
from paramgraph.structure import NeuronKind

__all__ = ["ProbingMetanetwork"]

_GAIN = 1.68
"""Of a layer behind a SiLU, which returns 0.355 of the mean square of a normal number."""


class ProbingMetanetwork(Metanetwork):
    """Runs every network on M learned inputs and reads the outputs by an MLP.

    A function of the function that a network computes: all symmetries hold, whatever the
    architecture. Without ``num_outputs``, networks with any outputs are read:
    ``z = sum_o V SiLU(e_o * (W y_o)) / sqrt(number of outputs)``, with ``y_o`` what output o says
    to the M probes and ``e_o`` its learned identity; with it, outputs are concatenated, as in the
    paper. An output with several positions is read as its mean and standard deviation.

    Args:
        out_dim: Number of outputs per network.
        num_probes: Number of probes M.
        generator: How probes are made, see ``ProbePoints``.
        hidden_dim: Width of the MLP.
        num_layers: Its linear maps.
        num_outputs: Outputs that each network has, if all have as many.
        std: Whether standard deviations over positions are read.
        num_channels: See ``ProbePoints``.
        num_waves: See ``ProbePoints``.
        dropout: In the MLP.
        level: Only ``"graph"``.

    Law: the output does not change under permutations, signs, positive scales and phases.

    Raises:
        ValueError: Fewer than two layers, or as for ``ProbePoints``.

    Example:
        >>> sorted(ProbingMetanetwork(out_dim=10).promised_symmetries())
        ['permutation', 'phase', 'scale', 'sign']

    References:
        Kahana et al. 2024, ProbeGen (https://arxiv.org/abs/2410.10811).
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation", "sign", "scale", "phase"})
    num_identities: ClassVar[int] = 64

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        out_dim: int,
        *,
        num_probes: int = 64,
        generator: Generator = "deep-linear",
        hidden_dim: int = 256,
        num_layers: int = 4,
        num_outputs: int | None = None,
        std: bool = True,
        num_channels: int = 16,
        num_waves: int = 16,
        dropout: float = 0.0,
        level: Level = "graph",
    ) -> None:
        super().__init__(out_dim, level=level)
        if num_layers < 2:
            raise ValueError(f"num_layers must be 2 or more, got {num_layers}.")
        self.num_outputs = num_outputs
        self.std = std
        self.points = ProbePoints(
            num_probes, generator=generator, num_channels=num_channels, num_waves=num_waves
        )
        # Outputs of a zoo have one scale; measured once, so no prediction depends on a batch.
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))
        num_read = num_probes * (1 + std) * (num_outputs or 1)
        self.first = nn.Linear(num_read, hidden_dim)
        self.identity: nn.Parameter | None = None
        if num_outputs is None:
            self.identity = nn.Parameter(torch.randn(self.num_identities, hidden_dim))
        layers: list[nn.Module] = []
        for _ in range(num_layers - 2):
            layers += [nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))
        self.mix = nn.Linear(hidden_dim, hidden_dim) if num_outputs is None else None
        for layer in (self.first, self.mix, *self.layers):
            if isinstance(layer, nn.Linear):  # PyTorch's own start is smaller from layer to layer
                gain = 1.0 if layer is self.first else _GAIN
                nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure mean and standard deviation of all outputs on the training split."""
        total = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            for part in batch.parts:
                values = self._outputs(part)[0].double()
                found = [values.new_tensor(values.numel()), values.sum(), values.square().sum()]
                total += torch.stack(found).cpu()
        mean = total[1] / total[0].clamp(min=1)
        variance = total[2] / total[0].clamp(min=1) - mean.square()
        self.center.copy_(mean)
        self.spread.copy_(variance.clamp(min=0).sqrt() if variance > 0 else torch.ones(()))

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predict ``[num_networks, out_dim]``.

        Raises:
            BatchError: A network cannot be run on probes, or has another number of outputs than
                ``num_outputs``.
        """
        read = torch.cat([self._read(part) for part in batch.parts])
        order = torch.cat([part.rows for part in batch.parts]).to(read.device)
        predictions: Tensor = self.layers(read)
        return torch.zeros_like(predictions).index_copy(0, order, predictions)

    def _read(self, part: Part) -> Tensor:
        """What the MLP reads of each network of a part ``[B, hidden_dim]``."""
        mean, deviation = self._outputs(part)
        values = [(mean - self.center) / self.spread]
        if self.std:
            values.append(deviation / self.spread)
        answered = torch.cat(values, dim=1).transpose(1, 2)  # [B, num_outputs, num_read]
        if self.num_outputs is not None:
            if answered.shape[1] != self.num_outputs:
                raise BatchError(
                    f"ProbingMetanetwork was made for networks with {self.num_outputs} outputs, "
                    f"but {part.graph.name!r} has {answered.shape[1]}: use num_outputs=None."
                )
            read: Tensor = nn.functional.silu(self.first(answered.flatten(1)))
            return read
        assert self.identity is not None
        assert self.mix is not None
        num_outputs = answered.shape[1]
        told = identity_vectors(self.identity, torch.arange(num_outputs, device=answered.device))
        # Identities have both signs: the sum grows with the root of the number of outputs.
        mixed: Tensor = self.mix(nn.functional.silu(self.first(answered) * told))
        return nn.functional.silu(mixed.sum(1) / math.sqrt(num_outputs))

    def _outputs(self, part: Part) -> tuple[Tensor, Tensor]:
        """Means and standard deviations over positions, ``[B, M, num_outputs]`` each."""
        groups = part.graph.neuron_groups
        wanted = [n for n, group in enumerate(groups) if group.kind is NeuronKind.OUTPUT]
        found = answers(part, self.points, std=True, groups=wanted)
        values: list[Tensor] = []
        for number in wanted:
            value = found[number]
            if value is None:
                raise BatchError(
                    f"cannot probe {part.graph.name!r}: no tensor holds the values of its outputs "
                    f"{groups[number].name!r}. Read it with a metanetwork that has no probes."
                )
            values.append(value)
        if not values:
            raise BatchError(
                f"cannot probe {part.graph.name!r}: it has no output neurons. Read it with a "
                "metanetwork that has no probes."
            )
        together = torch.cat(values, dim=2)
        return together[..., 0], together[..., 1]
