"""Parameter-level outputs of ScaleGMN: edges as they are, biases from what arrives at a neuron."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paramgraph.batch import Entries
from paramgraph.nn.positions import PositionFunctions
from paramgraph.nn.scale_layers import ScaleInvariant, ScaleMap
from paramgraph.nn.scale_messages import ScaleState, Structure
from paramgraph.nn.standardize import Standardizer
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["ScaledEntries"]


class ScaledEntries(nn.Module):
    """``D_ijp = A (e_ij * psi(p)) + w_ijp (a_i . b_j)``, and ``D_i = c . S([x_i, M_i, b_i])``.

    Edges ``e_ij`` scale like weights, a and b are invariants, S keeps the type before the
    activation; so entries move like the parameters.

    Args:
        dim: Width of neurons and edges.
        context_dim: Width of facts.
        num_sets: Outputs per entry.
    """

    def __init__(self, dim: int, context_dim: int, num_sets: int) -> None:
        super().__init__()
        self.num_sets = num_sets
        self.edge = nn.Linear(dim, num_sets, bias=False)
        self.positions = PositionFunctions(dim)
        self.invariant = ScaleInvariant(dim, dim, context_dim)
        self.row_factor = nn.Linear(dim, num_sets * dim)
        self.column_factor = nn.Linear(dim, dim)
        self.bias = ScaleMap(3 * dim, dim, context_dim=context_dim)
        self.bias_out = nn.Linear(dim, num_sets, bias=False)

    def forward(
        self,
        structure: Structure,
        state: ScaleState,
        weights: list[Tensor],
        standardizer: Standardizer,
    ) -> Entries:
        """Outputs for every entry of every network."""
        batch, levels = structure.batch, structure.levels
        left, right, biases = [], [], []
        for level, own in enumerate(structure.before(state)):
            arrival, bias = levels.arrivals[level], levels.bias[level]
            if arrival.wave is not None:  # the bias of a wave stands there as the wave itself
                bias = torch.where(arrival.is_wave, bias * arrival.wave, bias)
            facts = levels.context[level]
            z = torch.cat([own, state.arrived[level], bias], dim=1)
            biases.append(self.bias_out(self.bias(levels.before[level], z, facts)))
            known = self.invariant(levels.types[level], state.neurons[level], facts)
            left.append(self.row_factor(known))
            right.append(self.column_factor(known))
        edges = []
        for number, (bucket, weight) in enumerate(zip(batch.buckets, weights, strict=True)):
            if not bucket.kind.has_parameters:
                edges.append(bucket.values.new_zeros(*bucket.values.shape, self.num_sets))
                continue
            blocks, receivers, senders = bucket.block_shape
            psi = self.positions(bucket.positions, weight)  # [P, dim] or [1, 1]
            own = self.edge(state.edges[number][..., None, :] * psi)
            a = bucket.receivers.take(left[bucket.receiver_depth])
            b = bucket.senders.take(right[bucket.sender_depth]).reshape(blocks, senders, -1)
            a = a.reshape(blocks, receivers, self.num_sets, -1)
            gate = torch.einsum("brkc,bsc->brsk", a, b)[..., None, :] / math.sqrt(b.shape[-1])
            inner = weight.reshape(blocks, receivers, senders, -1, 1)
            entries = standardizer.edge_unit(bucket) * (own + inner * gate)
            edges.append(entries.reshape(*bucket.values.shape, self.num_sets))
        bias = torch.cat(biases) * standardizer.neuron_scale[0].to(batch.dtype)
        rest = bias.new_zeros(len(bias), NUM_NEURON_CHANNELS - 1, self.num_sets)
        return Entries(tuple(edges), torch.cat([bias[:, None], rest], dim=1))
