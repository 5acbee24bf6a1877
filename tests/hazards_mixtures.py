"""Hazards of mixtures and products: experts, gates, sets, tables, generated weights."""

from __future__ import annotations

from typing import Any

import torch
from networks import Hazard, Wired, make_hazard, vectors, zeros
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

__all__ = ["MIXTURE_HAZARDS"]

_relu = torch.relu


def _gated_with_rms_norm() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        normed = n.norm(stream)
        stream = stream + n.down(functional.silu(n.gate(normed)) * n.up(normed))
        return n.head(stream)

    layers = {name: nn.Linear(5, 4, bias=False) for name in ("gate", "up")}
    down = nn.Linear(4, 5, bias=False)
    norm, head = nn.RMSNorm(5, eps=0.01), nn.Linear(5, 2)
    return Wired(wiring, embed=nn.Linear(3, 5), norm=norm, **layers, down=down, head=head)


def _packed_gate() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2))


def _dense_experts() -> nn.Module:
    """All experts run; a softmax weighs them."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        weights = n.router(stream).softmax(-1)
        hidden = _relu(torch.einsum("bd,edh->beh", stream, n.up) + n.bias)
        mixed = torch.einsum("beh,ehd,be->bd", hidden, n.down, weights)
        return n.head(stream + mixed)

    stacks = {"up": zeros(3, 5, 4), "bias": zeros(3, 4), "down": zeros(3, 4, 5)}
    embed, router = nn.Linear(3, 5), nn.Linear(5, 3)
    return Wired(wiring, embed=embed, router=router, **stacks, head=nn.Linear(5, 2))


def _chosen_experts() -> nn.Module:
    """The two best experts of each token run; their weights are gathered by index."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        best, index = n.router(stream).topk(2, dim=-1)
        hidden = _relu(torch.einsum("bd,bkdh->bkh", stream, n.up[index]) + n.bias[index])
        mixed = torch.einsum("bkh,bkhd,bk->bd", hidden, n.down[index], best.softmax(-1))
        return n.head(stream + mixed)

    stacks = {"up": zeros(3, 5, 4), "bias": zeros(3, 4), "down": zeros(3, 4, 5)}
    embed, router = nn.Linear(3, 5), nn.Linear(5, 3)
    return Wired(wiring, embed=embed, router=router, **stacks, head=nn.Linear(5, 2))


def _expert_modules() -> nn.Module:
    """The two best experts of each token run; each expert is a module of its own."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        best, index = n.router(stream).softmax(-1).topk(2, dim=-1)
        mixed = torch.zeros_like(stream)
        for number, expert in enumerate(n.experts):
            token, place = torch.where(index == number)
            mixed.index_add_(0, token, expert(stream[token]) * best[token, place, None])
        return n.head(stream + mixed)

    experts = [nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 5)) for _ in range(3)]
    embed, router, head = nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(5, 2)
    return Wired(wiring, embed=embed, router=router, experts=nn.ModuleList(experts), head=head)


def _tied_embedding() -> nn.Module:
    def wiring(n: Any, tokens: Tensor) -> Tensor:
        stream = n.embedding(tokens)
        stream = stream + n.down(_relu(n.up(stream)))
        return stream @ n.embedding.weight.t()

    embedding = nn.Embedding(7, 4)
    return Wired(wiring, embedding=embedding, up=nn.Linear(4, 3), down=nn.Linear(3, 4))


def _prelu() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 2))
    )


def _weight_norm() -> nn.Module:
    first, second = nn.Linear(3, 5), nn.Linear(5, 4)
    return nn.Sequential(
        *(parametrizations.weight_norm(first), nn.Tanh(), parametrizations.weight_norm(second)),
        *(nn.ReLU(), nn.Linear(4, 2)),
    )


def _low_rank() -> nn.Module:
    """LoRA: a weight plus the product of two narrow ones."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = _relu(n.first(x) + 2.0 * (x @ n.down.t() @ n.up.t()))
        return n.head(hidden)

    down, up = zeros(2, 3), zeros(5, 2)
    return Wired(wiring, first=nn.Linear(3, 5), down=down, up=up, head=nn.Linear(5, 2))


def _set_network() -> nn.Module:
    """DeepSets: the same layer on each element, then a sum."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(_relu(n.rho(_relu(n.phi(x)).sum(1))))

    return Wired(wiring, phi=nn.Linear(3, 5), rho=nn.Linear(5, 4), head=nn.Linear(4, 2))


def _equivariant_set_layers() -> nn.Module:
    """Two weights per layer: one for the element itself, one for the mean of the set."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        for own, mean in zip(n.own, n.mean, strict=True):
            x = _relu(own(x) + mean(x.mean(1, keepdim=True)))
        return n.head(x.amax(1))

    own = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 4)])
    mean = nn.ModuleList([nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False)])
    return Wired(wiring, own=own, mean=mean, head=nn.Linear(4, 2))


