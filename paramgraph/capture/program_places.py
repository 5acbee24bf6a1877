"""Where the values of a neuron group stand: a tensor of the tape, and which of its axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramgraph.capture.axes import Axis, Factor, size_of
from paramgraph.capture.axis_rules.spatial import SPATIAL
from paramgraph.capture.program_steps import Size
from paramgraph.capture.tape import TensorRef
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.movement import MOVES
from paramgraph.capture.weave.records import Group, Hidden
from paramgraph.structure import NeuronKind

__all__ = ["Place", "find_places", "sample_factor", "summarise"]

_EPSILON = 1e-8


@dataclass(frozen=True)
class Place:
    """The values of a neuron group.

    Attributes:
        number: Of the tensor that holds them, after the activation that readers see.
        index: For each axis which indices belong to the group, ``None`` for all.
        sizes: For each axis the lengths of its factors.
        neurons: Axis and factor of each factor that numbers the neurons, major to minor.
    """

    number: int
    index: tuple[tuple[int, ...] | None, ...]
    sizes: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, int], ...]


def find_places(loom: Loom, groups: Iterable[Group]) -> tuple[Place | None, ...]:
    """The place of each group; ``None`` for those that no tensor of the first run holds."""
    groups = list(groups)
    loom.start_run(loom.runs[0])
    refs = {ref.number: ref for ref in loom.run.tape.inputs}
    refs |= {r.number: r for e in loom.run.entries for r in e.outputs if r is not None}
    candidates = _candidates(loom)
    originals = {id(copy): (g, chain) for g in groups for chain, copy in g.copies.items()}
    inputs = {id(group): key for key, group in loom.inputs.items()}
    found: list[Place | None] = []
    for group in groups:
        if group.kind is NeuronKind.INPUT:
            key = inputs.get(id(group))
            ref = refs.get(key[0]) if key else None
            found.append(_of_input(ref, *key[1:]) if key and ref is not None else None)
            continue
        keys = [(id(group), group.chain or ())]
        if id(group) in originals:
            original, chain = originals[id(group)]
            keys.append((id(original), chain))
        sites = [site for key in keys for site in candidates.get(key, ())]
        if group.origin is not None and group.origin[0] in refs:
            sites.append(group.origin)
        places = (_of_block(loom, group, refs[number], block) for number, block in sites)
        found.append(next((place for place in places if place is not None), None))
    return tuple(found)


def _candidates(loom: Loom) -> dict[tuple[int, Any], list[tuple[int, int]]]:
    """Tensors and blocks that hold each group under each activation, the best one first.

    An output is one that the network returned. Else it is the one that was computed last: before
    it a bias may be missing, after it positions may be pooled.
    """
    computed: dict[tuple[int, Any], list[tuple[int, int]]] = {}
    moved: dict[tuple[int, Any], list[tuple[int, int]]] = {}
    returned: dict[tuple[int, Any], list[tuple[int, int]]] = {}

    def note(table: dict[tuple[int, Any], list[tuple[int, int]]], ref: TensorRef) -> None:
        for block, value in enumerate(loom.strands.get(ref.number, ())):
            if isinstance(value, Hidden):
                table.setdefault((id(value.group), value.chain), []).append((ref.number, block))

    for entry in loom.run.entries:
        name = entry.operation.removeprefix("aten.")
        is_moved = name in MOVES or name in SPATIAL or name in ("mean", "sum", "amax")
        for ref in entry.outputs:
            if ref is not None:
                note(moved if is_moved else computed, ref)
    for ref in loom.run.tape.outputs:
        note(returned, ref)
    return {
        key: [*returned.get(key, ()), *computed.get(key, ())[::-1], *moved.get(key, ())]
        for key in {**computed, **moved, **returned}
    }


def _of_input(ref: TensorRef, axis: int, start: int, size: int) -> Place | None:
    shape = ref.shape or (1,)
    index: list[tuple[int, ...] | None] = [None] * len(shape)
    if size != shape[axis]:
        index[axis] = tuple(range(start, start + size))
    sizes = tuple((size,) if i == axis else (length,) for i, length in enumerate(shape))
    return Place(ref.number, tuple(index), sizes, ((axis, 0),))


def _of_block(loom: Loom, group: Group, ref: TensorRef, block: int) -> Place | None:
    parts = loom.partition(ref)
    if block >= len(parts):
        return None
    axes = parts.axes[block]
    neurons = _match(loom, group.factors, axes)
    if neurons is None:
        return None
    index: list[tuple[int, ...] | None] = []
    for axis, covered in enumerate(parts.index[block]):
        whole = len(covered) == ref.shape[axis] and bool((covered[:-1] < covered[1:]).all())
        index.append(None if whole else tuple(map(int, covered)))
    sizes = tuple(tuple(map(size_of, axis)) or (1,) for axis in axes)
    if [math.prod(axis) for axis in sizes] != [len(i) for i in parts.index[block]]:
        return None
    if math.prod(sizes[axis][factor] for axis, factor in neurons) != group.size:
        return None
    return Place(ref.number, tuple(index), sizes, neurons)


def _match(
    loom: Loom, factors: Iterable[Factor], axes: tuple[Axis, ...]
) -> tuple[tuple[int, int], ...] | None:
    """Where each factor of a group stands on the axes of a tensor."""
    left = [(i, j, factor) for i, axis in enumerate(axes) for j, factor in enumerate(axis)]
    found: list[tuple[int, int]] = []
    for factor in factors:
        if (size := size_of(factor)) == 1:
            continue
        leaf = loom.leaf(factor)
        alike = [item for item in left if size_of(item[2]) == size]
        fits = [item for item in alike if leaf is not None and loom.leaf(item[2]) is leaf]
        if not fits and leaf is not None and loom.is_free(leaf):
            return None
        if not fits:
            # Neurons that keep their order may stand there as positions, the last ones first;
            # the first axis counts the samples.
            order = [item for item in reversed(alike) if item[0] > 0]
            fits = [item for item in order if loom.leaf(item[2]) is None]
        if not fits:
            return None
        left.remove(fits[0])
        found.append(fits[0][:2])
    # A mean over neurons that are permuted or rescaled by themselves would not be theirs.
    rest = [leaf for *_, factor in left if (leaf := loom.leaf(factor)) is not None]
    return None if any(map(loom.is_free, rest)) else tuple(found)


def sample_factor(
    place: Place, shape: tuple[Any, ...], batch_size: int, *, is_flexible: bool
) -> tuple[int, int] | None:
    """The factor that counts the samples: the first of an axis that grows with their number."""
    grows = [axis for axis, size in enumerate(shape) if isinstance(size, Size)]
    if not is_flexible and shape and shape[0] % batch_size == 0:
        grows = [0]
    for axis in grows[:1]:
        if place.index[axis] is not None:
            return None
        for number, size in enumerate(place.sizes[axis]):
            if (axis, number) not in place.neurons and size % batch_size == 0:
                return axis, number
    return None


def summarise(
    tensor: Tensor,
    place: Place,
    sample: tuple[int, int] | None,
    batch_size: int,
    num_samples: int,
    *,
    std: bool,
) -> Tensor:
    """Values of a group ``[num_samples, size, num_statistics]``, over all other positions.

    Args:
        tensor: The tensor that holds them.
        place: Where in it.
        sample: Axis and factor that count the samples; without, all samples have one value.
        batch_size: Number of samples that were recorded.
        num_samples: Number of samples now.
        std: The standard deviation, too, after the mean.
    """
    if not tensor.is_floating_point():
        tensor = tensor.real if tensor.is_complex() else tensor.to(torch.get_default_dtype())
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    sizes: list[int] = []
    numbers: dict[tuple[int, int], int] = {}
    first: list[int] = []
    for axis, (index, factors) in enumerate(zip(place.index, place.sizes, strict=True)):
        if index is not None:
            tensor = tensor.index_select(axis, torch.tensor(index, device=tensor.device))
        for number, size in enumerate(factors):
            if (axis, number) == sample:
                first.append(len(sizes))
                sizes += [num_samples, size // batch_size]
            else:
                numbers[axis, number] = len(sizes)
                sizes.append(size)
    num_neurons = math.prod(sizes[numbers[key]] for key in place.neurons)
    order = [*first, *(numbers[key] for key in place.neurons)]
    order += [axis for axis in range(len(sizes)) if axis not in order]
    tensor = tensor.reshape(sizes).permute(order)
    tensor = tensor.reshape(num_samples if first else 1, num_neurons, -1)
    tensor = tensor if first else tensor.expand(num_samples, -1, -1)
    mean = tensor.mean(-1, keepdim=True) if tensor.shape[-1] != 1 else tensor
    if not std:
        return mean
    variance = (tensor - mean).square().mean(-1, keepdim=True)
    return torch.cat([mean, (variance + _EPSILON).sqrt()], dim=-1)
