"""Weights are read without running code and written whole or not at all."""

import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from paramgraph.errors import CheckpointError
from paramgraph.storage import load_state_dict, load_tensors, save_tensors, write_atomic


class _Attack:
    """Unpickling an instance creates the file ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


STATE = {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor(2.5)}


def _assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def test_tensors_and_metadata_survive_a_round_trip(tmp_path: Path) -> None:
    tensors = {**STATE, "view": STATE["w"].T, "half": torch.ones(2, dtype=torch.bfloat16)}
    save_tensors(tmp_path / "a.safetensors", tensors, {"step": 3, "tags": ["x", None]})
    loaded, metadata = load_tensors(tmp_path / "a.safetensors")
    _assert_same(loaded, tensors)
    assert metadata == {"step": 3, "tags": ["x", None]}


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"one": STATE["w"], "two": STATE["w"]})
    loaded, _ = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(loaded["one"], loaded["two"])


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    metadata = {str(i): i for i in range(20)}
    save_tensors(tmp_path / "a", STATE, metadata)
    save_tensors(tmp_path / "b", dict(reversed(STATE.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o000, 0o644)])
def test_written_files_honour_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "file", b"old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*3 bytes.*No space left on device"):
        write_atomic(tmp_path / "file", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_writing_where_there_is_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"folder '.*nowhere' does not exist"):
        write_atomic(tmp_path / "nowhere" / "file", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_writing_into_a_read_only_folder_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        write_atomic(tmp_path / "file", b"x")


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not plain JSON"):
        save_tensors(tmp_path / "a", STATE, {"bad": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_tensors(path, STATE)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in STATE.items()})  # type: ignore[arg-type]
    else:
        torch.save(STATE, path)
    _assert_same(load_state_dict(path), STATE)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_nested_state_dict_is_unwrapped(tmp_path: Path, key: str) -> None:
    torch.save({key: STATE, "epoch": 3}, tmp_path / "a.ckpt")
    _assert_same(load_state_dict(tmp_path / "a.ckpt"), STATE)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors", ".npz"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps({"w": _Attack(marker)}))
    reason = {".safetensors": "begins like a pickle", ".npz": "without running code"}
    with pytest.raises(CheckpointError, match=reason.get(suffix, "weights-only reader")):
        load_state_dict(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the attack is real
    assert marker.exists()


@pytest.mark.parametrize("renamed", [False, True])
def test_a_malicious_torch_file_is_refused_and_not_run(tmp_path: Path, renamed: bool) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / ("evil.safetensors" if renamed else "evil.pt")
    torch.save({"w": _Attack(marker)}, path)
    expected = r"begins like a pickle" if renamed else r"weights-only reader: .*mkdir"
    with pytest.raises(CheckpointError, match=expected):
        load_state_dict(path)
    assert not marker.exists()


def test_npz_with_objects_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.savez(tmp_path / "a.npz", w=np.array([_Attack(marker)], dtype=object))
    with pytest.raises(CheckpointError, match="without running code"):
        load_state_dict(tmp_path / "a.npz")
    assert not marker.exists()


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no\.pt': it is missing"):
        load_state_dict(tmp_path / "no.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="it is a folder"):
        load_state_dict(tmp_path / "folder.pt")


def test_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unknown suffix '\.h5'.*\.safetensors"):
        load_state_dict(tmp_path / "a.h5")


@pytest.mark.parametrize("num_bytes", [0, 4, 40, 100])
def test_truncated_safetensors_is_reported_with_its_size(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, STATE)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=rf"\({num_bytes} bytes\): it is truncated"):
        load_state_dict(path)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_truncated_archives_are_reported(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, w=np.zeros(100))
    else:
        torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_state_dict(path)


def test_non_finite_values_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {**STATE, "bad": torch.tensor([1.0, float("nan"), float("inf")])})
    with pytest.raises(CheckpointError, match=r"tensor 'bad' holds 2 non-finite values.*of 3"):
        load_state_dict(path)
    assert len(load_state_dict(path, allow_nonfinite=True)) == 3


def test_what_is_not_a_flat_dict_of_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": STATE["w"], "epoch": 3}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="entry 'epoch' under 'state_dict' is of type int"):
        load_state_dict(tmp_path / "a.pt")
    torch.save([STATE["w"]], tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="expected a dict of tensors, got list"):
        load_state_dict(tmp_path / "b.pt")
    torch.save({}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_state_dict(tmp_path / "c.pt")
