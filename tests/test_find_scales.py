"""Scales, signs and phases that capture finds: which, that they hold, and that they matter.

The scales of the hazards are counted in ``test_hazards.py``; here stand the typical layers, each
with all that there is, shifts of sines, and blocks that only parts of a tensor have.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from expected_scales import EXPECTED_SCALES, num_factors
from more_networks import ALL_HAZARDS
from networks import Hazard, Wired, as_double, make_hazard, outputs, vectors, zeros
from oracle import count_rescalings
from random_networks import TIME, WIDTH, random_network
from torch import Tensor, nn
from torch.nn import functional

from paramgraph.capture.groups import Groups, find_groups
from paramgraph.capture.infer import infer
from paramgraph.capture.record import record
from paramgraph.capture.scales import Scales, find_scales
from paramgraph.capture.scales.reading import parameter_layouts
from paramgraph.structure import ParameterLayout, ParameterPart, ScaleGroup, ScaleKind
from paramgraph.symmetry import Symmetry, draw_symmetry
from paramgraph.views import take_part

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

_vector, _series, _image = vectors(4, 3), vectors(2, 4, 3), vectors(2, 1, 8, 8)
Rows = Counter[tuple[str, int]]


@dataclasses.dataclass
class Found:
    """A network with its symmetries."""

    network: nn.Module
    inputs: Any
    groups: Groups
    scales: Scales
    layouts: list[ParameterLayout]

    @property
    def rows(self) -> Rows:
        """Kind and size of each scale group."""
        return Counter((row.kind.value, row.size) for row in self.scales.rows)

    def change(self, symmetry: Symmetry) -> float:
        """Largest relative change of the outputs."""
        before = outputs(self.network, self.inputs)
        state = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(symmetry.apply(state))
        after = outputs(self.network, self.inputs)
        self.network.load_state_dict(state)
        size = max(float(out.abs().max()) for out in before)
        return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) / size

    def draw(self, seed: int, rows: tuple[ScaleGroup, ...], *, permute: bool) -> Symmetry:
        """A symmetry, in all groups or in some."""
        return draw_symmetry(
            *(self.groups.rows, rows, self.layouts, ()),
            generator=torch.Generator().manual_seed(seed),
            permute=permute,
            scale=True,
            phase=True,
            scale_range=3.0,
        )


def find(network: nn.Module, inputs: Any) -> Found:
    tape = record(network, inputs)
    groups = find_groups(infer([tape]))
    scales = find_scales(groups.run, groups)
    layouts = []
    for name in groups.used:
        kind, shape, members = groups.parameter(name)
        parts = [
            dataclasses.replace(
                part,
                scales=scales.parts.get((name, number), ()),
                shifts=scales.shifts.get((name, number), ()),
            )
            for number, part in enumerate(groups.parts(kind, shape))
        ]
        aliases, is_buffer = tape.aliases.get(name, ()), name in tape.buffers
        layouts.append(ParameterLayout(name, shape, tuple(parts), aliases, is_buffer, members))
    return Found(network.double(), as_double(inputs), groups, scales, layouts)


def _layers(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


def _mlp(activation: nn.Module) -> Callable[[], nn.Module]:
    return _layers(nn.Linear(3, 5), activation, nn.Linear(5, 4), activation, nn.Linear(4, 2))


def _wired(wiring: Callable[[Any, Tensor], Tensor], **parts: Any) -> Callable[[], nn.Module]:
    return lambda: Wired(wiring, **parts)


class Sine(nn.Module):
    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


def _swiglu(n: Any, x: Tensor) -> Tensor:
    return n.down(functional.silu(n.gate(x)) * n.up(x))


def _packed(order: str) -> Callable[[Any, Tensor], Tensor]:
    """Queries, keys and values of 2 heads of 3 dims from one product."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        packed = n.qkv(x)
        if order == "chunks":
            q, k, v = (t.unflatten(-1, (2, 3)) for t in packed.chunk(3, -1))
        elif order == "kinds first":
            q, k, v = packed.unflatten(-1, (3, 2, 3)).unbind(-3)
        else:
            q, k, v = packed.unflatten(-1, (2, 9)).chunk(3, -1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return n.out(mixed.transpose(1, 2).flatten(2))

    return wiring


def _residual(n: Any, x: Tensor) -> Tensor:
    stream = n.embed(x)
    for up, down in zip(n.up, n.down, strict=True):
        stream = stream + down(torch.relu(up(stream)))
    return n.head(stream)


def _written_in_place(n: Any, x: Tensor) -> Tensor:
    """Only one of the two halves is rectified."""
    both = n.both(x)
    first, second = both.chunk(2, -1)
    first.relu_()
    return n.head(first) + n.other(second)


def _tied_twice(n: Any, x: Tensor) -> Tensor:
    return n.out(torch.tanh(n.again(torch.tanh(n.again(n.into(x))))))


def _last_step(n: Any, x: Tensor) -> Tensor:
    return n.head(n.cell(x)[0][:, -1])


def _sizes(*rows: tuple[str, int]) -> Rows:
    """Kinds and sizes; ``real`` stands for a positive group and a sign group."""
    result: Rows = Counter()
    for kind, size in rows:
        result.update([("positive", size), ("sign", size)] if kind == "real" else [(kind, size)])
    return result


_HEADS = [("real", 6), ("real", 6)]
_packed_parts = {"qkv": nn.Linear(3, 18), "out": nn.Linear(6, 2)}
_stacks = {
    "up": nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 6)]),
    "down": nn.ModuleList([nn.Linear(3, 4), nn.Linear(6, 4)]),
}
_gated = {"gate": nn.Linear(3, 5), "up": nn.Linear(3, 5), "down": nn.Linear(5, 2)}
_halves = {"both": nn.Linear(3, 8), "head": nn.Linear(4, 2), "other": nn.Linear(4, 2)}

