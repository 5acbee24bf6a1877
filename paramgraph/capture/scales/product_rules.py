"""Scale rules for matrix products and convolutions: a product of entries, summed over some axes."""

from __future__ import annotations

import math

from paramgraph.capture.axes import Axis, axis_size, leaves
from paramgraph.capture.axis_rules.registry import operand, output
from paramgraph.capture.scales.boxes import Layout, MisfitError, layout_of, row_major
from paramgraph.capture.scales.flow import Flow, Scaled, Values
from paramgraph.capture.scales.registry import scale_rule
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType

__all__: list[str] = []

_ARGUMENTS = {
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
    "matmul": ("self", "other"),
}


@scale_rule(*_ARGUMENTS)
def _matrix_product(flow: Flow, entry: TapeEntry) -> list[Values]:
    name = entry.operation.removeprefix("aten.")
    left, right = (operand(entry, argument) for argument in _ARGUMENTS[name])
    if name == "addbmm" or abs(len(left.shape) - len(right.shape)) > 1:
        raise MisfitError
    values = _contracted(flow, entry, left, right)
    if name.startswith(("add", "badd")) and entry.args.get("beta", 1) != 0:
        bias = flow.onto(flow.argument(entry, "self"), flow.layout(output(entry)))
        values = flow.equal(values, bias)
    return [values]


def _contracted(flow: Flow, entry: TapeEntry, left: TensorRef, right: TensorRef) -> Values:
    """All products, on axes (lead, rows, contracted, columns), then their sum."""
    lead = left.shape[:-2]
    rows, columns = left.shape[-2:-1], right.shape[-1:] if len(right.shape) > 1 else ()
    shape = (*lead, *rows, left.shape[-1], *columns)
    layout = flow.geometry.made(
        ("products", entry.position), lambda: _product_layout(flow, left, right, shape)
    )
    a, b = row_major(left.shape), row_major(right.shape)
    inner = [b[-2], b[-1]] if columns else [b[-1]]
    batch = b[:-2] if len(right.shape) > 2 else [0] * len(lead)
    first = (flow.of(left), [*a, *[0] * len(columns)])
    second = (flow.of(right), [*batch, *[0] * len(rows), *inner])
    out = output(entry)
    steps = row_major(out.shape)
    steps.insert(len(lead) + len(rows), 0)
    product = Scaled(layout, flow.products(layout, first, second))
    return flow.write(product, flow.layout(out), steps)


def _product_layout(
    flow: Flow, left: TensorRef, right: TensorRef, shape: tuple[int, ...]
) -> Layout:
    """The blocks of all products: those of both factors."""
    first, second = flow.run.type(left), flow.run.type(right)
    one = first.blocks if isinstance(first, Bundle) else (first,)
    two = second.blocks if isinstance(second, Bundle) else (second,)
    num_lead = len(left.shape) - 2
    blocks: list[Axes]
    axis = None
    if isinstance(first, Bundle) and isinstance(second, Bundle):
        if first.axis != second.axis or first.axis >= num_lead or first.sizes != second.sizes:
            raise MisfitError
        blocks = [_joined(a, b, num_lead) for a, b in zip(one, two, strict=True)]
        axis = first.axis
    else:
        blocks = [_joined(a, b, num_lead) for a in one for b in two]
        if isinstance(first, Bundle):
            axis = first.axis
        elif isinstance(second, Bundle):
            is_column = second.axis == len(right.shape) - 1 and len(right.shape) > 1
            if not is_column and second.axis >= len(right.shape) - 2:
                axis = len(left.shape) - 1
            else:
                axis = len(shape) - 1 if is_column else second.axis
    kind: TensorType = blocks[0] if axis is None else Bundle(axis, tuple(blocks))
    return layout_of(flow.geometry.groups, kind, shape)


def _joined(rows: Axes, columns: Axes, num_lead: int) -> Axes:
    lead: list[Axis] = []
    for axis in range(max(num_lead, 0)):
        both = [rows[axis], columns[axis]] if len(columns) > 2 else [rows[axis]]
        lead.append(max(both, key=_says))
    last = columns[-1:] if len(columns) > 1 else ()
    return (*lead, *rows[max(num_lead, 0) :], *last)


@scale_rule("linear")
def _linear(flow: Flow, entry: TapeEntry) -> list[Values]:
    source, weight = operand(entry, "input"), operand(entry, "weight")
    rows, kernel = flow.run.type(source), flow.run.type(weight)
    if isinstance(rows, Bundle) or isinstance(kernel, Bundle):
        raise MisfitError
    shape = (*source.shape, weight.shape[0])
    layout = flow.geometry.typed(("linear", entry.position), (*rows, kernel[0]), shape)
    first = (flow.of(source), [*row_major(source.shape), 0])
    second = (flow.of(weight), [*[0] * (len(source.shape) - 1), 1, weight.shape[1]])
    out = output(entry)
    strides = row_major(out.shape)
    product = Scaled(layout, flow.products(layout, first, second))
    values = flow.write(product, flow.layout(out), [*strides[:-1], 0, strides[-1]])
    return [_biased(flow, entry, values)]


def _biased(flow: Flow, entry: TapeEntry, values: Values, dim: int = -1) -> Values:
    """Add a bias, one number per index of an axis of the output."""
    if not isinstance(entry.args.get("bias"), TensorRef):
        return values
    out = output(entry)
    steps = [0] * len(out.shape)
    steps[dim] = 1
    bias = flow.read(flow.argument(entry, "bias"), flow.layout(out), steps)
    return flow.equal(values, bias)


