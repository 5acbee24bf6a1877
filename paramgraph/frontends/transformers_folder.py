"""Folders of ``transformers``: configuration and safetensors, read offline, none of their code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from paramgraph.errors import CheckpointError
from paramgraph.frontends.loaded import LoadedNetwork
from paramgraph.frontends.transformers_inputs import example_inputs

__all__ = ["load_transformers"]

_MAX_JSON_BYTES = 64 * 2**20


def load_transformers(folder: str | os.PathLike[str]) -> LoadedNetwork:
    """Read a network that ``save_pretrained`` of ``transformers`` wrote.

    Nothing is downloaded, and only classes of the installed ``transformers`` are used. Attention
    runs in its plain form, and without a cache of keys and values.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors`` (or its parts and their index).

    Returns:
        The network in evaluation mode, and small inputs made from its configuration (None if none
        of our guesses runs).

    Raises:
        CheckpointError: A file is missing or damaged, ``transformers`` is not installed, the
            network needs code from elsewhere, or its weights are pickles or incomplete.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json", folder)
    _assert_needs_no_code(config, folder)
    _assert_safetensors(folder)
    network = _load(folder, config)
    return LoadedNetwork(network, example_inputs(network))


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"cannot read '{folder}' as a network of transformers: it has no file {path.name}. "
            "Write the folder with network.save_pretrained(folder)."
        )
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(
            f"refused to read '{path}': it has {path.stat().st_size:,} bytes, more than the "
            f"{_MAX_JSON_BYTES:,} that a configuration may have."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read '{path}': it is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"cannot read '{path}': expected an object, got {type(found).__name__}."
        )
    return found


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _assert_needs_no_code(config: dict[str, Any], folder: Path) -> None:
    for key, value in _entries(config):
        if key == "auto_map":
            raise CheckpointError(
                f"refused to load '{folder}': its config.json asks for code of its own (auto_map: "
                f"{value}). Only classes of the installed transformers are used. If you trust the "
                "code, load the network yourself and pass it to paramgraph.capture."
            )
        if key.endswith("_implementation") and "/" in str(value):
            raise CheckpointError(
                f"refused to load '{folder}': its config.json asks for code from elsewhere "
                f"({key}: {value}). Remove this entry."
            )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"cannot load '{folder}': it holds an adapter (adapter_config.json), which changes the "
            "weights of another network. Merge it first, and save the merged network."
        )


def _assert_safetensors(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return
    if index.is_file():
        weight_map = _read_json(index, folder).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"cannot read '{index}': it has no table weight_map.")
        for name in sorted({str(value) for value in weight_map.values()}):
            path = (folder / name).resolve()
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"refused to load '{folder}': its index names the file {name!r}, expected the "
                    "name of a .safetensors file in the same folder."
                )
            if not path.is_file():
                raise CheckpointError(
                    f"cannot load '{folder}': the part {name!r} that its index names is missing."
                )
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    raise CheckpointError(
        f"cannot load '{folder}': it has no model.safetensors"
        + (f", only {pickles[0]}, a pickle, which can run any code when loaded" if pickles else "")
        + ". Save it with network.save_pretrained(folder) of transformers 4.38 or newer."
    )


def _load(folder: Path, config: dict[str, Any]) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"cannot load '{folder}': the package transformers is not installed. Install it with "
            "pip install 'paramgraph[hub]'."
        ) from error
    names = config.get("architectures") or []
    name = str(names[0]) if names else "AutoModel"
    found: Any = getattr(transformers, name, None)
    is_network = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if name != "AutoModel" and not is_network:
        raise CheckpointError(
            f"cannot load '{folder}': transformers {transformers.__version__} has no network "
            f"{name!r}. Install a version that has it."
        )
    from safetensors import SafetensorError

    problems = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError)
    try:
        network, report = found.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            weights_only=True,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (*problems, SafetensorError) as error:
        raise CheckpointError(
            f"cannot load '{folder}' as {name}: {type(error).__name__}: {error}"
        ) from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise CheckpointError(
            f"cannot load '{folder}': its files lack {len(missing)} weights of {name} (first "
            f"{missing[0]!r}), which would be random. The files are incomplete, or config.json "
            "names another network."
        )
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False
    return network.eval()
