"""Rules for elementwise sums and products: biases, skips, gains, functions of one group."""

from __future__ import annotations

import math
from dataclasses import replace

from paramgraph.capture.activations import token
from paramgraph.capture.axes import Axis, Leaf, axis_size, resolve, unify
from paramgraph.capture.flow import Flow
from paramgraph.capture.records import (
    FlowFeature,
    FlowGroup,
    Hidden,
    Input,
    Parameter,
    Value,
    leaf_name,
    unsupported,
)
from paramgraph.capture.rules import (
    broadcast,
    first_output,
    number,
    operand,
    rule,
    with_step,
)
from paramgraph.capture.tape import TapeEntry
from paramgraph.structure import EdgeKind, EntryView, NeuronRole

__all__ = ["add_bias", "gain", "per_neuron"]


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


def add_bias(flow: Flow, entry: TapeEntry, value: Hidden, parameter: Parameter) -> None:
    """A parameter that is added to the neurons of a value, by the rules of broadcasting."""
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
    add_bias(flow, entry, target, parameter)
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
