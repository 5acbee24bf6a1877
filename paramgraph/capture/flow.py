"""The dataflow that the rules write: neuron groups, blocks and how they may be rescaled.

Rules turn tape entries into these records; ``build`` turns them into a ``ParamGraph``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from paramgraph.capture.activations import Chain, is_odd, is_positively_homogeneous
from paramgraph.capture.axes import Axis, Leaf, resolve
from paramgraph.capture.records import (
    FlowBlock,
    FlowFeature,
    FlowGroup,
    Hidden,
    Input,
    Value,
    unsupported,
)
from paramgraph.capture.tape import TapeEntry
from paramgraph.structure import EdgeKind, EntryView, NeuronKind, NeuronRole

__all__ = ["Flow", "locate"]


class Flow:
    """Everything the rules have found so far.

    Attributes:
        tensors: Value of every tensor of the run.
        values: What is known of each tensor.
        groups: Neuron groups in the order of creation.
        blocks: Edge blocks.
        parameter_axes: The axes of each parameter and buffer.
        uses: How often each tensor is read on the tape.
        buffer_names: Name of each buffer, by its reference.
    """

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        self.tensors = tensors
        self.values: dict[int, Value] = {}
        self.groups: list[FlowGroup] = []
        self.blocks: list[FlowBlock] = []
        self.parameter_axes: dict[str, tuple[Axis, ...]] = {}
        self.uses: dict[int, int] = {}
        self.buffer_names: dict[int, str] = {}
        self._inputs: dict[tuple[int, int], FlowGroup] = {}
        self._tied: dict[str, _Use] = {}

    def new_group(self, entry: TapeEntry, axis: Axis, name: str = "") -> FlowGroup:
        """A neuron group named after a parameter's module, or after the module that ran."""
        stem = name.rpartition(".")[0] or entry.module or entry.operation.removeprefix("aten.")
        group = FlowGroup(self._unique(stem), axis, math.prod(_size(f) for f in axis))
        self.groups.append(group)
        return group

    def _unique(self, stem: str) -> str:
        taken = {group.name for group in self.groups}
        if stem not in taken:
            return stem
        return next(f"{stem}#{i}" for i in range(2, len(taken) + 3) if f"{stem}#{i}" not in taken)

    def read(self, value: Value, entry: TapeEntry, axis: int = -1) -> FlowGroup:
        """The group whose neurons, after their activation, are ``value``.

        Args:
            value: Activations or inputs.
            entry: Who reads, for messages.
            axis: For inputs, the axis that is read: its indices are the neurons.
        """
        if isinstance(value, Input):
            axis %= len(value.shape)
            key, size = (value.ref.number, axis), value.shape[axis]
            if key not in self._inputs:
                name = self._unique("input" if not self._inputs else f"input.{len(self._inputs)}")
                group = FlowGroup(name, (size,), size, NeuronKind.INPUT, chain=())
                group.forbid_scale()
                self._inputs[key] = group
                self.groups.append(group)
            return self._inputs[key]
        if not isinstance(value, Hidden):
            raise unsupported(entry, "reads a value that holds no neurons")
        group = value.group
        if group.chain is None:
            group.chain = value.chain
            self._restrict(group, value.chain)
        if group.chain == value.chain:
            return group
        if group.chain != ():
            self._make_plain(group)
        if value.chain == ():
            return group
        if value.chain not in group.copies:
            group.copies[value.chain] = self._copy(group, value.chain)
        return group.copies[value.chain]

    def _copy(self, group: FlowGroup, chain: Chain) -> FlowGroup:
        """The same neurons once more, under another activation."""
        copy = FlowGroup(self._unique(group.name), group.axis, group.size, chain=chain)
        self.groups.append(copy)
        self.add_skip(group, copy, 1.0)
        self._restrict(copy, chain)
        return copy

    def _make_plain(self, group: FlowGroup) -> None:
        """Move the activation of a group, its readers and its statistics to a copy."""
        assert group.chain is not None
        readers = [block for block in self.blocks if block.sender is group]
        copy = self._copy(group, group.chain)
        for block in readers:
            block.sender = copy
        for role in (NeuronRole.MEAN, NeuronRole.VARIANCE):
            if role in group.features:
                copy.features[role] = group.features.pop(role)
        group.copies[group.chain] = copy
        group.chain = ()

    @staticmethod
    def _restrict(group: FlowGroup, chain: Chain) -> None:
        group.forbid_scale(positive=not is_positively_homogeneous(chain), sign=not is_odd(chain))

    def add_skip(self, sender: FlowGroup, receiver: FlowGroup, constant: float) -> None:
        """A parameter-free link from each neuron to its counterpart."""
        receiver.scale_with(sender)
        self.blocks.append(
            FlowBlock(
                f"{sender.name}->{receiver.name}",
                EdgeKind.SKIP,
                sender,
                receiver,
                (receiver.size, 1, 1),
                constant=constant,
            )
        )

    def add_block(
        self,
        parameter: str,
        kind: EdgeKind,
        sender: FlowGroup,
        receiver: FlowGroup,
        view: EntryView | None,
        *,
        axes: tuple[int, int] = (0, 1),
        positions: tuple[tuple[float, float], ...] = ((0.0, 0.0),),
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        """A block of parameters; a parameter used twice ties the scales of both uses."""
        shape = shape or (1, receiver.size, sender.size)
        self.blocks.append(
            FlowBlock(parameter, kind, sender, receiver, shape, positions, view, axes)
        )
        if view is not None:
            self._tie(parameter, _Use(receiver, sender, axes))

    def add_feature(self, role: NeuronRole, group: FlowGroup, feature: FlowFeature) -> None:
        """A value per neuron."""
        group.features[role] = feature
        self._tie(feature.view.parameter, _Use(group, None, (feature.axis, feature.axis)))

    def _tie(self, parameter: str, use: _Use) -> None:
        first = self._tied.setdefault(parameter, use)
        if first is use:
            return
        if first.axes == use.axes and (first.sender is None) == (use.sender is None):
            first.receiver.scale_with(use.receiver)
            if first.sender is not None and use.sender is not None:
                first.sender.scale_with(use.sender)
            return
        # Once as weight and once as bias, or once transposed: no common rescaling is looked for.
        for group in (first.receiver, first.sender, use.receiver, use.sender):
            if group is not None:
                group.forbid_scale()


@dataclass(frozen=True)
class _Use:
    """One use of a parameter: the groups it joins, and which of its axes number them."""

    receiver: FlowGroup
    sender: FlowGroup | None
    axes: tuple[int, int]


def locate(value: Hidden | Input, axis: int, entry: TapeEntry) -> tuple[Axis, Axis, Axis]:
    """Split the factors of one axis into positions before, neurons, positions after.

    Raises:
        CaptureError: The axis does not hold the neurons of the value.
    """
    factors = resolve(value.axes[axis])
    if isinstance(value, Input):
        return (), factors, ()
    neurons = resolve(value.group.axis)
    for start in range(len(factors) - len(neurons) + 1):
        if all(a is b or a == b for a, b in zip(neurons, factors[start:], strict=False)):
            if neurons:
                return factors[:start], neurons, factors[start + len(neurons) :]
    if value.group.size == 1:
        return (), (), factors
    raise unsupported(
        entry,
        f"works along axis {axis} of a tensor of shape {value.shape}, but the neurons "
        f"{value.group.name!r} stand on another axis",
    )


def _size(factor: Leaf | int) -> int:
    return factor if isinstance(factor, int) else factor.size
