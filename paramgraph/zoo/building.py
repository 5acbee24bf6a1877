"""Writing a zoo so that a build can be killed at any moment and continued.

A build is cut into units of work, one shard each. A unit is committed by writing its weights, then
its JSON record, both atomically: without a valid record the unit does not exist and is done again.
The index is derived from the records at the end. Nothing written depends on the time of day or on
which units were done in which run, so a resumed zoo equals an uninterrupted one byte for byte.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from paramgraph.errors import CheckpointError, ZooError
from paramgraph.storage import write_atomic
from paramgraph.zoo.architectures import Architecture, architecture_to_json
from paramgraph.zoo.format import FORMAT_VERSION, REQUIRED_COLUMNS, Zoo

__all__ = ["ZooBuilder", "derive_seed", "show_progress"]


class ZooBuilder:
    """Writes one zoo, unit by unit.

    Args:
        out: The folder: new, empty, or holding an unfinished (or finished) build of the same zoo.
        kind: ``"inrs"`` or ``"classifiers"``.
        recipe: Every argument that the content depends on, as JSON data. A folder is continued
            only if its recipe is the same.
        architectures: All architectures of the zoo.
        conventions: What a reader must know to use the networks, as JSON data.

    Raises:
        ZooError: The folder cannot be written, holds something else, or holds another zoo.
            Nothing on disk is changed then.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        kind: str,
        recipe: Mapping[str, Any],
        architectures: Sequence[Architecture],
        conventions: Mapping[str, Any],
    ) -> None:
        self.out = Path(out)
        specs = {spec.name: architecture_to_json(spec) for spec in architectures}
        if len(specs) != len(architectures):
            raise ZooError(
                f"cannot build a zoo of {len(architectures)} architectures: only {len(specs)} are "
                "different. Give each architecture once."
            )
        # Through JSON once, so that tuples compare equal to the lists read back from disk.
        self._info = json.loads(
            _to_json(
                {
                    "format_version": FORMAT_VERSION,
                    "kind": kind,
                    "recipe": recipe,
                    "conventions": conventions,
                    "provenance": _provenance(),
                    "counts": None,
                }
            )
        )
        self._specs = json.loads(_to_json(specs))
        self._prepare_folder()

    def is_done(self, shard: str) -> bool:
        """Whether the unit ``shard`` is committed and its weights are intact (sha256)."""
        record = self._read_record(shard)
        if record is None:
            return False
        try:
            data = (self.out / f"{shard}.safetensors").read_bytes()
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == record["sha256"]

    def commit(
        self,
        shard: str,
        architecture: Architecture,
        tensors: Mapping[str, Tensor],
        columns: Mapping[str, np.ndarray],
        *,
        num_dropped: int = 0,
    ) -> None:
        """Write one unit of work: weights first, then the record that makes them count.

        Args:
            shard: File stem, ``weights-...``.
            architecture: The architecture of every network in it.
            tensors: Stacked state dict entries ``[n, ...]``.
            columns: One value per network; ``architecture``, ``shard`` and ``row`` are added here.
            num_dropped: Networks kept out because their training diverged.

        Raises:
            ZooError: A column or tensor has another length, or the folder cannot be written.
        """
        num_rows = len(next(iter(tensors.values())))
        lengths = {name: len(values) for name, values in tensors.items()}
        lengths |= {name: len(values) for name, values in columns.items()}
        for name, length in lengths.items():
            if length != num_rows:
                raise ZooError(
                    f"shard '{shard}': expected {num_rows} values in '{name}', got {length}."
                )
        plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        data = safetensors.torch.save(plain)
        record = {
            "architecture": architecture.name,
            "num_rows": num_rows,
            "num_dropped": num_dropped,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
            "columns": {name: np.asarray(columns[name]).tolist() for name in sorted(columns)},
        }
        with _as_zoo_error():
            write_atomic(self.out / f"{shard}.safetensors", data)
            write_atomic(self.out / f"{shard}.json", _to_json(record, indent=None))

    def finish(self, shards: Sequence[str]) -> Zoo:
        """Derive the index from the records, write the counts, and open the zoo.

        Args:
            shards: Every unit of the build, in the order that the rows shall have.

        Raises:
            ZooError: A unit has no record, or no network is left.
        """
        table: dict[str, list[Any]] = {}
        num_dropped = 0
        for shard in shards:
            record = self._read_record(shard)
            if record is None:
                raise ZooError(f"zoo '{self.out}': the unit '{shard}' is not done yet.")
            num_rows = record["num_rows"]
            num_dropped += record["num_dropped"]
            columns = {
                "architecture": [record["architecture"]] * num_rows,
                "shard": [shard] * num_rows,
                "row": list(range(num_rows)),
                **record["columns"],
            }
            for name, values in columns.items():
                table.setdefault(name, []).extend(values)
        ordered = [*REQUIRED_COLUMNS, *sorted(set(table) - set(REQUIRED_COLUMNS))]
        with _as_zoo_error():
            write_atomic(
                self.out / "networks.parquet", _to_parquet({name: table[name] for name in ordered})
            )
            counts = {
                "networks": len(table["row"]),
                "parents": len(set(table["parent"])),
                "architectures": len(set(table["architecture"])),
                "dropped": num_dropped,
            }
            write_atomic(self.out / "zoo.json", _to_json({**self._info, "counts": counts}))
        return Zoo.open(self.out)

    def _prepare_folder(self) -> None:
        if (self.out / "zoo.json").is_file():
            self._assert_same_zoo()
            return
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ZooError(
                f"cannot build a zoo in '{self.out}': it exists and is not an empty folder or an "
                "unfinished zoo. Choose another folder; nothing was changed."
            )
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ZooError(
                f"cannot create the folder '{self.out}': {error.strerror}. Choose a folder that "
                "you may write to; nothing was changed."
            ) from error
        with _as_zoo_error():
            write_atomic(self.out / "architectures.json", _to_json(self._specs))
            write_atomic(self.out / "zoo.json", _to_json(self._info))

    def _assert_same_zoo(self) -> None:
        try:
            old = json.loads((self.out / "zoo.json").read_text("utf-8"))
            old_specs = json.loads((self.out / "architectures.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ZooError(
                f"cannot continue the zoo in '{self.out}': {error}. Choose another folder."
            ) from error
        for key in ("format_version", "kind", "conventions"):
            if old.get(key) != self._info[key]:
                self._refuse(key, old.get(key), self._info[key])
        recipes = old.get("recipe", {}), self._info["recipe"]
        for key in sorted({*recipes[0], *recipes[1]}):
            if recipes[0].get(key) != recipes[1].get(key):
                self._refuse(key, recipes[0].get(key), recipes[1].get(key))
        if old_specs != self._specs:
            self._refuse("architectures", sorted(old_specs), sorted(self._specs))
        # A resumed zoo says which versions began it.
        self._info["provenance"] = old.get("provenance")

    def _refuse(self, key: str, old: object, new: object) -> None:
        raise ZooError(
            f"cannot build in '{self.out}': it holds another zoo. It was begun with {key} = "
            f"{_shorten(old)}, this call has {_shorten(new)}. Choose another folder, or repeat "
            "the first call exactly to continue it. Nothing was changed."
        )

    def _read_record(self, shard: str) -> dict[str, Any] | None:
        try:
            record = json.loads((self.out / f"{shard}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and "sha256" in record else None


def derive_seed(*numbers: int) -> int:
    """Mix whole numbers into one 63-bit seed, so that units never share random numbers.

    Example:
        >>> derive_seed(0, 1) != derive_seed(1, 0)
        True
    """
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])


@contextlib.contextmanager
def show_progress(
    title: str, total: int, unit: str, *, enabled: bool
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr; in a log file, one line about every 30 seconds.

    Yields:
        A function to call with the number of units done since the last call.
    """
    import sys

    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        disable=not enabled,
        file=sys.stderr,
        mininterval=0.2 if is_terminal else 30.0,
        maxinterval=10.0 if is_terminal else 60.0,
        # A log has no cursor to move back: end each report with a line break.
        bar_format=None if is_terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}]\n",
    )
    try:
        yield lambda num: _advance(bar, num)
    finally:
        bar.close()


def _advance(bar: Any, num: int) -> None:
    bar.update(num)


def digest(*tensors: Tensor) -> str:
    """Return a short fingerprint of some tensors, to notice that the data changed."""
    hasher = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        hasher.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        hasher.update(plain.numpy().tobytes())
    return hasher.hexdigest()[:16]


def _provenance() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("paramgraph")
    except PackageNotFoundError:  # run from a checkout
        own = "unknown"
    return {"paramgraph": own, "torch": torch.__version__, "numpy": np.__version__}


def _to_json(data: object, *, indent: int | None = 1) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=indent, allow_nan=False) + "\n").encode()


def _to_parquet(table: Mapping[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(table)), buffer)
    return buffer.getvalue()


def _shorten(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextlib.contextmanager
def _as_zoo_error() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise ZooError(str(error)) from error
