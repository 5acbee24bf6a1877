"""Recurrent layers, written as steps: ONNX orders gates otherwise than torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.activations import ACTIVATIONS
from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []

_Step = Callable[[Tensor, Tensor, Tensor, "_Direction"], tuple[Tensor, Tensor]]


class _Direction:
    """Weights of one direction: gates are stacked along the first axis."""

    def __init__(
        self, call: Call, number: int, weights: tuple[Tensor, Tensor, Tensor | None], gates: int
    ) -> None:
        weight, recurrent, bias = weights
        self.weight, self.recurrent = weight[number], recurrent[number]
        self.bias = self.recurrent_bias = None
        if bias is not None:
            self.bias, self.recurrent_bias = bias[number].chunk(2)
        self.gates = gates
        self.is_linear_first = bool(call.get("linear_before_reset", 0))
        names = call.get("activations")
        count = {1: 1, 3: 2, 4: 3}[gates]
        default = ["Tanh"] if gates == 1 else ["Sigmoid", "Tanh", "Tanh"][:count]
        names = names[number * count : (number + 1) * count] if names else default
        for name in names:
            if name not in ACTIVATIONS:
                raise call.error(f"its activation {name!r} is none of {sorted(ACTIVATIONS)}")
        self.activations = [ACTIVATIONS[name] for name in names]


def _rnn_step(x: Tensor, h: Tensor, c: Tensor, d: _Direction) -> tuple[Tensor, Tensor]:
    total = x + F.linear(h, d.recurrent, d.recurrent_bias)
    return d.activations[0](total), c


def _gru_step(x: Tensor, h: Tensor, c: Tensor, d: _Direction) -> tuple[Tensor, Tensor]:
    f, g = d.activations
    x_z, x_r, x_h = x.chunk(3, -1)
    if d.is_linear_first:
        h_z, h_r, h_h = F.linear(h, d.recurrent, d.recurrent_bias).chunk(3, -1)
        candidate = g(x_h + f(x_r + h_r) * h_h)
    else:
        size = h.shape[-1]
        two, last = d.recurrent[: 2 * size], d.recurrent[2 * size :]
        bias = d.recurrent_bias
        h_z, h_r = F.linear(h, two, None if bias is None else bias[: 2 * size]).chunk(2, -1)
        reset = f(x_r + h_r) * h
        candidate = g(x_h + F.linear(reset, last, None if bias is None else bias[2 * size :]))
    update = f(x_z + h_z)
    return (1 - update) * candidate + update * h, c


def _lstm_step(x: Tensor, h: Tensor, c: Tensor, d: _Direction) -> tuple[Tensor, Tensor]:
    f, g, last = d.activations
    i, o, forget, cell = (x + F.linear(h, d.recurrent, d.recurrent_bias)).chunk(4, -1)
    c = f(forget) * c + f(i) * g(cell)
    return f(o) * last(c), c


_STEPS: dict[str, tuple[int, _Step]] = {
    "RNN": (1, _rnn_step),
    "GRU": (3, _gru_step),
    "LSTM": (4, _lstm_step),
}


@operator("RNN", "GRU", "LSTM")
def _recurrent(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    first_h: Tensor | None = None,
    first_c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Any:
    gates, step = _STEPS[call.kind]
    x = x.transpose(0, 1) if call.get("layout", 0) else x
    if lengths is not None and any(n != x.shape[0] for n in lengths.tolist()):
        raise call.error("its sequences have different lengths")
    if peepholes is not None or call.get("clip") is not None or call.get("input_forget", 0):
        raise call.error("peepholes, clip or input_forget are used")
    direction, count = call.get("direction", "forward"), weight.shape[0]
    size = recurrent.shape[-1]
    start = x.new_zeros(count, x.shape[1], size)
    batch_first = bool(call.get("layout", 0))
    hs = start if first_h is None else first_h.transpose(0, 1) if batch_first else first_h
    cs = start if first_c is None else first_c.transpose(0, 1) if batch_first else first_c
    outputs, last_h, last_c = [], [], []
    for number in range(count):
        one = _Direction(call, number, (weight, recurrent, bias), gates)
        is_reverse = direction == "reverse" or number == 1
        mapped = F.linear(x, one.weight, one.bias).unbind(0)
        h, c, states = hs[number], cs[number], []
        for value in reversed(mapped) if is_reverse else mapped:
            h, c = step(value, h, c, one)
            states.append(h)
        outputs.append(torch.stack(states[::-1] if is_reverse else states))
        last_h.append(h)
        last_c.append(c)
    y, h_n, c_n = torch.stack(outputs, 1), torch.stack(last_h), torch.stack(last_c)
    if batch_first:
        y, h_n, c_n = y.permute(2, 0, 1, 3), h_n.transpose(0, 1), c_n.transpose(0, 1)
    return (y, h_n, c_n)[: call.num_outputs] if call.num_outputs > 1 else y
