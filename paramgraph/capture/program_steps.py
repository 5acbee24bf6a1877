"""The tape as steps that run again, with other parameters, other inputs, another number of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramgraph.capture.tape import ALIASED, Tape, TapeEntry, TensorRef, entry_refs

__all__ = ["Ref", "Size", "Step", "Steps", "at", "compile_tape", "refs_of"]


@dataclass(frozen=True)
class Ref:
    """A tensor of the tape, by its number."""

    number: int


@dataclass(frozen=True)
class Size:
    """A length that grows with the number of samples: ``constant + per_sample * num_samples``."""

    constant: int
    per_sample: int


@dataclass(frozen=True)
class Step:
    """One operation without side effects.

    Attributes:
        operation: With its variant, such as ``aten.add.Tensor``.
        args: By the names of the operation's schema; tensors are ``Ref``.
        outputs: Number of each result, ``None`` for those that are no tensor.
        module: Path of the module that ran it.
        number: The number that it gave, which the network may have acted upon.
    """

    operation: str
    args: tuple[tuple[str, Any], ...]
    outputs: tuple[int | None, ...]
    module: str
    number: float | None = None


@dataclass
class Steps:
    """What a tape computes.

    Attributes:
        steps: In order.
        constants: Values that depend neither on parameters nor on inputs.
        shapes: Of every tensor; lengths are whole numbers or ``Size``.
        is_flexible: Whether the steps are known for every number of samples.
    """

    steps: list[Step]
    constants: dict[int, Tensor]
    shapes: dict[int, tuple[Any, ...]]
    is_flexible: bool = False


class _DiffersError(Exception):
    """Two recordings differ in more than lengths."""


def at(value: Any, num_samples: int, values: Mapping[int, Any] | None = None) -> Any:
    """An argument with its lengths, and its tensors if ``values`` are given, filled in."""
    if isinstance(value, Size):
        return value.constant + value.per_sample * num_samples
    if isinstance(value, Ref) and values is not None:
        return values[value.number]
    if isinstance(value, tuple):
        return [at(item, num_samples, values) for item in value]
    return value


def refs_of(value: Any) -> Iterator[int]:
    """Numbers of all tensors in an argument."""
    if isinstance(value, Ref):
        yield value.number
    elif isinstance(value, tuple):
        for item in value:
            yield from refs_of(item)


def compile_tape(
    tape: Tape,
    longer: Tape | None,
    batch_size: int,
    varying: Iterable[int],
    state: Mapping[str, Any],
) -> Steps:
    """The operations of a tape as steps.

    Args:
        tape: Of one run, on ``batch_size`` samples.
        longer: Of a run on one sample more; where both differ in lengths alone, every length is
            taken as a linear function of the number of samples.
        batch_size: Number of samples.
        varying: Numbers of the inputs, and of the parameters that a graph holds.
        state: Values of all others.
    """
    if longer is not None:
        try:
            return _compile(tape, longer, batch_size, set(varying), state)
        except _DiffersError:
            pass
    return _compile(tape, None, batch_size, set(varying), state)


def _compile(
    tape: Tape, longer: Tape | None, batch_size: int, varying: set[int], state: Mapping[str, Any]
) -> Steps:
    other = longer or tape
    if len(other.entries) != len(tape.entries) or _roots(other) != _roots(tape):
        raise _DiffersError
    merge = _Merger(batch_size)
    steps = Steps([], _constants(tape, other, varying, state), {}, longer is not None)
    for root, twin_root in zip(_root_refs(tape), _root_refs(other), strict=True):
        steps.shapes[root.number] = merge(root.shape, twin_root.shape)
    for entry, twin_entry in zip(tape.entries, other.entries, strict=True):
        if (entry.operation, entry.overload) != (twin_entry.operation, twin_entry.overload):
            raise _DiffersError
        args = merge(entry.args, twin_entry.args)
        outputs = merge(entry.outputs, twin_entry.outputs)
        for ref, twin in zip(entry.outputs, twin_entry.outputs, strict=True):
            if ref is not None and twin is not None:
                steps.shapes[ref.number] = merge(ref.shape, twin.shape)
        is_varying = any(number in varying for number in refs_of(args))
        numbers = [None if out is None else out.number for out in outputs]
        if is_varying:
            varying.update(number for number in numbers if number is not None)
            merge(entry.number, twin_entry.number)
        elif all(number is None or number in steps.constants for number in numbers):
            continue  # known for good
        if entry.operation == ALIASED:
            args = (*args, ("windows", _windows(tape, other, merge, entry, twin_entry)))
        name = f"{entry.operation}.{entry.overload}"
        # What was written in place is a result of its own here.
        name = "aten.copy.default" if name == "aten.copy_.default" else name
        steps.steps.append(Step(name, args, tuple(numbers), entry.module, entry.number))
    return steps


class _Merger:
    """Values of two recordings as one, lengths that differ as ``Size``."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(self, one: Any, two: Any) -> Any:
        """Frozen arguments: lists are tuples, dicts are pairs, tensors are ``Ref``."""
        if isinstance(one, TensorRef) and isinstance(two, TensorRef):
            if one.number != two.number:
                raise _DiffersError
            return Ref(one.number)
        if isinstance(one, dict) and isinstance(two, dict):
            return tuple((name, self(value, two[name])) for name, value in one.items())
        if isinstance(one, list | tuple) and isinstance(two, list | tuple):
            if len(one) != len(two):
                raise _DiffersError
            return tuple(map(self, one, two))
        if type(one) is int and type(two) is int and one != two:
            return Size(one - (two - one) * self.batch_size, two - one)
        if one != two and not (one != one and two != two):
            raise _DiffersError
        return one


