"""What is known of the tensors of a run while the rules are applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from paramgraph.capture.axes import Axis, Leaf, Wild, freeze, resolve, size_of
from paramgraph.capture.experts import Stack
from paramgraph.capture.liveness import Reading
from paramgraph.capture.tape import Tape, TapeEntry, TensorRef
from paramgraph.capture.tensor_types import (
    Axes,
    Bundle,
    TensorType,
    any_leaf,
    collapse,
    freeze_type,
)
from paramgraph.capture.unification import cut

__all__ = ["Inference", "is_same_along", "leaf_name", "where"]

_LARGEST_CONSTANT = 10_000_000  # entries; a larger one is not looked at


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
            (Wild(size) if size > 1 and is_same_along(tensor, axis) else size,)
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
        factors = tuple(f for f in resolve(axis) if size_of(f) != 1)
        inside = sorted({end for end in ends if 0 < end < math.prod(map(size_of, factors))})
        first = factors[0] if factors else None
        if isinstance(first, Leaf) and first.site is not None and first.pieces is None:
            row = math.prod(map(size_of, factors[1:]))
            if all(end % row == 0 for end in inside):
                if self.want_cut(first.site, [end // row for end in inside]):
                    freeze(axis, f"taken apart by {where(entry)}")
                    return None
        pieces = cut(axis, inside)
        if pieces is None:
            freeze(axis, f"cut across by {where(entry)}")
        return pieces


def is_same_along(tensor: torch.Tensor, axis: int) -> bool:
    """Whether a tensor holds the same values at all indices of an axis."""
    first = tensor.narrow(axis, 0, 1)
    same = tensor == first
    if tensor.is_floating_point():
        same |= tensor.isnan() & first.isnan()
    return bool(same.all())


def where(entry: TapeEntry) -> str:
    """Operation and module, for messages."""
    return f"{entry.operation} in module {entry.module or 'top level'!r}"


def leaf_name(parameter: str, axis: int) -> str:
    """Name of the axis group that a parameter introduces: ``0.weight`` gives ``0``."""
    if axis:
        return f"{parameter}.{axis}"
    return parameter.removesuffix(".weight").removesuffix(".bias")
