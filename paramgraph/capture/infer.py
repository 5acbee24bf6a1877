"""Tape to axis types: one pass of small rules over the live operations.

Passes are repeated until no reshape has to know more about how its result is taken apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from paramgraph.capture.axes import Axis, Leaf, freeze
from paramgraph.capture.axis_rules.registry import apply_rule
from paramgraph.capture.experts import Stack, find_stacks
from paramgraph.capture.inference import Inference, is_same_along, leaf_name
from paramgraph.capture.liveness import find_readings, live_entries
from paramgraph.capture.tape import FACTORIES, Tape, TapeEntry, TensorRef, entry_refs
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType

__all__ = ["infer"]

_MAX_PASSES = 8


_UNIFORM = {
    *("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "empty_strided", "new_empty_strided"),
}


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


def _fresh_type(run: Inference, ref: TensorRef, entry: TapeEntry) -> Axes:
    """New leaves where a constant that is written later is the same along an axis."""
    tensor = run.tape.tensors[ref.number]
    is_uniform = ref.number in run.uniform or tensor.is_meta
    axes: list[Axis] = []
    for axis, size in enumerate(ref.shape):
        if size > 1 and (is_uniform or is_same_along(tensor, axis)):
            axes.append((Leaf(f"{entry.module or 'tensor'}.{axis}", size),))
        else:
            axes.append((size,))
    return tuple(axes)
