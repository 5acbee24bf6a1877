"""How metanetworks are stored: safetensors with a JSON header."""

from __future__ import annotations

import os
from typing import Any

from paramgraph.errors import CheckpointError
from paramgraph.nn.configs import from_config
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.storage import load_tensors, save_tensors

__all__ = ["load_metanetwork", "save_metanetwork"]

_FORMAT = 1


def save_metanetwork(
    path: str | os.PathLike[str], metanetwork: Metanetwork, extra: dict[str, Any] | None = None
) -> None:
    """Write weights and configuration to one safetensors file, atomically.

    Args:
        path: File to write.
        metanetwork: Made by ``make_metanetwork``.
        extra: Further JSON-able facts for the header (task, zoo, metrics).

    Raises:
        CheckpointError: It was not made by name, or the file cannot be written.
    """
    if metanetwork.config is None:
        raise CheckpointError(
            f"cannot save {type(metanetwork).__name__}: its configuration is unknown. Build it "
            "with make_metanetwork(name, out_dim, ...), so that it can be built again."
        )
    header = {"paramgraph_metanetwork": _FORMAT, **metanetwork.config, "extra": extra or {}}
    tensors = {name: tensor.contiguous() for name, tensor in metanetwork.state_dict().items()}
    save_tensors(path, tensors, header)


def load_metanetwork(path: str | os.PathLike[str]) -> tuple[Metanetwork, dict[str, Any]]:
    """Read what ``save_metanetwork`` wrote.

    Returns:
        The metanetwork in evaluation mode, and the extra facts of its header.

    Raises:
        CheckpointError: The file is damaged, or is not a metanetwork.
    """
    tensors, header = load_tensors(path)
    if header.get("paramgraph_metanetwork") != _FORMAT:
        raise CheckpointError(
            f"{path} holds no metanetwork of format {_FORMAT}: its header says "
            f"{header.get('paramgraph_metanetwork')!r}. Give the best.safetensors of a run folder."
        )
    metanetwork = from_config({key: header[key] for key in ("name", "out_dim", "options")})
    metanetwork.load(tensors, str(path))
    return metanetwork.eval(), header["extra"]
