"""Rules for matrix products, convolutions and attention: the contracted axes are the same."""

from __future__ import annotations

from paramgraph.capture.axes import Axis, Leaf, Pick, axis_size, freeze, resolve, to_positions
from paramgraph.capture.axis_rules.registry import broadcast, give_up, operand, output, rule
from paramgraph.capture.axis_rules.taking import choose, take_ranges
from paramgraph.capture.inference import Inference, where
from paramgraph.capture.reshaping import regroup
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType, collapse
from paramgraph.capture.unification import merged, unify

__all__: list[str] = []


@rule("mm", "bmm", "mv", "dot", "vdot", "matmul", "addmm", "baddbmm", "addmv", "addbmm")
def _matrix_product(run: Inference, entry: TapeEntry) -> TensorType:
    """The contracted axes are the same, the others stay."""
    name = entry.operation.removeprefix("aten.")
    if name in ("addmm",):
        left, right = operand(entry, "mat1"), operand(entry, "mat2")
    elif name in ("baddbmm", "addbmm"):
        left, right = operand(entry, "batch1"), operand(entry, "batch2")
    elif name == "addmv":
        left, right = operand(entry, "mat"), operand(entry, "vec")
    else:
        left, right = operand(entry, "self"), operand(entry, "mat2", "vec", "other", "tensor")
    out = output(entry)
    kind = _product(run, entry, left, right)
    if name in ("addmm", "baddbmm", "addmv"):
        bias = operand(entry, "self")
        if isinstance(kind, Bundle):
            return _biased_bundle(run, entry, kind, bias, out)
        return broadcast(run, entry, [kind, run.axes(bias, entry)], out.shape)
    return kind


def _product(run: Inference, entry: TapeEntry, left: TensorRef, right: TensorRef) -> TensorType:
    """Contract the last axis of one with the last but one axis of the other."""
    rows, columns = run.type(left), run.type(right)
    last = len(right.shape) - 1
    if isinstance(columns, Bundle) and columns.axis == last > 0 and not isinstance(rows, Bundle):
        blocks = tuple(_contract(rows, block, entry) for block in columns.blocks)
        return Bundle(len(blocks[0]) - 1, blocks)
    if isinstance(rows, Bundle) and rows.axis == len(left.shape) - 2 and len(left.shape) >= 2:
        if not isinstance(columns, Bundle):
            blocks = tuple(_contract(block, columns, entry) for block in rows.blocks)
            return Bundle(len(left.shape) - 2, blocks)
    if isinstance(rows, Bundle) and isinstance(columns, Bundle):
        batch = len(left.shape) == len(right.shape) == 3 and rows.axis == columns.axis == 0
        if batch and rows.sizes == columns.sizes:
            pairs = zip(rows.blocks, columns.blocks, strict=True)
            return Bundle(0, tuple(_contract(a, b, entry) for a, b in pairs))
    return _contract(run.axes(left, entry), run.axes(right, entry), entry)


def _contract(rows: Axes, columns: Axes, entry: TapeEntry) -> Axes:
    reason = where(entry)
    if len(columns) == 1:
        unify(rows[-1], columns[0], reason)
        return rows[:-1]
    if len(rows) == 1:
        unify(rows[0], columns[-2], reason)
        return (*columns[:-2], columns[-1])
    unify(rows[-1], columns[-2], reason)
    lead: list[Axis] = []
    for a, b in zip(rows[:-2], columns[:-2], strict=True):
        lead.append(merged(a, b, reason))
    picks = tuple(f for f in resolve(columns[-2]) if isinstance(f, Pick) and f == 1)
    return (*lead, rows[-2], (*picks, *columns[-1]))


def _biased_bundle(
    run: Inference, entry: TapeEntry, kind: Bundle, bias: TensorRef, out: TensorRef
) -> TensorType:
    """A bias that is cut like the result."""
    if kind.axis != len(out.shape) - 1 or not bias.shape or bias.shape[-1] != out.shape[-1]:
        plain = collapse(kind, where(entry))
        return broadcast(run, entry, [plain, run.axes(bias, entry)], out.shape)
    bounds = [0]
    for size in kind.sizes:
        bounds.append(bounds[-1] + size)
    parts = take_ranges(run, entry, bias, len(bias.shape) - 1, bounds)
    blocks = []
    for block, part, size in zip(kind.blocks, parts, kind.sizes, strict=True):
        assert not isinstance(part, Bundle)
        blocks.append(broadcast(run, entry, [block, part], (*out.shape[:-1], size)))
    return Bundle(kind.axis, tuple(blocks))


