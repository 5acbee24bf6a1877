"""Hazards of recurrent networks: gates in one tensor, loops in Python, states written in place."""

from __future__ import annotations

from typing import Any

import torch
from networks import Hazard, Wired, make_hazard, vectors, zeros
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RECURRENT_HAZARDS"]


def _recurrent(cell: nn.Module, width: int) -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(n.cell(x)[0][:, -1])

    return Wired(wiring, cell=cell, head=nn.Linear(width, 2))


def _lstm() -> nn.Module:
    return _recurrent(nn.LSTM(3, 4, batch_first=True), 4)


def _lstm_two_layers() -> nn.Module:
    return _recurrent(nn.LSTM(3, 4, num_layers=2, batch_first=True), 4)


def _lstm_projected() -> nn.Module:
    return _recurrent(nn.LSTM(3, 4, proj_size=2, batch_first=True), 2)


def _bi_lstm() -> nn.Module:
    return _recurrent(nn.LSTM(3, 3, num_layers=2, bidirectional=True, batch_first=True), 6)


def _gru() -> nn.Module:
    return _recurrent(nn.GRU(3, 4, batch_first=True), 4)


def _bi_gru() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        last = n.cell(x)[1]  # [directions, batch, width]
        return n.head(torch.cat([last[0], last[1]], -1))

    cell = nn.GRU(3, 4, bidirectional=True, batch_first=True)
    return Wired(wiring, cell=cell, head=nn.Linear(8, 2))


def _gru_cell() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 4, dtype=x.dtype)
        for step in x.unbind(1):
            state = n.cell(step, state)
        return n.head(state)

    return Wired(wiring, cell=nn.GRUCell(3, 4), head=nn.Linear(4, 2))


def _elman() -> nn.Module:
    """A state that starts as a parameter."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        state = n.start.expand(len(x), -1)
        for step in x.unbind(1):
            state = torch.tanh(n.into(step) + n.again(state))
        return n.head(state)

    into, again = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)
    return Wired(wiring, start=zeros(4), into=into, again=again, head=nn.Linear(4, 2))


def _selective_scan() -> nn.Module:
    """A Mamba block: the steps, inputs and outputs of a linear recurrence depend on the data."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        inner, gate = n.into(stream).chunk(2, -1)
        inner = n.conv(inner.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        inner = functional.silu(inner)
        rank, enter, leave = n.select(inner).split([2, 3, 3], dim=-1)
        step = functional.softplus(n.step(rank))
        decay = torch.exp(step[..., None] * -n.log_decay.exp())
        state = torch.zeros_like(decay[:, 0])
        outputs = []
        for t in range(x.shape[1]):
            entered = (step[:, t] * inner[:, t])[..., None] * enter[:, t, None, :]
            state = decay[:, t] * state + entered
            outputs.append((state * leave[:, t, None, :]).sum(-1))
        scanned = torch.stack(outputs, 1) + n.skip * inner
        return n.head(stream + n.out(scanned * functional.silu(gate)))

    return Wired(
        wiring,
        **{"embed": nn.Linear(3, 5), "into": nn.Linear(5, 8, bias=False)},
        **{"conv": nn.Conv1d(4, 4, 2, groups=4, padding=1), "select": nn.Linear(4, 8)},
        **{"step": nn.Linear(2, 4), "out": nn.Linear(4, 5, bias=False)},
        **{"log_decay": zeros(4, 3), "skip": zeros(4)},
        head=nn.Linear(5, 2),
    )


def _loop_of_the_data() -> nn.Module:
    """How often a layer runs, and which branch is taken, depends on the input."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(n.first(x))
        for _ in range(2 + int(x.abs().sum().item()) % 2):
            hidden = torch.tanh(n.again(hidden))
        if x.sum().item() > 1e6:
            hidden = -hidden
        return n.head(hidden)

    return Wired(wiring, first=nn.Linear(3, 4), again=nn.Linear(4, 4), head=nn.Linear(4, 2))


def _stacked_layers() -> nn.Module:
    """The weights of all layers in one tensor, read one by one."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        for layer in range(2):
            stream = stream + torch.relu(stream @ n.up[layer] + n.bias[layer]) @ n.down[layer]
        return n.head(stream)

    stacks = {"up": zeros(2, 5, 4), "bias": zeros(2, 4), "down": zeros(2, 4, 5)}
    return Wired(wiring, embed=nn.Linear(3, 5), **stacks, head=nn.Linear(5, 2))


def _written_in_place() -> nn.Module:
    """Results are written into slices of zeros, and a constant scales all neurons alike."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        joined = torch.zeros(*x.shape[:2], 5, dtype=x.dtype)
        for t in range(x.shape[1]):
            joined[:, t] = torch.relu(n.first(x[:, t]))
        joined = joined * torch.full((5,), 0.5, dtype=x.dtype)
        return n.head(joined.amax(1))

    return Wired(wiring, first=nn.Linear(3, 5), head=nn.Linear(5, 2))


_series = vectors(3, 4, 3)

RECURRENT_HAZARDS: list[Hazard] = [
    make_hazard("lstm", _lstm, _series),
    make_hazard("lstm_two_layers", _lstm_two_layers, _series),
    make_hazard("lstm_projected", _lstm_projected, _series),
    make_hazard("bi_lstm", _bi_lstm, _series),
    make_hazard("gru", _gru, _series),
    make_hazard("bi_gru", _bi_gru, _series),
    make_hazard("gru_cell", _gru_cell, _series),
    make_hazard("elman", _elman, _series),
    make_hazard("selective_scan", _selective_scan, _series),
    make_hazard("loop_of_the_data", _loop_of_the_data, vectors(4, 3)),
    make_hazard("stacked_layers", _stacked_layers, vectors(4, 3)),
    make_hazard("written_in_place", _written_in_place, _series),
]
