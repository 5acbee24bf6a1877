"""Where ``paramgraph inspect`` gets a network and its inputs from: files, folders and zoos."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from paramgraph.cli.command import UsageError
from paramgraph.frontends import LoadedNetwork, load_exported, load_onnx, load_transformers
from paramgraph.zoo import Zoo

__all__ = ["example_tensors", "network_from_files", "zoo_network"]


NETWORK_FILES = {".pt2": load_exported, ".onnx": load_onnx}
"""Suffix -> what reads a file that holds a network with its weights."""


def network_from_files(source: str) -> LoadedNetwork | None:
    """The network in a ``.pt2`` or ``.onnx`` file or in a folder of transformers.

    Returns:
        None if the source is something else.
    """
    path = Path(source)
    if (path / "config.json").is_file():
        return load_transformers(path)
    read = NETWORK_FILES.get(path.suffix.lower())
    return read(path) if read is not None and not path.is_dir() else None


def zoo_network(zoo: Zoo, architecture: str | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """An architecture of a zoo and inputs for it.

    Raises:
        UsageError: The name is missing or unknown.
    """
    names = list(zoo.architectures)
    if architecture is None and len(names) == 1:
        architecture = names[0]
    if architecture not in zoo.architectures:
        asked = "name one with --architecture" if architecture is None else "choose another"
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UsageError(
            f"the zoo {zoo.path} has {len(names)} architectures and "
            f"{'none was chosen' if architecture is None else f'none is named {architecture!r}'}; "
            f"{asked}: {shown}."
        )
    spec = zoo.architectures[architecture]
    return spec.build(), spec.example_inputs()


def example_tensors(shapes: list[str]) -> tuple[Tensor, ...]:
    """Random inputs of the given shapes: ``4x3x8x8``; ``4x12:int`` holds zeros and ones.

    Raises:
        UsageError: A text is not a shape.

    Example:
        >>> [tuple(x.shape) for x in example_tensors(["4x3", "4x12:int"])]
        [(4, 3), (4, 12)]
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for text in shapes:
        sizes, colon, kind = text.partition(":")
        parts = sizes.split("x")
        if not all(part.isdigit() and int(part) > 0 for part in parts) or kind not in ("", "int"):
            raise UsageError(
                f"--input-shape: expected numbers joined by x, as in 4x3x8x8 (4x12:int for whole "
                f"numbers), got {text!r}."
            )
        shape = [int(part) for part in parts]
        if colon:
            tensors.append(torch.randint(0, 2, shape, generator=generator))
        else:
            tensors.append(torch.randn(shape, generator=generator))
    return tuple(tensors)