CASES: list[tuple[Hazard, Rows]] = [
    (make_hazard(name, build, inputs), _sizes(*rows))
    for name, build, inputs, rows in [
        ("relu", _mlp(nn.ReLU()), _vector, [("positive", 5), ("positive", 4)]),
        ("tanh", _mlp(nn.Tanh()), _vector, [("sign", 5), ("sign", 4)]),
        ("no_activation", _mlp(nn.Identity()), _vector, [("real", 5), ("real", 4)]),
        ("gelu", _mlp(nn.GELU()), _vector, []),
        ("hardtanh", _mlp(nn.Hardtanh()), _vector, [("sign", 5), ("sign", 4)]),
        ("one_prelu", _mlp(nn.PReLU()), _vector, [("positive", 5), ("positive", 4)]),
        (
            "width_one_twice",
            _layers(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 2)),
            *(_vector, [("positive", 1), ("sign", 1)]),
        ),
        (
            *("sines", _mlp(Sine(3.0)), _vector),
            [("sign", 5), ("phase", 5), ("sign", 4), ("phase", 4)],
        ),
        (
            "batch_norm_after_conv",
            _layers(
                *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)),
            ),
            _image,
            [("sign", 4), ("positive", 4), ("positive", 6)],
        ),
        (
            "depthwise_with_linear_pooling",
            _layers(
                *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)),
                *(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 2)),
            ),
            _image,
            [("positive", 4), ("real", 4)],
        ),
        # The sign of all neurons, and each gain.
        (
            *("layer_norm_gain", _layers(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))),
            *(_vector, [("sign", 1), ("real", 6)]),
        ),
        (
            *("rms_norm_gain", _layers(nn.Linear(3, 6), nn.RMSNorm(6), nn.Linear(6, 2))),
            *(_vector, [("sign", 6), ("real", 6)]),
        ),
        ("swiglu", _wired(_swiglu, **_gated), _vector, [("real", 5)]),
        ("packed_chunks", _wired(_packed("chunks"), **_packed_parts), _series, _HEADS),
        ("packed_kinds_first", _wired(_packed("kinds first"), **_packed_parts), _series, _HEADS),
        ("packed_heads_first", _wired(_packed("heads first"), **_packed_parts), _series, _HEADS),
        (
            "residual_stream",
            _wired(_residual, embed=nn.Linear(3, 4), **_stacks, head=nn.Linear(4, 2)),
            *(_vector, [("real", 4), ("positive", 3), ("positive", 6)]),
        ),
        (
            "tied_twice",
            _wired(
                *(_tied_twice,),
                **{"into": nn.Linear(3, 4), "again": nn.Linear(4, 4), "out": nn.Linear(4, 2)},
            ),
            *(_vector, [("sign", 4)]),
        ),
        (
            "gru_from_zeros",
            _wired(_last_step, cell=nn.GRU(3, 4, batch_first=True), head=nn.Linear(4, 2)),
            *(_series, [("sign", 4)]),
        ),
        (
            "lstm_from_zeros",
            _wired(
                *(_last_step,),
                **{"cell": nn.LSTM(3, 4, batch_first=True), "head": nn.Linear(4, 2)},
            ),
            *(_series, [("sign", 4)]),
        ),
        (
            *("half_in_place", _wired(_written_in_place, **_halves)),
            *(_vector, [("positive", 4), ("real", 4)]),
        ),
        # One number against a layer: no axis numbers it.
        (
            "temperature",
            _wired(
                lambda n, x: n.scale * n.out(torch.sigmoid(n.into(x))),
                **{"scale": zeros(), "into": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
            ),
            *(_vector, [("real", 1)]),
        ),
        # Entries of two matrices that are multiplied one by one.
        (
            "masked_weight",
            _wired(
                lambda n, x: n.out(torch.sigmoid(x @ (n.left * n.right))),
                **{"left": zeros(3, 5), "right": zeros(3, 5), "out": nn.Linear(5, 2)},
            ),
            *(_vector, [("real", 15)]),
        ),
    ]
]
HAZARDS = [hazard for hazard, _ in CASES]


