"""Several runs of one network, and what they have in common.

A network that takes another way on other inputs is recorded several times. The runs are woven one
after the other: an operation that an earlier run has done to the same values is not done again, so
that only what is new adds to the graph.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from paramgraph.capture.inference import Inference
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.records import Hidden, Input, Strand, identity

__all__ = ["Memory", "renumbered", "span_of"]


_SIZED = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "repeat", "split_with_sizes"),
    *("split", "chunk", "slice", "new_zeros", "as_strided"),
}


class Memory:
    """What operations gave in the runs before, by operation and operands."""

    def __init__(self) -> None:
        self._known: dict[Hashable, list[list[tuple[Strand, ...]]]] = {}
        self._new: dict[Hashable, list[list[tuple[Strand, ...]]]] = {}
        self._seen: dict[Hashable, int] = {}

    def start_run(self) -> None:
        """From now on the run so far is an earlier one."""
        for key, results in self._new.items():
            self._known.setdefault(key, []).extend(results)
        self._new, self._seen = {}, {}

    def recall(self, loom: Loom, entry: TapeEntry) -> Hashable | None:
        """Take the results of an earlier run; or the key to store them by with ``keep``."""
        key = _key(loom, entry)
        number = self._seen[key] = self._seen.get(key, -1) + 1
        known = self._known.get(key, [])
        if not known:
            return key
        results = known[min(number, len(known) - 1)]
        outs = [ref for ref in entry.outputs if ref is not None]
        sizes = [len(loom.partition(ref)) for ref in outs]
        if sizes != [len(strands) for strands in results]:
            return key
        for ref, strands in zip(outs, results, strict=True):
            loom.strands[ref.number] = tuple(_again(strand, ref) for strand in strands)
        return None

    def keep(self, loom: Loom, entry: TapeEntry, key: Hashable) -> None:
        """Store what an operation gave."""
        outs = [ref for ref in entry.outputs if ref is not None]
        results = [loom.strands.get(ref.number, (loom.strand(ref),)) for ref in outs]
        self._new.setdefault(key, []).append(results)


def _again(strand: Strand, ref: TensorRef) -> Strand:
    if isinstance(strand, Input):
        return replace(strand, shape=ref.shape)
    # Nothing may join a group that an earlier run has read already.
    return replace(strand, owned=False) if isinstance(strand, Hidden) else strand


def _key(loom: Loom, entry: TapeEntry) -> Hashable:
    """Equal for operations that do the same to the same values; how many positions is no matter."""
    name = entry.operation.removeprefix("aten.")

    def of(value: object) -> Hashable:
        if isinstance(value, TensorRef):
            strands = loom.strands.get(value.number) or (loom.strand(value),)
            return tuple(
                ("input", strand.number) if isinstance(strand, Input) else identity(strand)
                for strand in strands
            )
        if isinstance(value, list | tuple):
            is_size = name in _SIZED and all(type(item) is int for item in value)
            return len(value) if is_size else tuple(map(of, value))
        return value if isinstance(value, Hashable) else repr(value)

    args = tuple((argument, of(value)) for argument, value in entry.args.items())
    return entry.operation, entry.module, args


def span_of(run: Inference) -> int:
    """A number larger than that of every tensor of the runs."""
    numbers = [
        ref.number
        for one in (run, *run.others)
        for entry in one.entries
        for ref in entry.outputs
        if ref is not None
    ]
    roots = [
        ref.number
        for one in (run, *run.others)
        for ref in (*one.tape.parameters.values(), *one.tape.inputs, *one.tape.constants)
    ]
    return max((*numbers, *roots, *(max(one.types, default=0) for one in (run, *run.others)))) + 1


def renumbered(run: Inference, first: Inference, offset: int) -> Inference:
    """A later run in which every tensor has a number of its own.

    Parameters, buffers and inputs keep the numbers that they have in the first run.
    """
    tape, before = run.tape, first.tape
    same = {
        ref.number: before.parameters[name].number
        for name, ref in tape.parameters.items()
        if name in before.parameters
    }
    pairs = zip(tape.inputs, before.inputs, strict=False)
    same |= {ref.number: other.number for ref, other in pairs}

    def number(old: int) -> int:
        return same.get(old, old + offset)

    def moved(value: Any) -> Any:
        if isinstance(value, TensorRef):
            return TensorRef(number(value.number), value.shape)
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(moved, value))
        return value

    new_tape = replace(
        tape,
        parameters=moved(tape.parameters),
        inputs=moved(tape.inputs),
        outputs=moved(tape.outputs),
        tensors={number(n): tensor for n, tensor in tape.tensors.items()},
        windows={number(n): window for n, window in tape.windows.items()},
    )
    entries = [
        replace(entry, args=moved(entry.args), outputs=moved(entry.outputs))
        for entry in run.entries
    ]
    return replace(
        run,
        tape=new_tape,
        entries=entries,
        types={number(n): kind for n, kind in run.types.items()},
        constants=set(map(number, run.constants)),
        data=set(map(number, run.data)),
        uniform=set(map(number, run.uniform)),
        stored=set(map(number, run.stored)),
        others=[],
    )