@scale_rule("convolution", "_convolution")
def _convolution(flow: Flow, entry: TapeEntry) -> list[Values]:
    """All products, on axes (batch, groups, channels, kernel, positions), then their sum."""
    source, kernel, out = operand(entry, "input"), operand(entry, "weight"), output(entry)
    rows, weight = flow.run.type(source), flow.run.type(kernel)
    if isinstance(rows, Bundle) or isinstance(weight, Bundle):
        raise MisfitError
    groups, is_transposed = entry.args["groups"], entry.args["transposed"]
    batch, space = source.shape[0], source.shape[2:]
    taps = kernel.shape[2:]
    shape = (batch, *kernel.shape, *space)
    # The first axis of a weight holds the groups and the outputs, or the inputs if transposed.
    grouped = (batch, groups, kernel.shape[0] // groups, *kernel.shape[1:], *space)
    key = ("convolution", entry.position)
    flat = flow.geometry.typed(key, (rows[0], *weight, *rows[2:]), shape)
    layout = flow.geometry.made((*key, "grouped"), lambda: flat.reshaped(grouped))
    inputs = source.shape[1] // groups
    pixels = math.prod(space)
    none = [0] * len(taps)
    over, here = row_major(source.shape), [inputs * pixels, pixels]
    outs, there = row_major(out.shape), math.prod(out.shape[2:])
    per_group = out.shape[1] // groups
    rest = [0] * len(space)
    if is_transposed:
        reading = [over[0], here[0], here[1], 0, *none, *over[2:]]
        writing = [outs[0], per_group * there, 0, there, *none, *rest]
    else:
        reading = [over[0], here[0], 0, here[1], *none, *over[2:]]
        writing = [outs[0], per_group * there, there, 0, *none, *rest]
    weights = row_major((groups, kernel.shape[0] // groups, *kernel.shape[1:]))
    first, second = (flow.of(source), reading), (flow.of(kernel), [0, *weights, *rest])
    product = Scaled(layout, flow.products(layout, first, second))
    values = flow.write(product, flow.layout(out), writing)
    return [_biased(flow, entry, values, 1)]


@scale_rule("_grouped_mm")
def _grouped_product(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Each row is multiplied with one of the matrices: what differs among these is lost."""
    left, right, out = operand(entry, "self"), operand(entry, "mat2"), output(entry)
    rows, matrices = flow.run.type(left), flow.run.type(right)
    if len(right.shape) != 3 or isinstance(rows, Bundle) or isinstance(matrices, Bundle):
        raise MisfitError
    flow.forbid(flow.argument(entry, "offs").values)
    inner, columns = right.shape[1:]
    one = flow.geometry.typed(("matrix", entry.position), matrices[1:], right.shape[1:])
    matrix = Scaled(one, flow.write(flow.of(right), one, [0, columns, 1]))
    shape = (*left.shape, columns)
    layout = flow.geometry.typed(("grouped", entry.position), (*rows, matrices[2]), shape)
    first, second = (flow.of(left), [inner, 1, 0]), (matrix, [0, columns, 1])
    product = Scaled(layout, flow.products(layout, first, second))
    return [flow.write(product, flow.layout(out), [columns, 0, 1])]


@scale_rule("_trilinear")
def _trilinear(flow: Flow, entry: TapeEntry) -> list[Values]:
    """A sum of products of three tensors, each with axes of length 1 put in."""
    types: list[Axes] = []
    factors: list[tuple[Scaled, list[int]]] = []
    for number in ("1", "2", "3"):
        ref = operand(entry, f"i{number}")
        kind = flow.run.type(ref)
        if isinstance(kind, Bundle):
            raise MisfitError
        axes, steps = list(kind), row_major(ref.shape)
        for place in sorted(entry.args[f"expand{number}"]):
            axes.insert(place, ())
            steps.insert(place, 0)
        types.append(tuple(axes))
        factors.append((flow.of(ref), steps))
    product = tuple(max(axes, key=_says) for axes in zip(*types, strict=True))
    shape = tuple(map(axis_size, product))
    layout = flow.geometry.typed(("trilinear", entry.position), product, shape)
    out, summed = output(entry), set(entry.args["sumdim"])
    kept = iter(row_major(out.shape))
    steps = [0 if axis in summed else next(kept) for axis in range(len(shape))]
    products = Scaled(layout, flow.products(layout, *factors))
    return [flow.write(products, flow.layout(out), steps)]


def _says(axis: Axis) -> tuple[bool, int]:
    return any(leaves(axis)), axis_size(axis)


@scale_rule("cdist", "_cdist_forward", "_euclidean_dist")
def _distances(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Lengths of differences: signs that both sides share are lost."""
    left, right, out = operand(entry, "x1"), operand(entry, "x2"), output(entry)
    rows, columns = flow.run.type(left), flow.run.type(right)
    if isinstance(rows, Bundle) or isinstance(columns, Bundle):
        raise MisfitError
    if left.shape[:-2] != right.shape[:-2]:
        raise MisfitError
    lead = tuple(max(axes, key=_says) for axes in zip(rows[:-2], columns[:-2], strict=True))
    kind = (*lead, rows[-2], columns[-2], max(rows[-1], columns[-1], key=_says))
    shape = (*left.shape[:-1], right.shape[-2], left.shape[-1])
    layout = flow.geometry.typed(("distances", entry.position), kind, shape)
    a, b = row_major(left.shape), row_major(right.shape)
    first = flow.read(flow.of(left), layout, [*a[:-1], 0, a[-1]])
    second = flow.read(flow.of(right), layout, [*b[:-2], 0, *b[-2:]])
    same = Scaled(layout, flow.equal(first, second))
    if flow.is_sign:
        return []
    return [flow.write(same, flow.layout(out), [*row_major(out.shape), 0])]
