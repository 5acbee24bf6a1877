"""What must not run in half precision under autocast: sums over edges, and tiles in buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["in_full", "without_autocast"]

Function = TypeVar("Function", bound=Callable[..., Any])


def in_full(tensor: Tensor | None) -> Tensor | None:
    """The tensor in float32 if it is in half precision.

    Example:
        >>> in_full(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.float()
    return tensor


def without_autocast(function: Function) -> Function:
    """Let a function compute in the dtypes of its arguments, also under autocast."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*arguments, **named)

    return run  # type: ignore[return-value]
