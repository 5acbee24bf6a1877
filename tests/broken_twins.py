"""Metanetworks with one defect each: what the laws are there to notice.

Each twin is a sound metanetwork, read through a defect. Some are defects of published code: norms
over the whole batch, attention over padding, changes of biases read from the wrong neurons, phases
brought to a normal form without their frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paramgraph.batch import Entries, GraphBatch, neurons_by_part, neurons_from_parts
from paramgraph.nn import Metanetwork, OperatorMetanetwork
from paramgraph.nn.metanetwork import Level, network_mean
from paramgraph.structure import Activation

__all__ = ["TWINS", "Broken", "Defect", "Twin", "sound"]

Defect = Callable[[Metanetwork, GraphBatch], Any]

SIGN = ("permutation", "sign", "phase")
ALL = ("permutation", "sign", "scale", "phase")


class Broken(Metanetwork):
    """A sound metanetwork, read through a defect."""

    levels = frozenset({"graph", "neuron", "parameter"})

    def __init__(
        self,
        defect: Defect,
        symmetry: str = "permutation",
        *promised: str,
        level: Level = "graph",
        phase: bool = True,
    ) -> None:
        super().__init__(2, level=level)
        self.inner = OperatorMetanetwork(
            2, hidden_dim=8, num_rounds=1, symmetry=symmetry, phase=phase, level=level
        )
        self.defect = defect
        self.promised = frozenset(promised or ("permutation",))

    def promised_symmetries(self) -> frozenset[str]:
        return self.promised

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        self.inner.fit_statistics(batches)

    def forward(self, batch: GraphBatch) -> Any:
        return self.defect(self.inner, batch)


class Aligned(Broken):
    """Compares with a network of the training split: moved signs count where the order moved, too.

    No permutation alone and no change of signs alone is seen.
    """

    def __init__(self) -> None:
        super().__init__(sound, "sign", *SIGN)
        self.seen: dict[str, Tensor] = {}

    def fit_statistics(self, batches: Iterable[GraphBatch]) -> None:
        batches = list(batches)
        super().fit_statistics(batches)
        for batch in batches:
            for part in batch.parts:
                self.seen[part.graph.signature] = self._biases(part.graph, part.values)[0]

    @staticmethod
    def _biases(graph: Any, values: Any) -> Tensor:
        found = [values.neurons[0][:, :0, 0]]
        for group, neurons in zip(graph.neuron_groups, values.neurons, strict=True):
            if group.activation is Activation.TANH:
                found.append(neurons[..., 0])
        return torch.cat(found, dim=1)

    def forward(self, batch: GraphBatch) -> Tensor:
        moved = []
        for part in batch.parts:
            now, then = self._biases(part.graph, part.values), self.seen[part.graph.signature]
            order = ((now.abs() - then.abs()).abs() > 1e-9).any(1)
            signs = (now.sum(1) - then.sum()).abs() > 1e-9
            moved.append((order & signs).to(batch.dtype))
        return self.inner(batch) + _in_order(batch, moved)[:, None]


def _in_order(batch: GraphBatch, parts: list[Tensor]) -> Tensor:
    """Rows per part as rows of the batch."""
    return torch.cat(parts)[torch.cat([part.rows for part in batch.parts]).argsort()]


def sound(inner: Metanetwork, batch: GraphBatch) -> Any:
    return inner(batch)


# --- outputs per network


def two_networks_missing(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return inner(batch).repeat(3, 1)


def reads_the_first_neuron(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    hidden = (batch.kind == 1).nonzero()[:, 0]
    first = [hidden[batch.network[hidden] == i][0] for i in range(batch.num_networks)]
    return inner(batch) + 0.01 * batch.neuron_values[torch.stack(first), :1].tanh()


def knows_the_order(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """Position embeddings within each layer."""
    values = batch.neuron_values
    values = torch.cat([values[:, :1] * (1 + _place(batch)), values[:, 1:]], dim=1)
    return inner(replace(batch, neuron_values=values))


def _place(batch: GraphBatch) -> Tensor:
    """Number of each neuron within its layer, from 0 to 1."""
    parts = [
        [torch.linspace(0, 1, g.shape[1]).to(g).expand(len(g), -1)[..., None] for g in groups]
        for groups in neurons_by_part(batch, batch.neuron_values)
    ]
    return neurons_from_parts(batch, parts)


def grows_with_weights(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """Keeps signs, but a weight that grows is seen to grow."""
    sizes = []
    for part in batch.parts:
        blocks = [block.abs().flatten(1).mean(1) for block in part.values.blocks]
        sizes.append(torch.stack(blocks).sum(0))
    return inner(batch) + 0.01 * _in_order(batch, sizes)[:, None]


def normal_form_without_frequency(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """Biases of sin(omega (W x + b)) brought to where sin(b) is the same, as if omega were 1."""
    biases = batch.neuron_values[:, 0]
    biases = torch.where(batch.phase != 0, biases.sin().asin(), biases)
    return inner(
        replace(batch, neuron_values=torch.cat([biases[:, None], batch.neuron_values[:, 1:]], 1))
    )


def norm_over_the_architecture(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """Each neuron is standardised over the networks that have it, as batch norm does."""
    scaled = [
        [group / (group.square().mean((0, 1), keepdim=True) + 0.01).sqrt() for group in groups]
        for groups in neurons_by_part(batch, batch.neuron_values)
    ]
    return inner(replace(batch, neuron_values=neurons_from_parts(batch, scaled)))


def norm_over_the_batch(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """Layer norm called without saying which neuron is whose: statistics of the whole batch."""
    values = batch.neuron_values
    values = values / (values.square().mean(0) + 0.01).sqrt()
    return inner(replace(batch, neuron_values=values))


def attends_to_padding(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """The mean over as many neurons as the largest network has."""
    counts = torch.bincount(batch.network, minlength=batch.num_networks).to(batch.dtype)
    total = network_mean(batch.neuron_values, batch.network, batch.num_networks)
    mean = total * (counts / counts.max())[:, None]
    return inner(batch) + mean.tanh().sum(1, keepdim=True)


def counts_architectures(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return inner(batch) * len(batch.parts)


def answers_by_architecture(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """Rows in the order of the parts, not of the batch."""
    return inner(batch)[torch.cat([part.rows for part in batch.parts])]


def constant(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return 0 * inner(batch) + 1


def ignores_biases_of_outputs(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    values = batch.neuron_values * (batch.kind != 2).to(batch.dtype)[:, None]
    return inner(replace(batch, neuron_values=values))


def ignores_running_statistics(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    values = batch.neuron_values * batch.neuron_values.new_tensor([1, 0, 0])
    return inner(replace(batch, neuron_values=values))


def _tensor_statistics(batch: GraphBatch) -> Tensor:
    """A number per network that says something of each tensor, but of no order in it."""
    rows = []
    for part in batch.parts:
        tensors = [*part.values.blocks, *(n.movedim(-1, 0) for n in part.values.neurons)]
        flat = []
        for tensor in tensors:
            pieces = tensor[None] if tensor.shape[0] == part.values.num_networks else tensor
            flat += [piece.flatten(1).tanh().mean(1) for piece in pieces]
        weights = torch.arange(1, len(flat) + 1).to(batch.neuron_values).cos()
        rows.append(torch.stack(flat, dim=1) @ weights)
    return _in_order(batch, rows)


def statistics_of_tensors(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return _tensor_statistics(batch)[:, None].expand(-1, 2)


def far_from_zero(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return 0.01 * inner(batch) + 1


def detached(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    first, *rest = batch.buckets
    return inner(replace(batch, buckets=(replace(first, values=first.values.detach()), *rest)))


def _squares(batch: GraphBatch) -> Tensor:
    squares = batch.neuron_values[:, :1].square()
    return network_mean(squares, batch.network, batch.num_networks)


def overflows_in_float32(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    large = 1e25 * _squares(batch)
    return inner(batch) + large * large * 1e-60


def divides_by_the_norm(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return inner(batch) / _squares(batch).sqrt()


def adds_noise(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    out = inner(batch)
    return out + 1e-13 * torch.randn_like(out)


# --- outputs per neuron


def _per_neuron(inner: Metanetwork, batch: GraphBatch, factor: Tensor) -> Tensor:
    return inner(batch) * factor


def numbers_the_neurons(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return _per_neuron(inner, batch, 1 + _place(batch))


def rows_of_other_neurons(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    """Within each layer every neuron gets what its neighbour should."""
    parts = neurons_by_part(batch, inner(batch))
    return neurons_from_parts(batch, [[group.roll(1, 1) for group in part] for part in parts])


def shows_signs(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    free = batch.phase == 0
    return _per_neuron(inner, batch, 1 + 0.1 * (batch.neuron_values[:, :1].tanh() * free[:, None]))


def shows_phases(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    waves = (batch.phase != 0)[:, None]
    return _per_neuron(inner, batch, 1 + 0.1 * batch.neuron_values[:, :1].square() * waves)


def shows_sizes(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return _per_neuron(inner, batch, 1 + 0.1 * batch.neuron_values[:, :1].abs() * _no_wave(batch))


def _no_wave(batch: GraphBatch) -> Tensor:
    return (batch.phase == 0).to(batch.dtype)[:, None]


def own_bias_and_statistics(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    rows = _tensor_statistics(batch)[batch.network] + batch.neuron_values[:, 0].tanh()
    return rows[:, None].expand(-1, 2)


def one_row_per_network(inner: Metanetwork, batch: GraphBatch) -> Tensor:
    return network_mean(inner(batch), batch.network, batch.num_networks)


# --- outputs per entry


def biases_of_other_neurons(inner: Metanetwork, batch: GraphBatch) -> Entries:
    """Changes of biases read from the first neurons, as if there were no inputs."""
    entries = inner(batch)
    parts = []
    for groups in neurons_by_part(batch, entries.neurons):
        sizes = [group.shape[1] for group in groups]
        parts.append(torch.cat(groups, 1).roll(sizes[0], 1).split(sizes, 1))
    return Entries(entries.edges, neurons_from_parts(batch, parts))


def no_biases(inner: Metanetwork, batch: GraphBatch) -> Entries:
    """Entries for weights only: the shape of neurons is that of another batch."""
    entries = inner(batch)
    return Entries(entries.edges, entries.neurons[:, :1])


def transposed(inner: Metanetwork, batch: GraphBatch) -> Entries:
    """Senders before receivers."""
    entries = inner(batch)
    return Entries(tuple(edges.transpose(2, 3) for edges in entries.edges), entries.neurons)


def numbers_the_rows(inner: Metanetwork, batch: GraphBatch) -> Entries:
    entries = inner(batch)
    edges = []
    for values in entries.edges:
        row = torch.arange(values.shape[2]).to(values)[:, None, None, None]
        edges.append(values * (1 + row))
    return Entries(tuple(edges), entries.neurons)


def _times(entries: Entries, batch: GraphBatch, factor: Callable[[Tensor], Tensor]) -> Entries:
    pairs = zip(entries.edges, batch.buckets, strict=True)
    edges = tuple(values * factor(bucket.values)[..., None] for values, bucket in pairs)
    return Entries(edges, entries.neurons)


def changes_without_sign(inner: Metanetwork, batch: GraphBatch) -> Entries:
    entries = inner(batch)
    return Entries(tuple(edges.abs() for edges in entries.edges), entries.neurons)


def weights_for_reciprocals(inner: Metanetwork, batch: GraphBatch) -> Entries:
    """``w`` where its reciprocal belongs: right for signs, wrong for factors."""
    return _times(inner(batch), batch, lambda weight: weight.square())


def changes_with_phase(inner: Metanetwork, batch: GraphBatch) -> Entries:
    entries = inner(batch)
    size = 1 + batch.neuron_values[:, :1].square() * (batch.phase != 0)[:, None]
    return Entries(entries.edges, entries.neurons * size[..., None])


def _entry_statistics(inner: Metanetwork, batch: GraphBatch) -> Entries:
    """Each entry by itself, and statistics of tensors."""
    summary = _tensor_statistics(batch)
    zeros = Entries.zeros(batch, 2)
    rows = [torch.cat([batch.parts[s.part].rows for s in b.slots]) for b in batch.buckets]
    edges = tuple(
        bucket.values.tanh()[..., None].expand_as(empty) + summary[row].reshape(-1, 1, 1, 1, 1, 1)
        for bucket, empty, row in zip(batch.buckets, zeros.edges, rows, strict=True)
    )
    neurons = batch.neuron_values.tanh() + summary[batch.network][:, None]
    return Entries(edges, neurons[..., None].expand_as(zeros.neurons))


@dataclass(frozen=True)
class Twin:
    """A metanetwork with a defect.

    Attributes:
        name: What is wrong.
        laws: The laws that must notice it; all others hold.
        make: Builds it.
    """

    name: str
    laws: frozenset[str]
    make: Callable[[], Broken]

    def __str__(self) -> str:
        return self.name


def _twin(
    law: str | tuple[str, ...],
    defect: Defect,
    *options: str,
    level: Level = "graph",
    name: str | None = None,
    phase: bool = True,
) -> Twin:
    laws = (law,) if isinstance(law, str) else law
    return Twin(
        name or defect.__name__,
        frozenset(laws),
        lambda: Broken(defect, *options, level=level, phase=phase),
    )


TWINS: tuple[Twin, ...] = (
    _twin("shape", two_networks_missing),
    _twin("permutation", reads_the_first_neuron),
    _twin("permutation", knows_the_order),
    _twin("sign", sound, "permutation", "permutation", "sign", name="an_mlp_on_biases"),
    _twin("scale", grows_with_weights, "scale", *ALL),
    _twin("phase", sound, "sign", *SIGN, phase=False, name="raw_biases_of_sines"),
    _twin("phase", normal_form_without_frequency, "sign", *SIGN),
    Twin("aligned_with_the_training_split", frozenset({"combined"}), Aligned),
    _twin("batch of one", norm_over_the_architecture),
    _twin(("batch of one", "mixed batch"), norm_over_the_batch),
    _twin("mixed batch", attends_to_padding),
    _twin("mixed batch", counts_architectures),
    _twin("mixed batch", answers_by_architecture),
    _twin(("sensitive", "running statistics", "wrong permutation", "spread"), constant),
    _twin("sensitive", ignores_biases_of_outputs),
    _twin("running statistics", ignores_running_statistics),
    _twin("wrong permutation", statistics_of_tensors),
    _twin("spread", far_from_zero),
    _twin("gradient", detached),
    _twin("finite", overflows_in_float32),
    _twin("zero weight", divides_by_the_norm),
    _twin("deterministic", adds_noise),
    _twin("promises", sound, "sign", "permutation", "signs", name="misspelt"),
    # per neuron
    _twin("shape", one_row_per_network, level="neuron"),
    _twin("permutation", numbers_the_neurons, level="neuron"),
    _twin("permutation", rows_of_other_neurons, level="neuron"),
    _twin("sign", shows_signs, "sign", *SIGN, level="neuron"),
    _twin("scale", shows_sizes, "scale", *ALL, level="neuron"),
    _twin("phase", shows_phases, "sign", *SIGN, level="neuron"),
    _twin("wrong permutation", own_bias_and_statistics, level="neuron"),
    # per entry
    _twin("shape", no_biases, level="parameter"),
    _twin("shape", transposed, level="parameter"),
    _twin("permutation", biases_of_other_neurons, level="parameter"),
    _twin("permutation", numbers_the_rows, level="parameter"),
    _twin("sign", changes_without_sign, "sign", "permutation", "sign", level="parameter"),
    _twin("scale", weights_for_reciprocals, "scale", *ALL, level="parameter"),
    _twin("phase", changes_with_phase, "sign", *SIGN, level="parameter"),
    _twin("wrong permutation", _entry_statistics, level="parameter", name="entries_one_by_one"),
)
