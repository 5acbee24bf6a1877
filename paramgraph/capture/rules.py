"""One small function per operation family: what it does to axes and to neurons.

A rule gets the flow and the tape entry, and returns what is known of the first output. Operations
on inputs and constants alone need no rule: their result is again an input or a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from paramgraph.capture.activations import token
from paramgraph.capture.axes import Axis, regroup, resolve, unify
from paramgraph.capture.flow import Flow, locate
from paramgraph.capture.records import Constant, Hidden, Input, Parameter, Value, unsupported, where
from paramgraph.capture.tape import TapeEntry, TensorRef

__all__ = [
    "RULES",
    "Rule",
    "activations",
    "broadcast",
    "first_output",
    "moved",
    "number",
    "operand",
    "pointwise",
    "rule",
    "with_step",
]

Rule = Callable[[Flow, TapeEntry], Value]
RULES: dict[str, Rule] = {}
"""Operation name (``aten.relu``) to rule."""


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operations.

    Example:
        >>> "aten.convolution" in RULES
        True
    """

    def register(function: Rule) -> Rule:
        RULES.update({f"aten.{operation}": function for operation in operations})
        return function

    return register


def operand(flow: Flow, entry: TapeEntry, name: str) -> Value | None:
    """What is known of an argument; ``None`` when it is absent or no tensor."""
    ref = entry.args.get(name)
    return flow.values[ref.number] if isinstance(ref, TensorRef) else None


def activations(flow: Flow, entry: TapeEntry, name: str) -> Hidden | Input:
    """An argument that must be activations or inputs."""
    value = operand(flow, entry, name)
    if not isinstance(value, Hidden | Input):
        raise unsupported(entry, f"takes a {_describe(value)} as {name!r}, not activations")
    return value


def moved(flow: Flow, value: Hidden | Input, ref: TensorRef, axes: tuple[Axis, ...]) -> Value:
    """The same neurons in a tensor of another shape."""
    if isinstance(value, Input):
        return Input(ref, axes)
    owned = value.owned and flow.uses[value.ref.number] <= 1
    return Hidden(ref, axes, value.group, value.chain, owned, site=ref.number)


def _describe(value: Value | None) -> str:
    if value is None:
        return "missing value"
    name = f" {value.name!r}" if isinstance(value, Parameter) else ""
    return f"{type(value).__name__.lower()}{name}"


def first_output(entry: TapeEntry) -> TensorRef:
    """Reference of the result."""
    ref = entry.outputs[0]
    assert ref is not None
    return ref


@rule("detach", "clone", "alias", "contiguous", "_to_copy", "lift_fresh")
def _same(flow: Flow, entry: TapeEntry) -> Value:
    name = next(iter(entry.args))
    value = operand(flow, entry, name)
    ref = first_output(entry)
    if isinstance(value, Parameter):
        return Parameter(ref, value.axes, value.name, value.dims)
    known = activations(flow, entry, name)
    if not flow.tensors[ref.number].is_floating_point():
        raise unsupported(entry, f"turns activations into {flow.tensors[ref.number].dtype}")
    result = moved(flow, known, ref, known.axes)
    if isinstance(result, Hidden) and isinstance(known, Hidden):
        return replace(result, site=known.site)
    return result


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze")
def _reshape(flow: Flow, entry: TapeEntry) -> Value:
    value = operand(flow, entry, "self")
    ref = first_output(entry)
    if isinstance(value, Parameter):
        return _reshape_parameter(value, ref, entry)
    known = activations(flow, entry, "self")
    axes = tuple(regroup(known.axes, ref.shape, where(entry)))
    return moved(flow, known, ref, axes)


def _reshape_parameter(value: Parameter, ref: TensorRef, entry: TapeEntry) -> Parameter:
    """Parameters may gain or lose axes of length 1, or merge whole axes."""
    pool = [(dims, axis) for dims, axis in zip(value.dims, value.axes, strict=True)]
    pool = [item for item, size in zip(pool, value.shape, strict=True) if size != 1][::-1]
    dims: list[tuple[int, ...]] = []
    axes: list[Axis] = []
    sizes = dict(zip(value.dims, value.shape, strict=True))
    for size in ref.shape:
        merged: tuple[int, ...] = ()
        factors: Axis = ()
        have = 1
        while have < size and pool:
            part, axis = pool.pop()
            merged, factors, have = merged + part, factors + axis, have * sizes[part]
        if have != size:
            raise unsupported(entry, f"cuts an axis of parameter {value.name!r} in pieces")
        dims.append(merged)
        axes.append(factors)
    return Parameter(ref, tuple(axes), value.name, tuple(dims))


