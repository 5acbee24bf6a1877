"""The table of rules, and what happens where it has none.

A rule says what one operation does to axes: it gets the inference and the tape entry, declares
axes to be the same or freezes them, and returns the type of each output. It never raises; what it
does not cover it freezes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paramgraph.capture.axes import Axis, axis_size, freeze
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.tape import TapeEntry, TensorRef, entry_refs
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType
from paramgraph.capture.unification import merged
from paramgraph.errors import CaptureError

__all__ = [
    "RULES",
    "Rule",
    "apply_rule",
    "broadcast",
    "dims_of",
    "give_up",
    "operand",
    "positions",
    "rule",
]

Rule = Callable[[Inference, TapeEntry], "TensorType | list[TensorType]"]
RULES: dict[str, Rule] = {}
"""Operation name (``aten.relu``) to rule."""

KEEPS_INDEX: set[str] = set()
"""Operations whose rule knows what to do with indices into a leaf; others freeze the leaf."""


def rule(*operations: str, indices: bool = False) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operations."""

    def register(function: Rule) -> Rule:
        names = [f"aten.{operation}" for operation in operations]
        RULES.update(dict.fromkeys(names, function))
        if indices:
            KEEPS_INDEX.update(names)
        return function

    return register


def apply_rule(run: Inference, entry: TapeEntry) -> None:
    """Type the outputs of one operation."""
    found = RULES.get(entry.operation)
    if found is None and entry.is_pointwise:
        found = RULES["aten.pointwise"]
    if entry.operation not in KEEPS_INDEX:
        for ref in entry_refs(entry.args):
            if ref.number in run.index_of:
                freeze((run.index_of[ref.number],), f"its indices are used by {where(entry)}")
            if ref.number in run.offsets_of:
                freeze((run.offsets_of[ref.number],), f"its counts are used by {where(entry)}")
    if found is None:
        _freeze_all(run, entry)
        return
    result = found(run, entry)
    types = result if isinstance(result, list) else [result]
    for number, made in enumerate(entry.outputs):
        if made is None:
            continue
        kind = types[number] if number < len(types) else positions(made)
        assert number >= len(types) or _fits(kind, made), (entry, kind, made)
        run.types[made.number] = kind


def _fits(kind: TensorType, ref: TensorRef) -> bool:
    blocks = kind.blocks if isinstance(kind, Bundle) else (kind,)
    for axes in blocks:
        sizes = tuple(map(axis_size, axes))
        for axis, (have, size) in enumerate(zip(sizes, ref.shape, strict=True)):
            if have != size and not (isinstance(kind, Bundle) and axis == kind.axis):
                return False
    return True


def _freeze_all(run: Inference, entry: TapeEntry) -> None:
    """An operation without a rule: nothing that it reads may be permuted."""
    refs = entry_refs(entry.args)
    if not all(run.is_plain(ref) for ref in refs):
        run.unknown.setdefault(entry.operation, where(entry))
        if run.strict:
            shapes = ", ".join(str(ref.shape) for ref in refs)
            raise CaptureError(
                f"no rule for operation {entry.operation!r} in module "
                f"{entry.module or 'top level'!r} (input shapes {shapes}). Without a rule the "
                "neuron symmetries of this step are unknown. Leave out strict=True to treat its "
                "neurons as fixed, or add a rule (CONTRIBUTING.md, 'Adding an operation')."
            )
    outputs = [out for out in entry.outputs if out is not None]
    kinds = give_up(run, entry, f"no rule for {where(entry)}")
    run.types.update({out.number: kind for out, kind in zip(outputs, kinds, strict=True)})


def give_up(run: Inference, entry: TapeEntry, reason: str) -> list[TensorType]:
    """Freeze everything that an operation reads; what it returns are positions."""
    for ref in entry_refs(entry.args):
        run.freeze_ref(ref, reason)
    return [positions(ref) for ref in entry.outputs if ref is not None]


def positions(ref: TensorRef) -> Axes:
    """Axes that nothing can permute."""
    return tuple((size,) for size in ref.shape)


def operand(entry: TapeEntry, *names: str) -> TensorRef:
    """The tensor that an argument is."""
    for name in names:
        if isinstance(entry.args.get(name), TensorRef):
            return entry.args[name]
    raise KeyError(f"{entry.operation} has no tensor argument {names}")


def output(entry: TapeEntry, number: int = 0) -> TensorRef:
    """Reference of a result."""
    ref = entry.outputs[number]
    assert ref is not None
    return ref


def dims_of(entry: TapeEntry, rank: int, name: str = "dim") -> list[int]:
    """Axes named by an argument, as non-negative numbers; all when it is absent."""
    dims = entry.args.get(name)
    if dims is None or dims == []:
        return list(range(rank))
    if rank == 0:
        return []
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]


def broadcast(
    run: Inference, entry: TapeEntry, types: Sequence[Axes], shape: Sequence[int]
) -> Axes:
    """Declare axes equal that an elementwise operation brings together, from the last one on."""
    result: list[Axis] = []
    for back in range(1, len(shape) + 1):
        size = shape[-back]
        here = [axes[-back] for axes in types if back <= len(axes)]
        same = [axis for axis in here if axis_size(axis) == size]
        if not same:
            result.append((size,))
            continue
        best = same[0]
        for axis in same[1:]:
            best = merged(best, axis, where(entry))
        result.append(best)
    return tuple(result[::-1])
