"""Tiny zoos that several test files share; each is built once per test session."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from paramgraph.zoo import Zoo, digits_cnn_recipe, digits_inr_recipe


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="paramgraph-zoos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def tiny_inrs() -> Zoo:
    """96 INRs of one architecture."""
    return digits_inr_recipe(_folder() / "inrs", scale="tiny", progress=False)


@functools.cache
def tiny_cnns() -> Zoo:
    """36 CNNs of three architectures, one of them in the test split only."""
    return digits_cnn_recipe(_folder() / "cnns", scale="tiny", progress=False)


def zoo_with_nan(zoo: Zoo, folder: Path) -> Path:
    """A copy of a zoo in which one weight of the fourth network of the first shard is NaN."""
    copy = folder / "zoo-with-nan"
    shutil.copytree(zoo.path, copy)
    shard = copy / "weights-00000.safetensors"
    tensors = {name: value.clone() for name, value in safetensors.torch.load_file(shard).items()}
    next(iter(tensors.values()))[3].view(-1)[0] = torch.nan
    shard.write_bytes(safetensors.torch.save(tensors))
    return copy


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, to see that nothing changed."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
    }
