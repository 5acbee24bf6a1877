"""Attention and rotary embeddings (opset 23)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


@operator("Attention")
def _attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *past: Tensor | None,
) -> Tensor:
    if call.num_outputs > 1 or any(p is not None for p in past) or call.get("softcap", 0.0):
        raise call.error("its cache, softcap or further outputs are used")
    is_flat = query.dim() == 3
    if is_flat:
        heads, kv = call.get("q_num_heads"), call.get("kv_num_heads")
        query, key, value = (
            x.unflatten(-1, (n, -1)).transpose(1, 2)
            for x, n in ((query, heads), (key, kv), (value, kv))
        )
    is_grouped = query.shape[1] != key.shape[1]
    y = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=bool(call.get("is_causal", 0)),
        scale=call.get("scale"),
        enable_gqa=is_grouped,
    )
    return y.transpose(1, 2).flatten(2) if is_flat else y


@operator("RotaryEmbedding")
def _rotary(
    call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Tensor:
    is_flat = x.dim() == 3
    if is_flat:
        x = x.unflatten(-1, (call.get("num_heads"), -1)).transpose(1, 2)
    size = call.get("rotary_embedding_dim", 0) or x.shape[-1]
    turned, kept = x[..., :size], x[..., size:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[..., : size // 2].unsqueeze(1), sin[..., : size // 2].unsqueeze(1)
    if call.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((cos * a - sin * b, sin * a + cos * b), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((cos * a - sin * b, sin * a + cos * b), -1)
    y = torch.cat((turned, kept), -1) if kept.shape[-1] else turned
    return y.transpose(1, 2).flatten(2) if is_flat else y
