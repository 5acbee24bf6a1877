"""Parameter-level outputs of the operator metanetwork: outer products of the right type."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from paramgraph.batch import Entries, GraphBatch
from paramgraph.nn.positions import PositionFunctions
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.sweeps import Filled, Levels
from paramgraph.nn.typed import TypedUpdate
from paramgraph.nn.typed_readout import TypedReadout
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["OuterProductHead"]


class OuterProductHead(nn.Module):
    """``D_rs = sum_c u_rc v_sc + W_rs sum_c a_rc b_sc``, and ``D_r = sum_c w_c u_rc`` for biases.

    A weight scales like ``q_r / q_s``. So u comes from primal features as they are before the
    activation (factor q_r), v from dual features (factor 1 / q_s); a and b are invariants, so that
    the second sum may say anything of any weight and keeps its type. Kernels weigh the channels of
    the first sum by functions of the position. In units of the weights' own size, so that widths
    need no tuning.

    Args:
        dim: Width of h and g.
        context_dim: Width of facts.
        num_sets: Outputs per entry.
        num_operators: Position functions; divides ``dim``.
        kept: Names of the symmetries that are kept.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_sets: int,
        num_operators: int,
        kept: Collection[str],
    ) -> None:
        super().__init__()
        self.num_sets = num_sets
        self.num_operators = num_operators
        self.row = TypedUpdate(dim, context_dim, 0.0, kept)
        self.column = TypedUpdate(dim, context_dim, 0.0, kept)
        self.row_map = nn.Linear(dim, num_sets * dim, bias=False)
        self.column_map = nn.Linear(dim, dim, bias=False)
        self.invariants = TypedReadout(dim, context_dim, kept)
        self.row_factor = nn.Linear(dim, num_sets * dim)
        self.column_factor = nn.Linear(dim, dim)
        self.bias = nn.Linear(dim, num_sets, bias=False)
        self.positions = PositionFunctions(num_operators)

    def forward(
        self,
        batch: GraphBatch,
        levels: Levels,
        signals: Filled,
        standardizer: Standardizer,
    ) -> Entries:
        """Outputs for every entry of every network."""
        rows, columns, factors, biases = [], [], [], []
        for level, arrival in enumerate(levels.arrivals):
            h, g, gain = signals.primal[level], signals.dual[level], signals.gain[level]
            context, bias = levels.context[level], levels.bias[level]
            behind = arrival.bias(bias, gain)
            own, inner_bias, inner_dual = h, bias, g
            if gain is not None:
                # Of what readers see only the gain of a wave leads back; else what arrived counts.
                back = h * gain if arrival.wave is not None else h
                kept = arrival.is_plain_or_wave()
                own = torch.where(kept, back, signals.arrived[level])
                inner_bias = torch.where(arrival.is_wave, bias * gain, bias)
                inner_dual = g * gain
            message = signals.arrived[level]
            u = self.row(levels.before[level], own, message, inner_bias, inner_dual, context)
            returned = signals.returned[level]
            v = self.column(levels.types[level], g, returned, behind, h, context, is_dual=True)
            rows.append(self.row_map(u))
            columns.append(self.column_map(v))
            biases.append(self.bias(u))
            factors.append(self.invariants(levels.types[level], h, g, context))
        left = [self.row_factor(f) for f in factors]
        right = [self.column_factor(f) for f in factors]
        edges = []
        for bucket in batch.buckets:
            if not bucket.kind.has_parameters:
                edges.append(bucket.values.new_zeros(*bucket.values.shape, self.num_sets))
                continue
            s, r = bucket.sender_depth, bucket.receiver_depth
            blocks, num_receivers, num_senders = bucket.block_shape
            shape = blocks, num_receivers, self.num_sets, -1
            u = bucket.receivers.take(rows[r]).reshape(*shape)
            v = bucket.senders.take(columns[s]).reshape(blocks, num_senders, -1)
            a = bucket.receivers.take(left[r]).reshape(*shape)
            b = bucket.senders.take(right[s]).reshape(blocks, num_senders, -1)
            root = math.sqrt(v.shape[-1])
            weight = standardizer.edges(bucket)
            psi = self.positions(bucket.positions, weight)
            if psi.shape[0] == 1:
                outer = torch.einsum("brkc,bsc->brsk", u, v)[..., None, :] / root
            else:
                u = u.unflatten(-1, (self.num_operators, -1))
                v = v.unflatten(-1, (self.num_operators, -1))
                outer = torch.einsum("brkfc,bsfc->brskf", u, v) / root
                outer = (outer @ psi.T).transpose(-1, -2)
            gate = torch.einsum("brkc,bsc->brsk", a, b)[..., None, :] / root
            inner = weight.reshape(blocks, num_receivers, num_senders, -1, 1)
            unit = standardizer.edge_unit(bucket)
            entries = unit * (outer + inner * gate)
            edges.append(entries.reshape(*bucket.values.shape, self.num_sets))
        bias = torch.cat(biases) * standardizer.neuron_scale[0].to(batch.dtype)
        rest = bias.new_zeros(len(bias), NUM_NEURON_CHANNELS - 1, self.num_sets)
        return Entries(tuple(edges), torch.cat([bias[:, None], rest], dim=1))
