"""Augmentations of networks that are read, in training only; the given tensors never change.

``flip_signs`` keeps the function of every network (exact); ``add_weight_noise`` does not (noisy).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeKind, NeuronRole, ScaleKind
from paramgraph.values import Values

__all__ = ["add_weight_noise", "flip_signs"]


def flip_signs(graph: ParamGraph, values: Values) -> Values:
    """Negate random neurons whose sign is free (tanh, sine); the networks' functions stay the same.

    A metanetwork without sign symmetry learns from it that the sign means nothing.

    Args:
        graph: The architecture.
        values: Weights of B networks.

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
        group.name: torch.randint(0, 2, (values.num_networks, group.size), device=like.device)
        for group in graph.scale_groups
        if group.kind is ScaleKind.SIGN
    }
    signs = []
    for group in graph.neuron_groups:
        sign = like.new_ones(values.num_networks, group.size)
        for name, _ in group.scale_exponents:
            if name in drawn:
                sign = sign * (2 * drawn[name] - 1)
        signs.append(sign)
    blocks = []
    for block, weights in zip(graph.blocks, values.blocks, strict=True):
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


def add_weight_noise(batch: GraphBatch, amount: float) -> GraphBatch:
    """The same networks with relative Gaussian noise on every weight; skips and variances stay.

    Args:
        batch: Networks.
        amount: Standard deviation of the noise, relative to each weight.
    """
    if not amount:
        return batch
    buckets = tuple(
        bucket
        if bucket.kind is EdgeKind.SKIP
        else replace(bucket, values=_noisy(bucket.values, amount))
        for bucket in batch.buckets
    )
    # Variances stay positive: only bias and mean are disturbed.
    kept = batch.neuron_values[:, 2:]
    noisy = _noisy(batch.neuron_values[:, :2], amount)
    return replace(batch, buckets=buckets, neuron_values=torch.cat([noisy, kept], dim=1))


def _noisy(values: Tensor, amount: float) -> Tensor:
    return values * (1 + amount * torch.randn_like(values))
