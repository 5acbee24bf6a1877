"""The scale symmetries worked out by hand are all there are, by two independent counts.

One count solves equations on the computation graph (``scalar_scales.py``). The other needs no
rules: a factor ``exp(s)`` on each number of the weights keeps the function exactly if ``s`` is
orthogonal to weight times gradient, for all weights and inputs.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from expected_scales import EXPECTED_SCALES, num_factors
from more_networks import ALL_HAZARDS
from networks import Hazard, as_double, outputs, randomise, vectors
from oracle import count_rescalings, example_for_oracle, read_tensors
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

QUICK = {
    *("mlp", "group_norm", "batch_norm", "resnet", "preactivation_residual", "instance_norm"),
    *("cross_attention", "multi_query_rotary", "gru", "lstm_projected", "selective_scan"),
    *("gated_with_rms_norm", "weight_norm", "tied_embedding", "hypernetwork", "chosen_experts"),
}
SLOW = [h if h.name in QUICK else pytest.param(h, marks=pytest.mark.slow) for h in ALL_HAZARDS]


def test_every_network_has_expected_scales() -> None:
    assert list(EXPECTED_SCALES) == [hazard.name for hazard in ALL_HAZARDS]


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_the_expected_scales_are_all_there_are(hazard: Hazard) -> None:
    rows = EXPECTED_SCALES[hazard.name]
    expected = num_factors(rows, "positive"), num_factors(rows, "sign")
    assert count_rescalings(hazard.make(), example_for_oracle(hazard)) == expected


def _explicit_batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, *_: Any
) -> Tensor:
    """PyTorch's own has no gradient for running statistics."""
    shape = (-1, *[1] * (x.ndim - 2))
    x = (x - mean.reshape(shape)) / (variance + 1e-5).sqrt().reshape(shape)
    return x if weight is None else x * weight.reshape(shape) + bias.reshape(shape)


def _num_scales_by_gradients(hazard: Hazard) -> int:
    """Dimensions of the scalings that change no output to first order, whatever the weights."""
    inputs, rows = example_for_oracle(hazard), []
    for seed in itertools.count():
        network = randomise(hazard.make(), seed).double().requires_grad_(False)
        # Each second draw is large enough for a ReLU6 to saturate: until then it is a ReLU.
        size = 1 + 2 * (seed % 2)
        weights = [w.mul_(size).requires_grad_() for w in read_tensors(network).values()]
        with torch.enable_grad():
            named = inputs if isinstance(inputs, dict) else {}
            listed = inputs if isinstance(inputs, tuple) else () if named else (inputs,)
            results = network(*listed, **named)
        results = [results] if isinstance(results, Tensor) else list(results.values())
        for output in torch.cat([r.reshape(-1) for r in results])[:12]:
            slopes = torch.autograd.grad(
                output, weights, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            pairs = zip(slopes, weights, strict=True)
            rows.append(torch.cat([(s * w).detach().reshape(-1) for s, w in pairs]))
        if len(rows) > 1.3 * len(rows[0]):
            break
    matrix = torch.stack([row / row.norm().clamp(min=1e-30) for row in rows])
    num_dead = int((matrix.abs().amax(0) < 1e-10).sum())
    sizes = torch.linalg.svdvals(matrix)
    return matrix.shape[1] - num_dead - int((sizes > 1e-8 * sizes[0]).sum())


@pytest.mark.parametrize("hazard", SLOW, ids=str)
def test_the_oracle_agrees_with_gradients(hazard: Hazard, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = hazard.make(), example_for_oracle(hazard)
    counted = count_rescalings(network, inputs, free_running=True)[0]
    monkeypatch.setattr(nn.functional, "batch_norm", _explicit_batch_norm)
    assert _num_scales_by_gradients(hazard) == counted


@pytest.mark.parametrize(
    ("layers", "num_signs"),
    [
        ([nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)], 2),
        ([nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)], 0),
        ([nn.Linear(1, 2), nn.Linear(2, 1)], 2),
        ([nn.Linear(1, 3, bias=False), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 1)], 1),
        ([nn.Linear(1, 3, bias=False), nn.RMSNorm(3), nn.Linear(3, 1, bias=False)], 6),
    ],
)
def test_the_oracle_agrees_with_trying_all_signs(layers: list[nn.Module], num_signs: int) -> None:
    network = randomise(nn.Sequential(*layers), 0).double()
    inputs = vectors(5, 1).double()
    reference = outputs(network, inputs)[0]
    weights = read_tensors(network).values()
    kept = 0
    originals = [w.data.clone() for w in weights]
    for signs in itertools.product((1.0, -1.0), repeat=sum(w.numel() for w in weights)):
        left = torch.tensor(signs)
        for weight, original in zip(weights, originals, strict=True):
            now, left = left[: weight.numel()], left[weight.numel() :]
            weight.data = original * now.reshape(weight.shape)
        kept += torch.allclose(outputs(network, inputs)[0], reference, rtol=1e-9)
    assert kept == 2**num_signs
    assert count_rescalings(network, as_double(inputs[:1]))[1] == num_signs
