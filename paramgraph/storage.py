"""Safe reading and atomic writing of weights; nothing in this file can run code from a file.

Three promises:

* a file appears whole or not at all (temporary file, fsync, rename), with the permissions that
  the user's umask asks for;
* reading never unpickles objects: safetensors, ``.npz`` without objects, and PyTorch files through
  the weights-only reader;
* whatever is wrong with a file is reported as :class:`~paramgraph.errors.CheckpointError`.
"""

import contextlib
import json
import os
import pickle
import secrets
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from paramgraph.errors import CheckpointError

__all__ = ["load_state_dict", "load_tensors", "save_tensors", "write_atomic"]

_METADATA_KEY = "paramgraph"
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_SUFFIXES = (".safetensors", ".npz", *_TORCH_SUFFIXES)
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that no reader ever sees half a file.

    The bytes go to a temporary file in the same folder, are flushed to disk, and are then renamed.
    After a crash the old file (or no file) is there, never a mixture.

    Args:
        path: The file to create or replace; its folder must exist.
        data: The whole content.

    Raises:
        CheckpointError: The folder does not exist or the file cannot be written. Nothing is left
            behind, and an existing file keeps its content.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder) / "note.txt", b"hello")
        ...     (Path(folder) / "note.txt").read_bytes()
        b'hello'
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise CheckpointError(
            f"cannot write '{target}': the folder '{folder}' does not exist. "
            "Create it first, or choose another path."
        )
    temporary = folder / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        # The kernel applies the umask to 0644; tempfile would give 0600 whatever the umask.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot write '{target}' ({len(data):,} bytes): {error.strerror or error}. "
            "Check that the folder is writable and the disk is not full."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # gone already after the rename


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors to a safetensors file, atomically and byte-for-byte reproducibly.

    Args:
        path: The file, usually ending in ``.safetensors``.
        tensors: Name to tensor; they may be views or lie on another device.
        metadata: Anything JSON can hold; stored under one header key, because the order of several
            keys in a safetensors header differs from one save to the next.

    Raises:
        CheckpointError: The file cannot be written, or ``metadata`` is not JSON.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tensors(Path(folder) / "w.safetensors", {"w": torch.ones(2)}, {"step": 3})
        ...     load_tensors(Path(folder) / "w.safetensors")
        ({'w': tensor([1., 1.])}, {'step': 3})
    """
    try:
        text = json.dumps(dict(metadata or {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"cannot write '{path}': its metadata is not plain JSON ({error}). "
            "Use only dicts, lists, strings, finite numbers, booleans and None."
        ) from error
    # A clone per tensor also separates tied tensors, which safetensors would refuse.
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, {_METADATA_KEY: text}))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        The tensors by name, and the metadata that :func:`save_tensors` stored (empty if the file
        was written by something else).

    Raises:
        CheckpointError: The file is missing, truncated, or not a safetensors file.
    """
    path = Path(path)
    _require_file(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            header = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_safetensors_problem(path, error)) from error
    try:
        metadata = json.loads(header.get(_METADATA_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"cannot read '{path}': its '{_METADATA_KEY}' metadata is not JSON ({error}). "
            "The file is damaged; write it again."
        ) from error
    return tensors, metadata


def load_state_dict(
    path: str | os.PathLike[str], *, allow_nonfinite: bool = False
) -> dict[str, Tensor]:
    """Read the weights of one network from a file of a common format, without running its code.

    ``.safetensors``; ``.npz`` with plain arrays; ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` through
    ``torch.load(weights_only=True)``. A dict nested under ``state_dict`` or ``model`` is unwrapped.

    Args:
        path: The file; its suffix decides how it is read.
        allow_nonfinite: Accept NaN and infinite values.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, of an unknown format, holds objects other
            than tensors, or holds NaN or infinite values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"w": torch.zeros(1)}}, Path(folder) / "w.pt")
        ...     load_state_dict(Path(folder) / "w.pt")
        {'w': tensor([0.])}
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise CheckpointError(
            f"cannot read '{path}': unknown suffix '{suffix}'. "
            f"Expected one of {', '.join(_SUFFIXES)}."
        )
    _require_file(path)
    if suffix == ".safetensors":
        state, _ = load_tensors(path)
    elif suffix == ".npz":
        state = _load_npz(path)
    else:
        state = _load_torch(path)
    if not state:
        raise CheckpointError(f"cannot use '{path}': it holds no tensors.")
    if not allow_nonfinite:
        _assert_finite(path, state)
    return state


def _load_npz(path: Path) -> dict[str, Tensor]:
    try:
        # Opened here, because numpy forgets to close a file that it cannot read.
        with path.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: torch.from_numpy(np.array(loaded[name])) for name in loaded.files}
    except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"cannot read '{path}' as .npz without running code from it: {error}. "
            "Only plain numeric arrays are read; save them again with numpy.savez(path, **arrays)."
        ) from error


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # About the pickle protocol; what matters is whether reading succeeds.
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"cannot read '{path}' with PyTorch's weights-only reader: {_torch_problem(error)}. "
            "Only files of tensors are read, because a pickle can run any code when loaded. "
            "If you trust the file, save network.state_dict() alone, or use safetensors."
        ) from error
    where = ""
    if isinstance(loaded, dict):
        for key in _NESTED_KEYS:
            if isinstance(loaded.get(key), dict):
                loaded, where = loaded[key], f" under '{key}'"
                break
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"cannot use '{path}': expected a dict of tensors, got {type(loaded).__name__}. "
            "Save network.state_dict()."
        )
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"cannot use '{path}': expected a flat dict of tensors, but entry {name!r}{where} "
                f"is of type {type(value).__name__}. Save network.state_dict() alone."
            )
    return dict(loaded)


def _torch_problem(error: Exception) -> str:
    """Return the line that says what is wrong; the rest advises to switch the safety off."""
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation")
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    facts = [line for line in lines if not line.startswith(advice)]
    return (facts or lines or [type(error).__name__])[0]


def _assert_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() or value.is_complex():
            num_bad = int((~torch.isfinite(value)).sum())
            if num_bad:
                raise CheckpointError(
                    f"cannot use '{path}': tensor '{name}' holds {num_bad:,} non-finite values "
                    f"(NaN or infinite) of {value.numel():,}. The training run probably diverged; "
                    "pass allow_nonfinite=True to read it all the same."
                )


def _safetensors_problem(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80" or start == b"PK\x03\x04":
        return (
            f"refused to read '{path}': it is named .safetensors but begins like a pickle or a "
            "zip archive, which could run code when loaded. If it is a PyTorch file that you "
            "trust, give it its real suffix (.pt)."
        )
    return (
        f"cannot read '{path}' ({path.stat().st_size:,} bytes): it is truncated or not a "
        f"safetensors file ({error}). Copy or build it again."
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "missing"
        raise CheckpointError(f"cannot read '{path}': it is {kind}. Expected a file of weights.")


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself; a folder that cannot be opened for this is not an error."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
