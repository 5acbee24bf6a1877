"""The folder of a run: whether it can be used, its settings, JSON files written atomically."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paramgraph.errors import CheckpointError
from paramgraph.storage import write_atomic
from paramgraph.tasks.config import CHECKPOINTS, TrainConfig

__all__ = ["begin_folder", "check_folder", "write_json"]


def check_folder(folder: Path, config: TrainConfig, task: str, resume: bool) -> None:
    """Refuse a run folder that cannot be used; nothing is written yet.

    Raises:
        CheckpointError: There is nothing to resume, the settings differ, or a run is there already.
    """
    if resume:
        _check_resumed(folder, _settings(config, task))
        return
    # A run that was stopped before its first epoch ended has nothing to keep: start it again.
    if any((folder / name).exists() for name in ("metrics.json", f"{CHECKPOINTS}/last.ckpt")):
        raise CheckpointError(
            f"{folder} already holds a run. Resume it with --resume, or choose another --out."
        )
    parents = [path for path in (folder, *folder.parents) if path.exists()]
    if parents and not parents[0].is_dir():
        raise CheckpointError(
            f"cannot make the run folder {folder}: {parents[0]} is a file. Choose another folder."
        )


def _check_resumed(folder: Path, settings: dict[str, Any]) -> None:
    if not (folder / CHECKPOINTS / "last.ckpt").is_file():
        raise CheckpointError(
            f"nothing to resume: {folder} has no checkpoints/last.ckpt. Start it without --resume."
        )
    try:
        stored = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot resume: {folder}/config.json cannot be read ({error}). Choose another folder."
        ) from error
    # A run of a version that lacked some settings had their defaults.
    stored = {**_settings(TrainConfig(), ""), **stored}
    if stored != settings:
        changed = {k: (stored.get(k), v) for k, v in settings.items() if stored.get(k) != v}
        raise CheckpointError(
            f"{folder} was started with other settings (stored, given): {changed}. Resume with "
            "the same ones, or choose another folder."
        )


def begin_folder(folder: Path, config: TrainConfig, task: str) -> None:
    """Make the run folder and write its configuration, once the input is known to be usable.

    Raises:
        CheckpointError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the run folder {folder}: {error.strerror}.") from error
    write_json(folder / "config.json", {"task": task, **asdict(config)})


def _settings(config: TrainConfig, task: str) -> dict[str, Any]:
    """As JSON gives them back."""
    settings: dict[str, Any] = json.loads(json.dumps({"task": task, **asdict(config)}))
    return settings


def write_json(path: Path, value: object) -> None:
    """Write JSON with a line break at its end; nan is kept."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=True) + "\n").encode())
