"""Normalisation over batches, channels, groups and features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


@operator("BatchNormalization")
def _batch_norm(
    call: Call, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if call.get("training_mode", 0) or call.num_outputs > 1:
        raise call.error("it is in training mode; export the network after network.eval()")
    # An exporter that merges equal tensors may make statistics and gains one parameter.
    mean, variance = mean.detach(), variance.detach()
    return F.batch_norm(x, mean, variance, gain, bias, False, 0.0, call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=gain, bias=bias, eps=call.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Any:
    axis = call.get("axis", -1) % x.dim()
    if call.num_outputs > 1:
        over = list(range(axis, x.dim()))
        mean = x.mean(over, keepdim=True)
        centred = x - mean
        inverse = torch.rsqrt(centred.square().mean(over, keepdim=True) + call.get("epsilon", 1e-5))
        normal = centred * inverse * gain
        return normal if bias is None else normal + bias, mean, inverse
    shape = list(x.shape[axis:])
    epsilon = call.get("epsilon", 1e-5)
    if list(gain.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, gain, bias, epsilon)
    normal = F.layer_norm(x, shape, eps=epsilon) * gain
    return normal if bias is None else normal + bias


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(call: Call, x: Tensor, gain: Tensor) -> Tensor:
    axis = call.get("axis", -1) % x.dim()
    over = list(range(axis, x.dim()))
    return x * torch.rsqrt(x.square().mean(over, keepdim=True) + call.get("epsilon", 1e-5)) * gain


@operator("GroupNormalization")
def _group_norm(call: Call, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = call.get("num_groups"), call.get("epsilon", 1e-5)
    if gain.shape[0] == x.shape[1]:  # opset 21: one gain per channel
        return F.group_norm(x, groups, gain, bias, epsilon)
    normal = F.group_norm(x, groups, eps=epsilon).unflatten(1, (groups, -1))
    shape = [1, groups, *[1] * (x.dim() - 1)]
    return (normal * gain.reshape(shape) + bias.reshape(shape)).flatten(1, 2)


@operator("LpNormalization")
def _lp_norm(call: Call, x: Tensor) -> Tensor:
    norm: Any = torch.linalg.vector_norm
    size = norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


@operator("MeanVarianceNormalization")
def _mean_variance(call: Call, x: Tensor) -> Tensor:
    over = call.get("axes", [0, 2, 3])
    mean = x.mean(over, keepdim=True)
    deviation = ((x - mean).square().mean(over, keepdim=True)).sqrt()
    return (x - mean) / (deviation + 1e-9)


@operator("LRN")
def _local_response(call: Call, x: Tensor) -> Tensor:
    alpha, beta, k = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    return F.local_response_norm(x, call.get("size"), alpha, beta, k)
