"""State dicts to values and back: the weights of many networks on one structure.

``Values`` is what a parameter graph leaves out. Reading and writing are plain differentiable tensor
operations (reshape, permute), so gradients flow through both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.structure import EdgeBlock, EntryView, NeuronGroup, NeuronRole, ParameterLayout
from paramgraph.views import get_parameter, set_parameter, take_part

__all__ = ["NUM_NEURON_CHANNELS", "Values", "read_values", "write_values"]

NUM_NEURON_CHANNELS = len(NeuronRole)

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Values:
    """The weights of B networks of one architecture.

    Attributes:
        blocks: For each edge block ``[B, num_blocks, num_receivers, num_senders, num_positions]``.
        neurons: For each neuron group ``[B, size, 3]``: bias, running mean, running variance (0
            where a group has none).

    Example:
        >>> blocks = (torch.zeros(7, 1, 3, 2, 1),)
        >>> Values(blocks, (torch.zeros(7, 2, 3), torch.zeros(7, 3, 3))).num_networks
        7
    """

    blocks: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]

    @property
    def num_networks(self) -> int:
        """Number of networks B."""
        return self.neurons[0].shape[0]

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Values:
        """The networks at ``rows`` (a slice is a view, an index tensor copies)."""
        return Values(tuple(b[rows] for b in self.blocks), tuple(n[rows] for n in self.neurons))

    def to(self, *args: Any) -> Values:
        """Move or cast all tensors, as ``Tensor.to``."""
        return Values(
            tuple(b.to(*args) for b in self.blocks), tuple(n.to(*args) for n in self.neurons)
        )


def read_values(
    state_dicts: StateDict | Sequence[StateDict],
    parameters: Sequence[ParameterLayout],
    groups: Sequence[NeuronGroup],
    blocks: Sequence[EdgeBlock],
) -> Values:
    """Read the entries of one, several or stacked state dicts.

    Args:
        state_dicts: One state dict, a list of them, or one dict of stacked tensors ``[B, ...]``.
        parameters: Layouts of all parameters of the graph.
        groups: Neuron groups of the graph.
        blocks: Edge blocks of the graph.

    Returns:
        Values that are differentiable functions of the given tensors.

    Raises:
        GraphError: A parameter is missing or has another shape, or there is no network at all.

    Example:
        >>> read_values({}, [], [], [])
        Traceback (most recent call last):
        ...
        paramgraph.errors.GraphError: cannot read values: the graph has no parameters.
    """
    if not parameters:
        raise GraphError("cannot read values: the graph has no parameters.")
    stacked = _stack(state_dicts, parameters)
    first = next(iter(stacked.values()))
    num_networks = first.shape[0]
    layouts = {layout.name: layout for layout in parameters}
    neurons = []
    for group in groups:
        columns = [first.new_zeros(num_networks, group.size)] * NUM_NEURON_CHANNELS
        for feature in group.features:
            columns[feature.role.channel] = _read(stacked, feature.view, layouts)
        neurons.append(torch.stack(columns, dim=-1))
    values = []
    for block in blocks:
        if block.view is None:
            values.append(first.new_full((num_networks, *block.shape), block.constant))
        else:
            values.append(_read(stacked, block.view, layouts))
    return Values(tuple(values), tuple(neurons))


def write_values(
    values: Values,
    parameters: Sequence[ParameterLayout],
    groups: Sequence[NeuronGroup],
    blocks: Sequence[EdgeBlock],
    *,
    tied: str = "mean",
) -> dict[str, Tensor]:
    """Write entries back to stacked parameters, the inverse of ``read_values``.

    Args:
        values: Entries of B networks.
        parameters: Layouts of all parameters of the graph.
        groups: Neuron groups of the graph.
        blocks: Edge blocks of the graph.
        tied: What to do with a parameter that has several blocks: their ``"mean"`` (weights) or
            ``"sum"`` (gradients, updates).

    Returns:
        For each parameter and alias a tensor ``[B, *shape]``. Parameters that the network does not
        use are not in it.

    Raises:
        GraphError: ``tied`` is neither of the two, or the values belong to another graph.

    Example:
        >>> write_values(Values((), (torch.zeros(1, 2, 3),)), [], [], [], tied="max")
        Traceback (most recent call last):
        ...
        paramgraph.errors.GraphError: tied must be 'mean' or 'sum', got 'max'.
    """
    if tied not in ("mean", "sum"):
        raise GraphError(f"tied must be 'mean' or 'sum', got {tied!r}.")
    _assert_fits(values, groups, blocks)
    found: dict[tuple[str, int], list[Tensor]] = {}
    layouts = {layout.name: layout for layout in parameters}
    for group, neuron_values in zip(groups, values.neurons, strict=True):
        for feature in group.features:
            part = neuron_values[..., feature.role.channel]
            key = (feature.view.parameter, feature.view.part)
            found.setdefault(key, []).append(_write(part, feature.view, layouts))
    for block, block_values in zip(blocks, values.blocks, strict=True):
        if block.view is not None:
            key = (block.view.parameter, block.view.part)
            found.setdefault(key, []).append(_write(block_values, block.view, layouts))
    result: dict[str, Tensor] = {}
    for layout in parameters:
        parts = [
            _total(found[layout.name, number], is_mean=tied == "mean")
            for number in range(len(layout.parts))
        ]
        set_parameter(result, layout, _assembled(parts, layout), lead=1)
    return result


def _assembled(parts: Sequence[Tensor], layout: ParameterLayout) -> Tensor:
    """A stacked parameter made of its parts."""
    num = parts[0].shape[0]
    if len(parts) == 1:
        return parts[0].reshape(num, *layout.shape)
    whole = parts[0].new_zeros(num, *layout.shape)
    for part, row in zip(parts, layout.parts, strict=True):
        take_part(whole, row.steps, lead=1).copy_(part)
    return whole


def _stack(
    state_dicts: StateDict | Sequence[StateDict], parameters: Sequence[ParameterLayout]
) -> dict[str, Tensor]:
    """Stacked tensors ``[B, *shape]`` of the parameters of the graph."""
    if isinstance(state_dicts, Mapping):
        # A stacked tensor has one axis more than its layout, so the two cannot be confused; the
        # first parameter decides, and all others must agree.
        is_stacked = get_parameter(state_dicts, parameters[0]).ndim == len(parameters[0].shape) + 1
        if is_stacked:
            return _stacked(state_dicts, parameters)
        state_dicts = [state_dicts]
    if not len(state_dicts):
        raise GraphError("cannot read values: the list of state dicts is empty.")
    stacked: dict[str, Tensor] = {}
    for layout in parameters:
        tensors = [get_parameter(state_dict, layout) for state_dict in state_dicts]
        for tensor in tensors:
            if tuple(tensor.shape) != layout.shape:
                raise _wrong_shape(layout, tensor, _text(layout.shape))
        stacked[layout.name] = torch.stack(tensors)
    return stacked


def _stacked(state_dict: StateDict, parameters: Sequence[ParameterLayout]) -> dict[str, Tensor]:
    """Check that every tensor holds the same number of networks."""
    stacked = {layout.name: get_parameter(state_dict, layout, lead=1) for layout in parameters}
    num_networks = stacked[parameters[0].name].shape[0]
    if not num_networks:
        raise GraphError("cannot read values: the stacked tensors hold 0 networks.")
    for layout in parameters:
        tensor = stacked[layout.name]
        if tensor.ndim != len(layout.shape) + 1 or tuple(tensor.shape[1:]) != layout.shape:
            raise _wrong_shape(layout, tensor, f"B x {_text(layout.shape)} (stacked networks)")
        if tensor.shape[0] != num_networks:
            raise GraphError(
                f"stacked tensors hold different numbers of networks: {num_networks} in "
                f"{parameters[0].name!r}, {tensor.shape[0]} in {layout.name!r}."
            )
    return stacked


def _wrong_shape(layout: ParameterLayout, tensor: Tensor, expected: str) -> GraphError:
    return GraphError(
        f"parameter {layout.name!r} has shape {_text(tensor.shape)}, expected {expected}: the "
        "state dict belongs to another architecture. Capture that architecture and use its graph."
    )


def _assert_fits(
    values: Values, groups: Sequence[NeuronGroup], blocks: Sequence[EdgeBlock]
) -> None:
    have, expected = (len(values.blocks), len(values.neurons)), (len(blocks), len(groups))
    if have != expected:
        raise GraphError(
            f"cannot write: the values have {have[0]} blocks and {have[1]} neuron groups, the "
            f"graph has {expected[0]} and {expected[1]}. They belong to another graph."
        )
    for block, tensor in zip(blocks, values.blocks, strict=True):
        if tuple(tensor.shape[1:]) != block.shape:
            raise GraphError(
                f"cannot write: block {block.name!r} has values of shape {_text(tensor.shape)}, "
                f"expected B x {_text(block.shape)}. They belong to another graph."
            )


def _total(parts: Sequence[Tensor], *, is_mean: bool) -> Tensor:
    """Sum or mean of the blocks of one parameter."""
    total = parts[0]
    for part in parts[1:]:
        # As first + differences, the mean of equal parts has exactly the same bits.
        total = total + ((part - parts[0]) / len(parts) if is_mean else part)
    return total


def _read(
    stacked: Mapping[str, Tensor], view: EntryView, layouts: Mapping[str, ParameterLayout]
) -> Tensor:
    part = layouts[view.parameter].parts[view.part]
    tensor = take_part(stacked[view.parameter], part.steps, lead=1)
    order = (0, *(axis + 1 for axis in view.order))
    return tensor.permute(order).reshape(tensor.shape[0], *view.shape)


def _write(entries: Tensor, view: EntryView, layouts: Mapping[str, ParameterLayout]) -> Tensor:
    """Entries as the part of the parameter that they were read from."""
    num, layout = entries.shape[0], layouts[view.parameter]
    like = torch.empty(layout.shape, device="meta")
    sizes = take_part(like, layout.parts[view.part].steps).shape
    ordered = tuple(sizes[axis] for axis in view.order)
    order = (0, *(axis + 1 for axis in view.inverse_order))
    return entries.reshape(num, *ordered).permute(order)


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if len(shape) else "scalar"
