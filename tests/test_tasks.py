"""Tasks: metrics, batches, weight noise, and training that can be stopped and resumed."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from networks import HAZARDS, as_double, outputs
from tiny_zoos import files_of, tiny_cnns, tiny_inrs, zoo_with_nan
from torch import Tensor

from paramgraph.batch import collate
from paramgraph.capture import capture
from paramgraph.errors import CheckpointError, ZooError
from paramgraph.nn import Metanetwork, make_metanetwork
from paramgraph.structure import EdgeKind, ScaleKind
from paramgraph.tasks import (
    AccuracyPrediction,
    EpochOrder,
    InrClassification,
    RunResult,
    TrainConfig,
    capture_zoo,
    evaluate,
    load_networks,
    make_task,
    predict_all,
    train,
)
from paramgraph.tasks.augment import add_weight_noise, flip_signs
from paramgraph.tasks.task import regression_metrics
from paramgraph.zoo import CNN, Zoo

# Dropout and weight noise draw random numbers in every step.
CONFIG = TrainConfig(
    "operator",
    options={"hidden_dim": 8, "num_rounds": 1, "dropout": 0.1},
    epochs=4,
    batch_size=16,
    weight_noise=0.05,
    seed=3,
    num_threads=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """An undisturbed run."""
    pytest.importorskip("lightning")
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return train(tiny_inrs(), "inr-classification", CONFIG, out=folder, progress=False)


# --- metrics


def tau_b(p: list[float], y: list[float]) -> float:
    """Kendall's tau-b by its definition, pair by pair."""
    concordant, ties_p, ties_y, num = 0, 0, 0, 0
    for (a, b), (c, d) in itertools.combinations(zip(p, y, strict=True), 2):
        sign = (a > c) - (a < c), (b > d) - (b < d)
        concordant += sign[0] * sign[1]
        ties_p += sign[0] == 0
        ties_y += sign[1] == 0
        num += 1
    return concordant / math.sqrt((num - ties_p) * (num - ties_y))


def test_regression_metrics_equal_their_definitions() -> None:
    p = [0.1, 0.4, 0.4, 0.9, 0.3, 0.2]
    y = [0.0, 0.5, 0.3, 0.3, 0.9, 0.1]
    measured = regression_metrics(torch.tensor(p), torch.tensor(y))
    mean = sum(y) / len(y)
    residual = sum((a - b) ** 2 for a, b in zip(p, y, strict=True))
    assert measured["kendall_tau"] == pytest.approx(tau_b(p, y))
    assert measured["kendall_tau"] == pytest.approx(scipy.stats.kendalltau(p, y).statistic)
    assert measured["r2"] == pytest.approx(1 - residual / sum((b - mean) ** 2 for b in y))
    assert measured["mae"] == pytest.approx(
        sum(abs(a - b) for a, b in zip(p, y, strict=True)) / len(y)
    )


def test_equal_predictions_have_no_tau_and_equal_targets_no_r2() -> None:
    same, different = torch.full((4,), 0.5), torch.tensor([0.1, 0.2, 0.3, 0.8])
    assert math.isnan(regression_metrics(same, different)["kendall_tau"])
    assert math.isnan(regression_metrics(different, same)["r2"])


def test_accuracy_prediction_reads_logits() -> None:
    output, target = torch.tensor([[0.0], [2.0]]), torch.tensor([0.5, 0.25])
    task = AccuracyPrediction()
    p = [0.5, 1 / (1 + math.exp(-2))]
    assert task.predict(output).tolist() == pytest.approx(p)
    expected = -sum(
        t * math.log(q) + (1 - t) * math.log(1 - q) for q, t in zip(p, [0.5, 0.25], strict=True)
    )
    assert float(task.loss(output, target)) == pytest.approx(expected / 2)


def test_inr_classification_counts_correct_classes() -> None:
    output = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [1.0, 0.0, 0.0]])
    metrics = InrClassification(3).metrics(output, torch.tensor([0, 1, 1, 2]))
    assert metrics["accuracy"] == 0.5
    logs = [output[i].logsumexp(0) - output[i, y] for i, y in enumerate((0, 1, 1, 2))]
    assert metrics["loss"] == pytest.approx(float(torch.stack(logs).mean()))


