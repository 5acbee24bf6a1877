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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.batch import Entries, GraphBatch
from paramgraph.nn.arrival import Arrivals, lifted_bias
from paramgraph.nn.facts import NeuronFacts
from paramgraph.nn.identities import ends_of, identity_vectors
from paramgraph.nn.metanetwork import Level, Metanetwork, mlp, network_mean
from paramgraph.nn.neuron_types import NeuronTypes
from paramgraph.nn.operator_entries import OuterProductHead
from paramgraph.nn.per_layout import per_layout
from paramgraph.nn.probes import ProbePoints, neuron_answers
from paramgraph.nn.pushes import HeldWeights, Weights
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.sweeps import Filled, Levels, Round, Signals
from paramgraph.nn.typed_readout import ReadRows, TypedReadout

__all__ = ["OperatorMetanetwork"]

_SYMMETRIES = {
    "permutation": frozenset[str](),
    "sign": frozenset({"sign"}),
    "scale": frozenset({"sign", "scale"}),
}


class OperatorMetanetwork(Metanetwork):
    """Forward and backward sweeps of learned signals, equivariant by type.

    ``f_r = sum_s W_rs (A h_s)``, ``h_r += U([h, f, b, g])`` in dataflow order, then
    ``r_s = sum_r W_rs (B g_r)``, ``g_s += V([g, r, b, h])`` in reverse order, ``num_rounds`` times;
    kernels act through ``num_operators`` learned functions of the position, products of neurons
    (gates, attention) multiply signals. Outputs at level ``"parameter"`` are outer products of
    features, which have the type of a gradient.

    Args:
        out_dim: Number of outputs per network, per neuron, or per entry.
        hidden_dim: Channels of h and of g.
        num_rounds: Sweeps forward and back.
        num_operators: Position functions per kernel; divides ``hidden_dim``.
        symmetry: ``"sign"``, ``"scale"`` or ``"permutation"``.
        phase: Whether biases of sines and cosines count by their wave alone, so that periods do not
            matter; not with ``symmetry="permutation"``.
        second_order: Also push facts through squared weights; not with ``symmetry="scale"``.
        dropout: In the neuron updates and the head.
        num_probes: Learned inputs that all networks are run on; what neurons answer is where their
            primal signals start, since it scales like them. 0 runs no network.
        probe_options: Further arguments of ``ProbePoints``.
        level: ``"graph"``, ``"neuron"`` or ``"parameter"``.

    Raises:
        ValueError: Options that exclude each other, as the message says.
        BatchError: With probes, a network cannot be run.

    Law: the output does not change under any symmetry of the kinds in ``promised_symmetries()``.

    Example:
        >>> metanetwork = OperatorMetanetwork(out_dim=10)
        >>> sorted(metanetwork.promised_symmetries())
        ['permutation', 'phase', 'sign']

    References:
        Own design (docs/operator.md). Relatives: ProbeGen (2410.10811), DNG (2607.02166),
        GradMetaNet (2507.01649), ScaleGMN (2406.10685).
    """

    levels = frozenset({"graph", "neuron", "parameter"})
    num_identities = 256

    def __init__(
        self,
        out_dim: int,
        *,
        hidden_dim: int = 32,
        num_rounds: int = 2,
        num_operators: int = 4,
        symmetry: str = "sign",
        phase: bool = True,
        second_order: bool = False,
        dropout: float = 0.0,
        num_probes: int = 0,
        probe_options: Mapping[str, Any] | None = None,
        level: Level = "graph",
    ) -> None:
        super().__init__(out_dim, level=level)
        _check_options(hidden_dim, num_operators, symmetry, second_order=second_order)
        self.symmetry = symmetry
        self.phase = phase and symmetry != "permutation"
        self.hidden_dim = hidden_dim
        self.standardizer = Standardizer()
        self.input_identity = nn.Parameter(torch.randn(self.num_identities, hidden_dim))
        self.output_identity = nn.Parameter(torch.randn(self.num_identities, hidden_dim))
        self.probes: ProbePoints | None = None
        if num_probes:
            self.probes = ProbePoints(num_probes, **(probe_options or {}))
            self.probe_map = nn.Linear(num_probes, hidden_dim, bias=False)
        context_dim = 24
        self.facts = NeuronFacts(context_dim)
        self.context = nn.Linear(self.facts.width + 4, context_dim)
        self.bias_map = nn.Linear(2, hidden_dim, bias=False)
        kept = _SYMMETRIES[symmetry] | ({"sign"} if self.phase else set())
        self.rounds = nn.ModuleList(
            Round(
                hidden_dim,
                num_operators,
                context_dim,
                dropout,
                kept=kept,
                second_order=second_order,
            )
            for _ in range(num_rounds)
        )
        if level == "parameter":
            self.entries = OuterProductHead(hidden_dim, context_dim, out_dim, num_operators, kept)
            return
        self.readout = TypedReadout(hidden_dim, context_dim, kept)
        read_dim = hidden_dim * (3 if level == "graph" else 1)
        if self.probes is not None and level == "graph":
            self.answer_map = mlp(num_probes + hidden_dim, 8 * hidden_dim, 4 * hidden_dim)
            read_dim += 4 * hidden_dim
        self.head = nn.Sequential(
            nn.LayerNorm(read_dim), mlp(read_dim, 2 * hidden_dim, out_dim, dropout=dropout)
        )

    def promised_symmetries(self) -> frozenset[str]:
        """Permutations always; signs, positive scales and phases as the options say."""
        phase = {"phase"} if self.phase else set[str]()
        return frozenset({"permutation", *_SYMMETRIES[self.symmetry], *phase})

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the scale of weights by role on the training split."""
        self.standardizer.fit(batches)

    def forward(self, batch: GraphBatch) -> Tensor | Entries:
        """Predict ``[num_networks, out_dim]``, ``[N, out_dim]`` or entries, as ``level`` says."""
        answers = None if self.probes is None else neuron_answers(batch, self.probes, std=False)[0]
        return self.read(batch, HeldWeights(batch, self.standardizer), answers)

    def read(
        self, batch: GraphBatch, weights: Weights, answers: Tensor | None = None
    ) -> Tensor | Entries:
        """``forward`` with the weights as they are given, of which ``batch`` has the shapes.

        Args:
            batch: The networks; at level ``"parameter"`` with their weights.
            weights: As operators.
            answers: Of the neurons to probes ``[N, num_probes]``, if the metanetwork has any.
        """
        read = self._sweep(batch, weights, answers)
        signals = read.signals
        if self.level == "parameter":
            return self.entries(batch, read.levels, signals, self.standardizer)
        if self.level == "neuron":
            h, g = torch.cat(signals.primal), torch.cat(signals.dual)
            return self.head(self.readout(read.behind, h, g, read.context))
        num = batch.num_networks
        # Sets: hidden neurons, inputs, outputs, and fixed ones, which are not read.
        place = per_layout(batch, "places", lambda: batch.kind.new_tensor([1, 0, 2, 3])[batch.kind])
        sets = place * num + batch.network
        means = self.readout.means(_rows_of(batch, read, sets), 4 * num)
        known = [*means.reshape(4, num, -1)[:3]]
        if answers is not None:
            # What the network returns counts as it is, too, beside which output returns it.
            rows = (batch.kind == 2).nonzero()[:, 0]
            which = identity_vectors(self.output_identity, batch.identity[rows])
            said = self.answer_map(torch.cat([answers[rows], which], dim=1))
            known.append(network_mean(said, batch.network[rows], num))
        return self.head(torch.cat(known, dim=1))

    def _sweep(self, batch: GraphBatch, weights: Weights, answers: Tensor | None = None) -> _Read:
        """All rounds: signals of every neuron, and what is known of it."""
        statistics = self.standardizer.neurons(batch)
        if self.symmetry == "scale":
            # The size of a weight says nothing where it can be rescaled.
            magnitudes = batch.neuron_values.new_zeros(batch.num_neurons, 4)
        else:
            magnitudes = weights.magnitudes()
        facts = self.facts(batch, statistics[:, 2])
        context = self.context(torch.cat([facts, magnitudes], dim=1))
        before = NeuronTypes.of(batch, self.symmetry)
        scale = self.symmetry == "scale"
        arrivals = Arrivals.of(batch, before, phase=self.phase, scale=scale)
        if self.phase and any(arrival.wave is not None for arrival in arrivals):
            wave = lifted_bias(batch, statistics, self.standardizer.wave_scale)
            statistics = torch.stack([wave, statistics[:, 1]], dim=1)
        bias = self.bias_map(statistics[:, :2])
        levels = Levels(batch, before, arrivals, context, bias, phase=self.phase)
        start = self._start_by_level(batch, answers)
        signals = Signals.start(*start, keeps_messages=self.level == "parameter")
        for layer in self.rounds:
            signals = layer(batch, levels, weights, signals)
        filled = signals.filled(levels.bias)
        return _Read(levels, before.behind(batch, phase=self.phase), filled, context)

    def _start_by_level(
        self, batch: GraphBatch, answers: Tensor | None
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Inputs and outputs carry learned identities, all neurons their answers to probes.

        ``None`` where a level has none of them.
        """
        primal, dual = (
            [
                None if end is None else end.placed(identity_vectors(table, end.number))
                for end in per_layout(batch, ("ends", kind), partial(ends_of, batch, kind))
            ]
            for kind, table in ((0, self.input_identity), (2, self.output_identity))
        )
        if answers is not None:
            known = batch.split(self.probe_map(answers))
            primal = [k if h is None else h + k for h, k in zip(primal, known, strict=True)]
        return primal, dual

    def _start(self, batch: GraphBatch, answers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Primal and dual signals of all neurons before the first round ``[N, hidden_dim]``."""
        zeros = batch.split(batch.neuron_values.new_zeros(batch.num_neurons, self.hidden_dim))
        filled = Signals.start(*self._start_by_level(batch, answers)).filled(zeros)
        return torch.cat(filled.primal), torch.cat(filled.dual)


def _rows_of(batch: GraphBatch, read: _Read, sets: Tensor) -> list[ReadRows]:
    """All neurons at once, or without derivatives level by level, which needs no copies."""
    h, g = read.signals.primal, read.signals.dual
    if torch.is_grad_enabled():
        whole = (torch.cat(h), torch.cat(g), read.context, sets)
        return [ReadRows(read.behind, *whole)]
    levels = read.levels
    rows = zip(levels.types, h, g, levels.context, batch.split(sets), strict=True)
    return [ReadRows(*row) for row in rows]


@dataclass(frozen=True)
class _Read:
    """Signals after all rounds, the types that readers see, and facts ``[N, context_dim]``."""

    levels: Levels
    behind: NeuronTypes
    signals: Filled
    context: Tensor


def _check_options(
    hidden_dim: int, num_operators: int, symmetry: str, *, second_order: bool
) -> None:
    if symmetry not in _SYMMETRIES:
        raise ValueError(f"symmetry must be 'sign', 'scale' or 'permutation', got {symmetry!r}.")
    if hidden_dim % num_operators:
        raise ValueError(
            f"num_operators must divide hidden_dim, got {num_operators} and {hidden_dim}."
        )
    if second_order and symmetry == "scale":
        raise ValueError(
            "second_order=True reads how large weights are, which symmetry='scale' must not: "
            "choose symmetry='sign'."
        )
