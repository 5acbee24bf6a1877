"""Rules for layers with a weight: matrix products and convolutions."""

from __future__ import annotations

import itertools
import math

from paramgraph.capture.axes import Axis, Leaf, axis_size, resolve, unify
from paramgraph.capture.flow import Flow, locate
from paramgraph.capture.records import Hidden, Input, Parameter, Value, unsupported, where
from paramgraph.capture.rules import activations, first_output, operand, rule
from paramgraph.capture.rules_arithmetic import add_bias, per_neuron
from paramgraph.capture.tape import TapeEntry
from paramgraph.structure import EdgeKind, EntryView, NeuronRole

__all__: list[str] = []


@rule("mm", "addmm", "bmm")
def _matrix_product(flow: Flow, entry: TapeEntry) -> Value:
    names = ("mat1", "mat2") if entry.operation == "aten.addmm" else ("self", "mat2")
    left, right = operand(flow, entry, names[0]), operand(flow, entry, names[1])
    if isinstance(left, Hidden | Input) and isinstance(right, Parameter):
        result = _dense(flow, entry, left, right, parameter_on_left=False)
    elif isinstance(left, Parameter) and isinstance(right, Hidden | Input):
        result = _dense(flow, entry, right, left, parameter_on_left=True)
    else:
        kinds = " and ".join(type(v).__name__.lower() for v in (left, right))
        raise unsupported(entry, f"multiplies {kinds}; one side must be a plain parameter")
    if entry.operation == "aten.addmm":
        if entry.args["beta"] != 1 or entry.args["alpha"] != 1:
            raise unsupported(entry, "has alpha or beta other than 1")
        bias = operand(flow, entry, "self")
        if not isinstance(bias, Parameter):
            raise unsupported(entry, "adds something that is not a plain parameter")
        add_bias(flow, entry, result, bias)
    return result


def _dense(
    flow: Flow,
    entry: TapeEntry,
    value: Hidden | Input,
    weight: Parameter,
    *,
    parameter_on_left: bool,
) -> Hidden:
    """Contract the neurons of x in x W or W x, make a group of the other axis of W."""
    rank = len(weight.shape)
    contracted, kept = (rank - 1, rank - 2) if parameter_on_left else (rank - 2, rank - 1)
    axis = rank - 2 if parameter_on_left else rank - 1
    if len(weight.dims[contracted]) != 1 or len(weight.dims[kept]) != 1:
        raise unsupported(entry, f"uses parameter {weight.name!r} reshaped, not as it is")
    if any(size != 1 for size in weight.shape[:-2]):
        raise unsupported(entry, f"stacks several matrices in parameter {weight.name!r}")
    for index, factors in enumerate(value.axes):
        if index != axis and any(isinstance(f, Leaf) and f.size > 1 for f in resolve(factors)):
            raise unsupported(entry, f"has neurons on axis {index} as well as on axis {axis}")
    unify(weight.axes[contracted], value.axes[axis], where(entry))
    before, _, after = locate(value, axis, entry)
    sender = flow.read(value, entry, axis)
    receiver = flow.new_group(entry, weight.axes[kept], weight.name)
    positions = _grid([axis_size((f,)) for f in (*before, *after)])
    outer, inner = axis_size(before), axis_size(after)
    sizes = (outer, sender.size, inner)
    out_dim, in_dim = weight.dims[kept][0], weight.dims[contracted][0]
    ones = [1] * (len(flow.parameter_axes[weight.name]) - 2)
    if in_dim > out_dim:
        split, order = (receiver.size, *sizes), (0, 2, 1, 3)
    else:
        split, order = (*sizes, receiver.size), (3, 1, 0, 2)
    view = EntryView(
        weight.name,
        (*split, *ones),
        (*order, *range(4, 4 + len(ones))),
        (1, receiver.size, sender.size, len(positions)),
    )
    flow.add_block(
        weight.name,
        EdgeKind.LINEAR,
        sender,
        receiver,
        view,
        axes=(out_dim, in_dim),
        positions=positions,
    )
    axes = list(value.axes)
    axes[axis] = weight.axes[kept]
    ref = first_output(entry)
    return Hidden(ref, tuple(axes), receiver, site=ref.number)


def _grid(sizes: list[int]) -> tuple[tuple[float, float], ...]:
    """Coordinates of image positions, in pixels from the centre: (row, column)."""
    if len(sizes) > 2:
        sizes = [math.prod(sizes[:-1]), sizes[-1]]
    rows, columns = ([1, *sizes] if len(sizes) < 2 else sizes)[-2:] if sizes else (1, 1)
    return tuple(
        (r - (rows - 1) / 2, c - (columns - 1) / 2)
        for r, c in itertools.product(range(rows), range(columns))
    )


@rule("convolution")
def _convolution(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "input")
    weight = operand(flow, entry, "weight")
    if not isinstance(weight, Parameter) or weight.dims != tuple(
        (i,) for i in range(len(weight.shape))
    ):
        raise unsupported(entry, "uses a kernel that is not a plain parameter")
    if entry.args["transposed"]:
        raise unsupported(entry, "is a transposed convolution")
    groups, channels = entry.args["groups"], value.shape[1]
    spatial = len(weight.shape) - 2
    if spatial > 2:
        raise unsupported(entry, f"is a convolution over {spatial} dimensions")
    for axis in range(2, len(value.shape)):
        if any(isinstance(f, Leaf) and f.size > 1 for f in resolve(value.axes[axis])):
            raise unsupported(entry, f"slides over the neurons on axis {axis}")
    depthwise = groups == channels == weight.shape[0] and groups > 1
    if groups != 1 and not depthwise:
        raise unsupported(entry, f"is a grouped convolution ({groups} groups, {channels} channels)")
    unify(value.axes[1], weight.axes[0 if depthwise else 1], where(entry))
    before, _, after = locate(value, 1, entry)
    if before or after:
        raise unsupported(entry, "has channels that are mixed with positions")
    sender = flow.read(value, entry, 1)
    receiver = flow.new_group(entry, weight.axes[0], weight.name)
    kernel = list(weight.shape[2:])
    step = [1] * (2 - spatial) + list(entry.args["dilation"])
    positions = tuple((row * step[0], column * step[1]) for row, column in _grid(kernel))
    shape = (channels, 1, 1) if depthwise else (1, receiver.size, sender.size)
    view = EntryView(
        weight.name, weight.shape, tuple(range(len(weight.shape))), (*shape, len(positions))
    )
    flow.add_block(
        weight.name,
        EdgeKind.CONV,
        sender,
        receiver,
        view,
        axes=(0, 0) if depthwise else (0, 1),
        positions=positions,
        shape=shape,
    )
    ref = first_output(entry)
    axes: tuple[Axis, ...] = (
        value.axes[0],
        weight.axes[0],
        *((size,) for size in ref.shape[2:]),
    )
    result = Hidden(ref, axes, receiver, site=ref.number)
    bias = operand(flow, entry, "bias")
    if isinstance(bias, Parameter):
        feature = per_neuron(flow, entry, receiver, bias, axes[1])
        flow.add_feature(NeuronRole.BIAS, receiver, feature)
    elif bias is not None:
        raise unsupported(entry, "adds a bias that is not a plain parameter")
    return result
