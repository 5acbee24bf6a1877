"""ScaleGMN: message passing that keeps how neurons may be rescaled, in one or both directions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from paramgraph.batch import Entries, GraphBatch
from paramgraph.errors import BatchError
from paramgraph.nn.arrival import Arrivals, lifted_bias
from paramgraph.nn.facts import NeuronFacts
from paramgraph.nn.identities import identity_vectors
from paramgraph.nn.metanetwork import Level, Metanetwork, mlp, network_mean
from paramgraph.nn.readouts import GraphReadout
from paramgraph.nn.scale_entries import ScaledEntries
from paramgraph.nn.scale_layers import EdgeLift, ScaleInvariant, reciprocals
from paramgraph.nn.scale_messages import ScaleLayer, ScaleState, Structure
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.sweeps import Levels
from paramgraph.nn.typed import NeuronTypes

__all__ = ["ScaleGMN"]

_KEPT = {"sign": {"sign"}, "scale": {"sign", "scale"}}


class ScaleGMN(Metanetwork):
    """Messages ``M_i = sum_j S((U e_ij) * (V x_j))``, updates ``x_i += S([x_i, M_i, b_i])``.

    Every map S keeps types (``ScaleMap``); which factors a neuron may be rescaled by is what
    capture found for that neuron. Bidirectional layers also send messages against the edges, with
    reciprocal weights (``reciprocals``). All kernels, gates, attention and norms are read.

    Args:
        out_dim: Number of outputs per network, per neuron, or per entry.
        bidirectional: Whether messages go both ways (ScaleGMN-B).
        hidden_dim: Width of neurons and edges; the paper uses 64 to 128 for INRs.
        num_layers: Layers of message passing.
        symmetry: ``"scale"`` (signs and positive factors) or ``"sign"``.
        phase: Whether biases of sines count by their wave alone.
        canon: For signs ``"abs"`` or ``"symmetrised"``.
        updates_edges: Whether layers also update edges.
        reciprocal_floor: See ``reciprocals``; 0 is the paper's ``1 / w``.
        readout: ``"full"`` (means over hidden neurons, inputs, outputs) or ``"outputs"`` (output
            neurons in their order, and inputs if bidirectional).
        num_outputs: Output neurons of each network, for ``readout="outputs"``.
        num_inputs: Input neurons, for ``readout="outputs"`` and both directions.
        dropout: In the head.
        level: ``"graph"``, ``"neuron"`` or ``"parameter"``.

    Raises:
        ValueError: Unknown ``symmetry``, ``canon`` or ``readout``.

    Law: the output does not change under any symmetry of the kinds in ``promised_symmetries()``.

    Example:
        >>> sorted(ScaleGMN(out_dim=10).promised_symmetries())
        ['permutation', 'phase', 'scale', 'sign']

    References:
        Kalogeropoulos et al. 2024, sections 4 and 5 (https://arxiv.org/abs/2406.10685). Ours are
        the group per neuron, phases, finite reciprocals, and everything that is no chain of layers.
    """

    levels = frozenset({"graph", "neuron", "parameter"})
    num_identities = 256

    def __init__(
        self,
        out_dim: int,
        *,
        bidirectional: bool = False,
        hidden_dim: int = 32,
        num_layers: int = 4,
        symmetry: str = "scale",
        phase: bool = True,
        canon: str = "abs",
        updates_edges: bool = True,
        reciprocal_floor: float = 1.0,
        readout: str = "full",
        num_outputs: int = 1,
        num_inputs: int = 2,
        dropout: float = 0.0,
        level: Level = "graph",
    ) -> None:
        super().__init__(out_dim, level=level)
        _check_options(symmetry, canon, readout)
        self.symmetry, self.phase = symmetry, phase
        self.bidirectional, self.reciprocal_floor = bidirectional, reciprocal_floor
        self.hidden_dim, self.readout = hidden_dim, readout
        self.standardizer = Standardizer()
        self.facts = NeuronFacts(16)
        self.input_identity = nn.Parameter(torch.randn(self.num_identities, hidden_dim))
        self.output_identity = nn.Parameter(torch.randn(self.num_identities, hidden_dim))
        self.bias_map = nn.Linear(2, hidden_dim, bias=False)
        self.lift = EdgeLift(hidden_dim)
        self.lift_back = EdgeLift(hidden_dim) if bidirectional else None
        reads_edges = level == "parameter"
        self.layers = nn.ModuleList(
            ScaleLayer(
                hidden_dim,
                self.facts.width,
                canon=canon,
                bidirectional=bidirectional,
                updates_edges=updates_edges and (reads_edges or number < num_layers - 1),
                updates_back=updates_edges and number < num_layers - 1,
            )
            for number in range(num_layers)
        )
        if level == "parameter":
            self.entries = ScaledEntries(hidden_dim, self.facts.width, out_dim)
            return
        self.invariant = ScaleInvariant(hidden_dim, hidden_dim, self.facts.width)
        self.reads = nn.ModuleDict()
        read_dim = hidden_dim if level == "neuron" else 3 * hidden_dim
        if level == "graph" and readout == "outputs":
            self.reads["outputs"] = GraphReadout("outputs", hidden_dim, num_outputs=num_outputs)
            self.num_inputs = num_inputs if bidirectional else 0
            read_dim = (num_outputs + self.num_inputs) * hidden_dim
        self.head = nn.Sequential(
            nn.LayerNorm(read_dim), mlp(read_dim, 2 * hidden_dim, out_dim, dropout=dropout)
        )

    def promised_symmetries(self) -> frozenset[str]:
        """Permutations always; signs, positive scales and phases as the options say."""
        phase = {"phase"} if self.phase else set[str]()
        return frozenset({"permutation", *_KEPT[self.symmetry], *phase})

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        """Measure the scale of weights by role on the training split."""
        self.standardizer.fit(batches)

    def forward(self, batch: GraphBatch) -> Tensor | Entries:
        """Predict ``[num_networks, out_dim]``, ``[N, out_dim]`` or entries, as ``level`` says."""
        weights = [self.standardizer.edges(bucket) for bucket in batch.buckets]
        statistics = self.standardizer.neurons(batch)
        facts = self.facts(batch, statistics[:, 2])
        if self.phase:
            wave = lifted_bias(batch, statistics, self.standardizer.wave_scale)
            statistics = torch.stack([wave, statistics[:, 1]], dim=1)
        bias = self.bias_map(statistics[:, :2])
        before = NeuronTypes.of(batch, self.symmetry)
        scale = self.symmetry == "scale"
        arrivals = Arrivals.of(batch, before, phase=self.phase, scale=scale)
        levels = Levels(batch, before, arrivals, facts, bias, phase=self.phase)
        structure = Structure(batch, levels)
        edges = [self.lift(b, w) for b, w in zip(batch.buckets, weights, strict=True)]
        back: list[Tensor] = []
        if self.lift_back is not None:
            inverse = reciprocals(batch, levels, weights, self.reciprocal_floor)
            back = [self.lift_back(b, w) for b, w in zip(batch.buckets, inverse, strict=True)]
        state = ScaleState.start(levels, batch.split(self._start(batch)), edges, back)
        for layer in self.layers:
            state = layer(structure, state)
        behind = before.behind(batch, phase=self.phase)
        if self.level == "parameter":
            return self.entries(structure, state, weights, self.standardizer)
        values = self.invariant(behind, torch.cat(state.neurons), facts)
        return self.head(values if self.level == "neuron" else self._read(batch, values))

    def _start(self, batch: GraphBatch) -> Tensor:
        """Inputs and outputs carry learned identities; the bias of others comes with arrivals."""
        number = batch.identity.clamp(min=0)
        inputs = (batch.kind == 0).to(batch.dtype)[:, None]
        outputs = (batch.kind == 2).to(batch.dtype)[:, None]
        return (
            identity_vectors(self.input_identity, number) * inputs
            + identity_vectors(self.output_identity, number) * outputs
        )

    def _read(self, batch: GraphBatch, values: Tensor) -> Tensor:
        """What the head reads of the networks."""
        if "outputs" in self.reads:
            read = self.reads["outputs"](batch, values)
            return (
                read if not self.num_inputs else torch.cat([read, self._inputs(batch, values)], 1)
            )
        means = []
        for kind in (1, 0, 2):
            rows = (batch.kind == kind).nonzero()[:, 0]
            means.append(network_mean(values[rows], batch.network[rows], batch.num_networks))
        return torch.cat(means, dim=1)

    def _inputs(self, batch: GraphBatch, values: Tensor) -> Tensor:
        """The input neurons of each network in their order ``[num_networks, num_inputs * dim]``."""
        rows = (batch.kind == 0).nonzero()[:, 0]
        counts = batch.network[rows].bincount(minlength=batch.num_networks)
        if bool((counts != self.num_inputs).any()):
            raise BatchError(
                f"readout='outputs' was made for {self.num_inputs} input neurons, but networks of "
                f"the batch have {sorted(set(counts.tolist()))}: use readout='full'."
            )
        order = (batch.network[rows] * self.num_inputs + batch.identity[rows]).argsort()
        return values[rows[order]].reshape(batch.num_networks, -1)


def _check_options(symmetry: str, canon: str, readout: str) -> None:
    for name, value, allowed in (
        ("symmetry", symmetry, tuple(_KEPT)),
        ("canon", canon, ("abs", "symmetrised")),
        ("readout", readout, ("full", "outputs")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
