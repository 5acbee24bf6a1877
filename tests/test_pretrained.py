"""Metanetworks as files and folders: what is read predicts the same, all else is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import by_name
from small_settings import small_options
from torch import nn

import paramgraph as pg
from paramgraph.batch import GraphBatch
from paramgraph.errors import CheckpointError
from paramgraph.nn import (
    CONFIGS,
    DeepSets,
    FlatMLP,
    Metanetwork,
    NeuralGraphGNN,
    OperatorMetanetwork,
    StatNN,
    make_metanetwork,
)
from paramgraph.nn.chains import ChainMetanetwork
from paramgraph.storage import load_tensors, save_tensors


def networks(dtype: torch.dtype) -> GraphBatch:
    hazard = by_name("mlp")
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    state = hazard.make().to(dtype).state_dict()
    other = {name: 2 * value + 1 for name, value in state.items()}
    return pg.collate([(graph, graph.features(state)), (graph, graph.features(other))])


@pytest.fixture(scope="module")
def batch() -> GraphBatch:
    return networks(torch.float32)


def made(name: str, **options: Any) -> Metanetwork:
    """For networks with 3 inputs and 2 outputs."""
    torch.manual_seed(0)
    if issubclass(CONFIGS[name].kind, ChainMetanetwork):
        options["widths"] = [3, 5, 4, 2]
    if CONFIGS[name].options.get("readout") == "outputs":
        options |= {"num_outputs": 2, "max_inputs": 3, "max_outputs": 2}
    return make_metanetwork(name, 2, **small_options(name, **options))


# --- what is read predicts the same


@pytest.mark.parametrize("name", CONFIGS)
def test_each_metanetwork_goes_through_a_folder(
    name: str, batch: GraphBatch, tmp_path: Path
) -> None:
    m = made(name).eval()
    m.fit_statistics([batch])
    m.save_pretrained(tmp_path / "some" / "folder")
    torch.manual_seed(1)  # nothing may come from the start
    found = Metanetwork.from_pretrained(tmp_path / "some" / "folder")
    assert type(found) is type(m)
    assert not found.training
    assert json.dumps(found.config) == json.dumps(m.config)
    assert torch.equal(found(batch), m(batch))


@pytest.mark.parametrize("level", ["neuron", "parameter"])
def test_levels_and_precision_are_kept(level: Any, tmp_path: Path) -> None:
    m = NeuralGraphGNN(2, level=level, hidden_dim=8, num_frequencies=0).double()
    m.fit_statistics([networks(torch.float64)])
    m.save_pretrained(tmp_path)
    found = NeuralGraphGNN.from_pretrained(tmp_path)
    assert found.level == level
    assert {p.dtype for p in found.parameters()} == {torch.float64}
    for name, value in m.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_the_folder_is_plain(tmp_path: Path) -> None:
    StatNN(3, hidden_dim=4, max_layers=1).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "paramgraph_metanetwork": 2,
        "class": "StatNN",
        "name": None,
        "out_dim": 3,
        "level": "graph",
        "options": {"hidden_dim": 4, "max_layers": 1, "dropout": 0.0},
    }
    assert "center" in load_tensors(tmp_path / "model.safetensors")[0]


def test_a_file_holds_further_facts(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    made("statnn").save_file(path, {"task": "t", "metrics": {"tau": 0.5}})
    found, extra = Metanetwork.load_file(path)
    assert isinstance(found, StatNN)
    assert found.setting == "statnn"
    assert extra == {"task": "t", "metrics": {"tau": 0.5}}


def test_defaults_that_change_later_change_no_stored_metanetwork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("probing").save_pretrained(tmp_path)
    changed = CONFIGS["probing"].__class__(CONFIGS["probing"].kind, "", "", {"num_probes": 3})
    monkeypatch.setitem(CONFIGS, "probing", changed)
    assert Metanetwork.from_pretrained(tmp_path).config["options"]["generator"] == "free"


class Doubled(StatNN):
    """A metanetwork of somebody else, with arguments of its own."""

    def __init__(self, factor: float = 2.0, **options: Any) -> None:
        super().__init__(3, **options)
        self.factor = factor


def test_a_class_of_ones_own_is_stored_and_found(tmp_path: Path) -> None:
    Doubled(0.5, hidden_dim=4).save_pretrained(tmp_path)
    found = Metanetwork.from_pretrained(tmp_path)
    assert isinstance(found, Doubled)
    assert (found.factor, found.out_dim) == (0.5, 3)
    assert found.config["options"] == {"factor": 0.5, "hidden_dim": 4}


def test_saving_over_a_folder_replaces_it(tmp_path: Path) -> None:
    StatNN(3).save_pretrained(tmp_path)
    DeepSets(2, hidden_dim=8).save_pretrained(tmp_path)
    assert isinstance(Metanetwork.from_pretrained(tmp_path), DeepSets)


# --- all else is refused


def test_a_run_that_was_cut_off_between_the_files_is_noticed(tmp_path: Path) -> None:
    StatNN(3, hidden_dim=8).save_pretrained(tmp_path)
    StatNN(3, hidden_dim=8, dropout=0.5).save_file(tmp_path / "model.safetensors")
    message = r"do not belong together: options is .*'dropout': 0.0.* but .*'dropout': 0.5"
    with pytest.raises(CheckpointError, match=message):
        Metanetwork.from_pretrained(tmp_path)


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The same change in both files."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        tensors, _ = load_tensors(folder / "model.safetensors")
        save_tensors(folder / "model.safetensors", tensors, config)

    return apply


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors, header = load_tensors(folder / "model.safetensors")
        change(tensors)
        save_tensors(folder / "model.safetensors", tensors, header)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"its config.json cannot be read .*No such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read .*Expecting"),
        (lambda f: (f / "config.json").write_text("[]"), "no metanetwork of format 2.* says None"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot read .*model.safetensors.* missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04."), "begins like a pickle"),
        (_config(lambda c: c.update(paramgraph_metanetwork=3)), "of format 2: it says 3"),
        (_config(lambda c: c.pop("out_dim")), "out_dim must be of type int, got None"),
        (_config(lambda c: c.update(options=[])), r"options must be of type dict, got \[\]"),
        (_config(lambda c: c.update({"class": "Mine"})), "holds a Mine, which is no Metanetwork"),
        (_config(lambda c: c.update({"class": "Linear"})), "holds a Linear, which is no Meta"),
        (_config(lambda c: c["options"].update(width=3)), "StatNN, or is damaged: .*'width'"),
        (_config(lambda c: c.update(level="neuron")), "level='neuron', but StatNN .* has 'graph'"),
        (_config(lambda c: c.update(out_dim=4)), r"does not fit StatNN .*size mismatch"),
        (_tensors(lambda t: t.pop("center")), r"does not fit StatNN .*Missing key.*center"),
        (_tensors(lambda t: t.update(more=torch.ones(1))), r"Unexpected key.*more"),
        (_tensors(lambda t: t.update(center=torch.ones(2))), r"center: .*torch.Size\(\[2\]\)"),
        (
            _tensors(lambda t: t.update(center=t["center"].double())),
            r"several precisions \(torch.float32, torch.float64\)",
        ),
    ],
)
def test_damaged_folders_are_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    StatNN(3, hidden_dim=8).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        Metanetwork.from_pretrained(tmp_path)


def test_a_class_reads_no_other(tmp_path: Path) -> None:
    StatNN(3).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a StatNN, which is no OperatorMetanetwork"):
        OperatorMetanetwork.from_pretrained(tmp_path)


def test_arguments_that_are_not_plain_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    m = Doubled(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"not plain JSON \(.*Linear"):
        m.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to the folder .*taken.*exists"):
        StatNN(3).save_pretrained(tmp_path / "taken")


def test_flat_mlp_that_was_never_fitted(tmp_path: Path, batch: GraphBatch) -> None:
    FlatMLP(3).save_pretrained(tmp_path)
    with pytest.raises(pg.BatchError, match="call fit_statistics first"):
        Metanetwork.from_pretrained(tmp_path)(batch)


# --- the Hub, with a folder in its place


class Hub(types.ModuleType):
    """The three functions that are used, with the arguments that huggingface_hub 2.4 has."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder = folder
        self.calls: list[str] = []

    def create_repo(
        self, repo_id: str, *, token: str | None, private: bool, exist_ok: bool
    ) -> None:
        if "/" not in repo_id:
            raise OSError("401 Unauthorized")
        self.calls.append(f"create {repo_id} private={private} token={token}")
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, revision: str | None, token: str | None
    ) -> None:
        self.calls.append(f"upload {repo_id} revision={revision} token={token}")
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, token: str | None, allow_patterns: list[str]
    ) -> str:
        self.calls.append(f"read {repo_id} revision={revision} token={token}")
        assert set(allow_patterns) == {"config.json", "model.safetensors"}
        if not (self.folder / repo_id).is_dir():
            raise OSError("404 Client Error")
        return str(self.folder / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    return found


def test_push_to_the_hub_and_read_again(hub: Hub, batch: GraphBatch) -> None:
    m = made("operator").eval()
    m.fit_statistics([batch])
    m.push_to_hub("ann/first", private=True, token="secret")
    found = Metanetwork.from_pretrained("ann/first", revision="main")
    assert torch.equal(found(batch), m(batch))
    assert hub.calls == [
        "create ann/first private=True token=secret",
        "upload ann/first revision=None token=secret",
        "read ann/first revision=main token=None",
    ]


def test_what_the_hub_refuses(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"no folder 'ann/second' here, .*404 Client Error"):
        Metanetwork.from_pretrained("ann/second")
    with pytest.raises(CheckpointError, match="cannot upload to 'first': 401 Unauthorized"):
        StatNN(3).push_to_hub("first")
    assert hub.calls == ["read ann/second revision=None token=None"]


@pytest.mark.parametrize("path", ["./missing", "/missing", "../missing", "a/b/c", "a b", "-x"])
def test_paths_are_no_repositories(path: str, hub: Hub) -> None:
    with pytest.raises(
        CheckpointError, match=f"no folder '{re.escape(path)}', .* no repository of"
    ):
        Metanetwork.from_pretrained(path)
    assert not hub.calls


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    StatNN(3).save_pretrained(tmp_path / "here")
    Metanetwork.from_pretrained(tmp_path / "here")  # folders need nothing
    needed = r"pip install 'paramgraph\[hub\]'"
    with pytest.raises(ImportError, match=f"cannot read 'ann/first', which is .*{needed}"):
        Metanetwork.from_pretrained("ann/first")
    with pytest.raises(ImportError, match=f"cannot upload to 'ann/first': .*{needed}"):
        StatNN(3).push_to_hub("ann/first")
