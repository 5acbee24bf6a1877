"""Reading members of a ``.pt2`` archive: bounded in size, tensors only, nothing unpickled freely.

PyTorch writes its archives as zip files without compression. Thus the members together are never
larger than the file, and a file that claims otherwise is refused before anything is read.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.errors import CheckpointError

__all__ = ["DTYPES", "Archive"]

_MAX_JSON_BYTES = 512 * 2**20

# Numbers of torch._export.serde.schema.ScalarType, which are part of the file format.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}


class Archive:
    """An open ``.pt2`` file.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing, no zip archive, or claims to be larger than it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "missing"
            raise CheckpointError(f"cannot read '{path}': it is {kind}. Expected a .pt2 file.")
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read '{path}' ({path.stat().st_size:,} bytes) as a .pt2 archive: {error}. "
                "Write it again with torch.export.save(program, path)."
            ) from error
        try:
            assert_plain_zip(self._zip, path.stat().st_size, f"'{path}'")
            roots = {name.split("/")[0] for name in self._zip.namelist()}
            if len(roots) != 1 or f"{next(iter(roots))}/archive_format" not in self.names:
                raise CheckpointError(
                    f"cannot read '{path}': it is truncated, or a zip file but not a .pt2 archive "
                    "of PyTorch 2.9 or newer. Copy it again; or load it with the PyTorch that "
                    "wrote it and save it with a newer one, by torch.export.save(program, path)."
                )
        except BaseException:
            self._zip.close()
            raise
        self._root = next(iter(roots))

    def __enter__(self) -> Archive:
        """Use as a context; the file is closed at its end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._zip.close()

    @property
    def names(self) -> set[str]:
        """Full names of all members."""
        return set(self._zip.namelist())

    def has(self, name: str) -> bool:
        """Whether there is a member of this name, counted from the root folder of the archive."""
        return f"{self._root}/{name}" in self.names

    def members(self, prefix: str) -> list[str]:
        """Names of the members under a prefix, counted from the root folder of the archive."""
        start = f"{self._root}/{prefix}"
        return sorted(n[len(self._root) + 1 :] for n in self.names if n.startswith(start))

    def bytes(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            CheckpointError: There is no such member, or it is damaged.
        """
        try:
            return self._zip.read(f"{self._root}/{name}")
        except (KeyError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read '{name}' in '{self.path}': {error}. The file is damaged or "
                "incomplete; write it again with torch.export.save(program, path)."
            ) from error

    def json(self, name: str) -> Any:
        """The content of a member that holds JSON.

        Raises:
            CheckpointError: It is too large, or no JSON.
        """
        data = self.bytes(name)
        if len(data) > _MAX_JSON_BYTES:
            raise CheckpointError(
                f"refused to read '{name}' in '{self.path}': it has {len(data):,} bytes, more than "
                f"the {_MAX_JSON_BYTES:,} that a description of a network may have."
            )
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"cannot read '{name}' in '{self.path}': it is not JSON ({error}). "
                "The file is damaged; write it again."
            ) from error

    def tensors(self, folder: str) -> dict[str, Tensor]:
        """The tensors that the one payload table of a folder lists; equal storage stays shared.

        Raises:
            CheckpointError: An entry would have to be unpickled, or does not fit its bytes.
        """
        table = self.json(f"{folder}/model_{folder.rsplit('/')[-1]}_config.json")["config"]
        storages: dict[str, bytearray] = {}
        parameters: dict[Any, nn.Parameter] = {}
        found: dict[str, Tensor] = {}
        for name, entry in table.items():
            file, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or meta is None:
                raise CheckpointError(
                    f"refused to read {name!r} in '{self.path}': it is stored as a pickle "
                    f"({folder}/{file}), which can run any code when loaded. Only plain tensors "
                    "are read; export the network without tensor subclasses and custom objects."
                )
            if file not in storages:
                storages[file] = bytearray(self.bytes(f"{folder}/{file}"))
            tensor = self._view(name, storages[file], meta)
            if entry["is_param"]:
                key = (file, repr(meta))
                grad = bool(meta["requires_grad"]) and tensor.dtype.is_floating_point
                tensor = parameters.setdefault(key, nn.Parameter(tensor, requires_grad=grad))
            found[name] = tensor
        return found

    def _view(self, name: str, data: bytearray, meta: dict[str, Any]) -> Tensor:
        dtype = DTYPES.get(meta["dtype"])
        sizes = [_plain_int(size) for size in meta["sizes"]]
        strides = [_plain_int(stride) for stride in meta["strides"]]
        offset = _plain_int(meta["storage_offset"])
        if dtype is None or meta["layout"] not in (0, 7) or min([offset, *sizes, *strides, 0]) < 0:
            raise CheckpointError(
                f"cannot read {name!r} in '{self.path}': type {meta['dtype']}, layout "
                f"{meta['layout']} or shape {sizes} is not that of a plain dense tensor."
            )
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        needed = (last + 1) * dtype.itemsize if math.prod(sizes) else 0
        if needed > len(data):
            raise CheckpointError(
                f"cannot read {name!r} in '{self.path}': shape {sizes} with strides {strides} "
                f"needs {needed:,} bytes, but {len(data):,} are stored. The file is damaged."
            )
        if not needed:
            return torch.empty(sizes, dtype=dtype)
        flat = torch.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
        return flat.as_strided(sizes, strides, offset)

    def pickled_tensors(self, name: str) -> Any:
        """A member that ``torch.save`` wrote, through the weights-only reader.

        Raises:
            CheckpointError: It holds anything but tensors, numbers, text and plain containers.
        """
        data = self.bytes(name)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as inner:
                assert_plain_zip(inner, len(data), f"'{name}' in '{self.path}'")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            facts = [line.strip() for line in str(error).splitlines() if line.strip()]
            fact = next((f for f in facts if not f.startswith("Weights only load failed")), "")
            raise CheckpointError(
                f"refused to read '{name}' in '{self.path}': it holds more than plain tensors, and "
                f"a pickle can run any code when loaded ({fact.rstrip('.') or 'damaged'}). "
                "Load the file with read_inputs=False and give example inputs yourself."
            ) from error


def assert_plain_zip(archive: zipfile.ZipFile, num_bytes: int, what: str) -> None:
    """Raise unless all members are uncompressed, named once, and fit into the file together.

    Raises:
        CheckpointError: Names the first member that breaks the rule.
    """
    total, seen = 0, set()
    for info in archive.infolist():
        total += info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(
                f"refused to read {what}: its member '{info.filename}' is compressed, as PyTorch "
                "never writes it; a small file could unpack to any size."
            )
        if info.filename in seen:
            raise CheckpointError(
                f"refused to read {what}: its member '{info.filename}' occurs twice."
            )
        seen.add(info.filename)
    if total > num_bytes:
        raise CheckpointError(
            f"refused to read {what}: its members claim {total:,} bytes, but the whole file has "
            f"{num_bytes:,}. It is damaged or made to exhaust memory."
        )


def _plain_int(value: Any) -> int:
    """The number in ``{"as_int": 3}``; a stored tensor has no symbolic sizes."""
    if isinstance(value, dict) and isinstance(value.get("as_int"), int):
        return int(value["as_int"])
    raise CheckpointError(f"expected a whole number as the size of a stored tensor, got {value!r}.")