@pytest.mark.parametrize(("hazard", "rows"), CASES, ids=[str(h) for h in HAZARDS])
def test_all_scales_of_typical_layers_are_found(hazard: Hazard, rows: Rows) -> None:
    assert find(hazard.make(), hazard.example_inputs).rows == rows


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_all_scales_worked_out_by_hand_are_found(hazard: Hazard) -> None:
    found = find(hazard.make(), hazard.example_inputs)
    sizes, rows = Counter[ScaleKind](), EXPECTED_SCALES[hazard.name]
    for row in found.scales.rows:
        sizes[row.kind] += row.size
    assert sizes[ScaleKind.POSITIVE] == num_factors(rows, "positive")
    assert sizes[ScaleKind.SIGN] == num_factors(rows, "sign")


@pytest.mark.parametrize("hazard", [*HAZARDS, *ALL_HAZARDS], ids=str)
def test_scales_keep_the_function(hazard: Hazard) -> None:
    found = find(hazard.make(), hazard.example_inputs)
    for seed, permute in enumerate([False, True, True]):
        drawn = found.draw(seed, found.scales.rows, permute=permute)
        assert found.change(drawn) < 1e-9, f"permute={permute}"


def _acts_on(row: ScaleGroup, part: ParameterPart) -> bool:
    names = {scale.group for scale in part.scales} | {shift.group for shift in part.shifts}
    return row.name in names


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_a_scale_of_one_parameter_alone_is_noticed(hazard: Hazard) -> None:
    """The counter-test: no scale acts on weights that the function does not depend on."""
    found = find(hazard.make(), hazard.example_inputs)
    for row in found.scales.rows:
        count = torch.arange(row.size, dtype=torch.float64)
        factor = 2 + count if row.kind is ScaleKind.POSITIVE else 1 - 2 * (count % 2 == 0).double()
        users = [
            layout for layout in found.layouts if any(_acts_on(row, part) for part in layout.parts)
        ]
        assert len(users) > 1
        for layout in users:
            alone = dataclasses.replace(
                found.draw(0, (row,), permute=False),
                factors={row.name: factor},
                parameters=[layout],
            )
            assert found.change(alone) > 1e-6, f"{row.name!r} of {layout.name!r}"


@pytest.mark.parametrize("hazard", [*HAZARDS, *ALL_HAZARDS], ids=str)
def test_blocks_lie_where_parts_do(hazard: Hazard) -> None:
    """The same entries in the same order, whether seen as boxes or as views."""
    groups = find(hazard.make(), hazard.example_inputs).groups
    for name, layout in parameter_layouts(groups).items():
        kind, shape, _ = groups.parameter(name)
        numbers = torch.arange(math.prod(shape)).reshape(shape)
        parts = groups.parts(kind, shape)
        assert len(parts) == len(layout.boxes)
        for part, (start, digits) in zip(parts, layout.flat, strict=True):
            entries = torch.tensor(start)
            for step, size in digits:
                entries = entries[..., None] + step * torch.arange(size)
            torch.testing.assert_close(take_part(numbers, part.steps), entries)


@pytest.mark.parametrize("seed", range(24))
def test_random_networks_have_no_more_scales_than_there_are(seed: int) -> None:
    network, inputs = random_network(seed), vectors(2, TIME, WIDTH)
    num_positive, num_sign = count_rescalings(network, inputs)
    found = find(network, inputs)
    assert found.change(found.draw(seed, found.scales.rows, permute=True)) < 1e-9
    sizes = Counter[ScaleKind]()
    for row in found.scales.rows:
        sizes[row.kind] += row.size
    assert sizes[ScaleKind.POSITIVE] <= num_positive
    assert sizes[ScaleKind.SIGN] <= num_sign


