"""Hazards of attention, recurrence and products: neurons that multiply each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paramgraph.testing.wiring import Wired

__all__ = ["sequence_hazards"]


def sequence_hazards() -> list[tuple[str, nn.Module, Tensor]]:
    """Names, networks and example inputs, by the global random state.

    Example:
        >>> [name for name, _, _ in sequence_hazards()][:2]
        ['attention', 'multi_head_attention']
    """
    vector, series = torch.randn(4, 3), torch.randn(3, 3, 3)
    return [
        ("attention", _attention(), series),
        ("multi_head_attention", _multi_head_attention(), series),
        ("vision_transformer", _vision_transformer(), torch.randn(3, 1, 4, 4)),
        ("rnn", _recurrent(nn.RNN(3, 4, batch_first=True)), series),
        ("lstm", _recurrent(nn.LSTM(3, 4, batch_first=True)), series),
        ("gru", _recurrent(nn.GRU(3, 4, batch_first=True)), series),
        ("embedding", _embedding(), torch.randint(5, (4, 3))),
        ("gated_unit", nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)), vector),
        ("softmax_gate", _softmax_gate(), vector),
    ]


def _attention() -> nn.Module:
    """One head, with queries, keys and values of their own."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        normed = n.norm(stream)
        scores = n.query(normed) @ n.key(normed).transpose(1, 2) / 3**0.5
        return n.head(stream + n.out(scores.softmax(-1) @ n.value(normed)))

    projections = {name: nn.Linear(4, 3) for name in ("query", "key", "value")}
    embed, norm, out, head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(3, 4), nn.Linear(4, 2)
    return Wired(wiring, embed=embed, norm=norm, **projections, out=out, head=head)


def _multi_head_attention() -> nn.Module:
    """Two heads of two; queries, keys and values in one tensor."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        mixed, _ = n.attention(stream, stream, stream, need_weights=False)
        return n.head(n.norm(stream + mixed))

    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    embed, norm, head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)
    return Wired(wiring, embed=embed, attention=attention, norm=norm, head=head)


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
        patches=nn.Conv2d(1, 4, 2, stride=2),
        token=nn.Parameter(torch.zeros(1, 1, 4)),
        positions=nn.Parameter(torch.zeros(1, 5, 4)),
        norm1=nn.LayerNorm(4),
        qkv=nn.Linear(4, 12),
        out=nn.Linear(4, 4),
        norm2=nn.LayerNorm(4),
        up=nn.Linear(4, 5),
        down=nn.Linear(5, 4),
        head=nn.Linear(4, 2),
    )


def _recurrent(cell: nn.Module) -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(n.cell(x)[0][:, -1])

    return Wired(wiring, cell=cell, head=nn.Linear(4, 2))


def _embedding() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(torch.relu(n.mix(n.table(x).mean(1))))

    table, mix, head = nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(5, 2)
    return Wired(wiring, table=table, mix=mix, head=head)


def _softmax_gate() -> nn.Module:
    """Every hidden neuron is weighted by a share of its own."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(n.first(x))
        return n.head(n.gate(hidden).softmax(-1) * n.up(hidden))

    first, gate, up, head = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 2)
    return Wired(wiring, first=first, gate=gate, up=up, head=head)
