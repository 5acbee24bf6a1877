"""The operator metanetwork: learned signals pushed through the networks' own weights.

A network's weights are operators. One sweep forward pushes learned channels through them layer by
layer, one sweep back pushes channels through their transposes, with learned updates at the neurons;
this is what a training step does with activations and gradients. A message costs 2 dim operations
per weight, at matrix-product speed, and no edge keeps any state.

Types. If a neuron may be rescaled by q (capture says how), its primal features h scale like
activations (q h) and its dual features g like gradients (g / q); W and its transpose carry these
types from group to group by themselves. ``symmetry`` chooses which types are kept exactly:
``"sign"`` (tanh, sine: q = +-1), ``"scale"`` (signs and positive factors), ``"permutation"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.engine import add_rows, push
from paramgraph.errors import BatchError
from paramgraph.nn.magnitudes import log_magnitudes
from paramgraph.nn.metanetwork import Metanetwork, mlp, network_mean
from paramgraph.nn.positions import PositionFunctions
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.typed import FREE, NeuronTypes, TypedReadout, TypedUpdate
from paramgraph.structure import Activation, EdgeKind

__all__ = ["OperatorMetanetwork"]


class OperatorMetanetwork(Metanetwork):
    """Forward and backward sweeps of learned signals, equivariant by type (graph-level head).

    ``f_r = sum_s W_rs (A h_s)``, ``h_r += U([h, f, b, g])`` in dataflow order, then
    ``r_s = sum_r W_rs (B g_r)``, ``g_s += V([g, r, b, h])`` in reverse order, ``num_rounds`` times;
    kernels act through ``num_operators`` learned functions of the position.

    Args:
        out_dim: Number of outputs per network.
        hidden_dim: Channels of h and of g.
        num_rounds: Sweeps forward and back.
        num_operators: Position functions per kernel; divides ``hidden_dim``.
        symmetry: ``"sign"``, ``"scale"`` or ``"permutation"``.
        dropout: In the neuron updates and the head.

    Law: the output does not change under any symmetry of the kinds in ``promised_symmetries()``.

    Example:
        >>> metanetwork = OperatorMetanetwork(out_dim=10)
        >>> sorted(metanetwork.promised_symmetries())
        ['permutation', 'sign']

    References:
        Own design (docs/operator.md). Relatives: ProbeGen (2410.10811), DNG (2607.02166),
        GradMetaNet (2507.01649), ScaleGMN (2406.10685).
    """

    max_identities = 256

    def __init__(
        self,
        out_dim: int,
        *,
        hidden_dim: int = 32,
        num_rounds: int = 2,
        num_operators: int = 4,
        symmetry: str = "sign",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(out_dim)
        if symmetry not in ("sign", "scale", "permutation"):
            raise ValueError(
                f"symmetry must be 'sign', 'scale' or 'permutation', got {symmetry!r}."
            )
        if hidden_dim % num_operators:
            raise ValueError(
                f"num_operators must divide hidden_dim, got {num_operators} and {hidden_dim}."
            )
        self.symmetry = symmetry
        self.hidden_dim = hidden_dim
        self.num_operators = num_operators
        self.standardizer = Standardizer()
        self.input_identity = nn.Parameter(torch.randn(self.max_identities, hidden_dim))
        self.output_identity = nn.Parameter(torch.randn(self.max_identities, hidden_dim))
        context_dim = 24
        self.activation = nn.Embedding(len(Activation), context_dim)
        self.context = nn.Linear(context_dim + 10, context_dim)
        self.bias_map = nn.Linear(2, hidden_dim, bias=False)
        self.rounds = nn.ModuleList(
            _Round(hidden_dim, num_operators, context_dim, dropout) for _ in range(num_rounds)
        )
        self.readout = TypedReadout(hidden_dim, context_dim)
        self.head = nn.Sequential(
            nn.LayerNorm(3 * hidden_dim),
            mlp(3 * hidden_dim, 2 * hidden_dim, out_dim, dropout=dropout),
        )

    def promised_symmetries(self) -> frozenset[str]:
        """Permutations always; signs and positive scales as ``symmetry`` says."""
        extra = {"permutation": set(), "sign": {"sign"}, "scale": {"sign", "scale"}}
        return frozenset({"permutation", *extra[self.symmetry]})

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the scale of weights by role on the training split."""
        self.standardizer.fit(batches)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Predict ``[num_networks, out_dim]``.

        Raises:
            BatchError: A network has more than 256 inputs or outputs.
        """
        types = NeuronTypes.of(batch, self.symmetry)
        statistics = self.standardizer.neurons(batch)
        weights = [self.standardizer.edges(bucket) for bucket in batch.buckets]
        facts = self._facts(batch, statistics)
        magnitudes = log_magnitudes(batch, weights)
        if self.symmetry == "scale":
            # The size of a weight says nothing where it can be rescaled.
            magnitudes = torch.zeros_like(magnitudes)
        context = self.context(torch.cat([facts, magnitudes], dim=1))
        bias = self.bias_map(statistics[:, :2])
        primal, dual = self._start(batch)
        levels = _Levels(batch, types, batch.split(context), batch.split(bias))
        h, g = batch.split(primal), batch.split(dual)
        for layer in self.rounds:
            h, g = layer(batch, levels, weights, h, g)
        return self.head(self._read(batch, types, torch.cat(h), torch.cat(g), context))

    def _facts(self, batch: GraphBatch, statistics: Tensor) -> Tensor:
        """What is known of a neuron and never changes sign: activation, place, variance."""
        dtype = batch.dtype
        depth, back = batch.depth.to(dtype), batch.reverse_depth.to(dtype)
        plain = torch.stack(
            [
                1 / (1 + depth),
                1 / (1 + back),
                (batch.kind == 0).to(dtype),
                (batch.kind == 2).to(dtype),
                batch.neuron_has[:, 2],
                # A variance is never negative; its logarithm tells magnitudes apart.
                (statistics[:, 2].clamp(min=0) + 1e-6).log() * batch.neuron_has[:, 2],
            ],
            dim=1,
        )
        return torch.cat([self.activation(batch.activation).to(dtype), plain], dim=1)

    def _start(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Inputs and outputs carry learned identities; hidden neurons start empty."""
        if batch.num_neurons and int(batch.identity.max()) >= self.max_identities:
            raise BatchError(
                f"a network has {int(batch.identity.max()) + 1} inputs or outputs, but the "
                f"operator metanetwork tells at most {self.max_identities} apart."
            )
        number = batch.identity.clamp(min=0)
        inputs = (batch.kind == 0).to(batch.dtype)[:, None]
        outputs = (batch.kind == 2).to(batch.dtype)[:, None]
        return self.input_identity[number] * inputs, self.output_identity[number] * outputs

    def _read(
        self, batch: GraphBatch, types: NeuronTypes, h: Tensor, g: Tensor, context: Tensor
    ) -> Tensor:
        """Means over hidden neurons, inputs and outputs ``[num_networks, 3 * dim]``."""
        values = self.readout(types, h, g, context)
        means = []
        for kind in (1, 0, 2):
            rows = (batch.kind == kind).nonzero()[:, 0]
            means.append(network_mean(values[rows], batch.network[rows], batch.num_networks))
        return torch.cat(means, dim=1)


