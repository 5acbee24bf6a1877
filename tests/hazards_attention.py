"""Hazards of attention: heads, packed projections, shared keys, positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from networks import Hazard, Wired, make_hazard, vectors, zeros
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ATTENTION_HAZARDS"]

TIME = 4  # positions in every sequence


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Attention over ``[batch, heads, time, head dim]``; returns ``[batch, time, heads * dim]``."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _multihead_attention() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = n.embed(x)
        return n.head(n.attention(hidden, hidden, hidden, need_weights=False)[0])

    attention = nn.MultiheadAttention(6, 3, batch_first=True)
    return Wired(wiring, embed=nn.Linear(3, 6), attention=attention, head=nn.Linear(6, 2))


def _encoder(layer: nn.TransformerEncoderLayer, num_layers: int) -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(n.encoder(n.embed(x) + n.positions).mean(1))

    encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
    embed, head = nn.Linear(3, 4), nn.Linear(4, 2)
    return Wired(wiring, embed=embed, positions=zeros(TIME, 4), encoder=encoder, head=head)


def _encoder_post_norm() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, activation="gelu")
    return _encoder(layer, 1)


def _encoder_pre_norm() -> nn.Module:
    return _encoder(nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, norm_first=True), 2)


def _decoder() -> nn.Module:
    def wiring(n: Any, x: Tensor, memory: Tensor) -> Tensor:
        mask = torch.ones(TIME, TIME, dtype=torch.bool).triu(1)
        decoded = n.decoder(n.embed(x), n.remember(memory), tgt_mask=mask)
        return n.head(decoded)

    decoder = nn.TransformerDecoderLayer(4, 2, 3, batch_first=True)
    embed, remember = nn.Linear(3, 4), nn.Linear(2, 4)
    return Wired(wiring, embed=embed, remember=remember, decoder=decoder, head=nn.Linear(4, 2))


def _cross_attention() -> nn.Module:
    """Queries from one input, keys and values from another, of other widths."""

    def wiring(n: Any, x: Tensor, memory: Tensor) -> Tensor:
        query, source = n.embed(x), n.remember(memory)
        return n.head(n.attention(query, source, source, need_weights=False)[0])

    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True)
    embed, remember, head = nn.Linear(3, 4), nn.Linear(2, 3), nn.Linear(4, 2)
    return Wired(wiring, embed=embed, remember=remember, attention=attention, head=head)


def _packed(split: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[], nn.Module]:
    """Residual attention with 3 heads of 2, q, k and v in one projection."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        stream = stream + n.out(_attend(*split(n.qkv(n.norm(stream)))))
        return n.head(stream)

    def build() -> nn.Module:
        return Wired(
            wiring,
            **{"embed": nn.Linear(3, 5), "norm": nn.LayerNorm(5), "qkv": nn.Linear(5, 18)},
            **{"out": nn.Linear(6, 5), "head": nn.Linear(5, 2)},
        )

    return build


def _by_kind(packed: Tensor) -> tuple[Tensor, ...]:
    return packed.view(*packed.shape[:2], 3, 3, 2).permute(2, 0, 3, 1, 4).unbind(0)


def _by_head(packed: Tensor) -> tuple[Tensor, ...]:
    return packed.view(*packed.shape[:2], 3, 3, 2).permute(3, 0, 2, 1, 4).unbind(0)


def _by_head_chunked(packed: Tensor) -> tuple[Tensor, ...]:
    return packed.view(*packed.shape[:2], 3, 6).transpose(1, 2).chunk(3, dim=-1)


