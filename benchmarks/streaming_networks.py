"""Transformers in the shapes of GPT-2 and Llama, in plain torch, for the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Gpt2", "Llama", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Of a transformer.

    Attributes:
        width: Of the residual stream.
        num_layers: Blocks.
        num_heads: Of queries.
        vocabulary: Tokens.
        wide: Hidden width of the feed-forward part.
        context: Positions, where they are learned.
        num_key_heads: Of keys and values.
    """

    width: int
    num_layers: int
    num_heads: int
    vocabulary: int
    wide: int
    context: int = 0
    num_key_heads: int = 0


class _Transposed(nn.Module):
    """``x W + b`` with W ``[in, out]``, as GPT-2 stores it."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_in, num_out))
        self.bias = nn.Parameter(torch.empty(num_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class _Gpt2Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.qkv = _Transposed(sizes.width, 3 * sizes.width)
        self.out = _Transposed(sizes.width, sizes.width)
        self.up = _Transposed(sizes.width, sizes.wide)
        self.down = _Transposed(sizes.wide, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm_1(x)).split(x.shape[-1], dim=-1)
        q, k, v = (p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """GPT-2: learned positions, LayerNorm, fused projections, tied embeddings.

    Args:
        sizes: Of the network.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.context, sizes.width)
        self.layers = nn.ModuleList(_Gpt2Layer(sizes) for _ in range(sizes.num_layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[samples, length, vocabulary]``."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.tokens.weight.t()


class _RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class _LlamaLayer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = sizes.width // sizes.num_heads
        self.groups = sizes.num_heads // sizes.num_key_heads
        keys = sizes.num_key_heads * self.head
        self.norm_1, self.norm_2 = _RmsNorm(sizes.width), _RmsNorm(sizes.width)
        self.q = nn.Linear(sizes.width, sizes.width, bias=False)
        self.k = nn.Linear(sizes.width, keys, bias=False)
        self.v = nn.Linear(sizes.width, keys, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)
        self.gate = nn.Linear(sizes.width, sizes.wide, bias=False)
        self.up = nn.Linear(sizes.width, sizes.wide, bias=False)
        self.down = nn.Linear(sizes.wide, sizes.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (
            part(y).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        q, k = (x * cosine + _turned(x) * sine for x in (q, k))
        k, v = (x.repeat_interleave(self.groups, dim=1) for x in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _turned(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([-right, left], dim=-1)


class Llama(nn.Module):
    """Llama: rotary positions, RMSNorm, grouped keys, SwiGLU, own output matrix.

    Args:
        sizes: Of the network.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = sizes.width // sizes.num_heads
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(_LlamaLayer(sizes) for _ in range(sizes.num_layers))
        self.norm = _RmsNorm(sizes.width)
        self.logits = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[samples, length, vocabulary]``."""
        x = self.tokens(tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device, dtype=x.dtype)
        powers = torch.arange(0, self.head, 2, device=tokens.device, dtype=x.dtype) / self.head
        angles = torch.outer(places, 10000.0**-powers)
        angles = torch.cat([angles, angles], dim=-1)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.logits(self.norm(x))
