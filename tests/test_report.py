"""The demonstration from end to end on tiny zoos, its numbers, pictures and page."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_zoos import files_of, tiny_cnns, tiny_inrs
from torch import nn

from paramgraph.errors import CheckpointError, ParamGraphError, ZooError
from paramgraph.nn import CONFIGS, make_metanetwork
from paramgraph.report import DEMO_RUNS, DemoResult, environment, run_demo, to_json
from paramgraph.report.graph_picture import draw_graph
from paramgraph.report.html import html_table
from paramgraph.report.jobs import Job
from paramgraph.report.plain import number, table
from paramgraph.report.scores import accuracy_scores, mean_scores, verify_zoos
from paramgraph.tasks import TrainConfig, evaluate
from paramgraph.zoo import Zoo

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """One tiny demonstration."""
    for name in ("lightning", "matplotlib", "sklearn"):
        pytest.importorskip(name)
    out = tmp_path_factory.mktemp("demo") / "out"
    return run_demo(out, scale="tiny", seed=5, progress=False)


# --- the demonstration


def test_demo_writes_page_metrics_pictures_zoos_and_runs(demo: DemoResult) -> None:
    for name in ("scatter.png", "inrs.png", "learning_curves.png", "graph.png"):
        assert (demo.folder / name).read_bytes().startswith(PNG)
    assert {path.name for path in (demo.folder / "runs").iterdir()} == set(DEMO_RUNS)
    assert len(Zoo.open(demo.folder / "zoos" / "cnn")) == 36
    assert (demo.folder / "index.html").is_file()


def test_demo_metrics_have_their_keys_and_are_valid_json(demo: DemoResult) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no valid JSON")

    text = (demo.folder / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=refuse)
    for name in ("operator", "ng_gnn", "statnn", "mean"):
        scores = metrics["accuracy_prediction"][name]
        for key in ("kendall_tau", "r2"):
            for suffix in ("", "_unseen_architecture", "_unseen_run"):
                assert f"{key}{suffix}" in scores
    assert set(metrics["inr_classification"]) == {"operator", "ng_gnn", "flat_mlp"}
    assert metrics["accuracy_prediction"]["mean"]["kendall_tau"] is None
    assert metrics["num_networks"] == 132
    assert metrics["num_architectures"] == 4
    assert 0 <= metrics["verification"]["max_error"] < 1e-10
    assert metrics["seed"] == 5
    for stage in ("build_cnn_zoo", "build_inr_zoo", "capture", "total"):
        assert metrics["seconds"][stage] > 0
    for name in DEMO_RUNS:
        assert set(metrics["seconds"][name]) == {"wall", "cpu"}


def test_demo_scores_are_those_of_the_stored_metanetworks(demo: DemoResult) -> None:
    for name in DEMO_RUNS:
        task, metanetwork = name.split(".")
        zoo = Zoo.open(demo.folder / "zoos" / ("cnn" if task.startswith("acc") else "inr"))
        again = evaluate(demo.folder / "runs" / name, zoo)
        score = "kendall_tau" if task == "accuracy_prediction" else "accuracy"
        assert demo.metrics[task][metanetwork][score] == pytest.approx(again[score], nan_ok=True)


def test_page_loads_nothing_from_elsewhere(demo: DemoResult) -> None:
    page = (demo.folder / "index.html").read_text()
    assert re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:image/png;base64,)", page) == []
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "url(" not in page
    assert len(re.findall(r"src=\"data:image/png;base64,[A-Za-z0-9+/=]+\"", page)) == 4
    for name in ("operator (ours)", "NG-GNN", "StatNN", "flat MLP", "mean of training"):
        assert name in page
    assert str(demo.folder) not in page  # a page to show others names no folder of this machine


def test_demo_text_shows_the_metrics(demo: DemoResult) -> None:
    accuracy = demo.metrics["inr_classification"]["operator"]["accuracy"]
    assert f"{accuracy:.3f}" in demo.text
    assert "undefined" in demo.text  # tau of the constant prediction


def test_a_finished_demo_is_used_again(
    demo: DemoResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("no worker process is needed")

    monkeypatch.setattr("paramgraph.report.jobs.ProcessPoolExecutor", fail)
    before = files_of(demo.folder / "runs")
    again = run_demo(demo.folder, scale="tiny", seed=5)
    assert again.metrics["reused_runs"] == list(DEMO_RUNS)
    assert again.metrics["inr_classification"] == demo.metrics["inr_classification"]
    assert files_of(demo.folder / "runs") == before
    assert "finished before, reused" in capsys.readouterr().err


def test_another_demo_in_the_same_folder_is_refused(demo: DemoResult) -> None:
    before = files_of(demo.folder)
    with pytest.raises(CheckpointError, match=r"'seed': 5.*'seed': 6"):
        run_demo(demo.folder, scale="tiny", seed=6, progress=False)
    assert files_of(demo.folder) == before


@pytest.mark.parametrize(
    ("options", "message"), [({"scale": "huge"}, "huge"), ({"num_workers": 0}, "got 0")]
)
def test_demo_refuses_bad_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=message):
        run_demo(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_demo_refuses_a_file_in_the_place_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ParamGraphError, match=r"cannot make the folder .*/out"):
        run_demo(tmp_path / "out", scale="tiny")
    assert (tmp_path / "out").read_text() == "mine"


def test_every_demo_run_can_be_built() -> None:
    for config in DEMO_RUNS.values():
        assert config.metanetwork in CONFIGS
        assert make_metanetwork(config.metanetwork, 1, **config.options).out_dim == 1


# --- jobs


def test_a_job_belongs_to_its_settings_and_its_zoo(tmp_path: Path, demo: DemoResult) -> None:
    name = "accuracy_prediction.statnn"
    stored = json.loads((demo.folder / "runs" / name / "job.json").read_text())
    zoo = demo.folder / "zoos" / "cnn"
    config = TrainConfig(**stored["config"])
    folder = demo.folder / "runs" / name
    assert Job(name, zoo, "accuracy-prediction", config, folder).is_finished
    other = TrainConfig(**{**stored["config"], "epochs": 3})
    assert not Job(name, zoo, "accuracy-prediction", other, folder).is_finished
    assert not Job(name, tiny_cnns().path, "accuracy-prediction", config, folder).is_finished
    assert not Job(name, zoo, "accuracy-prediction", config, tmp_path).can_resume


# --- scores


def test_scores_by_part_split_the_test_networks(tmp_path: Path) -> None:
    test = tiny_cnns().split("test")
    target = test.column("test_accuracy")
    unseen = test.column("unseen_architecture").astype(bool)
    assert 0 < unseen.sum() < len(unseen)
    # Perfect on unseen architectures, reversed elsewhere.
    prediction = np.where(unseen, target, 1 - target)
    stored = {"prediction": prediction.tolist(), "target": target.tolist()}
    (tmp_path / "predictions.json").write_text(json.dumps(stored))
    scores = accuracy_scores(tmp_path, tiny_cnns())
    assert scores["kendall_tau_unseen_architecture"] == pytest.approx(1.0)
    assert scores["r2_unseen_architecture"] == pytest.approx(1.0)
    assert scores["kendall_tau_unseen_run"] == pytest.approx(-1.0)
    assert -1 < scores["kendall_tau"] < 1


def test_the_mean_has_no_tau_and_no_positive_r2() -> None:
    scores = mean_scores(tiny_cnns())
    assert math.isnan(scores["kendall_tau"])
    assert scores["r2"] <= 0
    mean = tiny_cnns().split("train").column("test_accuracy").mean()
    target = tiny_cnns().split("test").column("test_accuracy")
    assert scores["mae"] == pytest.approx(float(np.abs(target - mean).mean()))


def test_verification_covers_every_architecture() -> None:
    rows = verify_zoos([tiny_inrs(), tiny_cnns()])
    assert [row["architecture"] for row in rows] == [
        *tiny_inrs().architectures,
        *tiny_cnns().architectures,
    ]
    assert all(row["num_free_groups"] >= 1 for row in rows)
    # 2-10-10-1: (10!)^2 permutations.
    assert rows[0]["log10_permutations"] == pytest.approx(2 * math.log10(math.factorial(10)))


# --- text and pictures


def test_json_has_null_where_there_is_no_number() -> None:
    value = {"a": float("nan"), "b": [np.float32(0.5), float("inf")], "c": Path("x")}
    assert json.loads(to_json(value)) == {"a": None, "b": [0.5, None], "c": "x"}


def test_tables_are_aligned_and_escaped() -> None:
    lines = table([("name", "n"), ("a", "100"), ("bbbbbb", "1")]).splitlines()
    assert {len(line) for line in lines} == {11}
    assert number(None) == "undefined"
    assert "<i>" not in html_table([("<i>",), ("&",)])


def test_environment_tells_versions() -> None:
    assert environment()["versions"]["torch"] == torch.__version__


def test_graph_picture_has_a_circle_per_neuron_and_a_line_per_edge() -> None:
    pytest.importorskip("matplotlib")
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    axis = draw_graph(network, torch.randn(5, 3)).axes[0]
    assert len(axis.lines) == 3 + 4 + 2
    assert sum(len(lines.get_segments()) for lines in axis.collections) == 3 * 4 + 4 * 2


def test_graph_picture_colours_show_the_sign() -> None:
    pytest.importorskip("matplotlib")
    network = nn.Linear(2, 1, bias=False)
    network.weight.data.copy_(torch.tensor([[1.0, -3.0]]))
    (lines,) = draw_graph(network, torch.randn(5, 2)).axes[0].collections
    (red_1, _, blue_1, _), (red_2, _, blue_2, _) = lines.get_colors()
    assert blue_1 > red_1
    assert red_2 > blue_2
    assert lines.get_linewidths()[1] > lines.get_linewidths()[0]