class _Levels:
    """What an update needs of each level, cut once per batch."""

    def __init__(
        self, batch: GraphBatch, types: NeuronTypes, context: list[Tensor], bias: list[Tensor]
    ) -> None:
        self.context = context
        self.bias = bias
        self.is_read = [rows.to(batch.dtype)[:, None] for rows in batch.split(batch.is_read)]
        self.types = [types.rows(start, end) for start, end in batch.levels]
        self.is_free = [(t.types == FREE).to(batch.dtype)[:, None] for t in self.types]
        depth = len(batch.levels)
        self.incoming: list[list[int]] = [[] for _ in range(depth)]
        self.outgoing: list[list[int]] = [[] for _ in range(depth)]
        for number, bucket in enumerate(batch.buckets):
            self.incoming[bucket.receiver_depth].append(number)
            self.outgoing[bucket.sender_depth].append(number)


class _Round(nn.Module):
    """One sweep forward and one back."""

    def __init__(self, dim: int, num_operators: int, context_dim: int, dropout: float) -> None:
        super().__init__()
        self.forward_map = nn.Linear(dim, dim, bias=False)
        self.backward_map = nn.Linear(dim, dim, bias=False)
        self.forward_positions = PositionFunctions(num_operators)
        self.backward_positions = PositionFunctions(num_operators)
        self.primal = TypedUpdate(dim, context_dim, dropout)
        self.dual = TypedUpdate(dim, context_dim, dropout)

    def forward(
        self,
        batch: GraphBatch,
        levels: _Levels,
        weights: list[Tensor],
        h: list[Tensor],
        g: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        h, g = list(h), list(g)
        for level in range(1, len(h)):
            incoming = levels.incoming[level]
            message = self._message(batch, levels, incoming, weights, h, len(h[level]))
            if message is not None:
                facts = levels.bias[level], g[level], levels.context[level]
                h[level] = h[level] + self.primal(levels.types[level], h[level], message, *facts)
        for level in range(len(g) - 2, -1, -1):
            numbers = levels.outgoing[level]
            message = self._message(
                batch, levels, numbers, weights, g, len(g[level]), backward=True
            )
            if message is not None:
                facts = levels.bias[level], h[level], levels.context[level]
                types = levels.types[level]
                update = self.dual(types, g[level], message, *facts, is_dual=True)
                # Outputs that stand at the depth of others' hidden neurons get no message.
                g[level] = g[level] + update * levels.is_read[level]
        return h, g

    def _message(
        self,
        batch: GraphBatch,
        levels: _Levels,
        numbers: list[int],
        weights: list[Tensor],
        signals: list[Tensor],
        num_rows: int,
        *,
        backward: bool = False,
    ) -> Tensor | None:
        """Signals of other levels, mapped and pushed through some buckets to one level."""
        signal_map = self.backward_map if backward else self.forward_map
        positions = self.backward_positions if backward else self.forward_positions
        total = None
        for number in numbers:
            bucket, weight = batch.buckets[number], weights[number]
            operator = _operators(weight, positions(bucket.positions, weight))
            ends = (bucket.senders, bucket.receivers)
            source, target = ends[::-1] if backward else ends
            depth = bucket.receiver_depth if backward else bucket.sender_depth
            signal = signal_map(signals[depth])
            constant = not bucket.kind.has_parameters and bucket.kind is not EdgeKind.SKIP
            if constant:
                # The constants of a product do not know its signs and scales, so only what has
                # neither may pass.
                signal = signal * levels.is_free[depth]
            signal = source.take(signal)
            fan = weight.shape[2 if backward else 3] * weight.shape[4]
            sent = push(bucket, operator, signal, backward=backward) / math.sqrt(fan)
            if constant:
                other = bucket.sender_depth if backward else bucket.receiver_depth
                sent = sent * target.take(levels.is_free[other])
            total = add_rows(total, target, sent, num_rows)
        return total


def _operators(weights: Tensor, psi: Tensor) -> Tensor:
    """``[..., num_positions]`` times ``[num_positions, operators]``."""
    return weights if psi.shape[0] == 1 else weights @ psi
