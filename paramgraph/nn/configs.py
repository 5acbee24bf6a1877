"""Metanetworks by name, and how they are stored: safetensors with a JSON header."""

from __future__ import annotations

import os
from typing import Any

from paramgraph.errors import CheckpointError
from paramgraph.nn.baselines import FlatMLP, StatNN
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.nn.ng_gnn import NeuralGraphGNN
from paramgraph.nn.operator import OperatorMetanetwork
from paramgraph.storage import load_tensors, save_tensors

__all__ = ["CONFIGS", "load_metanetwork", "make_metanetwork", "save_metanetwork"]

CONFIGS: dict[str, tuple[type[Metanetwork], dict[str, Any]]] = {
    "operator": (OperatorMetanetwork, {}),
    "ng-gnn": (NeuralGraphGNN, {}),
    "ng-gnn-inr": (
        NeuralGraphGNN,
        {"num_frequencies": 128, "sigma": 3.0, "dropout": 0.2, "readout": "outputs"},
    ),
    "statnn": (StatNN, {}),
    "flat-mlp": (FlatMLP, {}),
}
"""Name to class and options; ``ng-gnn-inr`` is the papers' setting for INRs."""

_FORMAT = 1


def make_metanetwork(name: str, out_dim: int, **options: Any) -> Metanetwork:
    """Build a metanetwork by name.

    Args:
        name: A key of ``CONFIGS``.
        out_dim: Number of outputs per network.
        options: Constructor arguments that replace those of the named setting.

    Raises:
        ValueError: Unknown name, or an option that the class does not have.

    Example:
        >>> make_metanetwork("operator", 10, hidden_dim=16).hidden_dim
        16
    """
    if name not in CONFIGS:
        raise ValueError(f"no metanetwork is named {name!r}; choose one of {', '.join(CONFIGS)}.")
    kind, defaults = CONFIGS[name]
    try:
        metanetwork = kind(out_dim, **{**defaults, **options})
    except TypeError as error:
        raise ValueError(f"metanetwork {name!r} cannot be built with {options}: {error}") from error
    metanetwork.config = {"name": name, "out_dim": out_dim, "options": options}
    return metanetwork


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
    metanetwork = make_metanetwork(header["name"], header["out_dim"], **header["options"])
    metanetwork.load(tensors, str(path))
    return metanetwork.eval(), header["extra"]
