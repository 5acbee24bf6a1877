"""DeepSets: a network as the set of its parameters, each with a note of where it stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from paramgraph.batch import ROLES, Bucket, GraphBatch
from paramgraph.nn.metanetwork import Metanetwork, mlp
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.tensor_stacks import InvariantHead, end_waves
from paramgraph.structure import NeuronKind
from paramgraph.values import NUM_NEURON_CHANNELS

__all__ = ["DeepSets"]

_PLACES = 3  # coordinates of a kernel element, and its distance from the centre


class DeepSets(Metanetwork):
    """Sum over all parameters of ``phi(value, place)``, then an MLP: ``rho(sum_p phi(v_p, q_p))``.

    The place of a weight is its role (kind of edge; at the inputs, between hidden neurons, at the
    outputs), the depth of its receivers from both ends, and where in a kernel it stands; that of a
    bias or running statistic is which of them it is, its neuron's kind and its depth. Which neurons
    a weight joins is not seen, so that moving one tensor's rows alone changes nothing.

    Args:
        out_dim: Number of outputs per network.
        hidden_dim: Width of phi and of the sum.
        num_waves: Waves of each depth (an even number).
        pool: ``"mean"`` over a network's parameters, or their ``"sum"``.
        head_dim: Width of rho.
        dropout: In rho.

    Law: the output does not change when hidden neurons are permuted.

    Raises:
        ValueError: An unknown pool, or an odd number of waves.

    Example:
        >>> DeepSets(out_dim=10).promised_symmetries()
        frozenset({'permutation'})

    References:
        Zaheer et al. 2017, theorem 2 (https://arxiv.org/abs/1703.06114); as a baseline: Navon et
        al. 2023, section 7, and Lim et al. 2024, section 4.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        out_dim: int,
        *,
        hidden_dim: int = 256,
        num_waves: int = 16,
        pool: str = "mean",
        head_dim: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(out_dim)
        if pool not in ("mean", "sum"):
            raise ValueError(f"pool must be 'mean' or 'sum', got {pool!r}.")
        if num_waves % 2:
            raise ValueError(f"num_waves must be even (sines and cosines), got {num_waves}.")
        self.hidden_dim, self.num_waves, self.pool = hidden_dim, num_waves, pool
        self.standardizer = Standardizer()
        self.value = nn.Linear(1, hidden_dim)
        self.kernel = nn.Linear(_PLACES, hidden_dim, bias=False)
        self.depths = nn.Linear(2 * num_waves, hidden_dim, bias=False)
        self.roles = nn.Embedding(len(ROLES), hidden_dim)
        self.features = nn.Embedding(len(NeuronKind) * NUM_NEURON_CHANNELS, hidden_dim)
        for table in (self.roles, self.features):
            nn.init.normal_(table.weight, std=0.5)
        self.phi = mlp(hidden_dim, hidden_dim, hidden_dim)
        self.head = InvariantHead(hidden_dim, head_dim, out_dim, dropout=dropout)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure scales of weights, and of what the head reads, on the training split."""
        several = list(batches)
        self.standardizer.fit(several)
        if several:
            self.head.fit(torch.cat([self._sums(batch) for batch in several]))

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predict ``[num_networks, out_dim]``."""
        return self.head.read(self._sums(batch))

    def _sums(self, batch: GraphBatch) -> Tensor:
        """Mean or sum of phi over the parameters of each network ``[num_networks, hidden_dim]``."""
        device, num = batch.network.device, batch.num_networks
        total = batch.neuron_values.new_zeros(num, self.hidden_dim)
        count = batch.neuron_values.new_zeros(num, 1)
        for bucket in batch.buckets:
            if not bucket.kind.has_parameters:
                continue
            values = self.standardizer.edges(bucket)
            place = self._block_places(batch, bucket)  # [m, P, dim]
            entries = values[..., None] * self.value.weight[:, 0] + self.value.bias
            found = self.phi(nn.functional.silu(entries + place[:, None, None, None]))
            rows = torch.cat([batch.parts[slot.part].rows for slot in bucket.slots]).to(device)
            total = total.index_add(0, rows, found.flatten(1, -2).sum(1).to(total))
            count = count.index_add(0, rows, count.new_full((len(rows), 1), values[0].numel()))
        values, has = self.standardizer.neurons(batch), batch.neuron_has
        entries = values[..., None] * self.value.weight[:, 0] + self.value.bias
        found = self.phi(nn.functional.silu(entries + self._neuron_places(batch)))
        total = total.index_add(0, batch.network, (found * has[..., None]).sum(1).to(total))
        count = count.index_add(0, batch.network, has.sum(1, keepdim=True))
        return total / count.clamp(min=1) if self.pool == "mean" else total

    def _block_places(self, batch: GraphBatch, bucket: Bucket) -> Tensor:
        """Places ``[m, P, dim]`` of the entries of a bucket."""
        like = bucket.values
        at = torch.tensor(bucket.positions, dtype=like.dtype, device=like.device)
        radius = at.square().sum(1, keepdim=True).sqrt()
        kernel = self.kernel(torch.cat([at / (1 + radius), radius / (1 + radius)], dim=1))
        role = self.roles.weight[ROLES.index(bucket.role)]
        # The first receiver of each block; those of a block have one depth.
        rows = bucket.receivers.numbers(like.device).reshape(like.shape[0], -1)[:, 0]
        rows = rows + batch.levels[bucket.receiver_depth][0]
        depth = self._depth(batch, rows)
        return kernel + role + depth[:, None]

    def _neuron_places(self, batch: GraphBatch) -> Tensor:
        """Places ``[N, 3, dim]`` of biases and running statistics."""
        channels = torch.arange(NUM_NEURON_CHANNELS, device=batch.network.device)
        number = batch.kind[:, None] * NUM_NEURON_CHANNELS + channels
        rows = torch.arange(batch.num_neurons, device=batch.network.device)
        return self.features(number) + self._depth(batch, rows)[:, None]

    def _depth(self, batch: GraphBatch, rows: Tensor) -> Tensor:
        """Waves of the depth from the inputs and from the outputs ``[rows, dim]``."""
        depth, reverse = batch.depth[rows], batch.reverse_depth[rows]
        most = int(torch.maximum(depth.max(), reverse.max())) + 1 if len(rows) else 1
        waves = end_waves(most, self.num_waves, batch.neuron_values)
        result: Tensor = self.depths(torch.cat([waves[depth], waves[reverse]], dim=1))
        return result
