"""Networks by import path and weights, and how the command line finds each kind of source."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("jsonargparse")

import paramgraph as pg
import paramgraph.cli.inspect as command
from paramgraph.cli import main
from paramgraph.errors import CaptureError, CheckpointError
from paramgraph.frontends import build_from_factory


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.fixture(autouse=True)
def _user_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("user_networks")
    module.perceptron, module.number = _perceptron, 3
    monkeypatch.setitem(sys.modules, "user_networks", module)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.pt"
    torch.save(_perceptron().state_dict(), path)
    return path


def test_factory_and_weights_make_the_network(weights: Path) -> None:
    network, inputs = build_from_factory("user_networks:perceptron", weights)
    assert inputs is None
    assert not network.training
    stored = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("factory", "part"),
    [
        ("user_networks", "expected module:attribute"),
        ("user_networks:", "expected module:attribute"),
        ("user_networks:gone", "no attribute 'gone'"),
        ("user_networks:number", "gives int"),
        ("no_such_module:x", "no module 'no_such_module'"),
    ],
)
def test_wrong_factory_is_named(factory: str, part: str, weights: Path) -> None:
    with pytest.raises(CaptureError, match=part):
        build_from_factory(factory, weights)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 5).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"4 entries are missing \(first '0.weight'\)"):
        build_from_factory("user_networks:perceptron", tmp_path / "w.pt")


# --- the command line


def _pt2(folder: Path) -> Path:
    path = folder / "network.pt2"
    torch.export.save(torch.export.export(_perceptron(), (torch.randn(4, 3),)), path)
    return path


def _onnx(folder: Path) -> Path:
    pytest.importorskip("onnxscript")
    path = folder / "network.onnx"
    inputs = (torch.randn(4, 3),)
    torch.onnx.export(_perceptron(), inputs, path, dynamo=True, optimize=False, verbose=False)
    return path


def _transformers(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4,
    )  # fmt: skip
    path = folder / "network"
    transformers.ViTForImageClassification(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("make", [_pt2, _onnx])
@pytest.mark.filterwarnings("ignore")
def test_inspect_reads_a_network_with_its_inputs(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == 32
    assert found["verification"]["passed"]
    assert found["source"] == str(path)
    sizes = [group["size"] for group in found["axis_groups"] if group["free"]]
    assert sizes == [5]


class _Stop(pg.ParamGraphError):
    pass


def _recorder(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command gives to ``capture``, which then stops."""
    seen: dict[str, Any] = {}

    def record(network: nn.Module, inputs: Any, **options: Any) -> None:
        seen.update(network=network, inputs=inputs, options=options)
        raise _Stop("stopped")

    monkeypatch.setattr(command, "capture", record)
    return seen


@pytest.mark.parametrize("make", [_pt2, _onnx, _transformers])
@pytest.mark.filterwarnings("ignore")
def test_inspect_gives_capture_the_inputs_of_the_file_or_of_the_user(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, path = _recorder(monkeypatch), make(tmp_path)
    assert main(["inspect", str(path)]) == 2
    inputs = seen["inputs"]
    if make is _transformers:
        assert inputs["pixel_values"].shape == (2, 3, 8, 8)
        seen["network"](**inputs)
    else:
        assert [tuple(x.shape) for x in inputs] == [(4, 3)]
        seen["network"](*inputs)
    assert seen["options"] == {}
    assert main(["inspect", str(path), "--input-shape", "7x3"]) == 2
    assert [tuple(x.shape) for x in seen["inputs"]] == [(7, 3)]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--strict"], {"strict": True}),
        (["--output", "logits"], {"output": "logits"}),
        (["--output", "1"], {"output": 1}),
        (["--output=-1", "--strict"], {"output": -1, "strict": True}),
    ],
)
def test_inspect_passes_on_what_capture_is_told(
    words: list[str], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _recorder(monkeypatch)
    assert main(["inspect", str(_pt2(tmp_path)), *words]) == 2
    assert seen["options"] == options


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["gone.pt2"], "gone.pt2': it is missing"),
        (["gone.onnx"], "gone.onnx'"),
        (["network"], "a network of transformers"),
        (["network.pt2", "--factory", "a:b"], "--factory has no meaning"),
        (["network.pt2", "--architecture", "a"], "--architecture has no meaning"),
    ],
)
def test_inspect_refuses(
    words: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    _pt2(tmp_path)
    assert main(["inspect", *words]) == 2
    assert part in capsys.readouterr().err


def test_inspect_asks_for_inputs_that_a_file_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [value], [out])
    onnx.save(helper.make_model(graph), tmp_path / "open.onnx")
    assert main(["inspect", str(tmp_path / "open.onnx")]) == 2
    assert "--input-shape 4x3x8x8" in capsys.readouterr().err
