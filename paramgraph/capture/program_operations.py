"""Running one step: operations by name, without side effects, so that they can be vectorised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramgraph.capture.program_steps import Step, at
from paramgraph.capture.tape import ALIASED
from paramgraph.errors import GraphError

__all__ = ["run_step"]


def run_step(
    step: Step,
    values: dict[int, Any],
    num_samples: int,
    dtypes: Mapping[torch.dtype, torch.dtype],
    device: torch.device,
) -> None:
    """Compute the results of one step and put them into ``values``.

    Args:
        step: What to do.
        values: All tensors so far, by number.
        num_samples: Number of samples.
        dtypes: Floating types that were recorded, and those to compute with instead.
        device: Where new tensors are made.

    Raises:
        GraphError: PyTorch refuses, or the network would go another way on these inputs.
    """
    args = {name: at(value, num_samples, values) for name, value in step.args}
    for name in args.keys() & {"dtype", "device"}:
        args[name] = dtypes.get(args[name], args[name]) if name == "dtype" else device
    try:
        result = _SPECIAL.get(_plain(step.operation), _call)(step, args)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise GraphError(
            f"cannot run {step.operation!r} of module {step.module or 'top level'!r} for other "
            f"networks or inputs: {error}"
        ) from error
    if step.number is not None and isinstance(result, bool | int | float):
        if result != step.number and not math.isclose(result, step.number, rel_tol=1e-6):
            raise GraphError(
                f"module {step.module or 'top level'!r} reads the number {result} from a tensor "
                f"({step.operation}), which was {step.number} on the example inputs: with these "
                "the network may go another way. Capture it on inputs like these."
            )
    outs = result if isinstance(result, list | tuple) else (result,)
    for number, out in zip(step.outputs, outs, strict=False):
        if number is not None:
            values[number] = out


def _plain(operation: str) -> str:
    return operation.removeprefix("aten.").rpartition(".")[0]


@lru_cache(maxsize=4096)
def _operator(operation: str) -> Any:
    space, name, overload = operation.split(".")
    packet = getattr(getattr(torch.ops, space), name)
    if overload not in packet.overloads() and len(packet.overloads()) == 1:
        overload = packet.overloads()[
            0
        ]  # ``transpose_`` has another name for it than ``transpose``
    return getattr(packet, overload)


def _call(step: Step, args: dict[str, Any]) -> Any:
    try:
        function = _operator(step.operation)
    except (AttributeError, ValueError):
        raise GraphError(
            f"cannot run {step.operation!r} of module {step.module or 'top level'!r} for other "
            "networks or inputs: it has no form without side effects."
        ) from None
    positional, named = [], {}
    for argument in function._schema.arguments:
        if argument.name not in args or argument.name in _IGNORED:
            continue
        if argument.kwarg_only:
            named[argument.name] = args[argument.name]
        else:
            positional.append(args[argument.name])
    return function(*positional, **named)


_IGNORED = {"memory_format", "layout", "pin_memory", "generator", "non_blocking"}


def _same(step: Step, args: dict[str, Any]) -> Tensor:
    value: Tensor = args["self"]
    return value


def _reshaped(step: Step, args: dict[str, Any]) -> Any:
    if "size" not in args:
        return _call(step, args)  # as another data type
    return args["self"].reshape(args["size"])


def _converted(step: Step, args: dict[str, Any]) -> Tensor:
    value: Tensor = args["self"]
    return value if args.get("dtype") is None else value.to(args["dtype"])


def _copied(step: Step, args: dict[str, Any]) -> Tensor:
    before: Tensor = args["self"]
    return torch.broadcast_to(args["src"], before.shape).to(before.dtype)


def _zeros(step: Step, args: dict[str, Any]) -> Tensor:
    """Memory without values: only what is written to it later can matter."""
    dtype, device = args.get("dtype"), args.get("device")
    if "self" not in args:
        return torch.zeros(args["size"], dtype=dtype, device=device)
    like: Tensor = args["self"]
    return torch.zeros(args.get("size", like.shape), dtype=dtype or like.dtype, device=device)


def _batch_norm(step: Step, args: dict[str, Any]) -> Any:
    """Running statistics as weights like any other: PyTorch gives them no gradient."""
    if args.get("training") or args.get("running_mean") is None:
        return _call(step, args)
    value: Tensor = args["input"]
    shape = (-1, *[1] * (value.ndim - 2))
    epsilon = args.get("eps", args.get("epsilon"))
    scale = (args["running_var"] + epsilon).rsqrt()
    if args.get("weight") is not None:
        scale = scale * args["weight"]
    mean: Tensor = args["running_mean"]
    value = (value - mean.reshape(shape)) * scale.reshape(shape)
    return value if args.get("bias") is None else value + args["bias"].reshape(shape)


def _weight_norm(step: Step, args: dict[str, Any]) -> Tensor:
    """``g v / |v|`` (PyTorch does not vectorise it over networks)."""
    value: Tensor = args["v"]
    axes = [axis for axis in range(value.ndim) if axis != args["dim"]]
    result: Tensor = value * (args["g"] / value.square().sum(axes, keepdim=True).sqrt())
    return result


def _rewritten(step: Step, args: dict[str, Any]) -> Tensor:
    """A view after its memory was written through another view."""
    before, source, (own, written) = args["self"], args["source"], args["windows"]
    index = _overlap(_hashable(own), _hashable(written)).to(before.device)
    taken = source.reshape(-1)[index.clamp(min=0)]
    result: Tensor = torch.where(index >= 0, taken, before.reshape(-1)).reshape(own[0])
    return result


def _hashable(window: Any) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    shape, offset, strides = window
    return tuple(shape), offset, tuple(strides)


@lru_cache(maxsize=256)
def _overlap(own: Any, written: Any) -> Tensor:
    """For each entry of a view the entry of another view at the same place, or -1."""
    here, there = (_addresses(*window) for window in (own, written))
    order = np.argsort(there, kind="stable")
    place = np.searchsorted(there, here, sorter=order).clip(max=max(len(there) - 1, 0))
    found = order[place] if len(there) else np.zeros_like(here)
    hit = there[found] == here if len(there) else np.zeros(len(here), bool)
    return torch.from_numpy(np.where(hit, found, -1))


def _addresses(shape: tuple[int, ...], offset: int, strides: tuple[int, ...]) -> np.ndarray:
    places = np.full(shape, offset)
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        lengths = [1] * len(shape)
        lengths[axis] = size
        places = places + (np.arange(size) * stride).reshape(lengths)
    return places.reshape(-1)


_SPECIAL: dict[str, Callable[[Step, dict[str, Any]], Any]] = {
    **dict.fromkeys(("detach", "alias", "lift_fresh", "clone", "contiguous"), _same),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias"), _reshaped),
    **dict.fromkeys(("empty", "new_empty", "empty_like"), _zeros),
    **dict.fromkeys(("empty_strided", "new_empty_strided"), _zeros),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"), _batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm),
    "_weight_norm_interface": _weight_norm,
    "_to_copy": _converted,
    "copy": _copied,
    ALIASED: _rewritten,
}