def _root_refs(tape: Tape) -> list[TensorRef]:
    return [*tape.parameters.values(), *tape.inputs, *tape.constants]


def _roots(tape: Tape) -> list[int]:
    return [ref.number for ref in (*_root_refs(tape), *tape.outputs)]


def _constants(
    tape: Tape, other: Tape, varying: set[int], state: Mapping[str, Any]
) -> dict[int, Tensor]:
    """Values that are the same in both recordings and depend on nothing."""
    made: set[int] = set(varying)
    for entry in tape.entries:
        if not made.isdisjoint(ref.number for ref in entry_refs(entry.args)):
            made.update(ref.number for ref in entry.outputs if ref is not None)
    found: dict[int, Tensor] = {}
    for name, ref in tape.parameters.items():
        if ref.number not in made and name in state and not state[name].is_meta:
            found[ref.number] = state[name].detach().clone()
    for number, tensor in tape.tensors.items():
        twin = other.tensors.get(number)
        if number in made or number in found or tensor.is_meta or twin is None:
            continue
        if twin is tensor or (twin.shape == tensor.shape and _equal(twin, tensor)):
            found[number] = tensor.detach()
    return found


def _equal(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), two.nan_to_num()) if one.numel() else True


def _windows(
    tape: Tape, other: Tape, merge: _Merger, entry: TapeEntry, twin: TapeEntry
) -> tuple[Any, ...]:
    """Where the overwritten tensor and what was written lie in memory: shape, offset, strides."""

    def of(name: str) -> Any:
        ref, same = entry.args[name], twin.args[name]
        one = (ref.shape, *tape.windows[ref.number])
        return merge(one, (same.shape, *other.windows[same.number]))

    return of("self"), of("source")


def live(steps: Sequence[Step], targets: Iterable[int]) -> list[Step]:
    """The steps that targets depend on, and those whose numbers the network acted upon."""
    needed = set(targets)
    kept: list[Step] = []
    for step in reversed(steps):
        has_number = step.number is not None
        if has_number or any(number in needed for number in step.outputs):
            kept.append(step)
            needed.update(refs_of(step.args))
    return kept[::-1]
