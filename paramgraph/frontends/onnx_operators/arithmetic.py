"""Operators that act on each number by itself: arithmetic, comparison, logic, types."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


@operator(*_UNARY)
def _unary(call: Call, x: Tensor) -> Tensor:
    return _UNARY[call.kind](x)


@operator(*_BINARY)
def _binary(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return _BINARY[call.kind](a, b)


@operator("Div")
def _div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or a.is_complex():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def _pow(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


@operator("BitShift")
def _bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    is_left = call.get("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if is_left else torch.bitwise_right_shift(a, b)


@operator("Max", "Min", "Sum")
def _several(call: Call, *values: Tensor) -> Tensor:
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "Max": torch.maximum,
        "Min": torch.minimum,
        "Sum": torch.add,
    }
    return functools.reduce(functions[call.kind], values)


@operator("Mean")
def _mean(call: Call, *values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


@operator("Where")
def _where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("IsInf")
def _is_inf(call: Call, x: Tensor) -> Tensor:
    positive, negative = call.get("detect_positive", 1), call.get("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    return torch.isposinf(x) if positive else torch.isneginf(x)


@operator("Clip")
def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least, most = call.number(low, "min"), call.number(high, "max")
    return x if least is None and most is None else torch.clamp(x, least, most)


@operator("Identity")
def _identity(call: Call, x: Tensor) -> Tensor:
    return x


@operator("Cast")
def _cast(call: Call, x: Tensor) -> Tensor:
    return x.to(call.dtype(call.get("to")))


@operator("CastLike")
def _cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)
