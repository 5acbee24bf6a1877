"""Fast steps of the operator metanetwork equal their slow forms: values and two derivatives."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
import torch
from networks import as_double, randomise
from torch import Tensor, nn

import paramgraph as pg
import paramgraph.nn.per_layout as kept
import paramgraph.testing as pt
from paramgraph.engine import native_status, push, runs_natively
from paramgraph.nn import OperatorMetanetwork
from paramgraph.nn.magnitudes import log_magnitudes
from paramgraph.nn.mirrored_sums import mirrored, mirrored_sums
from paramgraph.nn.per_layout import per_layout
from paramgraph.nn.pushes import HeldWeights, kernel_push
from paramgraph.nn.sign_steps import CompiledSteps, steps_for
from paramgraph.nn.sign_update import sign_update, slow_sign_update
from paramgraph.nn.typed import FREE, POSITIVE, SCALE, SIGN, NeuronTypes, TypedUpdate

DIM, CONTEXT = 4, 3
HAZARDS = {row.name: row for row in pt.hazard_networks()}


def rows(num: int, width: int = DIM) -> Tensor:
    return torch.randn(num, width, dtype=torch.float64, requires_grad=True)


def assert_same_gradients(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    seed = torch.randn_like(slow)
    found = [torch.autograd.grad(y, inputs, seed, retain_graph=True) for y in (fast, slow)]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("has", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("dim", [DIM, 16], ids=["pytorch", "compiled"])
def test_the_sign_update_equals_its_steps(has: tuple[bool, bool], has_mask: bool, dim: int) -> None:
    """Also where own and other signals are known to be zero."""
    torch.manual_seed(0)
    update = TypedUpdate(dim, CONTEXT, 0.0).double()
    own, other = (rows(9, dim) if here else None for here in has)
    message, bias, context = rows(9, dim), rows(9, dim), rows(9, CONTEXT)
    if dim == 16 and not runs_natively(message, "sign"):
        pytest.skip(native_status())
    assert isinstance(steps_for(message), CompiledSteps) is (dim == 16)
    mask = torch.rand(9, 2 * dim, dtype=torch.float64).round() * 2 if has_mask else None
    parameters = (update.sign_map.weight, *update.sign_gate.parameters())
    signals = (own, message, bias, other)
    fast = sign_update(signals, context, mask, parameters)
    slow = slow_sign_update(signals, context, mask, parameters)
    wanted = [t for t in (*signals, context, *parameters) if t is not None]
    assert_same_gradients(fast, slow, wanted)


def test_the_sign_update_has_second_derivatives() -> None:
    torch.manual_seed(0)
    update = TypedUpdate(DIM, CONTEXT, 0.0).double()
    parameters = (update.sign_map.weight, *update.sign_gate.parameters())
    inputs = [rows(3), rows(3), rows(3), rows(3), rows(3, CONTEXT)]

    def function(*given: Tensor) -> Tensor:
        return sign_update(tuple(given[:4]), given[4], None, parameters)  # type: ignore[arg-type]

    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("kind", [FREE, SIGN, SCALE, POSITIVE])
@pytest.mark.parametrize("is_dual", [False, True])
def test_nothing_stands_for_zeros(kind: int, is_dual: bool) -> None:
    torch.manual_seed(0)
    update = TypedUpdate(DIM, CONTEXT, 0.0).double()
    types = NeuronTypes.from_tensor(torch.full((5,), kind))
    message, bias, other, context = rows(5), rows(5), rows(5), rows(5, CONTEXT)
    zero = torch.zeros(5, DIM, dtype=torch.float64)
    for x in (None, other):
        short = update(types, None, message, bias, x, context, is_dual=is_dual)
        second = zero if x is None else x
        long = update(types, zero, message, bias, second, context, is_dual=is_dual)
        torch.testing.assert_close(short, long, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num", [0, 5, 1500])
def test_mirrored_sums_equal_sums_of_rows(num: int) -> None:
    """More rows than are worked on at a time, and none at all."""
    torch.manual_seed(0)
    h, g, c = rows(num), rows(num), rows(num, CONTEXT)
    weight, bias = rows(6, 2 * DIM + CONTEXT), rows(1, 6)[0]
    index = torch.randint(0, 3, (num,))
    slow = torch.stack([mirrored(h, g, c, weight, bias)[index == i].sum(0) for i in range(3)])
    fast = mirrored_sums((h, g, c), index, 3, weight, bias)
    assert_same_gradients(fast, slow, [h, g, c, weight, bias])
    if num == 5:

        def function(*given: Tensor) -> Tensor:
            return mirrored_sums(given[:3], index, 3, *given[3:])  # type: ignore[arg-type]

        small = [t.detach().requires_grad_() for t in (h, g, c, weight, bias)]
        assert torch.autograd.gradgradcheck(function, small)


def batch_of(*names: str) -> pg.GraphBatch:
    pairs = []
    for seed, name in enumerate(names):
        row = HAZARDS[name]
        network = randomise(copy.deepcopy(row.network).double(), seed)
        graph = pg.capture(network, as_double(row.example_inputs))
        pairs.append((graph, graph.features([dict(network.state_dict())] * 2)))
    return pg.collate(pairs)


@pytest.mark.parametrize("backward", [False, True])
def test_kernels_act_as_their_operators(backward: bool) -> None:
    torch.manual_seed(0)
    tried = 0
    for bucket in batch_of("strided_cnn", "grouped_conv").buckets:
        num = bucket.values.shape[-1]
        if num > 1:
            values, psi = bucket.values.clone().requires_grad_(), rows(num, 2)
            signal = rows((bucket.receivers if backward else bucket.senders).length)
            fast = kernel_push(bucket, values, psi, signal, backward=backward)
            slow = push(bucket, values @ psi, signal, backward=backward)
            assert_same_gradients(fast, slow, [values, psi, signal])
            tried += 1
    assert tried >= 3


def test_scales_are_folded_into_what_weights_do() -> None:
    """Messages and magnitudes as with weights brought to unit scale one by one."""
    torch.manual_seed(0)
    batch = batch_of("strided_cnn", "batch_norm", "gated_unit")
    m = OperatorMetanetwork(2, hidden_dim=DIM).double()
    m.fit_statistics([batch])
    held = HeldWeights(batch, m.standardizer)
    whole = [m.standardizer.edges(bucket) for bucket in batch.buckets]
    torch.testing.assert_close(held.magnitudes(), log_magnitudes(batch, whole))
    for number, (bucket, weight) in enumerate(zip(batch.buckets, whole, strict=True)):
        if weight.shape[-1] == 1:
            signal = rows(bucket.receivers.length)
            expected = push(bucket, weight, signal, backward=True) / weight.shape[2] ** 0.5
            found = held.push(number, signal, None, backward=True)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# --- selection by type, facts per layout


@pytest.mark.parametrize("order", [[0, 0, 0, 1, 0, 2, 2, 1, 1, 1], [0, 1, 2] * 5])
def test_rows_of_a_type_come_back_to_their_places(order: list[int]) -> None:
    """Few runs, of different lengths, are cut out; many are gathered."""
    types = NeuronTypes.from_tensor(torch.tensor(order))
    x = torch.arange(len(order), dtype=torch.float64)[:, None]
    functions: dict[int, Callable[..., Tensor]] = {
        kind: lambda x, kind=kind: x + 100 * kind for kind in types.present
    }
    assert torch.equal(types.apply(functions, x), x + 100 * types.types[:, None])


def test_facts_are_made_once_per_layout_and_hold_no_weights() -> None:
    made: list[int] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        graph = pg.capture(network, torch.randn(5, 3))
        for count in (1, 2):
            batch = pg.collate([(graph, graph.features([network.state_dict()] * count))])
            per_layout(batch, "counted here", partial(made.append, count))
    assert made == [1, 2]


def test_facts_of_the_oldest_layouts_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layouts together keep at most so many neurons."""
    monkeypatch.setattr(kept, "_known", OrderedDict())
    monkeypatch.setattr(kept, "_MAX_NEURONS", 20)
    graph = pg.capture(nn.Linear(3, 5), torch.randn(4, 3))
    made: list[int] = []
    for count in (1, 1, 2, 1):  # 8, 8, 16 and 8 neurons: 8 and 16 do not fit together
        batch = pg.collate([(graph, graph.features([nn.Linear(3, 5).state_dict()] * count))])
        per_layout(batch, "counted here", partial(made.append, count))
    assert made == [1, 2, 1]
    assert sum(facts[kept._SIZE] for facts in kept._known.values()) <= 20


def test_a_batch_read_in_inference_mode_can_be_trained_on_later() -> None:
    batch = batch_of("siren_large_biases")
    m = OperatorMetanetwork(2, hidden_dim=DIM).double()
    with torch.inference_mode():
        before = m(pg.collate([(part.graph, part.values) for part in batch.parts]))
    after = m(batch)
    after.sum().backward()
    assert torch.equal(before, after.detach())
    grad = m.input_identity.grad
    assert grad is not None
    assert bool(grad.any())
