"""Which operators an exported program may call: PyTorch's own, by name, and arithmetic on sizes.

PyTorch's own reader follows a dotted name from ``torch`` to any function at all. Here a name must
be a registered ATen operator that computes with tensors only.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from paramgraph.errors import CaptureError

__all__ = ["SKIPPED", "operator_named"]

_NAME = re.compile(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)")

_TEXT_ARGUMENTS = {"approximate", "equation", "indexing", "mode", "ord", "reduce", "rounding_mode"}
"""Arguments that hold text without being the name of a file."""

_ON_SIZES: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub"),
            *("floordiv", "mod", "pow", "truediv", "and_", "or_", "lshift", "rshift", "getitem"),
        )
    },
    "math.trunc": math.trunc,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "torch.sym_not": operator.not_,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_ite": lambda b, t, f: t if b else f,
    "torch.sym_sqrt": math.sqrt,
    "torch._sym_sqrt": math.sqrt,
}

SKIPPED = re.compile(
    r"torch\.ops\.aten\.(_assert_scalar|_assert_async|_assert_tensor_metadata|_functional_assert\w*"
    r"|sym_constrain_range|sym_constrain_range_for_size)\."
)
"""Checks of the exporter; they compute nothing."""


def operator_named(target: str, node: str) -> Callable[..., Any]:
    """The function of a node.

    Args:
        target: Its name in the file, as in ``torch.ops.aten.relu.default``.
        node: The name of the node, for the message.

    Raises:
        CaptureError: It is none of PyTorch's operators on tensors.

    Example:
        >>> operator_named("torch.ops.aten.relu.default", "relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if target in _ON_SIZES:
        return _ON_SIZES[target]
    match = _NAME.fullmatch(target)
    found: Any = None
    if match:
        namespace, name, overload = match.groups()
        qualified = f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}")
        if torch._C._dispatch_has_kernel(qualified):
            found = getattr(getattr(torch.ops, namespace), name)
            found = getattr(found, overload)
    if found is not None:
        text = [
            argument.name
            for argument in found._schema.arguments
            if "str" in str(argument.type) and argument.name not in _TEXT_ARGUMENTS
        ]
        if not text:
            return found
    raise CaptureError(
        f"node {node!r} calls {target!r}, which an exported program may not: only operators of "
        "PyTorch (torch.ops.aten) that compute with tensors, and arithmetic on sizes. If it is an "
        "operator of another package, capture the network itself instead of its export, or call "
        "program.run_decompositions() before saving."
    )