@pytest.mark.parametrize("seed", [151, 183, 260, 299])
def test_scales_of_long_random_networks_hold(seed: int) -> None:
    """Each was wrong once: groups inside a norm, biases of sines, joined signs, repeated groups."""
    found = find(random_network(seed, num_blocks=7), vectors(2, TIME, WIDTH))
    for draw, permute in enumerate([False, True, True]):
        drawn = found.draw(draw, found.scales.rows, permute=permute)
        assert found.change(drawn) < 1e-9, f"permute={permute}"


def _shifted(found: Found) -> dict[str, float]:
    return {
        name: shift.amount for (name, _), shifts in found.scales.shifts.items() for shift in shifts
    }


def test_a_sine_is_shifted_by_half_a_period() -> None:
    found = find(_mlp(Sine(30.0))(), _vector)
    assert _shifted(found) == pytest.approx({"0.bias": math.pi / 30, "2.bias": math.pi / 30})
    scales = {s.group for s in found.scales.parts["2.weight", 0]}
    assert scales == {"0:sign", "0:phase", "2:sign"}  # what reads the sine changes its sign


def test_a_sine_whose_sign_matters_is_reflected() -> None:
    """sin(pi - z) = sin(z): half a period goes with the sign of what is inside."""
    found = find(_layers(nn.Linear(3, 5), Sine(2.0), nn.ReLU(), nn.Linear(5, 2))(), _vector)
    assert found.rows == _sizes(("phase", 5))
    assert _shifted(found) == pytest.approx({"0.bias": math.pi / 2})
    assert {name for name, _ in found.scales.parts} == {"0.weight", "0.bias"}


def test_a_cosine_whose_sign_matters_is_shifted_by_a_whole_period() -> None:
    network = _wired(
        lambda n, x: n.out(torch.relu(torch.cos(2 * n.into(x)))),
        **{"into": nn.Linear(3, 5), "out": nn.Linear(5, 2)},
    )()
    found = find(network, _vector)
    assert found.rows == _sizes(("sign", 5), ("phase", 5))
    assert _shifted(found) == pytest.approx({"into.bias": math.pi})
    assert all(s.group == "into:sign" for scales in found.scales.parts.values() for s in scales)


def test_two_sines_that_are_added_have_phases_that_depend_on_each_other() -> None:
    """Both signs change, or none does: half periods of both, whole periods of one."""
    network = _wired(
        lambda n, x: n.out(torch.relu(torch.sin(n.one(x)) + torch.sin(n.two(x)))),
        **{"one": nn.Linear(3, 4), "two": nn.Linear(3, 4), "out": nn.Linear(4, 2)},
    )()
    found = find(network, _vector)
    assert found.rows == _sizes(("phase", 4), ("phase", 4))
    assert found.change(found.draw(0, found.scales.rows, permute=True)) < 1e-9


@pytest.mark.parametrize(
    "wiring",
    [
        lambda n, x: n.out(torch.sin(n.one(x)) + n.one(x)),
        lambda n, x: n.out(torch.sin(n.one(x)) + torch.sin(3 * n.one(x))),
        lambda n, x: n.out(torch.sin(n.two(n.one(x)) * 2 + n.one.bias)),
    ],
    ids=["read besides", "two frequencies", "bias used twice"],
)
def test_a_bias_that_is_more_than_a_phase_is_not_shifted(
    wiring: Callable[[Any, Tensor], Tensor],
) -> None:
    parts = {"one": nn.Linear(3, 4), "two": nn.Linear(4, 4), "out": nn.Linear(4, 2)}
    found = find(_wired(wiring, **parts)(), _vector)
    assert "one.bias" not in _shifted(found)
    assert found.change(found.draw(0, found.scales.rows, permute=True)) < 1e-9


def test_shifts_are_added_after_scales() -> None:
    found = find(_mlp(Sine(1.0))(), _vector)
    drawn = found.draw(0, found.scales.rows, permute=False)
    state = found.network.state_dict()
    expected = drawn.factors["0:sign"] * state["0.bias"] + math.pi * drawn.factors["0:phase"]
    torch.testing.assert_close(drawn.apply(state)["0.bias"], expected)


def test_how_tensors_scale_is_told() -> None:
    found = find(_mlp(nn.ReLU())(), _vector)
    entries = found.groups.run.entries
    sums = [entry.outputs[0] for entry in entries if entry.operation == "aten.addmm"]
    told = [dict(found.scales.exponents(ref.number, 0)) for ref in sums if ref is not None]
    assert told == [{"0:positive": Fraction(1)}, {"2:positive": Fraction(1)}, {}]


def test_experts_scale_on_their_own() -> None:
    hazard = next(h for h in ALL_HAZARDS if h.name == "chosen_experts")
    found = find(hazard.make(), hazard.example_inputs)
    row = next(row for row in found.scales.rows if row.size == 12)
    assert len(row.axes) == 2
