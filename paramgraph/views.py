"""Views of parameters: the steps of a part, carried out on a tensor without copying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.structure import ParameterLayout, Split, Step

__all__ = ["get_parameter", "joined_axes", "part_sizes", "set_parameter", "take_part"]


def take_part(tensor: Tensor, steps: Sequence[Step], *, lead: int = 0) -> Tensor:
    """The part of a parameter that ``steps`` describe.

    Args:
        tensor: The parameter, or several stacked along ``lead`` first axes.
        steps: Of a ``ParameterPart``.
        lead: Number of axes before those of the parameter.

    Returns:
        A view: what is written to it is written to the parameter.

    Example:
        >>> import torch
        >>> from paramgraph.structure import Split, Take
        >>> take_part(torch.arange(12), [Take(0, 6, 6), Split(0, (2, 3))]).tolist()
        [[6, 7, 8], [9, 10, 11]]
    """
    for step in steps:
        axis = step.axis + lead
        if not isinstance(step, Split):
            tensor = tensor.narrow(axis, step.start, step.length)
        elif step.sizes:
            tensor = tensor.unflatten(axis, step.sizes)
        else:
            tensor = tensor.squeeze(axis)
    return tensor


def joined_axes(sizes: Sequence[int], shape: Sequence[int]) -> list[list[int]]:
    """Which neighbouring axes of ``sizes`` a reshape joins to each axis of ``shape``.

    Example:
        >>> joined_axes((12, 64, 768), (1, 768, 768, 1))
        [[], [0, 1], [2], []]
    """
    groups: list[list[int]] = []
    axis = 0
    for length in shape:
        group: list[int] = []
        product = 1
        while axis < len(sizes) and (product < length or (length == 1 and sizes[axis] == 1)):
            product *= sizes[axis]
            group.append(axis)
            axis += 1
        groups.append(group)
    groups[-1] += range(axis, len(sizes))  # axes of length 1 at the end
    return groups


def part_sizes(layout: ParameterLayout) -> list[int]:
    """Number of entries of each part of a parameter.

    Example:
        >>> from paramgraph.structure import ParameterPart
        >>> part_sizes(ParameterLayout("w", (2, 3), (ParameterPart((), ("a", 3)),)))
        [6]
    """
    like = torch.empty(layout.shape, device="meta")
    return [take_part(like, part.steps).numel() for part in layout.parts]


def get_parameter(
    state_dict: Mapping[str, Tensor], layout: ParameterLayout, *, lead: int = 0
) -> Tensor:
    """The tensor of a layout in a state dict; of a stack of parameters, all of them stacked.

    Args:
        state_dict: Parameters of one network, or of several stacked along ``lead`` first axes.
        layout: Which parameter.
        lead: Number of axes before those of the parameter.

    Raises:
        GraphError: A parameter is missing, or the members of a stack differ in shape.

    Example:
        >>> from paramgraph.structure import ParameterPart
        >>> layout = ParameterLayout("a", (2, 3), (ParameterPart((), (2, 3)),), members=("a", "b"))
        >>> get_parameter({"a": torch.zeros(3), "b": torch.ones(3)}, layout).tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    names = layout.members or (layout.name,)
    for name in names:
        if name not in state_dict:
            shown = ", ".join(list(state_dict)[:6]) + (", ..." if len(state_dict) > 6 else "")
            shape = layout.shape[1:] if layout.members else layout.shape
            raise GraphError(
                f"the state dict has no parameter {name!r} of shape "
                f"{' x '.join(map(str, shape)) or 'scalar'}, so it belongs to another "
                f"architecture. It has {len(state_dict)} tensors: {shown or 'none'}."
            )
    if not layout.members:
        return state_dict[layout.name]
    tensors = [state_dict[name] for name in names]
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            raise GraphError(
                f"parameter {name!r} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(tensors[0].shape)} as {names[0]!r} has: both are rows of one stack."
            )
    return torch.stack(tensors, dim=lead)


def set_parameter(
    state_dict: dict[str, Tensor], layout: ParameterLayout, tensor: Tensor, *, lead: int = 0
) -> None:
    """Put the tensor of a layout into a state dict, under all names that it has.

    Args:
        state_dict: Changed in place.
        layout: Which parameter.
        tensor: Its new value, as from ``get_parameter``.
        lead: Number of axes before those of the parameter.

    Example:
        >>> from paramgraph.structure import ParameterPart
        >>> layout = ParameterLayout("a", (3,), (ParameterPart((), (3,)),), aliases=("b",))
        >>> state = {}
        >>> set_parameter(state, layout, torch.ones(3))
        >>> sorted(state)
        ['a', 'b']
    """
    if layout.members:
        for name, row in zip(layout.members, tensor.unbind(lead), strict=True):
            state_dict[name] = row
        return
    for name in (layout.name, *layout.aliases):
        state_dict[name] = tensor
