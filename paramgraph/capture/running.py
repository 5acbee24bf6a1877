"""Calling a network: copy it, run it on example inputs, list the tensors it returns."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from paramgraph.errors import CaptureError

__all__ = [
    "ExampleInputs",
    "detached",
    "evaluation_copy",
    "kept_random_state",
    "output_tensors",
    "run_network",
]

ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One tensor, a tuple of positional arguments, or a mapping of keyword arguments."""


def evaluation_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode.

    Raises:
        CaptureError: The network cannot be copied, or has parameters without a shape yet.
    """
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(tensor):
            raise CaptureError(
                f"{name!r} of {type(network).__name__} has no shape yet: run the network once "
                "before capturing it."
            )
    try:
        return copy.deepcopy(network).eval()
    except Exception as error:
        raise CaptureError(
            f"the network {type(network).__name__} cannot be copied: {type(error).__name__}: "
            f"{error}. Capture works on a copy; a tensor with a gradient history kept as an "
            "attribute of a module is the usual cause."
        ) from error


def detached(inputs: Any) -> Any:
    """The same structure with fresh tensors, so that in-place operations stay ours."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone()
    if isinstance(inputs, Mapping):
        return {name: detached(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(detached(item) for item in inputs)
    return inputs


def run_network(network: nn.Module, example_inputs: ExampleInputs) -> Any:
    """Call the network on a tensor, a tuple of arguments, or a mapping of keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return network(example_inputs)
    if isinstance(example_inputs, Mapping):
        return network(**example_inputs)
    return network(*example_inputs)


@contextlib.contextmanager
def kept_random_state(network: nn.Module) -> Iterator[None]:
    """Put the random state of the CPU and of the network's devices back afterwards."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    devices = {tensor.device.index for tensor in tensors if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


def output_tensors(result: Any) -> list[Tensor]:
    """The tensors that a network returned, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, tuple | list):
        return [tensor for item in result for tensor in output_tensors(item)]
    return []
