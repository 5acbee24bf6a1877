"""Editing networks: new parameters = old + learned scale x output of a metanetwork."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

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
        parameters: For each of the K sets the stacked parameters ``[B, *shape]`` by name; names
            that the graph does not hold (unused parameters, counters) are not in it.
    """

    graph: ParamGraph
    rows: Tensor
    parameters: tuple[dict[str, Tensor], ...]

    def state_dict(
        self, network: int, like: Mapping[str, Tensor], *, number: int = 0
    ) -> dict[str, Tensor]:
        """A state dict that the module loads: one edited network, completed from its original.

        Args:
            network: Which of the B networks.
            like: The original's state dict, for precision, device, and what the graph does not
                hold.
            number: Which of the K sets.

        Raises:
            BatchError: ``like`` lacks a parameter, so is of another network.
        """
        edited = self.parameters[number]
        if missing := [name for name in edited if name not in like]:
            raise BatchError(
                f"cannot complete {self.graph.name!r}: the state dict given as like has no "
                f"{missing[0]!r}, so it is of another network."
            )
        return {**like, **{k: v[network].detach().to(like[k]) for k, v in edited.items()}}

    def run(self, *inputs: Any, **named: Any) -> Any:
        """What the edited networks return; with K sets the mean of their K functions.

        Vectorised, differentiable in the parameters. Arguments are those of ``ParamGraph.run``.

        Returns:
            ``[B, *shape]``, or a tuple of these where a network returns several tensors.

        Raises:
            GraphError: As for ``ParamGraph.run``.

        References:
            OCE: the mean of functions, not of parameters (https://arxiv.org/abs/2602.01083).
        """
        found = [self.graph.run(values, *inputs, **named) for values in self.parameters]
        if isinstance(found[0], Tensor):
            return torch.stack(found).mean(0)
        return tuple(torch.stack(several).mean(0) for several in zip(*found, strict=True))


class NetworkEditor(nn.Module):
    """Edit each network by a metanetwork with outputs at level ``"parameter"``.

    ``theta' = theta + scale * metanetwork(theta)`` with one learned scale per role (kind of edge at
    the inputs, between hidden neurons, at the outputs; biases likewise), small at the start, so
    that an untrained editor changes little. Running statistics stay. With K sets (OCE) each network
    becomes K networks, whose functions ``EditedNetworks.run`` averages.

    Args:
        metanetwork: With ``level="parameter"``; its ``out_dim`` is K.
        start: First value of the scales.
        frozen: Parameters that stay as they are: names, or patterns such as ``"first.*"``. One that
            is tied stays if any of its names is frozen.

    Raises:
        ValueError: The metanetwork has another level.

    Law: editing a network and then applying a symmetry equals applying it and then editing.

    Example:
        >>> import paramgraph as pg
        >>> network, points = nn.Linear(2, 3), torch.randn(4, 2)
        >>> graph = pg.capture(network, points)
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))])
        >>> editor = NetworkEditor(pg.nn.OperatorMetanetwork(1, level="parameter"))
        >>> (edited,) = editor(batch)
        >>> network.load_state_dict(edited.state_dict(0, network.state_dict()))
        <All keys matched successfully>
        >>> torch.allclose(edited.run(points)[0], network(points), atol=1e-6)
        True

    References:
        Kofinas et al. 2024, appendix D; Lim et al. 2024, section 4.2 (``theta + gamma M(theta)``);
        OCE: 2602.01083.
    """

    def __init__(
        self, metanetwork: Metanetwork, *, start: float = 0.01, frozen: Iterable[str] = ()
    ) -> None:
        super().__init__()
        if metanetwork.level != "parameter":
            raise ValueError(
                f"NetworkEditor needs a metanetwork with level='parameter', got "
                f"{type(metanetwork).__name__} with level={metanetwork.level!r}."
            )
        self.metanetwork = metanetwork
        self.frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
        self.edge_scale = nn.Parameter(torch.full((len(ROLES),), start))
        self.bias_scale = nn.Parameter(torch.full((2,), start))  # hidden neurons, outputs

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure what the metanetwork needs from the training split."""
        self.metanetwork.fit_statistics(batches)

    def forward(self, batch: GraphBatch) -> list[EditedNetworks]:
        """Edited networks for each architecture of the batch, in the order of ``batch.parts``.

        Raises:
            BatchError: The metanetwork returned no ``Entries`` of this batch, or a frozen name is
                that of no parameter of the batch.
        """
        change = self.metanetwork(batch)
        if not isinstance(change, Entries):
            raise BatchError(f"expected Entries, the metanetwork returned {type(change).__name__}.")
        _assert_fit(change, batch)
        edges = []
        for bucket, entries in zip(batch.buckets, change.edges, strict=True):
            scale = self.edge_scale[ROLES.index(bucket.role)]
            edges.append(bucket.values[..., None] + scale * entries)
        scale = self.bias_scale[(batch.kind == 2).long()]
        moves = torch.zeros_like(batch.neuron_values[:1])
        moves[:, NeuronRole.BIAS.channel] = 1  # statistics are measured, not edited
        delta = scale[:, None, None] * moves[..., None] * change.neurons
        edited = Entries(tuple(edges), batch.neuron_values[..., None] + delta)
        kept = self._kept(batch)
        return [
            EditedNetworks(
                part.graph, part.rows, tuple({**part.graph.write_back(v), **old} for v in values)
            )
            for part, values, old in zip(batch.parts, edited.values(batch), kept, strict=True)
        ]

    def _kept(self, batch: GraphBatch) -> list[dict[str, Tensor]]:
        """For each architecture its frozen parameters ``[B, *shape]`` by name."""
        if not self.frozen:
            return [{} for _ in batch.parts]
        plain = tuple(bucket.values[..., None] for bucket in batch.buckets)
        found, used = [], set[str]()
        values = Entries(plain, batch.neuron_values[..., None]).values(batch)
        for part, (value,) in zip(batch.parts, values, strict=True):
            old = part.graph.write_back(value)
            names = set[str]()
            for name in old:
                patterns = {p for p in self.frozen if fnmatchcase(name, p)}
                used |= patterns
                names |= {name} if patterns else set()
            tied = [{row.name, *row.aliases} for row in part.graph.parameters]
            names = names.union(*(group for group in tied if group & names))
            found.append({name: old[name] for name in old if name in names})
        if unused := [pattern for pattern in self.frozen if pattern not in used]:
            raise BatchError(
                f"frozen={unused[0]!r} is no parameter of any network of the batch; those of "
                f"{batch.parts[0].graph.name!r} are "
                f"{', '.join(row.name for row in batch.parts[0].graph.parameters)}."
            )
        return found


def _assert_fit(change: Entries, batch: GraphBatch) -> None:
    """Entries of another batch could be broadcast to this one unseen."""
    change.values(batch)  # refuses edges of other shapes
    expected = (*batch.neuron_values.shape, change.num_sets)
    if tuple(change.neurons.shape) != expected:
        raise BatchError(
            f"entries of neurons have shape {tuple(change.neurons.shape)}, expected {expected}: "
            "they belong to another batch."
        )
