"""Editing networks: new parameters = old + learned scale x output of a metanetwork."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramgraph.batch import ROLES, Entries, GraphBatch
from paramgraph.errors import BatchError
from paramgraph.graph import ParamGraph
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.structure import NeuronRole

__all__ = ["EditedNetworks", "NetworkEditor"]


@dataclass(frozen=True)
class EditedNetworks:
    """The edited networks of one architecture.

    Attributes:
        graph: Their structure.
        rows: Their places in the batch ``[B]``.
        parameters: For each of the K sets the stacked parameters ``[B, *shape]`` by name; names that
            the graph does not hold (unused parameters, counters) are not in it.
    """

    graph: ParamGraph
    rows: Tensor
    parameters: tuple[dict[str, Tensor], ...]

    def state_dict(self, network: int, like: dict[str, Tensor], *, number: int = 0) -> dict[str, Tensor]:
        """A state dict that the module loads: one edited network, completed from its original.

        Args:
            network: Which of the B networks.
            like: The original's state dict; only what the graph does not hold is taken from it.
            number: Which of the K sets.
        """
        return {**like, **{k: v[network].detach() for k, v in self.parameters[number].items()}}


class NetworkEditor(nn.Module):
    """Edit each network by a metanetwork with outputs at level ``"parameter"``.

    ``theta' = theta + scale * metanetwork(theta)`` with one learned scale per role (kind of edge at
    the inputs, between hidden neurons, at the outputs; biases likewise), small at the start, so that
    an untrained editor changes little. Running statistics stay. With K sets (OCE) each network
    becomes K networks, whose *functions* are averaged by whoever runs them.

    Args:
        metanetwork: With ``level="parameter"``; its ``out_dim`` is K.
        start: First value of the scales.

    Raises:
        ValueError: The metanetwork has another level.

    Law: editing a network and then applying a symmetry equals applying it and then editing.

    References:
        Kofinas et al. 2024, appendix D; Lim et al. 2024, section 4.2 (``theta + gamma M(theta)``);
        OCE: 2602.01083.
    """

    def __init__(self, metanetwork: Metanetwork, *, start: float = 0.01) -> None:
        super().__init__()
        if metanetwork.level != "parameter":
            raise ValueError(
                f"NetworkEditor needs a metanetwork with level='parameter', got "
                f"{type(metanetwork).__name__} with level={metanetwork.level!r}."
            )
        self.metanetwork = metanetwork
        self.edge_scale = nn.Parameter(torch.full((len(ROLES),), start))
        self.bias_scale = nn.Parameter(torch.full((2,), start))  # hidden neurons, outputs

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure what the metanetwork needs from the training split."""
        self.metanetwork.fit_statistics(batches)

    def forward(self, batch: GraphBatch) -> list[EditedNetworks]:
        """Edited networks for each architecture of the batch, in the order of ``batch.parts``.

        Raises:
            BatchError: The metanetwork returned no ``Entries``.
        """
        change = self.metanetwork(batch)
        if not isinstance(change, Entries):
            raise BatchError(f"expected Entries, the metanetwork returned {type(change).__name__}.")
        edges = []
        for bucket, entries in zip(batch.buckets, change.edges, strict=True):
            scale = self.edge_scale[ROLES.index(bucket.role)]
            edges.append(bucket.values[..., None] + scale * entries)
        scale = self.bias_scale[(batch.kind == 2).long()]
        moves = torch.zeros_like(batch.neuron_values[:1])
        moves[:, NeuronRole.BIAS.channel] = 1  # statistics are measured, not edited
        delta = scale[:, None, None] * moves[..., None] * change.neurons
        edited = Entries(tuple(edges), batch.neuron_values[..., None] + delta)
        return [
            EditedNetworks(part.graph, part.rows, tuple(part.graph.write_back(v) for v in values))
            for part, values in zip(batch.parts, edited.values(batch), strict=True)
        ]
