"""Programs of torch.export: read like torch reads them, but as data."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramgraph.errors import CaptureError, CheckpointError
from paramgraph.frontends import load_exported

ROOT = "program"


class _Tied(nn.Module):
    """Tied, normalised, with buffers of both kinds and a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.offset: Tensor
        self.hidden: Tensor
        self.register_buffer("offset", torch.randn(6))
        self.register_buffer("hidden", torch.randn(6), persistent=False)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> dict[str, Any]:
        states = self.embedding(tokens) + self.offset.float() + self.hidden
        states = states + torch.arange(tokens.shape[1])[:, None] * torch.tensor([0.5])
        if scale is not None:
            states = states * scale
        states = self.norm(states.transpose(1, 2)).transpose(1, 2)
        return {"logits": self.head(states), "states": [states]}


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().sum()
        return torch.cond(scale > 0, lambda y: self.left(y), lambda y: self.right(y), (x,))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "tied": (_Tied, (torch.randint(0, 7, (3, 4)),)),
    "tied, two inputs": (_Tied, (torch.randint(0, 7, (3, 4)), torch.randn(3, 4, 6))),
    "branch": (_Branch, (torch.randn(4, 3),)),
    "recurrent": (_Recurrent, (torch.randn(2, 3, 3),)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (torch.randn(2, 3, 8),),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(2), nn.Dropout(),
            nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Upsample(scale_factor=2), nn.Flatten(),
        ),
        (torch.randn(2, 1, 8, 8),),
    ),
}  # fmt: skip


def _save(folder: Path, network: nn.Module, inputs: tuple[Any, ...], **options: Any) -> Path:
    path = folder / f"{ROOT}.pt2"
    torch.export.save(torch.export.export(network, inputs, strict=False, **options), path)
    return path


def _randomised(network: nn.Module) -> nn.Module:
    """Statistics and gains that differ from each other, so that none can stand for another."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return network


def _flat(result: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(result)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_exported_network_computes_what_the_network_computes(
    name: str, mode: bool, tmp_path: Path
) -> None:
    make, inputs = NETWORKS[name]
    network = _randomised(make())
    loaded = load_exported(_save(tmp_path, network.train(mode), inputs))
    expected = network.eval()(*inputs)
    assert loaded.example_inputs is not None
    torch.testing.assert_close(
        _flat(loaded.network(*loaded.example_inputs)), _flat(expected), rtol=1e-5, atol=1e-5
    )
    own = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in loaded.network.state_dict().items()} == own


def test_exported_network_keeps_ties_kinds_and_nesting(tmp_path: Path) -> None:
    network = _Tied().eval()
    loaded, inputs = load_exported(_save(tmp_path, network, (torch.ones(2, 3, dtype=torch.long),)))
    assert loaded.embedding.weight is loaded.head.weight  # type: ignore[union-attr]
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in network.named_parameters()]
    assert isinstance(inputs, tuple)
    result = loaded(*inputs)
    assert list(result) == ["logits", "states"]
    assert isinstance(result["states"], list)


class _Cast(nn.Module):
    """Says float32 where it means its own type, as many networks do around a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.wanted = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).to(self.wanted) * torch.full((2,), 0.5, dtype=self.wanted)


def test_exported_network_follows_to_double_precision(tmp_path: Path) -> None:
    network, x = _Cast(), torch.randn(4, 3)
    loaded = copy.deepcopy(load_exported(_save(tmp_path, network, (x,))).network).double()
    network.wanted = torch.float64
    found, expected = loaded(x.double()), network.double()(x.double())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_exported_network_runs_on_other_batch_sizes(tmp_path: Path) -> None:
    network, batch = nn.Linear(3, 2), torch.export.Dim("batch")
    path = _save(tmp_path, network, (torch.randn(4, 3),), dynamic_shapes=({0: batch},))
    x = torch.randn(9, 3)
    assert torch.equal(load_exported(path).network(x), network(x))


def test_named_inputs_are_found_by_name(tmp_path: Path) -> None:
    tokens, scale = torch.randint(0, 7, (3, 4)), torch.randn(3, 4, 6)
    network = _Tied().eval()
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(network, (tokens,), {"scale": scale}), path)
    loaded, inputs = load_exported(path)
    assert isinstance(inputs, dict)
    assert list(inputs) == ["tokens", "scale"]
    torch.testing.assert_close(loaded(**inputs)["logits"], network(tokens, scale)["logits"])
    with pytest.raises(CaptureError, match=r"keys \['scale'\], got \['size'\]"):
        loaded(tokens, size=scale)


