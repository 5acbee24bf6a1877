"""Chains: networks whose layers follow one after another, as lists of weights and biases.

What DWS, NFN and NFT have in common: they read linear and plain convolution layers in a row, and
refuse everything else by name. Elements of a kernel are channels; a linear layer behind a flattened
image sees its places as channels of its senders, as capture does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paramgraph.batch import (
    Entries,
    GraphBatch,
    edges_by_part,
    edges_from_parts,
    neurons_by_part,
    neurons_from_parts,
)
from paramgraph.errors import BatchError
from paramgraph.graph import ParamGraph
from paramgraph.nn.metanetwork import Level, Metanetwork
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.tensor_layers import chain_axes
from paramgraph.nn.tensor_stacks import InvariantHead
from paramgraph.structure import EdgeBlock, EdgeKind, NeuronKind, NeuronRole, NormKind
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["Chain", "ChainMetanetwork", "chain_of", "chain_options"]

_ADVICE = "use make_metanetwork('operator', ...) or 'ng-gnn', which read any network"


@dataclass(frozen=True)
class Chain:
    """A network as a chain of L layers.

    Attributes:
        widths: Neurons: inputs, each hidden layer, outputs (L + 1 numbers).
        num_positions: Elements of the kernel of each layer, or places of a flattened image.
        blocks: Numbers of its L layers in ``ParamGraph.blocks``.
        groups: Numbers of its L + 1 layers of neurons in ``ParamGraph.neuron_groups``.
    """

    widths: tuple[int, ...]
    num_positions: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: tuple[int, ...]


@lru_cache(maxsize=1024)
def chain_of(graph: ParamGraph) -> Chain:
    """See a network as a chain.

    Args:
        graph: Of a network of linear and plain convolution layers, each of which reads the one
            before and nothing else, with pointwise activations and pooling between.

    Raises:
        BatchError: It is another network; the message names the block and the reason.

    Example:
        >>> import paramgraph as pg
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> chain = chain_of(pg.capture(network, torch.randn(3, 1, 4, 4)))
        >>> chain.widths, chain.num_positions
        ((1, 4, 2), (9, 4))
    """
    if not graph.blocks:
        raise BatchError(f"{graph.name!r} is no chain of layers: it has no layers; {_ADVICE}.")
    place = graph.blocks[0].sender
    groups = [place]
    for block in graph.blocks:
        if reason := _refusal(graph, block, place):
            raise BatchError(
                f"{graph.name!r} is no chain of layers: block {block.name!r} {reason}. Chains are "
                f"linear and plain convolution layers one after another; {_ADVICE}."
            )
        place = block.receiver
        groups.append(place)
    ends = graph.neuron_groups[groups[0]].kind, graph.neuron_groups[groups[-1]].kind
    if ends != (NeuronKind.INPUT, NeuronKind.OUTPUT) or len(groups) != len(graph.neuron_groups):
        extra = [g.name for n, g in enumerate(graph.neuron_groups) if n not in groups[1:-1]]
        raise BatchError(
            f"{graph.name!r} is no chain of layers: it must start at one input and end at one "
            f"output, but has the neurons {', '.join(map(repr, extra))} at its ends; {_ADVICE}."
        )
    return Chain(
        tuple(graph.neuron_groups[group].size for group in groups),
        tuple(block.num_positions for block in graph.blocks),
        tuple(range(len(graph.blocks))),
        tuple(groups),
    )


def _refusal(graph: ParamGraph, block: EdgeBlock, sender: int) -> str:
    """Why a block cannot follow in a chain whose last neurons are ``sender``; "" if it can."""
    if block.kind not in (EdgeKind.LINEAR, EdgeKind.CONV) or block.view is None:
        return f"is of kind {block.kind.value!r}"
    if block.num_blocks > 1:
        return f"is a grouped convolution or linear map ({block.num_blocks} groups)"
    names = [group.name for group in graph.neuron_groups]
    if block.sender != sender:
        return f"reads {names[block.sender]!r} and not the layer before, {names[sender]!r}"
    receiver = graph.neuron_groups[block.receiver]
    if receiver.norm is not NormKind.NONE:
        return f"is followed by a {receiver.norm.value} norm"
    if any(feature.role is not NeuronRole.BIAS for feature in receiver.features):
        return "leads to neurons with running statistics"
    frozen = {row.name: row.reason for row in graph.axis_groups if not row.free and row.size > 1}
    for factor in receiver.axes if receiver.kind is NeuronKind.HIDDEN else ():
        if factor in frozen or (isinstance(factor, int) and factor > 1):
            why = frozen.get(str(factor)) or "they have a fixed order"
            return f"leads to hidden neurons that cannot be permuted ({why})"
    return ""


def chain_options(graph: ParamGraph) -> dict[str, Any]:
    """The options ``widths`` and ``num_positions`` of metanetworks for chains like this one.

    Raises:
        BatchError: The network is no chain.

    Example:
        >>> import paramgraph as pg
        >>> chain_options(pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3)))
        {'widths': [3, 2], 'num_positions': [1]}
    """
    chain = chain_of(graph)
    return {"widths": list(chain.widths), "num_positions": list(chain.num_positions)}


class ChainMetanetwork(Metanetwork):
    """Reads chains with a given number of layers; subclasses say how.

    Weights and biases come at unit scale (``Standardizer``) as one list of tensors: all weights
    ``[B, receivers, senders, num_positions]``, then all biases ``[B, receivers, 1]`` (0 where a
    layer has none). Subclasses turn them into features (``encode``) and set ``head``, which reads
    their means, or at level ``"parameter"`` ``last``, which maps them to
    ``[B, *axes, num_positions * out_dim]``, and biases to ``[B, receivers, out_dim]``.
    Activations are not read: networks that differ in them alone get the same prediction.

    Args:
        out_dim: Number of outputs.
        widths: Neurons of the chain: inputs, each hidden layer, outputs. Hidden layers of the
            networks read may have other widths.
        num_positions: Elements of the kernel of each layer; 1 everywhere when not given.
        told_apart: Whether inputs and outputs are told apart by their number, so that networks must
            have exactly as many.
        level: ``"graph"`` or ``"parameter"``.

    Raises:
        ValueError: Widths or positions that make no chain.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})
    levels: ClassVar[frozenset[str]] = frozenset({"graph", "parameter"})
    head: InvariantHead | None
    last: nn.Module | None

    def __init__(
        self,
        out_dim: int,
        *,
        widths: Sequence[int],
        num_positions: Sequence[int] | None = None,
        told_apart: bool,
        level: Level = "graph",
    ) -> None:
        super().__init__(out_dim, level=level)
        positions = [1] * (len(widths) - 1) if num_positions is None else num_positions
        if len(widths) < 2 or len(positions) != len(widths) - 1 or min(*widths, *positions) < 1:
            raise ValueError(
                "widths must name the neurons of two or more layers, inputs and outputs included, "
                "and num_positions one number per layer of weights, all at least 1; got "
                f"{list(widths)} and {list(positions)}."
            )
        self.widths, self.num_positions = tuple(widths), tuple(positions)
        self.told_apart = told_apart
        self.axes = chain_axes(len(positions))
        self.fixed = {0: widths[0], len(positions): widths[-1]} if told_apart else {}
        self.standardizer = Standardizer()
        self.head = self.last = None

    def entry_channels(self, num: int) -> list[int]:
        """Channels of the tensors with ``num`` numbers for each entry of a kernel."""
        return [count * num for count in self.num_positions] + [num] * len(self.num_positions)

    def encode(self, tensors: list[Tensor]) -> list[Tensor]:
        """Weights and biases to features ``[B, *free axes, channels]``."""
        raise NotImplementedError

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure scales of weights, and of what the head reads, on the training split."""
        several = list(batches)
        self.standardizer.fit(several)
        if self.head is not None and several:
            self.head.fit(torch.cat([self._pooled(batch) for batch in several]))

    def forward(self, batch: GraphBatch) -> Tensor | Entries:
        """Predict ``[num_networks, out_dim]``, or entries at level ``"parameter"``.

        Raises:
            BatchError: A network is no chain, or another one than this was made for.
        """
        if self.head is not None:
            return self.head.read(self._pooled(batch))
        return self._entries(batch)

    def _pooled(self, batch: GraphBatch) -> Tensor:
        """What the head reads, in the order of the batch."""
        found = [InvariantHead.pool(self.encode(tensors)) for tensors in self.tensors(batch)]
        order = torch.cat([part.rows for part in batch.parts]).argsort()
        return torch.cat(found)[order.to(found[0].device)]

    def tensors(self, batch: GraphBatch) -> list[list[Tensor]]:
        """For each architecture its weights, then its biases, at unit scale.

        Raises:
            BatchError: As for ``forward``.
        """
        chains = [self._chain(part.graph) for part in batch.parts]
        scaled = [self.standardizer.edges(bucket) for bucket in batch.buckets]
        edges = edges_by_part(batch, scaled)
        neurons = neurons_by_part(batch, self.standardizer.neurons(batch))
        bias = NeuronRole.BIAS.channel
        return [
            [edges[number][block].squeeze(1) for block in chain.blocks]
            + [neurons[number][group][..., bias : bias + 1] for group in chain.groups[1:]]
            for number, chain in enumerate(chains)
        ]

    def _chain(self, graph: ParamGraph) -> Chain:
        """The chain of a network, if it is one that this metanetwork was made for."""
        name, chain = type(self).__name__, chain_of(graph)
        made = f"{name} was made for widths {list(self.widths)}"
        advice = "make one with the options that chain_options(graph) gives, or " + _ADVICE
        if len(chain.blocks) != len(self.num_positions):
            raise BatchError(
                f"{made}, that is {len(self.num_positions)} layers, but {graph.name!r} has "
                f"{len(chain.blocks)}: {advice}."
            )
        if chain.num_positions != self.num_positions:
            raise BatchError(
                f"{name} was made for layers with {list(self.num_positions)} kernel elements, but "
                f"those of {graph.name!r} have {list(chain.num_positions)}: {advice}."
            )
        ends, expected = (chain.widths[0], chain.widths[-1]), (self.widths[0], self.widths[-1])
        if self.told_apart and ends != expected:
            raise BatchError(
                f"{made}, that is {expected[0]} inputs and {expected[1]} outputs, but "
                f"{graph.name!r} has {ends[0]} and {ends[1]}: {advice}."
            )
        return chain

    def _entries(self, batch: GraphBatch) -> Entries:
        assert self.last is not None
        edges, neurons = [], []
        for part, tensors in zip(batch.parts, self.tensors(batch), strict=True):
            chain = chain_of(part.graph)
            outputs = self.last(self.encode(tensors))
            num = len(chain.blocks)
            blocks = [
                output.unflatten(-1, (count, self.out_dim)).unsqueeze(1)
                for output, count in zip(outputs[:num], chain.num_positions, strict=True)
            ]
            edges.append(blocks)
            inputs = outputs[num].new_zeros(
                len(part.rows), chain.widths[0], NUM_NEURON_CHANNELS, self.out_dim
            )
            rows = [inputs] * len(part.graph.neuron_groups)
            for group, output in zip(chain.groups[1:], outputs[num:], strict=True):
                others = output.new_zeros(*output.shape[:2], NUM_NEURON_CHANNELS - 1, self.out_dim)
                rows[group] = torch.cat([output.unsqueeze(2), others], dim=2)
            neurons.append(rows)
        return Entries(tuple(edges_from_parts(batch, edges)), neurons_from_parts(batch, neurons))
