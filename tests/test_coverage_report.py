"""The coverage report: its tables can be trusted, and a failure in it is seen as one."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Wired, randomise
from torch import Tensor, nn

import paramgraph as pg
from benchmarks.coverage import __main__ as command
from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.architectures import all_architectures
from benchmarks.coverage.measuring import Measurement, measure
from benchmarks.coverage.precision import float64_throughout, runs_in_float64
from benchmarks.coverage.report import markdown, totals, write
from benchmarks.coverage.running import run_all
from benchmarks.coverage.teeth import Teeth, bite
from paramgraph.capture.verify import Probe

# One of each kind: what a type is made of differs between them.
A_DOZEN = (
    "text decoders: gpt2",
    "text decoders: llama",
    "text decoders: gpt_neox",
    "text encoders: bert",
    "text to text: t5",
    "mixtures of experts: mixtral",
    "mixtures of experts: switch_transformers",
    "state spaces and linear attention: mamba2",
    "images: vit",
    "images: resnet",
    "sound: wav2vec2",
    "text and images: clip",
)


def _mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)]
    return nn.Sequential(*layers), torch.randn(4, 3)


def _broken() -> tuple[nn.Module, Tensor]:
    raise ValueError("no weights of 17 in /a/b/c.py")


class _Upcasting(nn.Module):
    """Converts to float32 inside, as many norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).float().to(x.dtype)


def _works(architecture: Architecture) -> Measurement:
    return Measurement(architecture.name, architecture.family, max_error=1e-12)


def _crashes(architecture: Architecture) -> Measurement:
    os._exit(7)


def _hangs(architecture: Architecture) -> Measurement:
    while True:
        pass


def test_the_tables_name_enough_architectures_of_each_kind() -> None:
    families = [row.family for row in all_architectures().values()]
    assert families.count("networks of the tests") >= 35
    assert families.count("convolutions on graphs") >= 12
    others = {"networks of the tests", "convolutions on graphs"}
    assert sum(family not in others for family in families) >= 140


def test_a_family_stands_together_and_the_order_is_fixed() -> None:
    families = [row.family for row in all_architectures().values()]
    changes = sum(a != b for a, b in itertools.pairwise(families))
    assert changes == len(set(families)) - 1
    assert list(all_architectures()) == list(all_architectures())


def test_no_model_type_stands_twice_in_a_table() -> None:
    assert all(title.count(": ") == 1 for title in all_architectures())


def test_a_row_that_cannot_be_built_is_a_failure_with_its_reason() -> None:
    row = measure(Architecture("broken", "a", _broken))
    assert not row.passed
    assert row.problems == ["build: ValueError: no weights of 17 in c.py"]


def test_a_failed_capture_keeps_what_was_known_before() -> None:
    row = measure(Architecture("no_output", "a", _mlp, output="nowhere"))
    assert not row.passed
    assert row.num_parameters == 3 * 5 + 5 + 5 * 2 + 2
    assert any(problem.startswith("capture: ") for problem in row.problems)


def test_a_crash_and_an_endless_loop_are_failures_of_one_row() -> None:
    row = next(iter(all_architectures().values()))
    crashed = run_all([row], lambda _: None, num_jobs=1, time_limit_s=60, measure=_crashes)
    assert "ended with code 7" in crashed[0].problems[0]
    late = run_all([row], lambda _: None, num_jobs=1, time_limit_s=3, measure=_hangs)
    assert "longer than 3 s" in late[0].problems[0]


def test_rows_keep_the_order_of_the_architectures() -> None:
    rows = list(all_architectures().values())[:3]
    seen: list[str] = []
    results = run_all(
        rows, lambda row: seen.append(row.name), num_jobs=2, time_limit_s=60, measure=_works
    )
    assert [row.name for row in results] == [row.name for row in rows]
    assert sorted(seen) == sorted(row.name for row in rows)


def test_the_report_shows_failures_and_counts_them(tmp_path: Path) -> None:
    good = Measurement("one", "a", num_free=2, num_frozen=1, precision="float64", max_error=1e-14)
    bad = Measurement("two", "a", problems=["verify: error 2e-1, allowed 1e-10"])
    text = markdown([good, bad], {"commit": "123"})
    assert "**FAILED**" in text
    assert "verify: error 2e-1, allowed 1e-10" in text
    assert totals([good, bad])["passed"] == 1
    write([good, bad], {"commit": "123"}, tmp_path)
    data = json.loads((tmp_path / "coverage.json").read_text())
    assert [row["passed"] for row in data["architectures"]] == [True, False]


