"""Rules for choices along an axis and for what depends on its order: topk, sort, cumsum, flip."""

from __future__ import annotations

from paramgraph.capture.axes import Axis, Leaf, Pick, axis_size, freeze, resolve
from paramgraph.capture.axis_rules.reductions import reduced_axes
from paramgraph.capture.axis_rules.registry import (
    broadcast,
    dims_of,
    give_up,
    operand,
    output,
    positions,
    rule,
)
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, TensorType
from paramgraph.capture.unification import cut, unify

__all__: list[str] = []


def _only_leaf(axis: Axis) -> Leaf | None:
    factors = resolve(axis)
    leaf = factors[0] if len(factors) == 1 else None
    return leaf if isinstance(leaf, Leaf) else None


@rule(
    "max",
    "min",
    "argmax",
    "argmin",
    "topk",
    "sort",
    "argsort",
    "median",
    "kthvalue",
    "mode",
    indices=True,
)
def _order(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """What is chosen along an axis are indices into it; values come without its order."""
    ref, name = operand(entry, "self"), entry.operation.removeprefix("aten.")
    axes = run.axes(ref, entry)
    rank = len(axes)
    has_dim = isinstance(entry.args.get("dim"), int)
    if isinstance(entry.args.get("other"), TensorRef):
        from paramgraph.capture.axis_rules.pointwise import elementwise

        combined = elementwise(run, entry)
        return combined if isinstance(combined, list) else [combined]
    if name in ("max", "min") and not has_dim:
        return [()]
    if not has_dim and name not in ("topk", "sort", "argsort", "kthvalue", "mode"):
        run.freeze_ref(ref, f"counted through by {where(entry)}")
        return [positions(out) for out in entry.outputs if out is not None]
    dim = entry.args.get("dim", -1) % max(rank, 1)
    leaf = _only_leaf(axes[dim]) if rank else None
    outs = [out for out in entry.outputs if out is not None]
    values = name in ("max", "min", "topk", "sort", "median", "kthvalue", "mode")
    if ref.number in run.index_of:
        # Sorted indices are indices still; where they came from are positions.
        if values:
            run.index_of[outs[0].number] = run.index_of[ref.number]
        run.sorted_by.append(run.index_of[ref.number])
    elif leaf is not None:
        run.index_of[outs[-1].number] = leaf
    elif rank:
        freeze(axes[dim], f"ordered by {where(entry)}")
    result: list[TensorType] = []
    for out in outs:
        new = list(axes)
        if len(out.shape) < rank:
            del new[dim]
        elif rank:
            size = out.shape[dim]
            new[dim] = (Pick(size, leaf),) if leaf is not None else (size,)
        result.append(tuple(new))
    return result


@rule("aminmax", indices=True)
def _extremes(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Smallest and largest value; of indices only their range is of interest."""
    ref = operand(entry, "self")
    dim = entry.args.get("dim")
    axes = run.axes(ref, entry) if isinstance(dim, int) else ()
    if ref.number in run.index_of and axes:
        freeze((run.index_of[ref.number],), f"its indices are compared by {where(entry)}")
    gone = {dim % len(axes)} if isinstance(dim, int) and axes else set()
    kept = reduced_axes(axes, gone, keep=entry.args["keepdim"])
    return [kept, kept]


@rule("histc", "bincount", indices=True)
def _counts(run: Inference, entry: TapeEntry) -> TensorType:
    """How often each index into a leaf occurs: one number per index."""
    ref, out = operand(entry, "self"), output(entry)
    leaf = run.index_of.get(ref.number)
    if leaf is None or out.shape[0] != leaf.size:
        run.freeze_ref(ref, f"counted by {where(entry)}")
        return positions(out)
    run.offsets_of[out.number] = leaf
    return ((leaf,),)


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", indices=True)
def _accumulate(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """Sums along an axis depend on its order."""
    ref = operand(entry, "self")
    axes = run.axes(ref, entry)
    outs = [out for out in entry.outputs if out is not None]
    if ref.number in run.offsets_of and len(axes) == 1:
        # Where each index begins among sorted indices.
        run.offsets_of[outs[0].number] = run.offsets_of[ref.number]
        return [positions(outs[0])]
    if ref.number in run.index_of:
        freeze((run.index_of[ref.number],), f"its indices are added up by {where(entry)}")
    return [_ordered_along(run, entry, ref)] * len(outs)


@rule("flip", "roll", "tril", "triu", "_fft_c2c", "_fft_r2c", "_fft_c2r", "diff")
def _along(run: Inference, entry: TapeEntry) -> TensorType:
    """Flips, shifts, triangles and Fourier transforms depend on the order of an axis."""
    ref = operand(entry, "self")
    if entry.operation in ("aten.tril", "aten.triu"):
        return _ordered_along(run, entry, ref, [-2, -1])
    return _ordered_along(run, entry, ref)


def _ordered_along(
    run: Inference, entry: TapeEntry, ref: TensorRef, dims: list[int] | None = None
) -> Axes:
    """The order of some axes matters, the others pass."""
    axes, out = run.axes(ref, entry), output(entry)
    rank = len(axes)
    if dims is None:
        name = "dims" if "dims" in entry.args else "dim"
        dims = dims_of(entry, rank, name)
    places = {dim % rank for dim in dims} if rank else set()
    for place in places:
        freeze(axes[place], f"its order matters to {where(entry)}")
    return tuple((out.shape[i],) if i in places else axis for i, axis in enumerate(axes))


@rule("_local_scalar_dense", indices=True)
def _number(run: Inference, entry: TapeEntry) -> list[TensorType]:
    """A number leaves the tape; an index into a leaf may choose what runs next."""
    ref = operand(entry, "self")
    leaf = run.index_of.get(ref.number)
    if leaf is None:
        run.freeze_ref(ref, f"read as a number by {where(entry)}")
        return []
    run.choices += [(r, leaf) for r in run.readings if r.position == entry.position]
    for stack in run.stacks:
        if stack.position == entry.position:
            chosen: Axis = (leaf,)
            if stack.leaf.size < leaf.size:
                pieces = cut(chosen, [stack.leaf.size])
                chosen = pieces[0] if pieces is not None else ()
            if axis_size(chosen) == stack.leaf.size:
                unify((stack.leaf,), chosen, where(entry))
            else:
                freeze((stack.leaf,), f"not all of its indices are chosen by {where(entry)}")
    return []


@rule("linalg_solve_triangular", "triangular_solve")
def _solve(run: Inference, entry: TapeEntry) -> TensorType | list[TensorType]:
    """The order of equations matters; batches and right-hand sides pass."""
    if entry.operation != "aten.linalg_solve_triangular" or not entry.args["left"]:
        return give_up(run, entry, f"order matters to {where(entry)}")
    matrix, right = operand(entry, "self"), operand(entry, "B")
    left, columns = run.axes(matrix, entry), run.axes(right, entry)
    for axis in (left[-1], left[-2], columns[-2]):
        freeze(axis, f"its order matters to {where(entry)}")
    out = output(entry)
    lead = broadcast(run, entry, [left[:-2], columns[:-2]], out.shape[:-2])
    return (*lead, (out.shape[-2],), columns[-1])
