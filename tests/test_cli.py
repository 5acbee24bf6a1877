"""The command line: every command once, its help, its JSON, and what it refuses."""

from __future__ import annotations

import json
import pickle
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_zoos import files_of, tiny_cnns, tiny_inrs, zoo_with_nan
from torch import nn

pytest.importorskip("jsonargparse")

import paramgraph
from paramgraph.cli import COMMANDS, main
from paramgraph.cli.sources import example_tensors
from paramgraph.storage import save_tensors

TRAIN = ["--epochs", "1", "--options.hidden_dim", "8", "--num-threads", "1", "--batch-size", "16"]


class _Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
        )


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.fixture(autouse=True)
def _user_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of a user, importable as ``user_networks``."""
    module: Any = types.ModuleType("user_networks")
    module.Convolutions = _Convolutions
    module.perceptron = _perceptron
    module.instance = _perceptron()
    module.number = 3
    monkeypatch.setitem(sys.modules, "user_networks", module)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    pytest.importorskip("lightning")
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["train", "--zoo", str(tiny_inrs().path), "--task", "inr-classification"]
    assert main([*words, "--out", str(folder), "--seed", "2", *TRAIN]) == 0
    return folder


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """The JSON object that a command prints, and nothing else."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_refused(
    capsys: pytest.CaptureFixture[str], words: Sequence[object], *parts: str
) -> None:
    """Exit code 2, one paragraph on stderr that holds all parts, nothing on stdout."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as error:  # flags are checked by the parser
        code = int(error.code or 0)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert "\n\n" not in err.strip()
    for part in parts:
        assert part in err


# --- help


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
def test_help_explains_the_command_with_an_example(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.words, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert command.summary in text
    assert "Example: paramgraph " + " ".join(command.words) in text
    assert "--json" in text
    assert "lambda" not in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
def test_the_example_of_the_help_fits_the_flags(command: Any) -> None:
    from paramgraph.cli.command import make_parser, parse

    words = command.example.split()
    assert words[0] == "paramgraph"
    found, _ = parse(make_parser(COMMANDS), COMMANDS, words[1:])
    assert found is command


def test_main_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("demo", "inspect", "zoo", "train", "eval"):
        assert f"\n    {word} " in text


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert paramgraph.__version__ in capsys.readouterr().out


# --- inspect


@pytest.mark.parametrize("name", ["perceptron", "instance"])
def test_inspect_a_network_of_the_user(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "inspect", f"user_networks:{name}", "--input-shape", "4x3")
    assert found["num_neurons"] == 3 + 5 + 2
    assert found["num_parameters"] == 3 * 5 + 5 + 5 * 2 + 2
    assert found["verification"]["passed"] is True
    assert [group["size"] for group in found["axis_groups"] if group["free"]] == [5]


def test_inspect_prints_groups_and_verification(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "user_networks:Convolutions", "--input-shape", "2x1x4x4"]) == 0
    out = capsys.readouterr().out
    assert "_Convolutions: " in out
    assert "verification passed" in out


def test_inspect_a_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets_of_mine.py").write_text("import torch\ncnn = torch.nn.Conv2d(1, 2, 3)\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert answer(capsys, "inspect", "nets_of_mine:cnn", "--input-shape", "2x1x4x4")
    assert sys.path == before


def test_inspect_a_file_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, w=np.array([1.0, 3.0]), b=np.zeros(()))
    found = answer(capsys, "inspect", path)
    assert found["parameters"] == [
        {"name": "w", "shape": [2], "mean": 2.0, "std": 1.0},
        {"name": "b", "shape": [], "mean": 0.0, "std": 0.0},
    ]


def test_inspect_weights_with_their_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, _perceptron().state_dict())
    factory = ["--factory", "user_networks:perceptron", "--input-shape", "4x3"]
    found = answer(capsys, "inspect", path, *factory)
    assert found["verification"]["num_free_groups"] == 1
    assert len(found["parameters"]) == 4


def test_inspect_an_architecture_of_a_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(tiny_cnns().architectures))
    found = answer(capsys, "inspect", tiny_cnns().path, "--architecture", name)
    assert found["verification"]["passed"] is True


def test_example_inputs_have_the_shape_and_kind_asked_for() -> None:
    floats, whole = example_tensors(["4x3", "2x5:int"])
    assert (tuple(floats.shape), tuple(whole.shape)) == ((4, 3), (2, 5))
    assert floats.is_floating_point()
    assert not whole.is_floating_point()


# --- zoo, train, eval, demo


def test_build_inrs_with_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num", "20", "--views", "2", "--steps", "3", "--widths", "4", "5"]
    found = answer(capsys, "zoo", "build", "inrs", "--out", tmp_path / "zoo", *words)
    assert found["num_networks"] == 40
    assert set(found["splits"]) == {"train", "val", "test"}
    assert found["architectures"] == ["siren-2x4x5x1-omega3-offset0.5"]


def test_build_classifiers_from_a_file_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ["--num", "5", "--architectures", "2", "--unseen", "1", "--steps", "2"]
    found = answer(
        capsys, "zoo", "build", "classifiers", "--out", tmp_path / "zoo",
        "--images", tmp_path / "images.npz", *words, "--checkpoints", "0", "2",
    )  # fmt: skip
    dropped = found["info"]["counts"]["dropped"]
    assert found["num_networks"] + dropped == 2 * 5 * 2
    assert found["info"]["recipe"]["source"] == "images"


@pytest.mark.parametrize("kind", ["inrs", "classifiers"])
def test_without_settings_the_recipe_is_built(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["zoo", "build", kind, "--out", str(tmp_path / "zoo"), "--scale", "tiny"]
    found = answer(capsys, *words, "--seed", "0")
    expected = tiny_inrs() if kind == "inrs" else tiny_cnns()
    assert found["info"]["recipe"] == expected.info["recipe"]


def test_zoo_info(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "zoo", "info", tiny_inrs().path)
    assert found["num_networks"] == len(tiny_inrs())
    assert main(["zoo", "info", str(tiny_inrs().path)]) == 0
    assert "96 networks" in capsys.readouterr().out


def test_train_prints_only_json_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(
        capsys, "train", "--zoo", tiny_cnns().path, "--task", "accuracy-prediction",
        "--metanetwork", "statnn", "--out", tmp_path / "run", *TRAIN,
    )  # fmt: skip
    assert found["config"]["options"] == {"hidden_dim": 8}
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["metrics"]["test"] == stored["test"]
    assert found["config"]["epochs"] == 1


def test_eval_repeats_the_metrics(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "eval", run_folder, "--zoo", tiny_inrs().path, "--split", "val")
    stored = json.loads((run_folder / "metrics.json").read_text())
    assert found["metrics"] == pytest.approx(stored["val"])


def test_resume_of_a_finished_run_changes_no_result(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_folder / "metrics.csv").read_bytes()
    found = answer(
        capsys, "train", "--zoo", tiny_inrs().path, "--task", "inr-classification",
        "--out", run_folder, "--seed", "2", "--resume", *TRAIN,
    )  # fmt: skip
    assert (run_folder / "metrics.csv").read_bytes() == before
    assert found["metrics"]["test"] == json.loads((run_folder / "metrics.json").read_text())["test"]


def test_demo_hands_its_flags_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from paramgraph.report import DemoResult

    seen: dict[str, Any] = {}

    def record(out: str, **options: Any) -> DemoResult:
        print("noise of a library")
        seen.update(out=out, **options)
        return DemoResult(Path(out), {"tau": float("nan")}, "text")

    monkeypatch.setattr("paramgraph.cli.demo.run_demo", record)
    found = answer(capsys, "demo", "--out", "x", "--seed", "7", "--scale", "tiny", "--workers", "3")
    assert found == {"tau": None}
    assert seen == {"out": "x", "seed": 7, "scale": "tiny", "num_workers": 3}


# --- bad input: exit code 2, a message, nothing changed


def _truncated(folder: Path) -> Path:
    path = folder / "w.safetensors"
    save_tensors(path, _perceptron().state_dict())
    path.write_bytes(path.read_bytes()[:-20])
    return path


def _pickle(folder: Path) -> Path:
    path = folder / "w.pt"
    path.write_bytes(pickle.dumps({"w": print}))
    return path


def _nan(folder: Path) -> Path:
    path = folder / "w.safetensors"
    save_tensors(path, {"layer.weight": torch.tensor([1.0, torch.nan])})
    return path


@pytest.mark.parametrize(
    ("make", "part"),
    [(_truncated, "truncated"), (_pickle, "weights-only"), (_nan, "1 non-finite values")],
)
def test_inspect_refuses_a_damaged_file(
    make: Any, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)
    before = files_of(tmp_path)
    assert_refused(capsys, ["inspect", path], path.name, part)
    assert files_of(tmp_path) == before


def test_inspect_refuses_weights_of_another_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    wrong = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2), nn.Linear(2, 2))
    save_tensors(path, wrong.state_dict())
    words = ["inspect", path, "--factory", "user_networks:perceptron", "--input-shape", "4x3"]
    assert_refused(capsys, words, "'3.bias'", "'0.weight'", "expected (5, 3), got (6, 3)")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["user_networks:perceptron"], "--input-shape 4x3x8x8"),
        (["user_networks:perceptron", "--input-shape", "4xthree"], "'4xthree'"),
        (["user_networks:perceptron", "--input-shape", "4x7"], "4x7"),
        (["user_networks:gone", "--input-shape", "4x3"], "'gone'"),
        (["user_networks:number", "--input-shape", "4x3"], "gives int"),
        (["no_such_module:net", "--input-shape", "4x3"], "'no_such_module'"),
        (["resnet18"], "'resnet18'"),
        (["missing.safetensors"], "missing.safetensors"),
        (["user_networks:perceptron", "--architecture", "cnn"], "--architecture"),
    ],
)
def test_inspect_refuses(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    part = "mat1" if part == "4x7" else part
    assert_refused(capsys, ["inspect", *words], part)


@pytest.mark.parametrize("name", [None, "cnn-gone"])
def test_inspect_lists_the_architectures_to_choose_from(
    name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inspect", tiny_cnns().path, *(["--architecture", name] if name else [])]
    assert_refused(capsys, words, "has 3 architectures", next(iter(tiny_cnns().architectures)))


def _train_words(zoo: Path, out: Path) -> list[str | Path]:
    return ["train", "--zoo", zoo, "--task", "inr-classification", "--out", out, *TRAIN]


def test_train_refuses_a_zoo_with_nan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = zoo_with_nan(tiny_inrs(), tmp_path)
    before = files_of(tmp_path)
    assert_refused(
        capsys, _train_words(zoo, tmp_path / "run"), "not finite", "row 3 of weights-00000"
    )
    assert files_of(tmp_path) == before


def test_an_empty_zoo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    import pyarrow.parquet

    zoo = tmp_path / "zoo"
    shutil.copytree(tiny_inrs().path, zoo)
    index = zoo / "networks.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(index).slice(0, 0), index)
    before = files_of(tmp_path)
    assert_refused(capsys, ["zoo", "info", zoo], "is empty", "0 rows")
    assert_refused(capsys, _train_words(zoo, tmp_path / "run"), "is empty", "0 rows")
    assert files_of(tmp_path) == before


def test_a_folder_that_is_no_zoo_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capsys, ["zoo", "info", tmp_path], "is not a zoo")
    assert_refused(capsys, _train_words(tmp_path / "gone", tmp_path / "run"), "is not a zoo")
    assert files_of(tmp_path) == {}


def test_a_file_in_the_place_of_a_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.write_text("mine")
    inside = place / "deeper"
    for out in (place, inside):
        commands: tuple[list[str | Path], ...] = (
            ["demo", "--out", out, "--scale", "tiny"],
            ["zoo", "build", "inrs", "--out", out, "--scale", "tiny"],
            ["zoo", "build", "classifiers", "--out", out, "--scale", "tiny"],
            _train_words(tiny_inrs().path, out),
        )
        for words in commands:
            assert_refused(capsys, words, str(place))
    assert files_of(tmp_path) == {"place": b"mine"}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--metanetwork", "operater"], "'operater'"),
        (["--options.hiden_dim", "8"], "hiden_dim"),
        (["--options.hidden_dim", "wide"], "wide"),
        (["--epochs", "0"], "--epochs above 0, got 0"),
        (["--epochs", "many"], "epochs"),
        (["--warmup", "2"], "--warmup in 0..1"),
        (["--weight-noise", "-1"], "--weight-noise"),
        (["--device", "tpu"], "'tpu'"),
        (["--lerning-rate", "1"], "--lerning-rate"),
        (["--task", "inr"], "'inr'"),
        (["--task", "accuracy-prediction"], "'test_accuracy'"),
    ],
)
def test_train_refuses_bad_settings_and_writes_nothing(
    change: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*_train_words(tiny_inrs().path, tmp_path / "run"), *change]
    assert_refused(capsys, words, part)
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--num", "0"], "1..1797"),
        (["--scale", "tiny", "--steps", "3"], "--steps"),
        (["--images", "gone.npz"], "gone.npz"),
        (["--steps", "-1"], "steps"),
    ],
)
def test_build_refuses_bad_settings_and_writes_nothing(
    change: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capsys, ["zoo", "build", "inrs", "--out", tmp_path / "zoo", *change], part)
    assert files_of(tmp_path) == {}


def test_another_zoo_in_the_same_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(tiny_inrs().path)
    words = ["zoo", "build", "inrs", "--out", tiny_inrs().path, "--scale", "tiny", "--seed", "9"]
    assert_refused(capsys, words, "seed = 0, this call has 9")
    assert files_of(tiny_inrs().path) == before


def test_eval_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, ["eval", tmp_path, "--zoo", tiny_inrs().path], "no finished run")
    words: list[str | Path] = ["eval", tmp_path, "--zoo", tiny_inrs().path, "--split", "tset"]
    assert_refused(capsys, words, "tset")


def test_a_command_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, [])
    assert_refused(capsys, ["zoo"])
    assert_refused(capsys, ["trian"], "trian")


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("paramgraph.cli.demo.run_demo", fail)
    with pytest.raises(KeyError, match="a mistake of ours"):
        main(["demo", "--out", "x"])


def test_stopping_from_the_keyboard_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("paramgraph.cli.demo.run_demo", stop)
    assert main(["demo", "--out", "x"]) == 130
    assert "Stopped" in capsys.readouterr().err