def test_the_command_fails_when_a_row_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {True: Measurement("one", "a", max_error=0.0), False: Measurement("one", "a")}
    results[False].problems.append("capture: CaptureError: nothing of 17")
    for works, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(command, "run_all", lambda *_, row=results[works], **__: [row])
        monkeypatch.setattr(command, "_environment", dict)
        assert command.main(["--out", str(tmp_path)]) == code
    assert "FAILED a: one: capture: CaptureError: nothing of 17" in capsys.readouterr().out


def test_the_command_fails_when_nothing_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_environment", dict)
    assert command.main(["--only", "no such family", "--out", str(tmp_path)]) == 1


def test_an_upcast_is_computed_in_float64_throughout() -> None:
    network, inputs = _Upcasting(), torch.randn(2, 3)
    double, wide = network.double(), inputs.double()
    exact = double.linear(wide)
    assert not torch.equal(double(wide), exact)
    with float64_throughout():
        assert torch.equal(double(wide), exact)
    assert runs_in_float64(network, inputs)


def test_a_network_that_insists_on_float32_is_not_called_exact() -> None:
    network = nn.Linear(3, 3)
    table = torch.ones(3)  # no buffer, so nothing converts it
    network.register_forward_hook(lambda module, args, out: out * table[:])
    assert not runs_in_float64(network, torch.randn(2, 3))


def _teeth_of(network: nn.Module, inputs: Tensor) -> Teeth:
    graph = pg.capture(network, inputs)
    return bite(graph, Probe(network, graph, inputs))


def test_a_group_permuted_in_one_tensor_is_noticed_in_each() -> None:
    network, inputs = _mlp()
    teeth = _teeth_of(network, inputs)
    # Weight and bias of the hidden neurons, and the weight that reads them.
    assert (teeth.num_pairs, teeth.noticed, teeth.dead, teeth.unexplained) == (3, 3, [], [])


def test_a_weight_without_effect_is_called_dead() -> None:
    """A bias before an instance norm cancels."""
    layers = [nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(3 * 16, 2)]
    network = randomise(nn.Sequential(*layers), 0)
    teeth = _teeth_of(network, torch.randn(3, 1, 6, 6))
    assert teeth.dead == ["0 in 0.bias"]
    assert teeth.noticed == 2
    assert teeth.unexplained == []


def test_a_permutation_without_effect_in_a_living_weight_is_not_explained() -> None:
    """Each row of the second weight counts the same, so its order is seen in no output."""

    def wiring(n: Wired, x: Tensor) -> Tensor:
        hidden = (n.first(x)[:, :, None] * n.second.exp()).sum(1)  # type: ignore[operator]
        return n.head(hidden)  # type: ignore[operator]

    parts: dict[str, Any] = {"first": nn.Linear(3, 5), "second": nn.Parameter(torch.randn(5, 4))}
    network = Wired(wiring, **parts, head=nn.Linear(4, 2))
    graph, inputs = pg.capture(network, torch.randn(4, 3)), torch.randn(4, 3)
    probe = Probe(network, graph, inputs)
    state = dict(probe.state)
    # Verified as free, but with these weights no permutation of the rows can be seen.
    state["second"] = state["second"][:1].expand(5, 4).clone()
    probe.state = state
    probe.reference = probe.outputs(state)
    teeth = bite(graph, probe)
    expected = [f"second in {name}" for name in ("first.bias", "first.weight", "second")]
    assert sorted(teeth.unexplained) == expected
    assert teeth.dead == []


def test_the_command_fails_when_the_check_is_blunt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_environment", dict)
    for noticed, code in ((97, 1), (98, 0)):
        row = Measurement("one", "a", max_error=0.0)
        row.teeth = Teeth(noticed + 2, noticed, [], ["0 in 0.bias", "2 in 2.bias"])
        monkeypatch.setattr(command, "run_all", lambda *_, row=row, **__: [row])
        assert command.main(["--out", str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert "FAILED 2 of 99 wrong permutations changed nothing" in printed
    report = (tmp_path / "coverage.md").read_text()
    assert "98/100, **2 unexplained**" in report
    assert "- one: `2 in 2.bias`" in report


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", A_DOZEN)
def test_a_model_type_is_captured_and_verified(title: str) -> None:
    pytest.importorskip("transformers")
    row = measure(all_architectures()[title])
    assert row.problems == []
    assert row.num_free
    assert row.teeth is not None
    assert row.teeth.noticed > 20
    assert row.teeth.unexplained == []
