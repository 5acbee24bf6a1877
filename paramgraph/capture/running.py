"""Calling a network: copy it, run it on example inputs, list the tensors it returns."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramgraph.errors import CaptureError

__all__ = [
    "ExampleInputs",
    "OutputChoice",
    "WroteParameterError",
    "chosen_output",
    "detached",
    "evaluation_copy",
    "exact_copy",
    "kept_random_state",
    "output_tensors",
    "plain_execution",
    "rebuilt",
    "run_network",
]

ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One tensor, a tuple of positional arguments, or a mapping of keyword arguments."""


class WroteParameterError(Exception):
    """The network writes to its own parameters, so it must run on a copy of their memory."""


class _WriteGuard(TorchDispatchMode):
    """Stops operations that write to shared memory, before they do."""

    def __init__(self, shared: set[int]) -> None:
        super().__init__()
        self.shared = shared

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            for tensor in tree_leaves(value) if argument.is_write else ():
                if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata in self.shared:
                    raise WroteParameterError
        return func(*args, **(kwargs or {}))


OutputChoice = str | int | Callable[[Any], Any] | None
"""Which outputs count: a key or attribute, a place, or a function of what the network returns."""


def evaluation_copy(network: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """A copy in evaluation mode.

    Args:
        network: Any module.
        share_parameters: Let the parameters of the copy use the memory of the original ones.

    Raises:
        CaptureError: The network cannot be copied, or has parameters without a shape yet.
    """
    if not isinstance(network, nn.Module):
        raise CaptureError(f"a network is an nn.Module, got {type(network).__name__}.")
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(tensor):
            raise CaptureError(
                f"{name!r} of {type(network).__name__} has no shape yet: run the network once "
                "before capturing it."
            )
        if tensor.layout != torch.strided:
            raise CaptureError(
                f"{name!r} of {type(network).__name__} is a {tensor.layout} tensor; only dense "
                "ones can be captured. Convert it with to_dense()."
            )
    known: dict[int, Any] = {}
    shared: set[int] = set()
    with torch.inference_mode(False), torch.no_grad():
        for parameter in network.parameters() if share_parameters else ():
            # A parameter made in inference mode can get no gradient outside of it.
            if type(parameter) is nn.Parameter and not parameter.is_inference():
                own = nn.Parameter(parameter.detach(), parameter.requires_grad)
                vars(own).update(vars(parameter))
                known[id(parameter)] = own
                shared.add(parameter.untyped_storage()._cdata)
        for module in network.modules():
            for value in vars(module).values():
                # What a hook (weight_norm) or a cache computed, which has a gradient history.
                if isinstance(value, Tensor) and not value.is_leaf:
                    known[id(value)] = value.detach().clone()
        try:
            copied = exact_copy(network, known)
        except Exception as error:
            raise CaptureError(
                f"the network {type(network).__name__} cannot be copied: {type(error).__name__}: "
                f"{error}. Capture works on a copy; a tensor with a gradient history kept in a "
                "list or dict of a module is a usual cause."
            ) from error
        try:
            with _WriteGuard(shared):
                copied.eval()  # by itself, because a network's own ``train`` may return nothing
        except WroteParameterError:
            return evaluation_copy(network)  # its ``eval`` merges weights, say
        return copied


def exact_copy(network: nn.Module, known: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy that keeps the attributes of parameters, which subclasses of these lose."""
    copied = copy.deepcopy(network, known)
    for parameter, own in zip(network.parameters(), copied.parameters(), strict=True):
        for name, value in vars(parameter).items():
            vars(own).setdefault(name, value)
    return copied


def chosen_output(result: Any, output: OutputChoice) -> Any:
    """The part of what a network returned that must be preserved.

    By default everything, except where the result has an attribute ``logits`` (as the outputs of
    ``transformers`` have): then these.

    Raises:
        CaptureError: The result has no such part.
    """
    if callable(output):
        return output(result)
    if output is None:
        logits = getattr(result, "logits", None)
        return logits if isinstance(logits, Tensor) else result
    try:
        if isinstance(output, str) and not isinstance(result, Mapping):
            return getattr(result, output)
        return result[output]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        have = list(result) if isinstance(result, Mapping) else type(result).__name__
        raise CaptureError(
            f"the network returned no output {output!r}; it returned {have}. Name one of these, "
            "or give a function of the result."
        ) from error


@contextlib.contextmanager
def plain_execution(network: nn.Module) -> Iterator[None]:
    """Run on reference kernels, whatever the caller's mode, and leave the random state alone."""
    with _ONE_AT_A_TIME, _kept_python_state(), _reference_kernels(), kept_random_state(network):
        device = next(itertools.chain(network.parameters(), network.buffers()), None)
        kind = device.device.type if device is not None else "cpu"
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu" if kind == "meta" else kind, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield


_ONE_AT_A_TIME = threading.RLock()
"""The switches below belong to the whole process."""


@contextlib.contextmanager
def _kept_python_state() -> Iterator[None]:
    """Put back what a network may change besides torch's random state."""
    own, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    dtype = torch.get_default_dtype()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _reference_kernels() -> Iterator[None]:
    """Fused kernels off, so that the operations they stand for can be seen."""
    fast_path, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(mkldnn)


def detached(inputs: Any) -> Any:
    """The same structure with fresh tensors, so that in-place operations stay ours."""
    if isinstance(inputs, Tensor):
        with torch.inference_mode(False), torch.no_grad():
            return inputs.detach().clone()
    return rebuilt(inputs, detached)


def rebuilt(inputs: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers with every item changed: networks look at the types of these."""
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*map(change, inputs))
    if isinstance(inputs, tuple | list):
        return [*map(change, inputs)] if isinstance(inputs, list) else tuple(map(change, inputs))
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
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = [getattr(result, entry.name) for entry in dataclasses.fields(result)]
    if isinstance(result, tuple | list):
        return [tensor for item in result for tensor in output_tensors(item)]
    return []