@rule("_grouped_mm", indices=True)
def _grouped_product(run: Inference, entry: TapeEntry) -> TensorType:
    """Rows sorted by an index, each multiplied with the matrix of its index."""
    left, right, offsets = (operand(entry, name) for name in ("self", "mat2", "offs"))
    rows, matrices = run.axes(left, entry), run.axes(right, entry)
    leaf = run.offsets_of.get(offsets.number)
    if len(matrices) != 3 or len(rows) != 2:
        return give_up(run, entry, f"grouped by {where(entry)}")[0]
    if leaf is None or not choose(run, entry, right, 0, leaf):
        freeze(matrices[0], f"grouped by {where(entry)}")
        leaf = next((f for f in resolve(matrices[0]) if isinstance(f, Leaf)), None)
    else:
        run.grouped_by.append(leaf)
    matrices = run.axes(right, entry)
    unify(rows[1], matrices[1], where(entry))
    size = axis_size(rows[0])
    return ((Pick(size, leaf) if leaf is not None else size,), matrices[2])


@rule("convolution", "_convolution", "conv1d", "conv2d", "conv3d")
def _convolution(run: Inference, entry: TapeEntry) -> TensorType:
    """Channels are contracted group by group; kernel and image are positions."""
    source, kernel = operand(entry, "input"), operand(entry, "weight")
    axes, weight = run.axes(source, entry), run.axes(kernel, entry)
    out = output(entry)
    groups, transposed = entry.args["groups"], entry.args["transposed"]
    reason = f"positions of {where(entry)}"
    for axis in axes[2:]:
        freeze(axis, reason)
    for axis in weight[2:]:
        to_positions(axis, reason)
    across, along = (weight[1], weight[0]) if transposed else (weight[0], weight[1])
    # ``across`` numbers outputs, ``along`` inputs; one of them holds the groups as well.
    channels = axes[1]
    result: Axis
    if groups == 1:
        unify(channels, along, where(entry))
        result = across
    else:
        inner = regroup([channels], (groups, source.shape[1] // groups), (entry.position, "in"))
        whole = weight[0]
        outer = regroup([whole], (groups, kernel.shape[0] // groups), (entry.position, "out"))
        if inner is None or outer is None:
            return give_up(run, entry, f"groups cut across in {where(entry)}")[0]
        unify(inner[0], outer[0], where(entry))
        # Inputs and outputs meet within a group: it cannot be another one for each of them.
        run.reduced.append((inner[0],))
        if transposed:
            unify(inner[1], outer[1], where(entry))
            result = (*outer[0], *weight[1])
        else:
            unify(inner[1], weight[1], where(entry))
            result = whole
    if isinstance(entry.args.get("bias"), TensorRef):
        unify(result, run.axes(operand(entry, "bias"), entry)[0], where(entry))
    return (axes[0], result, *((size,) for size in out.shape[2:]))


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def _distances(run: Inference, entry: TapeEntry) -> TensorType:
    """Points are compared along their last axis."""
    left, right = run.axes(operand(entry, "x1"), entry), run.axes(operand(entry, "x2"), entry)
    unify(left[-1], right[-1], where(entry))
    lead = [merged(a, b, where(entry)) for a, b in zip(left[:-2], right[:-2], strict=True)]
    return (*lead, left[-2], right[-2])


@rule("linear")
def _linear(run: Inference, entry: TapeEntry) -> TensorType:
    """The contracted axes are the same, the others stay."""
    axes, weight = (
        run.axes(operand(entry, "input"), entry),
        run.axes(operand(entry, "weight"), entry),
    )
    unify(axes[-1], weight[1], where(entry))
    if isinstance(entry.args.get("bias"), TensorRef):
        unify(weight[0], run.axes(operand(entry, "bias"), entry)[0], where(entry))
    return (*axes[:-1], weight[0])


@rule("_trilinear")
def _trilinear(run: Inference, entry: TapeEntry) -> TensorType:
    """A sum of products of three tensors, each with axes of length 1 put in."""
    types: list[Axes] = []
    for number in ("1", "2", "3"):
        axes = list(run.axes(operand(entry, f"i{number}"), entry))
        for place in sorted(entry.args[f"expand{number}"]):
            axes.insert(place, ())
        types.append(tuple(axes))
    shape = [max(sizes) for sizes in zip(*(map(axis_size, axes) for axes in types), strict=True)]
    product = broadcast(run, entry, types, shape)
    return tuple(axis for i, axis in enumerate(product) if i not in entry.args["sumdim"])
