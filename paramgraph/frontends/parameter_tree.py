"""Parameters and buffers under the dotted names of a file, in modules made for these names."""

from __future__ import annotations

from torch import Tensor, nn

from paramgraph.errors import CheckpointError

__all__ = ["attach", "tensor_at"]


def attach(root: nn.Module, name: str, tensor: Tensor, *, is_persistent: bool = True) -> None:
    """Register a parameter or buffer under its dotted name.

    Args:
        root: The module that gets it, in submodules that are made when they are missing.
        name: As in a state dict: ``layers.0.weight``.
        tensor: An ``nn.Parameter`` becomes a parameter, another tensor a buffer. The same
            parameter may be attached under several names, and is then shared by them.
        is_persistent: Whether a buffer is part of the state dict.

    Raises:
        CheckpointError: The name is empty in a part or is taken.

    Example:
        >>> import torch
        >>> root = nn.Module()
        >>> attach(root, "layers.0.weight", nn.Parameter(torch.ones(2)))
        >>> list(root.state_dict())
        ['layers.0.weight']
    """
    *path, last = name.split(".")
    module = root
    try:
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(last, tensor)
        else:
            module.register_buffer(last, tensor, persistent=is_persistent)
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"cannot name a tensor {name!r}: {str(error.args[0]).strip()}. Expected names joined "
            "by dots, as in a state dict, each used once."
        ) from error


def tensor_at(root: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a dotted name."""
    path, _, last = name.rpartition(".")
    value = getattr(root.get_submodule(path), last)
    assert isinstance(value, Tensor)
    return value
