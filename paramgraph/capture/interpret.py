"""Tape to flow: drop what does not reach the outputs, then apply one rule per operation."""

from __future__ import annotations

import paramgraph.capture.rules_arithmetic  # noqa: F401  (registers its rules)
import paramgraph.capture.rules_layers  # noqa: F401  (registers its rules)
import paramgraph.capture.rules_norm  # noqa: F401  (registers its rules)
import paramgraph.capture.rules_positions  # noqa: F401  (registers its rules)
from paramgraph.capture.axes import Axis, Leaf, resolve
from paramgraph.capture.flow import Flow
from paramgraph.capture.records import (
    Constant,
    Hidden,
    Input,
    Parameter,
    entry_refs,
    leaf_name,
    unsupported,
)
from paramgraph.capture.rules import RULES, pointwise
from paramgraph.capture.tape import Tape, TapeEntry
from paramgraph.errors import CaptureError
from paramgraph.structure import NeuronKind

__all__ = ["interpret", "live_entries"]


def live_entries(tape: Tape) -> list[TapeEntry]:
    """The operations that the outputs depend on, in order."""
    needed = {ref.number for ref in tape.outputs}
    live: list[TapeEntry] = []
    for entry in reversed(tape.entries):
        if any(ref is not None and ref.number in needed for ref in entry.outputs):
            live.append(entry)
            needed |= {ref.number for ref in entry_refs(entry.args)}
    return live[::-1]


def interpret(tape: Tape) -> Flow:
    """Apply the rules to a tape.

    Args:
        tape: One recorded run.

    Returns:
        Neuron groups, blocks and the axes of every parameter.

    Raises:
        CaptureError: An operation has no rule, or a rule does not cover this use of it.
    """
    _assert_nothing_escapes(tape)
    flow = Flow(tape.tensors)
    entries = live_entries(tape)
    for entry in entries:
        for ref in entry_refs(entry.args):
            flow.uses[ref.number] = flow.uses.get(ref.number, 0) + 1
    for ref in tape.outputs:
        flow.uses[ref.number] = flow.uses.get(ref.number, 0) + 1
    for ref in tape.constants:
        axes: tuple[Axis, ...] = tuple((size,) for size in ref.shape)
        flow.values[ref.number] = Constant(
            ref, axes, tape.tensors[ref.number], is_stored=ref.number in tape.stored
        )
    for name, ref in tape.parameters.items():
        axes = tuple((Leaf(leaf_name(name, axis), size),) for axis, size in enumerate(ref.shape))
        flow.parameter_axes[name] = axes
        if name in tape.buffers:
            flow.buffer_names[ref.number] = name
        else:
            dims = tuple((i,) for i in range(len(axes)))
            flow.values[ref.number] = Parameter(ref, axes, name, dims)
    for ref in tape.inputs:
        flow.values[ref.number] = Input(ref, tuple((size,) for size in ref.shape))
    for entry in entries:
        _apply(flow, tape, entry)
    _finish_outputs(flow, tape)
    return flow


def _assert_nothing_escapes(tape: Tape) -> None:
    """Refuse numbers that leave the tape (``item()``, ``if tensor``): nobody knows their use."""
    depends = {ref.number for name, ref in tape.parameters.items() if name not in tape.buffers}
    for entry in tape.entries:
        if depends.isdisjoint(ref.number for ref in entry_refs(entry.args)):
            continue
        if any(ref is None for ref in entry.outputs):
            raise unsupported(
                entry,
                "hands a number that depends on the parameters to Python (item(), float() or a "
                "condition), where it cannot be followed",
            )
        depends |= {ref.number for ref in entry.outputs if ref is not None}


def _apply(flow: Flow, tape: Tape, entry: TapeEntry) -> None:
    operands = [flow.values[ref.number] for ref in entry_refs(entry.args)]
    has_statistics = entry.args.get("running_mean") is not None
    if has_statistics or any(isinstance(value, Hidden | Parameter) for value in operands):
        if rule := RULES.get(entry.operation):
            result = rule(flow, entry)
        elif entry.is_pointwise:
            result = pointwise(flow, entry)
        else:
            raise unsupported(entry, "has no rule")
        flow.values[result.ref.number] = result
        for ref in entry.outputs[1:]:
            # Indices of a pooling, statistics of a norm: nothing may read them.
            if ref is not None and flow.uses.get(ref.number):
                raise unsupported(entry, "has a second output that is read")
        return
    for ref in entry.outputs:
        if ref is not None:
            # Made from inputs and constants alone: as good as an input, or a constant.
            axes = tuple((size,) for size in ref.shape)
            known = [value for value in operands if isinstance(value, Constant)]
            if len(known) < len(operands):
                flow.values[ref.number] = Input(ref, axes)
                continue
            is_stored = any(value.is_stored for value in known)
            tensor = tape.tensors[ref.number]
            flow.values[ref.number] = Constant(ref, axes, tensor, is_stored)


def _finish_outputs(flow: Flow, tape: Tape) -> None:
    """Outputs keep their order and their scale."""
    found = False
    for number, ref in enumerate(tape.outputs):
        value = flow.values[ref.number]
        if isinstance(value, Parameter):
            raise CaptureError(
                f"network output {number} is the parameter {value.name!r} itself, so no symmetry "
                "of it keeps the outputs. Return activations only."
            )
        if not isinstance(value, Hidden):
            continue
        found = True
        entry = TapeEntry("output", {"output": ref}, (ref,), "", False)
        group = flow.read(value, entry)
        group.kind = NeuronKind.OUTPUT
        group.forbid_scale()
        for axis in value.axes:
            for factor in resolve(axis):
                if isinstance(factor, Leaf):
                    factor.freeze(f"network output {number}")
    if not found:
        raise CaptureError(
            "no output of the network depends on its parameters, so there is nothing to read."
        )
