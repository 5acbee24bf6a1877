"""The benchmark of speed: what it counts, how it measures, what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import paramgraph as pg
from benchmarks import roofline, speed, speed_scaling, speed_stages
from benchmarks.measuring import interleaved, peak_in_a_process, peak_of
from benchmarks.roofline import Layout, ideal_step
from benchmarks.speed_claims import Claim, claims
from benchmarks.speed_cuda import cuda_lines, on_device
from benchmarks.speed_document import claim_table, latest_stages, render, stage_tables
from benchmarks.speed_networks import NETWORKS, make_networks
from benchmarks.speed_rows import ROWS, make_subject
from benchmarks.speed_scaling import exponent, largest_width, num_parameters, scaling_lines
from benchmarks.speed_stages import REFERENCES, Plan

ROOT = Path(__file__).resolve().parent.parent

# --- measuring


def test_tasks_run_in_turns() -> None:
    ran: list[str] = []
    tasks = {name: lambda name=name: ran.append(name) for name in "ab"}
    found = interleaved(tasks, seconds=0.0, least_repeats=2)
    assert "".join(ran) == "ab" + "abab"  # a warm-up, then two turns
    assert {name: timing.repeats for name, timing in found.items()} == {"a": 2, "b": 2}


def test_the_longer_task_takes_longer() -> None:
    x = torch.randn(300, 300)
    tasks = {"one": lambda: x @ x, "many": lambda: [x @ x for _ in range(20)]}
    found = interleaved(tasks, seconds=0.1)
    assert found["many"].cpu_ms > 5 * found["one"].cpu_ms
    assert found["many"].wall_ms > 5 * found["one"].wall_ms


def test_the_peak_is_what_was_held_at_once_not_what_is_left() -> None:
    def hold(num_mb: int) -> int:
        return len(torch.ones(num_mb * 2**18))  # float32; freed at once

    assert peak_of(lambda: hold(1)).mb < 16
    peak = peak_of(lambda: hold(64))
    assert 60 < peak.mb < 96
    twice = peak_of(lambda: [hold(64), hold(64)])
    assert 60 < twice.mb < 96
    assert peak_of(lambda: hold(1)).mb < 16  # what was before does not count


def test_a_row_in_a_process_of_its_own_and_one_that_needs_too_much() -> None:
    request = {"row": "flat MLP", "networks": "large-300", "num": 1, "stages": ["forward", "train"]}
    found = peak_in_a_process(request)
    assert found["num_parameters"] == num_parameters(300, 300)
    # A gradient of the first layer alone has 256 numbers per parameter of the network.
    assert found["train"]["peak_mb"] > found["num_parameters"] * 4 * 256 / 2**20 * 0.9
    assert found["train"]["peak_mb"] > 2 * found["forward"]["peak_mb"]
    failed = peak_in_a_process({**request, "limit_gb": 0.01})
    assert list(failed) == ["failed"]
    assert failed["failed"]


# --- roofline


def test_edges_are_counted_in_both_directions() -> None:
    layout = Layout((2, 32, 32, 1), 64, 32)
    spec = pg.zoo.Siren()
    graph = pg.capture(spec.build(), spec.example_inputs())
    batch = pg.collate([(graph, graph.features(spec.sample_parameters(64)))])
    assert layout.num_directed == 2 * batch.num_edges
    assert layout.num_neurons == batch.num_neurons
    assert layout.num_into_outputs == 64 * 32


def test_products_of_a_step_follow_from_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "gemm_rate", lambda *_, **__: 1.0)
    monkeypatch.setattr(roofline, "pass_rate", lambda _: 1.0)
    layout = Layout((2, 32, 32, 1), 64, 32)
    d, edges, last = 32, layout.num_directed, layout.num_into_outputs
    encoder = 2 * 256 * d * edges
    layers = 6 * d * d * 2 * edges + 4 * d * d * edges + 6 * d * d * last
    neurons = 4 * 26 * d * d * layout.num_neurons
    found = {}
    for train in (False, True):
        items = ideal_step(layout, train=train)
        found[train] = 1e9 * sum(item.amount for item in items if item.unit == "GFLOP")
        assert all(item.ms == pytest.approx(1e3 * item.amount) for item in items)
    assert found[False] == pytest.approx(encoder + layers + neurons)
    assert found[True] == pytest.approx(2 * encoder + 3 * (layers + neurons))


def test_rates_are_measured() -> None:
    assert roofline.gemm_rate(8, 16) > 0.1
    assert roofline.gemm_rate(8, 16, over_rows=True) > 0.1
    for name in ("sin", "silu backward", "modulate", "reduce"):
        assert 0.001 < roofline.pass_rate(name) < 1000


# --- networks and rows


@pytest.mark.parametrize("name", ["inr", "cnn", "mixed", "large-8"])
def test_sets_of_networks_are_what_they_are_called(name: str) -> None:
    networks = make_networks(name, 8)
    batch = networks.batch()
    assert batch.num_networks == networks.num
    assert len(batch.parts) == len(networks.families)
    assert name.split("-")[0] in NETWORKS
    first = next(iter(networks.families[0].states.values()))
    if networks.num > 1 and len(first) > 1:  # weights differ between networks of a family
        assert not torch.equal(first[0], first[1])


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"named 'rnn'; choose one of inr, cnn"):
        make_networks("rnn")
    networks = make_networks("cnn", 8)
    with pytest.raises(ValueError, match="no row is named 'NG'"):
        make_subject("NG", networks)
    with pytest.raises(ValueError, match=r"NG-T reads inr and large, but the networks are 'cnn'"):
        make_subject("NG-T", networks)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="leave out the stage 'cuda'"):
            cuda_lines("forward", Plan(("inr",), ("StatNN",)))


def test_no_stage_measures_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def probe(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["row"])
        return {"failed": "no memory"}

    monkeypatch.setattr(speed_stages, "peak_in_a_process", probe)
    plan = Plan(("inr",), ("StatNN", "GMN"), num=2)
    assert speed_stages.row_tables([], plan) == {}
    assert asked == []
    (first, second) = speed_stages.row_tables(["train"], plan)["train"]
    assert first == {"networks": "inr", "row": "StatNN", "failed": "no memory"}
    assert asked == ["StatNN", second["row"]] == ["StatNN", "GMN"]


def test_every_reference_reads_its_networks() -> None:
    assert set(REFERENCES) == set(NETWORKS)
    assert all(ROWS[row].can_read(name) for name, row in REFERENCES.items())


def test_networks_on_a_device_are_the_same_networks() -> None:
    networks = make_networks("inr", 2)
    moved = on_device(networks, torch.device("cpu"))
    expected = make_subject("NG-GNN d=32", networks).forward()
    for row in ("NG-GNN d=32", "NG-GNN d=32, published twin"):
        found = make_subject(row, moved, device=torch.device("cpu")).forward()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_on_a_gpu() -> None:
    plan = Plan(("inr",), ("StatNN", "NG-GNN d=32", "NG-GNN d=32, published twin", "NG-T"), num=2)
    for found in cuda_lines("train", plan, repeats=2):
        assert found["gpu_ms"] > 0
        assert found["peak_mb"] > 0


# --- scaling


def test_largest_network_is_the_largest_that_fits() -> None:
    line = {"row": "x", "points": [{"width": 512, "kb_per_parameter": 0.5}]}
    found = largest_width(line, memory_gb=16)
    assert found is not None
    width, fitting = found["width"], 16 * 2**20 / 0.5
    assert num_parameters(width, 2 * width) <= fitting < num_parameters(width + 1, 2 * width + 2)
    assert largest_width({"row": "x", "points": []}) is None


def test_number_of_parameters_is_that_of_the_network() -> None:
    spec = pg.zoo.Siren(widths=(5, 7), out_dim=3)
    assert num_parameters(5, 7) == sum(p.numel() for p in spec.build().parameters())


def test_a_row_ends_where_a_step_is_too_long_or_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(request: dict[str, Any], **_: Any) -> dict[str, Any]:
        num = int(request["networks"].split("-")[1]) ** 2
        if request["row"] == "GMN" and num > 100**2:
            return {"failed": "out of memory"}
        return {"num_parameters": num, "train": {"cpu_s": 1e-4 * num, "peak_mb": 1e-3 * num}}

    monkeypatch.setattr(speed_scaling, "peak_in_a_process", probe)
    widths = (32, 64, 128, 256, 512)
    lines = scaling_lines(["NG-T", "GMN"], widths=widths, limit_gb=1, most_seconds=7)
    assert [[p["width"] for p in line["points"]] for line in lines] == [
        [32, 64, 128, 256],
        [32, 64],
    ]
    assert lines[0]["stopped"] == "H = 512 would take more than 7 s"
    assert lines[1]["stopped"] == "H = 128: out of memory"
    assert lines[0]["exponent_cpu_s"] == pytest.approx(1)
    assert lines[0]["points"][0]["kb_per_parameter"] == pytest.approx(1.024)
    assert lines[1]["exponent_cpu_s"] is None
    points = [{"width": 2**n, "num_parameters": 4**n, "cpu_s": 1 + 8.0**n} for n in range(12)]
    assert exponent(points, "cpu_s", least_width=256) == pytest.approx(1.5, abs=1e-3)
    assert exponent(points, "cpu_s") != pytest.approx(1.5, abs=1e-2)


# --- promises


def line(row: str, cpu_ms: float, peak_mb: float, num: int = 64) -> dict[str, Any]:
    return {"networks": "inr", "row": row, "num": num, "cpu_ms": cpu_ms, "peak_mb": peak_mb}


def test_promises_say_whether_they_are_kept_at_their_batch_size() -> None:
    stages = {
        "train": [
            line("NG-GNN d=32", 100.0, 30.0),
            line("NG-GNN d=32, published twin", 600.0, 100.0),
            line("NG-GNN d=32, PyG twin", 290.0, 90.0),
            line("NG-T", 20.0, 20.0, num=16),
            line("NG-T, dense twin", 100.0, 200.0, num=16),
            line("operator, 4 rounds", 1.0, 1.0, num=8),  # promised for batches of 64
            {"networks": "inr", "row": "operator, 1 round", "failed": "killed"},
        ],
        "roofline": {"steps": [{"row": "NG-GNN d=32", "stage": "train", "ideal_ms": 71.0}]},
    }
    found = {claim.name: (claim.value, claim.is_met) for claim in claims(stages)}
    assert found == {
        "train: NG-GNN d=32 faster than NG-GNN d=32, published twin": (6.0, True),
        "train: NG-GNN d=32 faster than NG-GNN d=32, PyG twin": (2.9, False),
        "peak memory, train: NG-GNN d=32 over NG-GNN d=32, published twin": (0.3, False),
        "train: NG-T faster than NG-T, dense twin": (5.0, True),
        "peak memory, train: NG-T over NG-T, dense twin": (0.1, True),
        "train: NG-GNN d=32, part of the roofline": (0.71, True),
    }
    text = "\n".join(claim_table([Claim("a", 2.0, ">=", 3.0), Claim("b", 2.0, "<=", 3.0)]))
    assert "| a | 2 | >= 3 | **missed** |" in text
    assert "| b | 2 | <= 3 | kept |" in text


def test_scaling_and_throughput_have_promises_too() -> None:
    points = [{"width": width, "kb_per_parameter": 0.1} for width in (512, 1024)]
    slopes = {f"exponent_{q}{end}": 1.2 for q in ("cpu_s", "peak_mb") for end in ("", "_from_256")}
    row = "NG-GNN d=32, edges recomputed"
    stages: dict[str, Any] = {
        "scaling": [{"row": row, "points": points, **slopes}],
        "epoch": [
            {"row": "NG-GNN d=32", "num_threads": n, "per_second": 100.0 * n} for n in (1, 2)
        ],
    }
    found = [(claim.target, claim.is_met) for claim in claims(stages)]
    assert found == [(0.2, True), *[(0.1, False)] * 4, (4096, True), (250.0, False)]
    stages["largest"] = [{"row": row, "width": 4096, "second": 8192, "failed": "killed"}]
    assert [claim.value for claim in claims(stages) if "ran in 16 GB" in claim.name] == [0]
    del stages["largest"]
    stages["scaling"][0]["points"] = points[:1]  # too small for a statement about size
    assert [claim.target for claim in claims(stages)] == [0.2, 250.0]


# --- the command and its document


def test_a_run_is_recorded_and_a_narrow_one_writes_no_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"results": tmp_path / "bench.jsonl", "document": tmp_path / "speed.md"}
    words = ["--quick", "--networks", "inr", "--rows", "StatNN", "--num", "2", "--json"]
    words += [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    words += [word for stage in ("collate", "train") for word in ("--stage", stage)]
    assert speed.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    (recorded,) = map(json.loads, paths["results"].read_text().splitlines())
    assert recorded == {key: value for key, value in printed.items() if key != "claims"}
    assert list(recorded["stages"]) == ["collate", "train"]
    (found,) = recorded["stages"]["train"]
    assert (found["row"], found["num"], found["reference"]) == ("StatNN", 2, "StatNN")
    assert found["cpu_ms"] > 0
    assert found["times_faster"] == 1
    assert recorded["environment"]["versions"]["torch"] == torch.__version__
    assert not recorded["is_complete"]
    assert not paths["document"].exists()
    assert "| StatNN | 2 |" in "\n".join(stage_tables(recorded["stages"]))


def test_a_promise_not_kept_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [line("NG-GNN d=32", 1.0, 1.0), line("NG-GNN d=32, PyG twin", 2.0, 100.0)]
    for lines, code in ((slow, 1), (slow[:1], 0)):
        record = {"stages": {"train": lines_of(lines)}, "is_complete": False}
        monkeypatch.setattr(speed, "measure", lambda _, record=record: record)
        assert speed.main(["--check", "--json", "--no-record"]) == code
        assert speed.main(["--json", "--no-record"]) == 0


def lines_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**found, "times_faster": 1.0, "reference": "x"} for found in lines]


def test_a_row_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--rows", "nothing like it"])
    assert "no row contains nothing like it; rows: operator, 1 round" in capsys.readouterr().err


def test_each_stage_is_shown_from_its_last_complete_run(tmp_path: Path) -> None:
    results = tmp_path / "bench.jsonl"
    records = [
        {"is_complete": True, "time": "1", "stages": {"forward": ["old"], "train": ["old"]}},
        {"is_complete": True, "time": "2", "stages": {"train": ["new"]}},
        {"is_complete": False, "time": "3", "stages": {"train": ["narrow"]}},
    ]
    results.write_text("".join(json.dumps(record) + "\n" for record in records))
    stages, of_stage = latest_stages(results)
    assert stages == {"forward": ["old"], "train": ["new"]}
    assert {name: record["time"] for name, record in of_stage.items()} == {
        "forward": "1",
        "train": "2",
    }


def test_the_document_says_what_the_results_say() -> None:
    document = ROOT / "docs/speed.md"
    assert document.read_text() == render(ROOT / "benchmarks/results/bench.jsonl"), (
        "docs/speed.md is not what the results give: run python -m benchmarks.speed_document"
    )
    picture = document.parent / "images/speed.png"
    assert picture.exists() == ("images/speed.png" in document.read_text())