def _rotated(x: Tensor, num_rotated: int) -> Tensor:
    """Rotary positions on the first dims of each head, in halves; the others pass."""
    half = num_rotated // 2
    frequency = 10.0 ** -torch.arange(half, dtype=x.dtype)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequency
    first, second, rest = x[..., :half], x[..., half:num_rotated], x[..., num_rotated:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _shared_keys(
    num_heads: int, num_shared: int, dim: int, num_rotated: int = 0
) -> Callable[[], nn.Module]:
    """Residual attention whose keys and values serve several query heads each."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        query, key = _heads(n.query(stream), num_heads), _heads(n.key(stream), num_shared)
        if num_rotated:
            query, key = _rotated(query, num_rotated), _rotated(key, num_rotated)
        value, copies = _heads(n.value(stream), num_shared), num_heads // num_shared
        key, value = (t.repeat_interleave(copies, dim=1) for t in (key, value))
        return n.head(stream + n.out(_attend(query, key, value)))

    def build() -> nn.Module:
        narrow, wide = num_shared * dim, num_heads * dim
        return Wired(
            wiring,
            **{"embed": nn.Linear(3, 5), "query": nn.Linear(5, wide), "key": nn.Linear(5, narrow)},
            **{"value": nn.Linear(5, narrow), "out": nn.Linear(wide, 5), "head": nn.Linear(5, 2)},
        )

    return build


def _biased(bias: Callable[[Any, Tensor], Tensor], **table: nn.Parameter) -> nn.Module:
    """Residual attention with 3 heads of 2 and a bias on the scores."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        query, key, value = (_heads(p(stream), 3) for p in (n.query, n.key, n.value))
        return n.head(stream + n.out(_attend(query, key, value, bias(n, x))))

    projections = {name: nn.Linear(5, 6) for name in ("query", "key", "value")}
    embed, out, head = nn.Linear(3, 5), nn.Linear(6, 5), nn.Linear(5, 2)
    return Wired(wiring, embed=embed, **projections, **table, out=out, head=head)


def _alibi() -> nn.Module:
    def bias(_: Any, x: Tensor) -> Tensor:
        slopes = 2.0 ** -torch.arange(1, 4, dtype=x.dtype)
        place = torch.arange(TIME, dtype=x.dtype)
        return slopes[:, None, None] * (place[:, None] - place).abs().neg()

    return _biased(bias)


def _relative_bias() -> nn.Module:
    def bias(n: Any, _: Tensor) -> Tensor:
        place = torch.arange(TIME)
        return n.table[place[:, None] - place + TIME - 1].permute(2, 0, 1)

    return _biased(bias, table=zeros(2 * TIME - 1, 3))


def _query_key_norm() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        query, key, value = (_heads(p(stream), 3) for p in (n.query, n.key, n.value))
        return n.head(stream + n.out(_attend(n.query_norm(query), n.key_norm(key), value)))

    projections = {name: nn.Linear(5, 12) for name in ("query", "key", "value")}
    norms = {name: nn.RMSNorm(4, eps=0.01) for name in ("query_norm", "key_norm")}
    embed, out, head = nn.Linear(3, 5), nn.Linear(12, 5), nn.Linear(5, 2)
    return Wired(wiring, embed=embed, **projections, **norms, out=out, head=head)


def _vision_transformer() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        patches = n.patches(x).flatten(2).transpose(1, 2)
        stream = torch.cat([n.token.expand(len(x), -1, -1), patches], 1) + n.positions
        packed = n.qkv(n.norm1(stream)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(packed[0], packed[1], packed[2])
        stream = stream + n.out(mixed.transpose(1, 2).flatten(2))
        stream = stream + n.down(functional.gelu(n.up(n.norm2(stream))))
        return n.head(stream[:, 0])

    return Wired(
        wiring,
        **{"token": zeros(1, 1, 4), "positions": zeros(1, 5, 4)},
        **{"patches": nn.Conv2d(1, 4, 3, stride=3), "norm1": nn.LayerNorm(4)},
        **{"qkv": nn.Linear(4, 12)},
        **{"out": nn.Linear(4, 4), "norm2": nn.LayerNorm(4), "up": nn.Linear(4, 3)},
        **{"down": nn.Linear(3, 4), "head": nn.Linear(4, 2)},
    )


def _fixed_positions() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        place, index = (torch.arange(k, dtype=x.dtype) for k in (TIME, 4))
        stream = n.embed(x) + torch.sin(place[:, None] * 3.0**-index)
        return n.head(stream + n.down(torch.relu(n.up(stream))))

    up, down = nn.Linear(4, 3), nn.Linear(3, 4)
    return Wired(wiring, embed=nn.Linear(3, 4), up=up, down=down, head=nn.Linear(4, 2))


_series = vectors(3, TIME, 3)
_memory = vectors(3, 5, 2, seed=1)

ATTENTION_HAZARDS: list[Hazard] = [
    make_hazard("multihead_attention", _multihead_attention, _series),
    make_hazard("encoder_post_norm", _encoder_post_norm, _series),
    make_hazard("encoder_pre_norm", _encoder_pre_norm, _series),
    make_hazard("decoder", _decoder, (_series, _memory)),
    make_hazard("cross_attention", _cross_attention, (_series, _memory)),
    make_hazard("packed_by_kind", _packed(_by_kind), _series),
    make_hazard("packed_by_head", _packed(_by_head), _series),
    make_hazard("packed_by_head_chunked", _packed(_by_head_chunked), _series),
    make_hazard("grouped_queries", _shared_keys(4, 2, 3), _series),
    make_hazard("grouped_queries_rotary", _shared_keys(4, 2, 4, 4), _series),
    make_hazard("grouped_queries_partly_rotary", _shared_keys(4, 2, 4, 2), _series),
    make_hazard("multi_query", _shared_keys(3, 1, 2), _series),
    make_hazard("multi_query_rotary", _shared_keys(3, 1, 2, 2), _series),
    make_hazard("alibi", _alibi, _series),
    make_hazard("relative_bias", _relative_bias, _series),
    make_hazard("query_key_norm", _query_key_norm, _series),
    make_hazard("vision_transformer", _vision_transformer, vectors(3, 1, 6, 6)),
    make_hazard("fixed_positions", _fixed_positions, _series),
]
