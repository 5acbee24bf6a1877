"""Message passing in the order in which a network computes; each neuron has a gated memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn.edge_chain import EdgeChain
from paramgraph.nn.pna import PNALayer, joined

__all__ = ["OrderedPNALayer"]


class OrderedPNALayer(PNALayer):
    """A sweep over the levels of the networks: neurons hear from neurons that have just heard.

    Levels are visited from the inputs to the outputs, as data flow, and where messages go both ways
    back again, as gradients do. At each visit a neuron summarises the messages that arrive from
    that side, ``c_i = C P [x_i; M_i; amplified M_i]``, and a gate decides what of its memory stays:
    ``x_i <- (1 - z) tanh(W c_i + r * U x_i) + z x_i``, with r and z sigmoids of ``c_i`` and ``x_i``
    (a GRU). Neurons without messages keep their memory, which is bounded, so there is no norm.

    Args:
        dim: Width of neurons and edges.
        updates_edges: Whether edges are updated, after the sweep.

    References:
        Cho et al. 2014 (GRU; https://arxiv.org/abs/1406.1078); memories that follow the inference
        of the network read: dynamic neural graph encoders.
    """

    def __init__(self, dim: int, *, updates_edges: bool) -> None:
        super().__init__(dim, 0.0, None, is_last=True, updates_edges=updates_edges)
        self.memory = nn.GRUCell(dim, dim)

    def update_neurons(
        self,
        batch: GraphBatch,
        neurons: Tensor,
        edges: EdgeChain,
        log_degree: Tensor,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, EdgeChain]:
        """All levels, one after the other; arguments as in ``PNALayer.forward``."""
        levels = batch.split(neurons)
        if edges.is_stored:
            edges = edges.finished()
        # Each level passes on what it heard, so a sweep needs all buckets, or none of them.
        self._sweep(batch, levels, edges, log_degree, is_up=True)
        if any(want for one, want in zip(edges.passes, wanted, strict=True) if one.is_reverse):
            self._sweep(batch, levels, edges, log_degree, is_up=False)
        return torch.cat(levels), edges

    def _sweep(
        self,
        batch: GraphBatch,
        levels: list[Tensor],
        edges: EdgeChain,
        log_degree: Tensor,
        *,
        is_up: bool,
    ) -> None:
        """Visit the levels, replacing them in the list."""
        ends = [joined(x, self.message_target, self.message_source) for x in levels]
        order = range(len(levels)) if is_up else reversed(range(len(levels)))
        for depth in order:
            arriving = [
                one.is_reverse != is_up
                and depth == (one.bucket.receiver_depth if is_up else one.bucket.sender_depth)
                for one in edges.passes
            ]
            if not any(arriving):
                continue
            statistics, degree, _ = edges.messages(
                self.film, torch.cat(ends), arriving, batch.levels[depth]
            )
            before = levels[depth]
            heard = self.summary(before, statistics, degree, log_degree)
            after = torch.where(degree > 0, self.memory(heard, before), before)
            levels[depth] = after
            ends[depth] = joined(after, self.message_target, self.message_source)