@rule("t", "transpose", "permute", "numpy_T")
def _permute(flow: Flow, entry: TapeEntry) -> Value:
    value = operand(flow, entry, "self")
    ref = first_output(entry)
    assert value is not None
    rank = len(value.shape)
    if entry.operation == "aten.t":
        order = list(range(rank))[::-1]
    elif entry.operation == "aten.transpose":
        order = list(range(rank))
        a, b = entry.args["dim0"], entry.args["dim1"]
        order[a], order[b] = order[b], order[a]
    else:
        order = [axis % rank for axis in entry.args["dims"]]
    axes = tuple(value.axes[axis] for axis in order)
    if isinstance(value, Parameter):
        return Parameter(ref, axes, value.name, tuple(value.dims[axis] for axis in order))
    return moved(flow, activations(flow, entry, "self"), ref, axes)


@rule("expand")
def _expand(flow: Flow, entry: TapeEntry) -> Value:
    value = operand(flow, entry, "self")
    ref = first_output(entry)
    if isinstance(value, Parameter):
        if ref.shape == value.shape:
            return Parameter(ref, value.axes, value.name, value.dims)
        raise unsupported(entry, f"repeats parameter {value.name!r}")
    known = activations(flow, entry, "self")
    missing = len(ref.shape) - len(known.shape)
    axes: list[Axis] = [(size,) for size in ref.shape[:missing]]
    for axis, before, after in zip(known.axes, known.shape, ref.shape[missing:], strict=True):
        axes.append(axis if before == after else (after,))
    return moved(flow, known, ref, tuple(axes))


@rule("select", "slice")
def _select(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "self")
    ref = first_output(entry)
    axis = entry.args["dim"] % len(value.shape)
    if entry.operation == "aten.slice" and ref.shape == value.shape:
        return moved(flow, value, ref, value.axes)
    if any(not isinstance(factor, int) and factor.size > 1 for factor in resolve(value.axes[axis])):
        raise unsupported(entry, f"picks some of the neurons on axis {axis}")
    axes = list(value.axes)
    axes[axis] = (ref.shape[axis],) if entry.operation == "aten.slice" else ()
    if entry.operation == "aten.select":
        del axes[axis]
    return moved(flow, value, ref, tuple(axes))


def pointwise(flow: Flow, entry: TapeEntry) -> Value:
    """Any elementwise function of one tensor and numbers."""
    tensors = [v for v in entry.args.values() if isinstance(v, TensorRef)]
    value = flow.values[tensors[0].number]
    if len(tensors) != 1 or not isinstance(value, Hidden):
        raise unsupported(entry, "combines tensors elementwise in a way that has no rule yet")
    numbers = [
        float(v)
        for name, v in entry.args.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    name = entry.operation.removeprefix("aten.")
    if not isinstance(next(iter(entry.args.values())), TensorRef):
        name = f"r{name}"  # 2 ** x is not x ** 2
    if name == "gelu" or (name == "elu" and numbers[1:] == [1, 1]):
        numbers = []
    return with_step(flow, value, entry, token(name, numbers))


def with_step(flow: Flow, value: Hidden, entry: TapeEntry, step: str) -> Hidden:
    """The same neurons after one more pointwise function."""
    ref = first_output(entry)
    if ref.shape != value.shape:
        raise unsupported(entry, f"repeats neurons: the result has shape {ref.shape}")
    owned = value.owned and flow.uses[value.ref.number] <= 1
    return replace(value, ref=ref, chain=(*value.chain, step), owned=owned)


@rule("hardswish", "log_sigmoid_forward")
def _untagged_pointwise(flow: Flow, entry: TapeEntry) -> Value:
    return pointwise(flow, entry)


@rule("_softmax", "_log_softmax")
def _softmax(flow: Flow, entry: TapeEntry) -> Value:
    value = activations(flow, entry, "self")
    axis = entry.args["dim"] % len(value.shape)
    if isinstance(value, Input):
        raise unsupported(entry, "normalises inputs")
    before, _, after = locate(value, axis, entry)
    if before or after:
        raise unsupported(entry, "normalises over neurons and positions together")
    return with_step(flow, value, entry, entry.operation.removeprefix("aten._"))


def broadcast(flow: Flow, entry: TapeEntry, a: Value, b: Value) -> tuple[Axis, ...]:
    """Unify the axes of two tensors that are combined elementwise, aligned at the last axis."""
    ref = first_output(entry)
    axes: list[Axis] = []
    for back in range(1, len(ref.shape) + 1):
        size = ref.shape[-back]
        have = [v.axes[-back] for v in (a, b) if back <= len(v.shape) and v.shape[-back] == size]
        if len(have) == 2:
            unify(have[0], have[1], where(entry))
        # An axis that numbers neurons says more than one that numbers positions.
        named = [axis for axis in have if any(not isinstance(f, int) for f in resolve(axis))]
        axes.append((named or have or [(size,)])[0])
    return tuple(axes[::-1])


def number(value: Any) -> float | None:
    """The number that an argument is, if it is one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value.scalar() if isinstance(value, Constant) else None
