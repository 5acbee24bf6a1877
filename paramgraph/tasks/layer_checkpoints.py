"""Less memory for more time: layers forget what is inside them and run again for the gradient."""

from __future__ import annotations

import copy
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from paramgraph.tasks.config import TrainingError

__all__ = ["checkpoint_layers"]

_STACKS = ("layers", "rounds", "blocks")


def checkpoint_layers(metanetwork: nn.Module) -> int:
    """Keep only what enters each layer of a stack; in the backward pass the layer runs again.

    The layers are those of every list that is called ``layers``, ``rounds`` or ``blocks``, the
    outermost one where they are nested. Outputs and gradients stay the same, dropout included (the
    state of the random numbers is kept with the inputs). Names of parameters stay too, and nothing
    changes where no gradient is wanted. Calling it twice changes nothing.

    A layer may set fields of dataclasses that it is given; other arguments it must leave alone.

    Args:
        metanetwork: Changed in place.

    Returns:
        How many layers.

    Raises:
        TrainingError: It has no such list, so nothing would be saved.

    Example:
        >>> from paramgraph.nn import make_metanetwork
        >>> checkpoint_layers(make_metanetwork("operator", 2, hidden_dim=8, num_rounds=3))
        3

    References:
        Chen et al. 2016, Training deep nets with sublinear memory cost, section 4
        (https://arxiv.org/abs/1604.06174).
    """
    layers = _layers(metanetwork)
    if not layers:
        raise TrainingError(
            f"cannot checkpoint the layers of {type(metanetwork).__name__}: it has no list named "
            f"{', '.join(_STACKS[:-1])} or {_STACKS[-1]} of layers that are called one by one. "
            "Leave out --checkpoint-layers."
        )
    for layer in layers:
        inside = layer.__dict__.get("forward")
        if inside is None or getattr(inside, "func", None) is not _run:
            layer.forward = partial(_run, layer, inside)
    return len(layers)


def _layers(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for name, child in module.named_children():
        if name in _STACKS and isinstance(child, nn.ModuleList):
            # A layer without a forward is run in pieces by its stack, which may save by itself.
            found += [layer for layer in child if type(layer).forward is not nn.Module.forward]
        else:
            found += _layers(child)
    return found


def _run(layer: nn.Module, inside: Any, *args: Any, **kwargs: Any) -> Any:
    """The layer's own forward, or what stood in its place; for a gradient as a checkpoint."""
    forward = partial(type(layer).forward, layer) if inside is None else inside
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # A layer may write to a record that it is given; run again, it must find what was there first.
    before = [copy.copy(value) if _is_record(value) else value for value in args]

    def again() -> tuple[Any, list[Any]]:
        own = [copy.copy(value) if _is_record(value) else value for value in before]
        return forward(*own, **kwargs), own

    result, after = checkpoint(again, use_reentrant=False)
    for given, own in zip(args, after, strict=True):
        if _is_record(given):
            for field in fields(given):
                setattr(given, field.name, getattr(own, field.name))
    return result


def _is_record(value: Any) -> bool:
    """A dataclass whose fields can be set."""
    settings = getattr(type(value), "__dataclass_params__", None)
    return settings is not None and not settings.frozen
