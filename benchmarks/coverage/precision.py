"""Running a network in float64 throughout, although its code asks for float32 in places.

Many networks of transformers convert to float32 inside a norm or a softmax, so that a run in
float64 is only as exact as float32: an error of 1e-7 then says nothing. Under ``Float64Throughout``
such requests give float64, and a wrong symmetry stands out from rounding by ten digits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.coverage.architecture import Inputs

__all__ = ["float64_throughout", "runs_in_float64"]

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Float64Throughout(TorchDispatchMode):
    """Lets every operation that is asked for a narrower type of number give float64.

    Attributes:
        num_narrow: Operations that gave narrower numbers all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_narrow = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, with float64 for any narrower type that it was asked for."""
        wide = {
            name: torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value
            for name, value in (kwargs or {}).items()
        }
        result = func(*args, **wide)
        self.num_narrow += any(tensor.dtype in _NARROW for tensor in _tensors(result))
        return result


@contextlib.contextmanager
def float64_throughout() -> Iterator[Float64Throughout]:
    """Compute in float64, new tensors included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64Throughout() as mode:
            yield mode
    finally:
        torch.set_default_dtype(before)


def runs_in_float64(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a network runs in float64 throughout, with finite outputs.

    Args:
        network: Any module; it is not changed.
        inputs: What to call it with.
    """
    network = copy.deepcopy(network).double().eval()
    wide = _double(inputs)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), float64_throughout() as mode:
            if isinstance(wide, Tensor):
                result = network(wide)
            elif isinstance(wide, Mapping):
                result = network(**wide)
            else:
                result = network(*wide)
    except (RuntimeError, TypeError, ValueError):
        return False
    finite = all(bool(t.isfinite().all()) for t in _tensors(result) if t.is_floating_point())
    return finite and mode.num_narrow == 0


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value.clone()
    if isinstance(value, Mapping):
        return {name: _double(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_double(item) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
