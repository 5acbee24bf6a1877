"""Activation functions, softmax, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__ = ["ACTIVATIONS"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softsign": F.softsign,
    "Tanh": torch.tanh,
}
"""Those without attributes, which recurrent layers use by name too."""


@operator(*ACTIVATIONS)
def _activation(call: Call, x: Tensor) -> Tensor:
    return ACTIVATIONS[call.kind](x)


@operator("Softplus")
def _softplus(call: Call, x: Tensor) -> Tensor:
    return F.softplus(x, threshold=1e4)


@operator("LeakyRelu")
def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


@operator("PRelu")
def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    if x.dim() > 1 and slope.numel() == x.shape[1] and slope.shape[0] == x.shape[1]:
        return F.prelu(x, slope.reshape(-1))  # torch writes one slope per channel as [C, 1, 1]
    return torch.where(x > 0, x, x * slope)


@operator("Elu")
def _elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


@operator("Selu")
def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.get("alpha", 1.6732632), call.get("gamma", 1.0507010)
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


@operator("Celu")
def _celu(call: Call, x: Tensor) -> Tensor:
    return F.celu(x, call.get("alpha", 1.0))


@operator("Gelu")
def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


@operator("Swish")
def _swish(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@operator("HardSigmoid")
def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@operator("ThresholdedRelu")
def _thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return F.threshold(x, call.get("alpha", 1.0), 0.0)


@operator("Shrink")
def _shrink(call: Call, x: Tensor) -> Tensor:
    limit, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


@operator("Softmax", "LogSoftmax", "Hardmax")
def _softmax(call: Call, x: Tensor) -> Tensor:
    function: Any = {"Softmax": F.softmax, "LogSoftmax": F.log_softmax, "Hardmax": _hardmax}
    if call.opset >= 13:
        return function[call.kind](x, dim=call.get("axis", -1))
    axis = call.get("axis", 1) % max(x.dim(), 1)
    if axis == x.dim() - 1:
        return function[call.kind](x, dim=-1)
    flat = x.flatten(axis)  # before opset 13, over all axes from this one on
    return function[call.kind](flat, dim=-1).reshape(x.shape)


def _hardmax(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)


@operator("Dropout")
def _dropout(call: Call, x: Tensor, *settings: Tensor | None) -> Any:
    if call.num_outputs == 1:
        return x
    return x, torch.ones_like(x, dtype=torch.bool)