# --- tasks and zoos


def test_make_task_counts_the_classes_of_the_zoo() -> None:
    assert make_task("inr-classification", tiny_inrs()).out_dim == 10
    assert make_task("accuracy-prediction", tiny_cnns()).label == "test_accuracy"


@pytest.mark.parametrize(
    ("name", "message"),
    [("inr-clasification", "'inr-clasification'"), ("accuracy-prediction", "'test_accuracy'")],
)
def test_task_refuses_an_unknown_name_and_a_zoo_of_another_kind(name: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        make_task(name, tiny_inrs())


def test_networks_with_nan_are_refused_with_their_row(tmp_path: Path) -> None:
    zoo = Zoo.open(zoo_with_nan(tiny_inrs(), tmp_path))
    with pytest.raises(ZooError, match=r"1 networks of .* at row 3 of weights-00000"):
        load_networks(zoo, "label", capture_zoo(zoo))


def test_an_architecture_without_a_graph_is_refused() -> None:
    with pytest.raises(ZooError, match=r"'cnn-.*' of the zoo was not captured"):
        load_networks(tiny_cnns(), "test_accuracy", {})


@torch.no_grad()
def test_predictions_of_mixed_architectures_come_in_the_order_of_the_zoo() -> None:
    zoo = tiny_cnns().select(torch.randperm(len(tiny_cnns())).numpy())
    graphs = capture_zoo(zoo)
    networks = load_networks(zoo, "test_accuracy", graphs)
    metanetwork = make_metanetwork("operator", 2, hidden_dim=8).eval()
    together = predict_all(metanetwork, networks, batch_size=7)
    names = zoo.column("architecture")
    for i in range(len(zoo)):
        graph = graphs[names[i]]
        alone = metanetwork(collate([(graph, graph.features(zoo.state_dict(i)))]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert float(together.std(0).max()) > 1e-3  # a wrong order would be noticed


def test_targets_stand_beside_their_networks() -> None:
    zoo = tiny_cnns()
    networks = load_networks(zoo, "test_accuracy", capture_zoo(zoo))
    _, numbers = networks.batch(torch.tensor([35, 0, 20, 13]))
    assert sorted(numbers.tolist()) == [0, 13, 20, 35]
    expected = torch.as_tensor(zoo.column("test_accuracy")).float()
    assert torch.equal(networks.target, expected)


# --- batches


ARCHITECTURE = torch.tensor([0, 1, 2, 1, 0] * 10)


def test_epoch_order_visits_every_network_once_and_differs_between_epochs() -> None:
    order = EpochOrder(ARCHITECTURE, 8, seed=1)
    first = list(order)
    assert [len(numbers) for numbers in first] == [8] * 6 + [2]
    assert len(order) == 7
    assert sorted(itertools.chain(*first)) == list(range(50))
    order.set_epoch(1)
    assert list(order) != first


def test_epoch_order_is_a_function_of_seed_and_epoch() -> None:
    first, second, other = (EpochOrder(ARCHITECTURE, 8, seed=seed) for seed in (1, 1, 2))
    for order in (first, second, other):
        order.set_epoch(5)
    list(first)  # reading it draws nothing from a hidden state
    assert list(first) == list(second)
    assert list(first) != list(other)


def _residual_batch() -> Any:
    spec = CNN(widths=(4, 4), kernel_sizes=(3, 3), norm="batch", residual=True)
    network = spec.build()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    graph = capture(network, spec.example_inputs())
    return collate([(graph, graph.features(network.state_dict()))])


def test_weight_noise_leaves_skips_and_variances_alone() -> None:
    batch = _residual_batch()
    before = [bucket.values.clone() for bucket in batch.buckets], batch.neuron_values.clone()
    noisy = add_weight_noise(batch, 0.1)
    kinds = [bucket.kind for bucket in batch.buckets]
    assert EdgeKind.SKIP in kinds
    for old, new in zip(batch.buckets, noisy.buckets, strict=True):
        assert torch.equal(old.values, new.values) == (old.kind is EdgeKind.SKIP)
    assert torch.equal(noisy.neuron_values[:, 2], batch.neuron_values[:, 2])
    assert batch.neuron_values[:, 2].any()
    for column in (0, 1):
        changed = noisy.neuron_values[:, column] != batch.neuron_values[:, column]
        assert torch.equal(changed, batch.neuron_values[:, column] != 0)
    # The batch that was given is as it was.
    for old, bucket in zip(before[0], batch.buckets, strict=True):
        assert torch.equal(old, bucket.values)
    assert torch.equal(before[1], batch.neuron_values)


@pytest.mark.parametrize(
    "name", ["siren", "mixed_activations", "cnn_1d", "resnet", "batch_norm_without", "tied"]
)
def test_flipped_signs_keep_the_function(name: str) -> None:
    hazard = next(h for h in HAZARDS if h.name.startswith(name))
    network, inputs = hazard.make().double().eval(), as_double(hazard.example_inputs)
    graph = capture(network, inputs)
    before = outputs(network, inputs)
    values = graph.features([network.state_dict()] * 8)
    kept = [block.clone() for block in values.blocks]
    torch.manual_seed(0)
    flipped = graph.write_back(flip_signs(graph, values))
    for row in range(8):
        network.load_state_dict({k: v[row] for k, v in flipped.items()}, strict=False)
        for old, new in zip(before, outputs(network, inputs), strict=True):
            assert torch.allclose(old, new, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(kept, values.blocks, strict=True))
    # Each network gets its own signs, wherever there is a sign to choose.
    has_sign = any(group.kind is ScaleKind.SIGN for group in graph.scale_groups)
    several = any(len(p.flatten(1).unique(dim=0)) > 1 for p in flipped.values())
    assert several == has_sign


def test_weight_noise_is_as_large_as_asked() -> None:
    batch = _residual_batch()
    noisy = add_weight_noise(batch, 0.1)
    changes = [
        (new.values / old.values - 1).flatten()
        for old, new in zip(batch.buckets, noisy.buckets, strict=True)
        if old.kind is EdgeKind.CONV
    ]
    assert 0.08 < float(torch.cat(changes).std()) < 0.12
    assert add_weight_noise(batch, 0.0) is batch


# --- training


def _csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _weights(folder: Path) -> dict[str, Tensor]:
    return Metanetwork.load_file(folder / "best.safetensors")[0].state_dict()


def test_a_run_writes_its_folder(run: RunResult) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {
        "best.safetensors",
        "checkpoints",
        "config.json",
        "learning_curve.png",
        "metrics.csv",
        "metrics.json",
        "predictions.json",
        "predictions.png",
    }
    rows = _csv(run.folder)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    best = max(float(row["val/accuracy"]) for row in rows)
    assert run.metrics["val"]["accuracy"] == best
    stored = json.loads((run.folder / "metrics.json").read_text())
    assert stored["test"] == run.metrics["test"]
    assert 0 < run.seconds["cpu"]


def test_predictions_give_the_stored_accuracy(run: RunResult) -> None:
    stored = json.loads((run.folder / "predictions.json").read_text())
    assert stored["target"] == tiny_inrs().split("test").column("label").tolist()
    hits = [p == y for p, y in zip(stored["prediction"], stored["target"], strict=True)]
    assert run.metrics["test"]["accuracy"] == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluate_repeats_the_metrics_of_the_run(run: RunResult, split: str) -> None:
    assert evaluate(run.folder, tiny_inrs(), split=split) == pytest.approx(run.metrics[split])


def test_evaluate_all_is_the_mean_over_the_splits(run: RunResult) -> None:
    zoo = tiny_inrs()
    hits = sum(
        run.metrics[split]["accuracy"] * len(zoo.split(split)) for split in ("train", "val", "test")
    )
    assert evaluate(run.folder, zoo, split="all")["accuracy"] == pytest.approx(hits / len(zoo))


def test_a_resumed_run_equals_the_undisturbed_one(
    run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paramgraph.tasks import lightning

    folder = tmp_path / "interrupted"
    end_of_epoch = lightning._Module.on_train_epoch_end

    def killed(module: Any) -> None:
        if module.current_epoch == 2:
            raise RuntimeError("killed")
        end_of_epoch(module)

    with monkeypatch.context() as patch:
        patch.setattr(lightning._Module, "on_train_epoch_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny_inrs(), "inr-classification", CONFIG, out=folder, progress=False)
    assert len(_csv(folder)) == 2
    torch.manual_seed(1234)  # another process would have another random state
    resumed = train(
        tiny_inrs(), "inr-classification", CONFIG, out=folder, resume=True, progress=False
    )
    assert (folder / "metrics.csv").read_bytes() == (run.folder / "metrics.csv").read_bytes()
    assert resumed.metrics == run.metrics
    first, second = _weights(run.folder), _weights(folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_epoch_is_kept_and_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []

    def worse_each_time(self: InrClassification, output: Tensor, _: Tensor) -> dict[str, float]:
        calls.append(output)
        return {"accuracy": 1 / len(calls)}

    monkeypatch.setattr(InrClassification, "metrics", worse_each_time)
    folder = tmp_path / "run"
    config = replace(CONFIG, epochs=3)
    train(tiny_inrs(), "inr-classification", config, out=folder, progress=False)
    kept = _weights(folder)
    for name, is_kept in (("best", True), ("last", False)):
        stored = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert stored["epoch"] == (0 if is_kept else 2)
        same = [torch.equal(kept[key], stored["state_dict"][f"metanetwork.{key}"]) for key in kept]
        assert all(same) == is_kept


def test_every_epoch_has_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paramgraph.tasks import lightning

    seen: dict[int, list[int]] = {}
    step = lightning._Module.training_step

    def spy(module: Any, prepared: Any, index: int) -> Tensor:
        seen.setdefault(module.current_epoch, []).extend(prepared.numbers.tolist())
        return step(module, prepared, index)

    monkeypatch.setattr(lightning._Module, "training_step", spy)
    config = replace(CONFIG, epochs=3)
    train(tiny_inrs(), "inr-classification", config, out=tmp_path / "run", progress=False)
    everyone = list(range(len(tiny_inrs().split("train"))))
    assert [sorted(numbers) for numbers in seen.values()] == [everyone] * 3
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_the_seed_decides_the_run(run: RunResult, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    runs = [
        train(
            tiny_inrs(),
            "inr-classification",
            replace(config, seed=seed),
            out=tmp_path / name,
            progress=False,
        )
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, same, other = (_weights(result.folder) for result in runs)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(run: RunResult) -> None:
    before = files_of(run.folder)
    with pytest.raises(CheckpointError, match="undisturbed already holds a run"):
        train(tiny_inrs(), "inr-classification", CONFIG, out=run.folder, progress=False)
    with pytest.raises(CheckpointError, match=r"'epochs': \(4, 5\)"):
        train(
            tiny_inrs(),
            "inr-classification",
            replace(CONFIG, epochs=5),
            out=run.folder,
            resume=True,
            progress=False,
        )
    assert files_of(run.folder) == before


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume: .*/none has no"):
        train(tiny_inrs(), "inr-classification", CONFIG, out=tmp_path / "none", resume=True)
    assert files_of(tmp_path) == {}


def test_a_bad_zoo_leaves_no_run_folder(tmp_path: Path) -> None:
    zoo = Zoo.open(zoo_with_nan(tiny_inrs(), tmp_path))
    with pytest.raises(ZooError, match="not finite in"):
        train(zoo, "inr-classification", CONFIG, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished run"):
        evaluate(tmp_path, tiny_inrs())


def test_evaluate_refuses_a_zoo_of_another_kind(run: RunResult) -> None:
    with pytest.raises(ZooError, match="'label'"):
        evaluate(run.folder, tiny_cnns())
