"""The table of operators, and what a function of an operator is told about its node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from paramgraph.errors import CaptureError
from paramgraph.frontends.precision import Precision

__all__ = ["DTYPES", "OPERATORS", "Call", "Operator", "operator"]

# Numbers of onnx.TensorProto.DataType, which are part of the file format.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
}


@dataclass(frozen=True)
class Operator:
    """How to compute one operator.

    Attributes:
        function: Takes a :class:`Call` and one tensor (or None) for each input.
        is_shape: It reads only the shape of its inputs, so that its output is known without them.
    """

    function: Callable[..., Any]
    is_shape: bool = False


_WITHOUT_EFFECT = {
    *("consumed_inputs", "is_test", "momentum", "output_sequence", "ratio", "saturate", "seed"),
    *("spatial", "stash_type", "storage_order", "round_mode", "exclude_outside", "dtype"),
    *("extrapolation_value", "cubic_coeff_a", "nearest_mode", "hidden_size", "keepdims", "axis"),
    *("q_num_heads", "kv_num_heads", "num_heads", "pads", "kernel_shape", "output_shape"),
    "noop_with_empty_axes",
}
"""Attributes that change nothing in evaluation mode, or not in the case at hand."""

OPERATORS: dict[str, Operator] = {}
"""Operator name -> how to compute it. Those of the standard domain only."""

_F = TypeVar("_F", bound=Callable[..., Any])


def operator(*names: str, is_shape: bool = False) -> Callable[[_F], _F]:
    """Register a function for the operators of these names."""

    def register(function: _F) -> _F:
        for name in names:
            assert name not in OPERATORS, f"operator {name} is registered twice"
            OPERATORS[name] = Operator(function, is_shape)
        return function

    return register


@dataclass(frozen=True)
class Call:
    """One node, for the function that computes it.

    Attributes:
        kind: The name of the operator.
        name: The name of the node.
        opset: The version of the operators that the file was written for.
        attributes: Numbers, texts, tensors and lists by name.
        num_outputs: How many outputs the node has.
        precision: The floating-point type and the device to use.
    """

    kind: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    num_outputs: int
    precision: Precision
    _read: set[str] = field(default_factory=set)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default that the operator states for it."""
        self._read.add(name)
        return self.attributes.get(name, default)

    def ints(self, given: Tensor | None, attribute: str, default: Any = None) -> Any:
        """Whole numbers that newer opsets give as an input and older ones as an attribute."""
        if given is not None:
            return [int(number) for number in given.reshape(-1).tolist()]
        found = self.get(attribute, default)
        return list(found) if isinstance(found, list | tuple) else found

    def number(self, given: Tensor | None, attribute: str, default: Any = None) -> Any:
        """One number that newer opsets give as an input and older ones as an attribute."""
        if given is not None:
            return given.reshape(-1)[0].item()
        return self.get(attribute, default)

    def assert_all_read(self) -> None:
        """Raise if the node has an attribute that its function does not know.

        Raises:
            CaptureError: Names the attribute.
        """
        for name, value in self.attributes.items():
            is_off = isinstance(value, int | float) and value == 0
            if not is_off and name not in self._read and name not in _WITHOUT_EFFECT:
                raise self.error(f"its attribute {name} = {value!r} is not supported")

    def dtype(self, number: int) -> torch.dtype:
        """The type of a number of ``onnx.TensorProto.DataType``."""
        if number not in DTYPES:
            raise self.error(f"type number {number} of ONNX has no counterpart here")
        return self.precision.dtype(DTYPES[number])

    def error(self, problem: str) -> CaptureError:
        """An error that names the node."""
        return CaptureError(
            f"cannot run node {self.name!r} (operator {self.kind}, opset {self.opset}) of the ONNX "
            f"file: {problem}. Capture the network that it was exported from, or export it again "
            "without this."
        )