def test_other_number_of_inputs_is_refused(tmp_path: Path) -> None:
    loaded = load_exported(_save(tmp_path, nn.Linear(3, 2), (torch.randn(4, 3),))).network
    with pytest.raises(CaptureError, match="expects 1 inputs, got 2"):
        loaded(torch.ones(4, 3), torch.ones(4, 3))


def test_a_node_that_cannot_run_is_named(tmp_path: Path) -> None:
    loaded = load_exported(_save(tmp_path, nn.Linear(3, 2), (torch.randn(4, 3),))).network
    with pytest.raises(CaptureError, match=r"node 'linear' \(torch.ops.aten.linear.default\)"):
        loaded(torch.ones(4, 5))


# --- files made to harm


class _Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _rewritten(
    path: Path, change: Mapping[str, bytes | None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """The archive with members replaced, added or (None) removed."""
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        members = {name: old.read(name) for name in old.namelist()}
        members |= {f"{ROOT}/{name}": data for name, data in change.items() if data is not None}
        for name, data in members.items():
            if change.get(name.removeprefix(f"{ROOT}/"), b"") is not None:
                new.writestr(name, data)
    return target


def _description(path: Path, member: str = "models/model.json") -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{ROOT}/{member}"))


def _linear(folder: Path) -> Path:
    return _save(folder, nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (torch.randn(4, 3),))


def _torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_the_bomb_of_these_tests_works(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(_Bomb(mark)))
    assert mark.is_dir()


@pytest.mark.parametrize("saved", [_torch_saved, pickle.dumps], ids=["torch.save", "pickle"])
def test_pickled_example_inputs_do_not_run(saved: Callable[[Any], bytes], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = _rewritten(_linear(tmp_path), {"data/sample_inputs/model.pt": saved(_Bomb(mark))})
    with pytest.raises(CheckpointError, match=r"'data/sample_inputs/model.pt'.*read_inputs=False"):
        load_exported(path)
    network, inputs = load_exported(path, read_inputs=False)
    assert inputs is None
    assert network(torch.ones(1, 3)).shape == (1, 2)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0"])
def test_pickled_constants_do_not_run(name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", _linear(tmp_path)
    table = {"config": {"x": {"path_name": name, "is_param": False, "use_pickle": True,
                              "tensor_meta": None}}}  # fmt: skip
    changed = {
        f"data/constants/{name}": pickle.dumps(_Bomb(mark)),
        "data/constants/model_constants_config.json": json.dumps(table).encode(),
    }
    with pytest.raises(CheckpointError, match=f"constant 'data/constants/{name}' is a pickled"):
        load_exported(_rewritten(path, changed))
    assert not mark.exists()


def test_pickled_weights_do_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", _linear(tmp_path)
    member = "data/weights/model_weights_config.json"
    table = _description(path, member)
    table["config"]["0.weight"]["use_pickle"] = True
    changed = {
        member: json.dumps(table).encode(),
        "data/weights/weight_0": _torch_saved(_Bomb(mark)),
    }
    with pytest.raises(CheckpointError, match=r"refused to read '0.weight'.*weight_0\)"):
        load_exported(_rewritten(path, changed))
    assert not mark.exists()


def test_text_that_torch_would_evaluate_does_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", _linear(tmp_path)
    code = f"__import__('os').mkdir({str(mark)!r})"
    program = _description(path)
    program["guards_code"] = [f"{code} is None"]
    values = program["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}
    changed = _rewritten(path, {"models/model.json": json.dumps(program).encode()})
    with pytest.raises(Exception, match=r"."):  # torch's own reader evaluates the text
        torch.export.load(changed)
    assert mark.exists()
    mark.rmdir()
    network, inputs = load_exported(changed)
    assert inputs is not None
    network(*inputs)
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.nothing.default",
        "torch.ops.load_library",
        "torch.ops.mine.scale.default",
        "torch.ops.higher_order.while_loop",
        "_operator.call",
        "os.system",
    ],
)
def test_other_functions_cannot_be_called(target: str, tmp_path: Path) -> None:
    path = _linear(tmp_path)
    program = _description(path)
    node = program["graph_module"]["graph"]["nodes"][1]
    node["target"] = target
    changed = _rewritten(path, {"models/model.json": json.dumps(program).encode()})
    with pytest.raises(CaptureError, match=f"node 'relu' calls '{target}'"):
        load_exported(changed)


def test_classes_in_nested_inputs_are_not_imported(tmp_path: Path) -> None:
    path = _linear(tmp_path)
    program = _description(path)
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    context = {"default_factory_module": "antigravity", "default_factory_name": "x",
               "dict_context": []}  # fmt: skip
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "collections.defaultdict", "context": json.dumps(context),
            "children_spec": [leaf]}  # fmt: skip
    signature["out_spec"] = json.dumps([1, spec])
    changed = _rewritten(path, {"models/model.json": json.dumps(program).encode()})
    network, inputs = load_exported(changed)
    assert inputs is not None
    assert isinstance(network(*inputs), tuple)


# --- damaged files, and files made to exhaust memory


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = _rewritten(_linear(tmp_path), {"zeros": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(CheckpointError, match="is compressed"):
        load_exported(path)


def test_compressed_example_inputs_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as inner:
        inner.writestr("archive/data.pkl", bytes(10**6))
    path = _rewritten(_linear(tmp_path), {"data/sample_inputs/model.pt": buffer.getvalue()})
    with pytest.raises(CheckpointError, match=r"'archive/data.pkl' is compressed"):
        load_exported(path)


def test_member_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = _linear(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{ROOT}/models/model.json", b"{}")
    with pytest.raises(CheckpointError, match=r"'program/models/model.json' occurs twice"):
        load_exported(path)


def test_claimed_sizes_are_compared_with_the_file(tmp_path: Path) -> None:
    path = _linear(tmp_path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir  # the first entry of the directory
    size = (2**31).to_bytes(4, "little")
    content[place + 20 : place + 28] = size + size  # compressed and whole size
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"claim 2,147,\d+,\d+ bytes, but the whole file has"):
        load_exported(path)


def test_shape_beyond_the_stored_bytes_is_refused(tmp_path: Path) -> None:
    path = _linear(tmp_path)
    member = "data/weights/model_weights_config.json"
    table = _description(path, member)
    table["config"]["0.weight"]["tensor_meta"]["sizes"][0]["as_int"] = 10**12
    changed = _rewritten(path, {member: json.dumps(table).encode()})
    with pytest.raises(
        CheckpointError, match=r"'0.weight'.*needs 12,000,\d+,\d+,\d+ bytes, but 24"
    ):
        load_exported(changed)


def _not_zip(path: Path) -> Path:
    path.write_bytes(b"nothing")
    return path


def _truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


def _other_zip(path: Path) -> Path:
    torch.save(torch.ones(1), path)
    return path


def _no_json(path: Path) -> Path:
    return _rewritten(path, {"models/model.json": b"{"})


def _no_model(path: Path) -> Path:
    return _rewritten(path, {"models/model.json": None})


def _no_weight(path: Path) -> Path:
    return _rewritten(path, {"data/weights/weight_0": None})


def _older(path: Path) -> Path:
    program = _description(path)
    program["schema_version"]["major"] = 5
    return _rewritten(path, {"models/model.json": json.dumps(program).encode()})


def _other_keys(path: Path) -> Path:
    return _rewritten(
        path, {"models/model.json": b'{"schema_version": {"major": 8}, "graph_module": {}}'}
    )


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (_not_zip, r"\(7 bytes\) as a .pt2 archive"),
        (_truncated, "it is truncated"),
        (_other_zip, "not a .pt2 archive"),
        (_no_json, "'models/model.json'.*not JSON"),
        (_no_model, "named 'model', found none"),
        (_no_weight, "'data/weights/weight_0'"),
        (_older, "version 5 of the format"),
        (_other_keys, "KeyError: 'signature'"),
        (lambda path: path.with_name("gone.pt2"), "gone.pt2': it is missing"),
        (lambda path: path.parent, "it is a folder"),
    ],
)
def test_damaged_program_is_refused(
    make: Callable[[Path], Path], part: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=part):
        load_exported(make(_linear(tmp_path)))
