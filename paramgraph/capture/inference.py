"""Tape to axis types: one pass of small rules over the live operations, repeated until no reshape
has to know more about how its result is taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from paramgraph.capture.axes import Axis, Leaf, Wild, cut, freeze, has_leaf, resolve, unify
from paramgraph.capture.experts import Stack, find_stacks
from paramgraph.capture.liveness import Reading, find_readings, live_entries
from paramgraph.capture.tape import FACTORIES, Tape, TapeEntry, TensorRef, entry_refs
from paramgraph.capture.tensor_types import (
    Axes,
    Bundle,
    TensorType,
    any_leaf,
    collapse,
    freeze_type,
)
from paramgraph.errors import CaptureError

__all__ = ["Inference", "infer"]

_MAX_PASSES = 8
_LARGEST_CONSTANT = 10_000_000  # entries; a larger one is not looked at
_UNIFORM = {
    *("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "empty_strided", "new_empty_strided"),
}


@dataclass
class Inference:
    """Types of all tensors of a run.

    Attributes:
        tape: The run.
        entries: Its live operations.
        types: Type of each live tensor, by its number.
        index_of: For whole numbers that are indices into a leaf, that leaf.
        constants: Numbers of tensors that depend neither on inputs nor on parameters.
        data: Numbers of tensors that depend on inputs alone.
        uniform: Numbers of constants with one value everywhere.
        stored: Numbers of constants that come from buffers and tables of the state dict.
        offsets_of: For counts and offsets of sorted indices into a leaf, that leaf.
        reduced: Types of what softmax and normalisations compute on the way.
        unknown: Operations without a rule, with where they were met.
        sorted_by: Leaves whose indices were sorted, which brings their order into positions.
        grouped_by: Leaves for which that order was undone group by group.
        readings: Numbers that were read from tensors.
        choices: Those that are indices into a leaf.
        stacks: Parameters that are the rows of one, because a choice picks between them.
        others: Further runs of the same network on other inputs.
        kept: Leaves that were made after the pass, so that their identities stay unique.
        cuts: For reshapes and parameters, where an axis of theirs is cut later.
    """

    tape: Tape
    entries: list[TapeEntry]
    cuts: dict[tuple[object, int], set[int]]
    wanted: dict[tuple[object, int], set[int]] = field(default_factory=dict)
    types: dict[int, TensorType] = field(default_factory=dict)
    index_of: dict[int, Leaf] = field(default_factory=dict)
    constants: set[int] = field(default_factory=set)
    data: set[int] = field(default_factory=set)
    reduced: list[Axes] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    uniform: set[int] = field(default_factory=set)
    stored: set[int] = field(default_factory=set)
    offsets_of: dict[int, Leaf] = field(default_factory=dict)
    sorted_by: list[Leaf] = field(default_factory=list)
    grouped_by: list[Leaf] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    choices: list[tuple[Reading, Leaf]] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    others: list[Inference] = field(default_factory=list)
    kept: list[Leaf] = field(default_factory=list)
    strict: bool = False

    def type(self, ref: TensorRef) -> TensorType:
        """The type of a tensor; of a constant it is made when it is first asked for."""
        known = self.types.get(ref.number)
        if known is None:
            known = self.types[ref.number] = self._constant_axes(ref)
        return known

    def axes(self, ref: TensorRef, entry: TapeEntry) -> Axes:
        """The axes of a tensor, blocks of a bundle brought together."""
        kind = self.type(ref)
        if isinstance(kind, Bundle):
            kind = self.types[ref.number] = collapse(kind, where(entry))
        return kind

    def _constant_axes(self, ref: TensorRef) -> Axes:
        """Positions, except where the tensor is the same along an axis."""
        if ref.number not in self.constants:
            return tuple((size,) for size in ref.shape)
        # What comes from a stored buffer may differ in another network of this architecture.
        if ref.number in self.stored:
            return tuple((size,) for size in ref.shape)
        if ref.number in self.uniform:
            return tuple((Wild(size),) for size in ref.shape)
        tensor = self.tape.tensors[ref.number]
        if tensor.is_meta or tensor.numel() > _LARGEST_CONSTANT or not tensor.numel():
            return tuple((size,) for size in ref.shape)
        return tuple(
            (Wild(size) if size > 1 and _is_same_along(tensor, axis) else size,)
            for axis, size in enumerate(ref.shape)
        )

    def is_plain(self, ref: TensorRef) -> bool:
        """Whether nothing of a tensor can be permuted."""
        return ref.number not in self.index_of and not any_leaf(self.type(ref))

    def want_cut(self, site: tuple[object, int], ends: Sequence[int]) -> bool:
        """Ask a reshape to type its result as a bundle; whether that is news to it."""
        if set(ends) <= self.cuts.get(site, set()):
            return False
        self.wanted.setdefault(site, set()).update(ends)
        return True

    def freeze_ref(self, ref: TensorRef, reason: str) -> None:
        """Freeze everything that a tensor is about."""
        freeze_type(self.type(ref), reason)
        if ref.number in self.index_of:
            freeze((self.index_of[ref.number],), reason)

    def take(self, axis: Axis, ends: Sequence[int], entry: TapeEntry) -> list[Axis] | None:
        """Cut an axis of a tensor that is taken apart; ``None`` after freezing it."""
        factors = tuple(f for f in resolve(axis) if _size(f) != 1)
        inside = sorted({end for end in ends if 0 < end < math.prod(map(_size, factors))})
        first = factors[0] if factors else None
        if isinstance(first, Leaf) and first.site is not None and first.pieces is None:
            row = math.prod(map(_size, factors[1:]))
            if all(end % row == 0 for end in inside):
                if self.want_cut(first.site, [end // row for end in inside]):
                    freeze(axis, f"taken apart by {where(entry)}")
                    return None
        pieces = cut(axis, inside)
        if pieces is None:
            freeze(axis, f"cut across by {where(entry)}")
        return pieces


def _size(factor: object) -> int:
    return factor if isinstance(factor, int) else factor.size  # type: ignore[attr-defined]


def _is_same_along(tensor: torch.Tensor, axis: int) -> bool:
    first = tensor.narrow(axis, 0, 1)
    same = tensor == first
    if tensor.is_floating_point():
        same |= tensor.isnan() & first.isnan()
    return bool(same.all())


def where(entry: TapeEntry) -> str:
    """Operation and module, for messages."""
    return f"{entry.operation} in module {entry.module or 'top level'!r}"


def infer(tapes: Sequence[Tape], *, strict: bool = False) -> Inference:
    """Type every tensor of one or more runs of a network.

    Args:
        tapes: The recorded runs; several where the network takes another way on other inputs.
        strict: Raise at an operation without a rule, instead of freezing what it reads.

    Returns:
        The types of the first run; those of the others are in ``others``, with the same parameters.

    Raises:
        CaptureError: ``strict``, and an operation has no rule.
    """
    leafy = {name for tape in tapes for name in tape.leafy}
    for tape in tapes:
        tape.leafy = leafy
    readings = [find_readings(tape) for tape in tapes]
    entries = [live_entries(*pair) for pair in zip(tapes, readings, strict=True)]
    cuts: dict[tuple[object, int], set[int]] = {}
    stacks: list[Stack] = []
    for _ in range(_MAX_PASSES):
        fresh = [stack.renewed() for stack in stacks]
        runs = [
            Inference(tape, live, cuts, strict=strict, readings=read, stacks=fresh)
            for tape, live, read in zip(tapes, entries, readings, strict=True)
        ]
        for run in runs:
            _one_pass(run, runs[0])
        choices = [choice for run in runs for choice in run.choices]
        new = find_stacks(tapes[0], [e for live in entries for e in live], choices, stacks)
        wanted = [(site, ends) for run in runs for site, ends in run.wanted.items()]
        if not wanted and not new:
            break
        stacks += new
        for site, ends in wanted:
            cuts.setdefault(site, set()).update(ends)
    runs[0].others = runs[1:]
    return runs[0]


def _one_pass(run: Inference, first: Inference) -> None:
    """Apply the rules to one run; parameters have the types that they have in the first one."""
    from paramgraph.capture.axis_rules import apply_rule

    tape, entries = run.tape, run.entries
    trained = {ref.number: name for name, ref in tape.parameters.items() if name in tape.leafy}
    run.constants = {ref.number for ref in tape.constants if ref.number not in trained} | {
        ref.number for name, ref in tape.parameters.items() if name not in tape.leafy
    }
    run.stored = tape.stored | {
        ref.number
        for name, ref in tape.parameters.items()
        if name not in tape.leafy and name not in tape.buffers
    }
    run.data = {ref.number for ref in tape.inputs}
    for name, ref in tape.parameters.items():
        if name in tape.leafy:
            if run is not first:
                run.types[ref.number] = first.types[first.tape.parameters[name].number]
                continue
            stack = next((stack for stack in run.stacks if name in stack.members), None)
            stacked = stack.member_type() if stack is not None else None
            run.types[ref.number] = stacked or _parameter_type(run, name, ref)
    for ref in tape.inputs:
        run.types[ref.number] = tuple((size,) for size in ref.shape)
    dirty = _dirty_storages(tape, entries, trained)
    for entry in entries:
        refs = entry_refs(entry.args)
        outputs = [ref for ref in entry.outputs if ref is not None]
        if entry.operation.removeprefix("aten.") in FACTORIES:
            for ref in outputs:
                run.constants.add(ref.number)
                if entry.operation.removeprefix("aten.") in _UNIFORM:
                    run.uniform.add(ref.number)
                if tape.storages.get(ref.number) in dirty:
                    run.constants.discard(ref.number)
                    run.types[ref.number] = _fresh_type(run, ref, entry)
            continue
        if all(ref.number in run.constants for ref in refs):
            if not any(tape.storages.get(ref.number) in dirty for ref in outputs):
                run.constants.update(ref.number for ref in outputs)
                if any(ref.number in run.stored for ref in refs):
                    run.stored.update(ref.number for ref in outputs)
                continue
        if all(ref.number in run.constants or ref.number in run.data for ref in refs):
            if not any(tape.storages.get(ref.number) in dirty for ref in outputs):
                run.data.update(ref.number for ref in outputs)
                for ref in outputs:
                    run.types[ref.number] = tuple((size,) for size in ref.shape)
                continue
        apply_rule(run, entry)
    grouped = {id(leaf.root()) for leaf in run.grouped_by}
    for leaf in run.sorted_by:
        if id(leaf.root()) not in grouped:
            freeze((leaf,), "its indices are sorted, and their order is read")
    for number, ref in enumerate(tape.outputs):
        run.freeze_ref(ref, f"network output {number}")


def _dirty_storages(tape: Tape, entries: Sequence[TapeEntry], trained: dict[int, str]) -> set[int]:
    """Memory that was made as a constant and is then written with something else."""
    depends = set(trained) | {ref.number for ref in tape.inputs}
    dirty: set[int] = set()
    for entry in entries:
        if entry.operation.removeprefix("aten.") in FACTORIES:
            continue
        if any(ref.number in depends for ref in entry_refs(entry.args)):
            depends.update(ref.number for ref in entry.outputs if ref is not None)
            if entry.is_in_place:
                dirty.update(tape.storages[r.number] for r in entry.outputs if r is not None)
    return dirty


def _parameter_type(run: Inference, name: str, ref: TensorRef) -> TensorType:
    """One new leaf per axis; blocks of their own along an axis that is taken apart."""
    axis = next((i for i in range(len(ref.shape)) if (name, i) in run.cuts), None)
    if axis is None:
        return _named_axes(name, ref.shape)
    ends = sorted(run.cuts[name, axis])
    blocks = []
    for number, (start, end) in enumerate(zip([0, *ends], [*ends, ref.shape[axis]], strict=True)):
        shape = [end - start if i == axis else size for i, size in enumerate(ref.shape)]
        blocks.append(_named_axes(f"{name}[{number}]", shape, name))
    return Bundle(axis, tuple(blocks))


def _named_axes(name: str, shape: Sequence[int], site: str | None = None) -> Axes:
    axes = []
    for axis, size in enumerate(shape):
        leaf = Leaf(leaf_name(name, axis), size)
        if len(shape) > 1:
            leaf.site = (site or name, axis)
        axes.append((leaf,))
    return tuple(axes)


def leaf_name(parameter: str, axis: int) -> str:
    """Name of the axis group that a parameter introduces: ``0.weight`` gives ``0``."""
    if axis:
        return f"{parameter}.{axis}"
    return parameter.removesuffix(".weight").removesuffix(".bias")


def _fresh_type(run: Inference, ref: TensorRef, entry: TapeEntry) -> Axes:
    """New leaves where a constant that is written later is the same along an axis."""
    tensor = run.tape.tensors[ref.number]
    is_uniform = ref.number in run.uniform or tensor.is_meta
    axes: list[Axis] = []
    for axis, size in enumerate(ref.shape):
        if size > 1 and (is_uniform or _is_same_along(tensor, axis)):
            axes.append((Leaf(f"{entry.module or 'tensor'}.{axis}", size),))
        else:
            axes.append((size,))
    return tuple(axes)
