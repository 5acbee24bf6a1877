"""Rules for products and sums: layers with parameters, biases, skips, gains."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from paramgraph.capture.activations import token
from paramgraph.capture.axes import Axis, Leaf, axis_size, resolve, unify
from paramgraph.capture.flow import (
    Flow,
    FlowFeature,
    FlowGroup,
    Hidden,
    Input,
    Parameter,
    Value,
    leaf_name,
    locate,
    unsupported,
    where,
)
from paramgraph.capture.rules import (
    activations,
    broadcast,
    first_output,
    number,
    operand,
    rule,
    with_step,
)
from paramgraph.capture.tape import TapeEntry
from paramgraph.structure import EdgeKind, EntryView, NeuronRole

__all__: list[str] = []


# ------------------------------------------------------------------------------- dense and conv


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
        _add_bias(flow, entry, result, bias)
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


# ---------------------------------------------------------------------------- biases, gains, skips


def per_neuron(
    flow: Flow, entry: TapeEntry, group: FlowGroup, parameter: Parameter, axis: Axis
) -> FlowFeature:
    """A parameter with one value per neuron, whatever axes of length 1 it has."""
    dims = [d for dims in parameter.dims for d in dims]
    sizes = [axis_size(a) for a in flow.parameter_axes[parameter.name]]
    long = [d for d in range(len(sizes)) if sizes[d] != 1]
    if math.prod(sizes) != group.size or len(long) > 1 or not set(long) <= set(dims):
        raise unsupported(
            entry,
            f"combines parameter {parameter.name!r} of shape {tuple(sizes)} with the "
            f"{group.size} neurons {group.name!r}; it must have one value per neuron",
        )
    if long:
        unify(flow.parameter_axes[parameter.name][long[0]], axis, f"{parameter.name!r}")
    view = EntryView(parameter.name, tuple(sizes), tuple(range(len(sizes))), (group.size,))
    return FlowFeature(view, long[0] if long else 0)


def _add_bias(flow: Flow, entry: TapeEntry, value: Hidden, parameter: Parameter) -> None:
    axis = _neuron_axis(value, entry)
    _assert_along(value, axis, parameter, entry)
    feature = per_neuron(flow, entry, value.group, parameter, value.axes[axis])
    flow.add_feature(NeuronRole.BIAS, value.group, feature)


def _assert_along(value: Hidden, axis: int, parameter: Parameter, entry: TapeEntry) -> None:
    """Refuse a parameter that is broadcast along another axis, which may have the same length."""
    back = len(value.shape) - axis
    if math.prod(first_output(entry).shape) != math.prod(value.shape):
        raise unsupported(entry, f"repeats the neurons {value.group.name!r}")
    long = {len(parameter.shape) - i for i, size in enumerate(parameter.shape) if size != 1}
    if not long <= {back}:
        raise unsupported(
            entry,
            f"combines parameter {parameter.name!r} of shape {parameter.shape} with axes of a "
            f"tensor of shape {value.shape} other than its neurons (axis {axis})",
        )


def _neuron_axis(value: Hidden, entry: TapeEntry) -> int:
    """The axis that holds the neurons of a value, alone."""
    neurons = resolve(value.group.axis)
    for axis, factors in enumerate(value.axes):
        have = resolve(factors)
        if len(have) == len(neurons) and all(
            a is b or a == b for a, b in zip(have, neurons, strict=True)
        ):
            return axis
    raise unsupported(entry, f"needs the neurons {value.group.name!r} alone on one axis")


def _is_owned(flow: Flow, value: Value) -> bool:
    """Whether a bias or skip can join the group of a value without changing other readers."""
    return (
        isinstance(value, Hidden)
        and value.owned
        and value.chain == ()
        and value.group.chain is None
        and flow.uses[value.ref.number] <= 1
    )


@rule("add", "sub")
def _add(flow: Flow, entry: TapeEntry) -> Value:
    a, b = operand(flow, entry, "self"), operand(flow, entry, "other")
    sign = -1.0 if entry.operation == "aten.sub" else 1.0
    factor = sign * float(entry.args.get("alpha", 1))
    for value, argument, swapped in ((a, entry.args.get("other"), False), (b, a, True)):
        constant = number(b if not swapped and b is not None else argument)
        if isinstance(value, Hidden) and constant is not None:
            if swapped and factor != 1:
                value = with_step(flow, value, entry, token("mul", [factor]))
                return with_step(flow, value, entry, token("add", [constant]))
            step = constant if swapped else constant * factor
            return with_step(flow, value, entry, token("add", [step]))
    if isinstance(a, Hidden) and isinstance(b, Parameter):
        return _add_parameter(flow, entry, a, b, factor)
    if isinstance(b, Hidden) and isinstance(a, Parameter) and factor == 1:
        return _add_parameter(flow, entry, b, a, factor)
    if isinstance(a, Hidden | Input) and isinstance(b, Hidden | Input):
        if isinstance(a, Hidden) and isinstance(b, Hidden) and a.group is b.group:
            if a.site == b.site and a.shape == b.shape:
                return _same_group(flow, entry, a, b)
        return _join(flow, entry, a, b, factor)
    kinds = " and ".join(type(v).__name__.lower() for v in (a, b))
    raise unsupported(entry, f"adds {kinds}, which has no rule yet")


def _add_parameter(
    flow: Flow, entry: TapeEntry, value: Hidden, parameter: Parameter, factor: float
) -> Hidden:
    if factor != 1:
        raise unsupported(entry, f"subtracts or scales the bias {parameter.name!r}")
    _assert_along(value, _neuron_axis(value, entry), parameter, entry)
    axes = broadcast(flow, entry, value, parameter)
    ref = first_output(entry)
    target = Hidden(ref, axes, value.group, value.chain, site=ref.number)
    if not _is_owned(flow, value) or NeuronRole.BIAS in value.group.features:
        group = flow.new_group(entry, value.group.axis, parameter.name)
        flow.add_skip(flow.read(value, entry), group, 1.0)
        target = Hidden(ref, axes, group, site=ref.number)
    _add_bias(flow, entry, target, parameter)
    return target


def _same_group(flow: Flow, entry: TapeEntry, a: Hidden, b: Hidden) -> Hidden:
    """Two functions of the same neurons, combined: again a function of these neurons."""
    if a.site != b.site or a.shape != b.shape:
        raise unsupported(entry, "combines neurons with themselves at other positions")
    name = entry.operation.removeprefix("aten.")
    extra = entry.args.get("alpha", 1)
    step = f"{name}[{' '.join(a.chain)}|{' '.join(b.chain)}]" + ("" if extra == 1 else f"({extra})")
    ref = first_output(entry)
    return Hidden(ref, a.axes, a.group, (step,), owned=False, site=a.site)


def _join(
    flow: Flow, entry: TapeEntry, a: Hidden | Input, b: Hidden | Input, factor: float
) -> Hidden:
    """A residual addition a + factor * b: a skip into the group that nobody else reads."""
    ref = first_output(entry)
    hidden = a if isinstance(a, Hidden) else b
    assert isinstance(hidden, Hidden)
    # Axes are counted from the end, as broadcasting does.
    place = _neuron_axis(hidden, entry) - len(hidden.shape)
    for value in (a, b):
        if isinstance(value, Hidden) and _neuron_axis(value, entry) - len(value.shape) != place:
            raise unsupported(entry, "adds values whose neurons stand on different axes")
        if len(value.shape) < -place or value.shape[place] != ref.shape[place]:
            raise unsupported(entry, "adds a tensor that is broadcast over neurons")
    axes = broadcast(flow, entry, a, b)
    if _is_owned(flow, a):
        assert isinstance(a, Hidden)
        target, links = a.group, [(b, factor)]
    elif _is_owned(flow, b) and factor == 1:
        assert isinstance(b, Hidden)
        target, links = b.group, [(a, 1.0)]
    else:
        target, links = flow.new_group(entry, hidden.group.axis), [(a, 1.0), (b, factor)]
    for value, constant in links:
        flow.add_skip(flow.read(value, entry, place), target, constant)
    return Hidden(ref, axes, target, site=ref.number)


@rule("mul", "div")
def _multiply(flow: Flow, entry: TapeEntry) -> Value:
    a, b = operand(flow, entry, "self"), operand(flow, entry, "other")
    divide = entry.operation == "aten.div"
    if entry.args.get("rounding_mode"):
        raise unsupported(entry, "rounds the quotient")
    if isinstance(a, Hidden):
        constant = number(b if b is not None else entry.args.get("other"))
        if constant is not None and not (divide and constant == 0):
            return with_step(flow, a, entry, token("mul", [1 / constant if divide else constant]))
    if isinstance(b, Hidden) and not divide:
        constant = number(a)
        if constant is not None:
            return with_step(flow, b, entry, token("mul", [constant]))
    if isinstance(a, Hidden) and isinstance(b, Hidden) and a.group is b.group:
        return _same_group(flow, entry, a, b)
    if not divide:
        for value, parameter in ((a, b), (b, a)):
            if isinstance(value, Hidden) and isinstance(parameter, Parameter):
                axis = _neuron_axis(value, entry)
                _assert_along(value, axis, parameter, entry)
                axes = broadcast(flow, entry, value, parameter)
                place = axis + len(axes) - len(value.axes)
                return gain(flow, entry, value, parameter, axes, place)
    kinds = " and ".join(type(v).__name__.lower() if v is not None else "a number" for v in (a, b))
    raise unsupported(entry, f"{'divides' if divide else 'multiplies'} {kinds}")


def gain(
    flow: Flow,
    entry: TapeEntry,
    value: Hidden | Input,
    weight: Parameter | None,
    axes: tuple[Axis, ...],
    axis: int,
) -> Hidden:
    """y_i = w_i x_i: a new group, reached by one edge per neuron (all 1 without a weight)."""
    name = weight.name if weight is not None else ""
    sender = flow.read(value, entry, axis)
    if isinstance(value, Input):
        # Scaled inputs are neurons of their own, as fixed in their order as the inputs are.
        leaf = Leaf(leaf_name(name, 0) or entry.module, sender.size)
        leaf.freeze("network input")
        axes = (*axes[:axis], (leaf,), *axes[axis + 1 :])
    group = flow.new_group(entry, axes[axis], name)
    view, place = None, 0
    if weight is not None:
        feature = per_neuron(flow, entry, group, weight, axes[axis])
        view, place = replace(feature.view, shape=(group.size, 1, 1, 1)), feature.axis
    flow.add_block(
        name or f"{sender.name}->{group.name}",
        EdgeKind.SCALE,
        sender,
        group,
        view,
        axes=(place, place),
        shape=(group.size, 1, 1),
    )
    ref = first_output(entry)
    return Hidden(ref, axes, group, site=ref.number)
