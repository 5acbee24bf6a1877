"""Rules for normalisation layers: the gain is an edge per neuron, the shift a bias.

Batch normalisation runs on stored statistics here, so mean and variance are features of the
neurons that enter it. Without scale freedom of its input (its epsilon breaks positive scaling; its
sign is free), the output can be rescaled through gain and shift.
"""

from __future__ import annotations

from paramgraph.capture.axes import Axis, Leaf, axis_size, regroup, resolve
from paramgraph.capture.flow import Flow, locate
from paramgraph.capture.records import Hidden, Input, Parameter, Value, unsupported, where
from paramgraph.capture.rules import activations, operand, rule
from paramgraph.capture.rules_arithmetic import gain, per_neuron
from paramgraph.capture.tape import TapeEntry
from paramgraph.structure import NeuronRole

__all__: list[str] = []


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "input")
    if entry.args.get("training", False) or entry.args.get("running_mean") is None:
        raise unsupported(entry, "normalises by statistics of the batch, not by stored ones")
    sender = flow.read(value, entry, 1)
    if NeuronRole.MEAN in sender.features:
        # A second normalisation of the same neurons has statistics of its own.
        axis: Axis = value.axes[1]
        if isinstance(value, Input):
            leaf = Leaf(entry.module, sender.size)
            leaf.freeze("network input")
            axis = (leaf,)
        copy = flow.new_group(entry, axis)
        flow.add_skip(sender, copy, 1.0)
        sender = copy
        axes = (value.axes[0], axis, *value.axes[2:])
        value = Hidden(value.ref, axes, copy, site=value.ref.number)
    for argument, role in (("running_mean", NeuronRole.MEAN), ("running_var", NeuronRole.VARIANCE)):
        statistic = operand(flow, entry, argument)
        name = flow.buffer_names.get(statistic.ref.number) if statistic else None
        if statistic is None or name is None:
            raise unsupported(entry, f"takes a {argument} that is no buffer of the network")
        buffer = Parameter(statistic.ref, flow.parameter_axes[name], name, ((0,),))
        flow.add_feature(role, sender, per_neuron(flow, entry, sender, buffer, value.axes[1]))
    sender.forbid_scale(sign=False)
    return _affine(flow, entry, value, 1)


@rule("native_layer_norm")
def _layer_norm(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "input")
    if len(entry.args["normalized_shape"]) != 1:
        raise unsupported(entry, "normalises over neurons and positions together")
    axis = len(value.shape) - 1
    before, _, after = locate(value, axis, entry)
    if before or after:
        raise unsupported(entry, "normalises over neurons and positions together")
    flow.read(value, entry, axis).forbid_scale()
    return _affine(flow, entry, value, axis)


@rule("native_group_norm")
def _group_norm(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "input")
    channels, num_groups = value.shape[1], entry.args["group"]
    before, _, after = locate(value, 1, entry)
    if before or after:
        raise unsupported(entry, "has channels that are mixed with positions")
    if 1 < num_groups < channels and len(resolve(value.axes[1])) == 1:
        regroup([value.axes[1]], (num_groups, channels // num_groups), where(entry))
    elif 1 < num_groups < channels:
        major = resolve(value.axes[1])[0]
        if axis_size((major,)) != num_groups:
            raise unsupported(entry, f"has {num_groups} groups that cut through other groups")
    flow.read(value, entry, 1).forbid_scale()
    return _affine(flow, entry, value, 1)


def _affine(flow: Flow, entry: TapeEntry, value: Hidden | Input, axis: int) -> Hidden:
    """Gain and shift after the normalisation."""
    weight, bias = operand(flow, entry, "weight"), operand(flow, entry, "bias")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and not isinstance(parameter, Parameter):
            raise unsupported(entry, f"takes a {name} that is not a plain parameter")
    assert weight is None or isinstance(weight, Parameter)
    result = gain(flow, entry, value, weight, value.axes, axis)
    if weight is None:
        # Without a gain only the sign can pass, through the normalisation itself.
        result.group.scale_with(flow.read(value, entry, axis))
        result.group.forbid_scale(sign=False)
    if isinstance(bias, Parameter):
        feature = per_neuron(flow, entry, result.group, bias, result.axes[axis])
        flow.add_feature(NeuronRole.BIAS, result.group, feature)
    return result