def _hypernetwork() -> nn.Module:
    """One network writes the first layer of another."""

    def wiring(n: Any, x: Tensor, condition: Tensor) -> Tensor:
        written = n.write(_relu(n.read(condition))).view(-1, 5, 3)
        return n.head(torch.tanh(written @ x.unsqueeze(-1)).squeeze(-1))

    return Wired(wiring, read=nn.Linear(2, 4), write=nn.Linear(4, 15), head=nn.Linear(5, 2))


def _modulation() -> nn.Module:
    """FiLM: a condition scales and shifts the hidden neurons."""

    def wiring(n: Any, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = n.modulate(condition).chunk(2, dim=-1)
        return n.head(_relu(n.first(x) * (1 + scale) + shift))

    return Wired(wiring, first=nn.Linear(3, 4), modulate=nn.Linear(2, 8), head=nn.Linear(4, 2))


def _message_passing() -> nn.Module:
    def wiring(n: Any, x: Tensor, edges: Tensor) -> Tensor:
        hidden = _relu(n.embed(x))
        sender, receiver = edges
        message = _relu(n.message(torch.cat([hidden[sender], hidden[receiver]], -1)))
        received = torch.zeros(len(x), 5, dtype=x.dtype).index_add(0, receiver, message)
        hidden = _relu(n.update(torch.cat([hidden, received], -1)))
        return n.head(hidden)

    embed, message = nn.Linear(3, 4), nn.Linear(8, 5)
    return Wired(wiring, embed=embed, message=message, update=nn.Linear(9, 3), head=nn.Linear(3, 2))


def _fixed_frequencies() -> nn.Module:
    """Constant frequencies: the columns of the first layer are positions, not neurons."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        angle = x[..., None] * 2.0 ** torch.arange(2, dtype=x.dtype)
        features = torch.cat([angle.sin(), angle.cos()], -1).flatten(1)
        return n.head(_relu(n.first(features)))

    return Wired(wiring, first=nn.Linear(12, 5), head=nn.Linear(5, 1))


def _radial() -> nn.Module:
    """Distances to learned centres."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(n.first(x))
        return n.head(torch.exp(-torch.cdist(hidden, n.centres).square()))

    return Wired(wiring, first=nn.Linear(3, 4), centres=zeros(5, 4), head=nn.Linear(5, 2))


def _bilinear() -> nn.Module:
    def wiring(n: Any, x: Tensor, y: Tensor) -> Tensor:
        return n.head(_relu(n.join(torch.tanh(n.left(x)), torch.tanh(n.right(y)))))

    left, right, join = nn.Linear(3, 4), nn.Linear(2, 3), nn.Bilinear(4, 3, 5)
    return Wired(wiring, left=left, right=right, join=join, head=nn.Linear(5, 2))


def _outer_product() -> nn.Module:
    """Each feature of the next layer is a product of two neurons."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        left, right = torch.tanh(n.left(x)), torch.tanh(n.right(x))
        return n.head((left[:, :, None] * right[:, None, :]).flatten(1))

    return Wired(wiring, left=nn.Linear(3, 4), right=nn.Linear(3, 3), head=nn.Linear(12, 2))


def _tied_autoencoder() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return _relu(x @ n.weight + n.bias) @ n.weight.t()

    return Wired(wiring, weight=zeros(3, 4), bias=zeros(4))


_vector, _tokens = vectors(6, 3), torch.tensor([[0, 1, 2], [3, 4, 5], [6, 0, 3]])
_edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 0, 4, 5, 3, 4]])
_conditioned = (vectors(4, 3), vectors(4, 2, seed=1))

MIXTURE_HAZARDS: list[Hazard] = [
    make_hazard("gated_with_rms_norm", _gated_with_rms_norm, _vector),
    make_hazard("packed_gate", _packed_gate, _vector),
    make_hazard("dense_experts", _dense_experts, _vector),
    make_hazard("chosen_experts", _chosen_experts, _vector),
    make_hazard("expert_modules", _expert_modules, vectors(12, 3)),
    make_hazard("tied_embedding", _tied_embedding, _tokens),
    make_hazard("prelu", _prelu, _vector),
    make_hazard("weight_norm", _weight_norm, _vector),
    make_hazard("low_rank", _low_rank, _vector),
    make_hazard("set_network", _set_network, vectors(3, 4, 3)),
    make_hazard("equivariant_set_layers", _equivariant_set_layers, vectors(3, 4, 3)),
    make_hazard("hypernetwork", _hypernetwork, _conditioned),
    make_hazard("modulation", _modulation, _conditioned),
    make_hazard("message_passing", _message_passing, (_vector, _edges)),
    make_hazard("fixed_frequencies", _fixed_frequencies, _vector),
    make_hazard("radial", _radial, _vector),
    make_hazard("bilinear", _bilinear, _conditioned),
    make_hazard("outer_product", _outer_product, _vector),
    make_hazard("tied_autoencoder", _tied_autoencoder, _vector),
]
