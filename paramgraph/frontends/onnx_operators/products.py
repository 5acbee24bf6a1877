"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


@operator("MatMul")
def _matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    if alpha == 1.0 and (c is None or (beta == 1.0 and c.dim() == 1 and c.shape[0] != 1)):
        weight = b if call.get("transB", 0) else b.t()
        return F.linear(a, weight, c)
    product = torch.mm(a, b.t() if call.get("transB", 0) else b)
    product = product if alpha == 1.0 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1.0 else c * beta)


@operator("Einsum")
def _einsum(call: Call, *values: Tensor) -> Tensor:
    return torch.einsum(call.get("equation").replace(" ", ""), *values)


@operator("Det")
def _det(call: Call, x: Tensor) -> Tensor:
    return torch.linalg.det(x)
