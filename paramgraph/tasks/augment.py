"""Augmentations of networks that are read, in training only; the given tensors never change.

``flip_signs`` keeps the function of every network (exact); ``add_weight_noise`` does not (noisy).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeKind, NeuronGroup, NeuronRole, ScaleKind
from paramgraph.values import Values

__all__ = ["add_weight_noise", "flip_signs"]


def flip_signs(
    graph: ParamGraph, values: Values, *, generator: torch.Generator | None = None
) -> Values:
    """Negate random neurons whose sign is free (tanh, sine); the networks' functions stay the same.

    A metanetwork without sign symmetry learns from it that the sign means nothing.

    Args:
        graph: The architecture.
        values: Weights of B networks.
        generator: Draws the signs, on the device of the values; PyTorch's own if None.

    Returns:
        New values; each network gets its own signs.

    Example:
        >>> import paramgraph as pg
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh())
        >>> graph = pg.capture(network, torch.randn(3, 2))
        >>> values = graph.features(network.state_dict())
        >>> torch.equal(flip_signs(graph, values).blocks[0].abs(), values.blocks[0].abs())
        True
    """
    like = values.neurons[0]
    drawn = {
        group.name: 2
        * torch.randint(
            0, 2, (values.num_networks, group.size), device=like.device, generator=generator
        )
        - 1
        for group in graph.neuron_scales(ScaleKind.SIGN)
    }
    signs = [_signs(graph, group, drawn, like) for group in graph.neuron_groups]
    blocks = []
    for block, weights in zip(graph.blocks, values.blocks, strict=True):
        if not (block.kind.has_parameters or block.kind is EdgeKind.SKIP):
            blocks.append(weights)  # a constant is no weight that could be negated
            continue
        receiver = signs[block.receiver].reshape(-1, block.num_blocks, block.num_receivers, 1, 1)
        sender = signs[block.sender].reshape(-1, block.num_blocks, 1, block.num_senders, 1)
        blocks.append(weights * receiver * sender)
    neurons = []
    for sign, have in zip(signs, values.neurons, strict=True):
        # A variance loses the sign of its neuron.
        moves = sign[..., None].repeat(1, 1, have.shape[2])
        moves[..., NeuronRole.VARIANCE.channel] = 1
        neurons.append(have * moves)
    return Values(tuple(blocks), tuple(neurons))


def _signs(graph: ParamGraph, group: NeuronGroup, drawn: dict[str, Tensor], like: Tensor) -> Tensor:
    """The sign of every neuron of a group ``[B, size]``."""
    sizes = {row.name: row.size for row in graph.axis_groups}
    rows = {row.name: row for row in graph.scale_groups}
    shape = [sizes[f] if isinstance(f, str) else f for f in group.axes]
    sign = like.new_ones(len(like), *shape)
    for name, exponent in group.scale_exponents:
        if name not in drawn or exponent % 2 == 0:
            continue
        names = rows[name].axes
        places = [group.axes.index(axis) for axis in names]
        factor = drawn[name].reshape(len(like), *(sizes[axis] for axis in names))
        order = sorted(range(len(places)), key=lambda i: places[i])
        along = [shape[i] if i in places else 1 for i in range(len(shape))]
        sign = sign * factor.permute(0, *(i + 1 for i in order)).reshape(len(like), *along)
    return sign.reshape(len(like), -1)


def add_weight_noise(
    batch: GraphBatch, amount: float, *, generator: torch.Generator | None = None
) -> GraphBatch:
    """The same networks with relative Gaussian noise on every weight; skips and variances stay.

    Args:
        batch: Networks.
        amount: Standard deviation of the noise, relative to each weight.
        generator: Draws the noise, on the device of the weights; PyTorch's own if None.
    """
    if not amount:
        return batch
    buckets = tuple(
        bucket
        if not bucket.kind.has_parameters
        else replace(bucket, values=_noisy(bucket.values, amount, generator))
        for bucket in batch.buckets
    )
    # Variances stay positive: only bias and mean are disturbed.
    kept = batch.neuron_values[:, 2:]
    noisy = _noisy(batch.neuron_values[:, :2], amount, generator)
    return replace(batch, buckets=buckets, neuron_values=torch.cat([noisy, kept], dim=1))


def _noisy(values: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
    drawn = torch.randn(values.shape, dtype=values.dtype, device=values.device, generator=generator)
    return values * (1 + amount * drawn)
