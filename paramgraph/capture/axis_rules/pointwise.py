"""Rules for elementwise operations, copies and masks."""

from __future__ import annotations

from paramgraph.capture.axes import Leaf, axis_size, freeze
from paramgraph.capture.axis_rules.registry import (
    KEEPS_INDEX,
    RULES,
    broadcast,
    give_up,
    operand,
    output,
    rule,
)
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.tape import ALIASED, TapeEntry, TensorRef, entry_refs
from paramgraph.capture.tensor_types import Bundle, TensorType

__all__: list[str] = []

_COMPARISONS = {f"aten.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge")}
KEEPS_INDEX |= _COMPARISONS


@rule(
    *("pointwise", "hardswish", "log_sigmoid_forward", "gelu", "native_dropout", "_prelu_kernel"),
    *("where", "masked_fill", "lerp", "addcmul", "addcdiv", "isin", "fmod", "remainder", "prelu"),
    *("clamp", "clamp_min", "clamp_max", "nan_to_num", "complex", "polar", "angle"),
)
def elementwise(run: Inference, entry: TapeEntry) -> TensorType | list[TensorType]:
    """Every tensor of the arguments is combined with the others entry by entry."""
    refs = [ref for ref in entry_refs(entry.args) if ref.shape != ()] or entry_refs(entry.args)
    bundles = [kind for ref in refs if isinstance(kind := run.type(ref), Bundle)]
    out = output(entry)
    if len(bundles) == 1 and _other_axes_allow(bundles[0], run, refs, out):
        return _over_blocks(bundles[0], run, entry, refs, out)
    types = [run.axes(ref, entry) for ref in refs]
    kind = broadcast(run, entry, types, out.shape)
    return [kind] * len(entry.outputs)


def _other_axes_allow(
    bundle: Bundle, run: Inference, refs: list[TensorRef], out: TensorRef
) -> bool:
    """Whether all other tensors are the same for every block."""
    back = len(out.shape) - bundle.axis
    if len(bundle.blocks[0]) != len(out.shape):
        return False
    for ref in refs:
        if isinstance(run.type(ref), Bundle):
            continue
        if len(ref.shape) >= back and ref.shape[-back] != 1:
            return False
        # A neuron axis that it shares with all blocks would tie them to each other.
    return True


def _over_blocks(
    bundle: Bundle, run: Inference, entry: TapeEntry, refs: list[TensorRef], out: TensorRef
) -> TensorType:
    blocks = []
    for block, size in zip(bundle.blocks, bundle.sizes, strict=True):
        shape = [size if i == bundle.axis else s for i, s in enumerate(out.shape)]
        types = [block if isinstance(run.type(r), Bundle) else run.axes(r, entry) for r in refs]
        blocks.append(broadcast(run, entry, types, shape))
    return Bundle(bundle.axis, tuple(blocks))


@rule("eq", "ne", "lt", "le", "gt", "ge", indices=True)
def _compare(run: Inference, entry: TapeEntry) -> TensorType | list[TensorType]:
    """Indices may be compared with all indices (one-hot) or with one that stands alone."""
    refs = entry_refs(entry.args)
    indexed = [ref for ref in refs if ref.number in run.index_of]
    if not indexed:
        return elementwise(run, entry)
    leaf = run.index_of[indexed[0].number]
    out = output(entry)
    others = [ref for ref in refs if ref not in indexed]
    if len(indexed) == 1 and len(others) == 1 and entry.operation == "aten.eq":
        place = _counting_axis(run, others[0], leaf)
        if place is not None:
            back = len(others[0].shape) - place
            plain = run.axes(indexed[0], entry)
            axes = list(broadcast(run, entry, [plain], out.shape))
            axes[len(axes) - back] = (leaf,)
            return tuple(axes)
    if not others and len(indexed) == 1:
        _freeze_index(leaf, entry.args.get("other"), where(entry))
    elif any(run.index_of[ref.number].root() is not leaf.root() for ref in indexed) or others:
        freeze((leaf,), f"its indices are compared by {where(entry)}")
    return broadcast(run, entry, [run.axes(ref, entry) for ref in refs], out.shape)


def _freeze_index(leaf: Leaf, index: object, reason: str) -> None:
    """Only the piece that an index lies in matters to a comparison with that index."""
    root = leaf.root()
    if isinstance(index, int | float) and not 0 <= index < leaf.size:
        return None  # no index of the leaf, so the answer is the same for all of them
    if not isinstance(index, int | float) or root.pieces is None:
        return freeze((leaf,), f"its indices are compared by {reason}")
    start = 0
    for piece in root.pieces:
        if start <= index < start + axis_size(piece):
            freeze(piece, f"its indices are compared by {reason}")
        start += axis_size(piece)
    return None


def _counting_axis(run: Inference, ref: TensorRef, leaf: Leaf) -> int | None:
    """The axis along which a constant counts all indices of a leaf, if it does just that."""
    if ref.number not in run.constants or ref.number in run.stored:
        return None
    tensor = run.tape.tensors[ref.number]
    if tensor.is_meta or tensor.numel() != leaf.size:
        return None
    if tensor.reshape(-1).tolist() != list(range(leaf.size)):
        return None
    return next((i for i, size in enumerate(ref.shape) if size == leaf.size), None)


@rule("copy")
def _copy(run: Inference, entry: TapeEntry) -> TensorType:
    """What is written has the axes of where it is written to."""
    ref, source = operand(entry, "self"), operand(entry, "src")
    types = [run.axes(ref, entry), run.axes(source, entry)]
    shape = list(ref.shape)
    if len(source.shape) > len(shape):
        types[1] = types[1][len(source.shape) - len(shape) :]
    return broadcast(run, entry, types, shape)


@rule("fill", "zero")
def _overwrite(run: Inference, entry: TapeEntry) -> TensorType:
    """The same number everywhere says nothing of axes."""
    return run.type(operand(entry, "self"))


@rule(
    "exponential", "uniform", "normal", "random", "bernoulli", "cauchy", "log_normal", "geometric"
)
def _noise(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Random numbers come in the order of positions."""
    return give_up(run, entry, f"filled with random numbers by {where(entry)}")


def aliased(run: Inference, entry: TapeEntry) -> TensorType:
    """A view keeps its type when its memory is written: leaves know nothing of time."""
    return run.type(operand(entry, "self"))


RULES[ALIASED] = aliased
KEEPS_INDEX.add(ALIASED)
