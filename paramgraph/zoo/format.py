"""Reading a zoo: a folder of trained networks, their architectures and one row of facts for each.

| File | Content |
|---|---|
| ``zoo.json`` | format version, kind, recipe (every argument of the build), conventions, counts |
| ``architectures.json`` | name -> architecture, as plain data |
| ``weights-*.safetensors`` | one unit of work: a stacked tensor ``[n, ...]`` per entry |
| ``weights-*.json`` | commit record of that unit: sha256, size, architecture, one value per row |
| ``networks.parquet`` | derived from the records: one row per checkpoint |

Writing is in ``building.py``.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from paramgraph.errors import ZooError
from paramgraph.zoo.architectures import Architecture, architecture_from_json

__all__ = ["FORMAT_VERSION", "Zoo"]

FORMAT_VERSION = 1
_INFO, _ARCHITECTURES, _INDEX = "zoo.json", "architectures.json", "networks.parquet"
# Every zoo has these columns; `parent` is the training run (or image) that splits keep together.
REQUIRED_COLUMNS = ("architecture", "shard", "row", "parent", "step", "split", "seed")


class Zoo:
    """A set of trained networks with labels, or a view of some rows of one.

    Weights stay on disk until they are asked for. Networks are numbered by their position in this
    zoo or view, ``0 .. len(zoo) - 1``.

    Attributes:
        path: The folder.
        kind: ``"inrs"`` or ``"classifiers"``.
        info: The content of ``zoo.json``.
        architectures: Name to architecture, all of the folder (a view may use fewer).

    Example:
        >>> import tempfile
        >>> from paramgraph.zoo.recipes import digits_inr_recipe
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zoo = digits_inr_recipe(folder, scale="tiny", progress=False)
        ...     Zoo.open(folder).split("test").network(0)(torch.zeros(1, 2)).shape
        torch.Size([1, 1])
    """

    def __init__(
        self,
        path: Path,
        info: Mapping[str, Any],
        architectures: Mapping[str, Architecture],
        table: Mapping[str, np.ndarray],
    ) -> None:
        self.path = path
        self.info = dict(info)
        self.architectures = dict(architectures)
        self._table = dict(table)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Zoo":
        """Open a finished zoo and check that every file it needs is there and whole.

        Args:
            path: The folder.

        Returns:
            The zoo, all rows.

        Raises:
            ZooError: Not a zoo, written by another format version, unfinished, empty, or a file of
                weights or its record is missing or has the wrong size.
        """
        path = Path(path)
        info = _read_json(path, _INFO)
        if info.get("format_version") != FORMAT_VERSION:
            raise ZooError(
                f"zoo '{path}': expected format version {FORMAT_VERSION}, got "
                f"{info.get('format_version')!r}. Read it with the version of paramgraph that "
                f"wrote it ({info.get('provenance', {}).get('paramgraph', 'unknown')})."
            )
        if not info.get("counts"):
            raise ZooError(
                f"zoo '{path}' is not finished. Run the same build again: it continues where it "
                "stopped."
            )
        specs = _read_json(path, _ARCHITECTURES)
        architectures = {name: architecture_from_json(spec) for name, spec in specs.items()}
        table = _read_index(path)
        if len(table["row"]) == 0:
            raise ZooError(
                f"zoo '{path}' is empty: its index '{_INDEX}' has 0 rows. Build it again."
            )
        for shard in np.unique(table["shard"]):
            _check_shard(path, str(shard), int((table["shard"] == shard).sum()))
        unknown = sorted(set(np.unique(table["architecture"])) - set(architectures))
        if unknown:
            raise ZooError(
                f"zoo '{path}': the index names the architecture '{unknown[0]}', which "
                f"'{_ARCHITECTURES}' lacks. The folder is damaged; build it again."
            )
        return cls(path, info, architectures, table)

    def __len__(self) -> int:
        return len(self._table["row"])

    def __repr__(self) -> str:
        return f"Zoo('{self.path}', kind='{self.kind}', {len(self):,} networks)"

    @property
    def kind(self) -> str:
        """What the networks are: ``"inrs"`` or ``"classifiers"``."""
        return str(self.info["kind"])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the facts known about each network."""
        return tuple(self._table)

    def column(self, name: str) -> np.ndarray:
        """Return one fact about every network.

        Args:
            name: One of :attr:`columns`.

        Returns:
            An array of ``len(self)`` values, in order; a copy.

        Raises:
            ZooError: There is no such column.
        """
        if name not in self._table:
            raise ZooError(
                f"zoo '{self.path}' has no column '{name}'. It has: {', '.join(self.columns)}."
            )
        return self._table[name].copy()

    def split(self, name: str) -> "Zoo":
        """Return the networks of one split; the checkpoints of a parent are all in the same one.

        Args:
            name: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ZooError: No network of this zoo or view is in that split.
        """
        mask = self._table["split"] == name
        if not mask.any():
            names, counts = np.unique(self._table["split"], return_counts=True)
            found = ", ".join(f"'{n}' ({c:,})" for n, c in zip(names, counts, strict=True))
            raise ZooError(
                f"zoo '{self.path}' has no networks in split '{name}'. Splits: {found or 'none'}."
            )
        return self.select(mask)

    def select(self, mask_or_indices: np.ndarray | Tensor | Sequence[int]) -> "Zoo":
        """Return a view of some networks.

        Args:
            mask_or_indices: One boolean per network, or positions in the order wanted.

        Raises:
            ZooError: A mask of the wrong length, or a position outside the zoo.
        """
        index = np.asarray(mask_or_indices)
        if index.dtype == np.bool_:
            if index.shape != (len(self),):
                raise ZooError(
                    f"Zoo.select: expected a mask of {len(self):,} booleans, got shape "
                    f"{index.shape}."
                )
            index = np.flatnonzero(index)
        elif index.size == 0:
            index = np.zeros(0, np.int64)
        elif index.dtype.kind not in "iu" or index.ndim != 1:
            raise ZooError(
                "Zoo.select: expected a list of whole numbers or booleans, got an array of "
                f"{index.dtype} of shape {index.shape}."
            )
        elif index.min() < 0 or index.max() >= len(self):
            raise ZooError(
                f"Zoo.select: expected positions in 0..{len(self) - 1}, got "
                f"{index.min()}..{index.max()}."
            )
        table = {name: values[index] for name, values in self._table.items()}
        return Zoo(self.path, self.info, self.architectures, table)

    def stacked(self) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """Read all weights, stacked by architecture.

        Returns:
            For each architecture in this view: the positions of its networks within the view
            (int64, ascending, ``[n]``), and their state dict entries stacked to ``[n, ...]``.

        Raises:
            ZooError: A file of weights is damaged or does not fit its architecture.
        """
        result = {}
        for name in dict.fromkeys(self._table["architecture"].tolist()):
            positions = np.flatnonzero(self._table["architecture"] == name)
            result[name] = (torch.from_numpy(positions), self._read_rows(name, positions))
        return result

    def state_dict(self, i: int) -> dict[str, Tensor]:
        """Read the weights of network ``i``.

        Raises:
            ZooError: There is no network ``i``, or its file of weights is damaged.
        """
        name = self._architecture_of(i)
        stacked = self._read_rows(name, np.array([i]))
        return {key: value[0].clone() for key, value in stacked.items()}

    def network(self, i: int) -> nn.Module:
        """Build network ``i`` with its trained weights, in evaluation mode.

        Raises:
            ZooError: There is no network ``i``, or its file of weights is damaged.
        """
        state = self.state_dict(i)
        # On the meta device no initial weights are drawn: the caller's random numbers stay as
        # they were.
        with torch.device("meta"):
            network = self.architectures[self._architecture_of(i)].build()
        network.load_state_dict(state, assign=True)
        return network.eval()

    def summary(self) -> str:
        """Return a readable overview: counts by split and architecture, range of each metric."""
        table = self._table
        names, counts = np.unique(table["split"], return_counts=True)
        lines = [
            f"{self.kind}: {len(self):,} networks of {len(np.unique(table['parent'])):,} parents, "
            f"{len(np.unique(table['architecture']))} architectures  ({self.path})",
            "splits: " + ", ".join(f"{n} {c:,}" for n, c in zip(names, counts, strict=True)),
        ]
        metrics = [name for name, values in table.items() if values.dtype.kind == "f"]
        if metrics and len(self):
            lines.append(
                f"{'metric':<16}{'min':>11}{'25 %':>11}{'median':>11}{'75 %':>11}{'max':>11}"
            )
            for name in metrics:
                quantiles = np.quantile(table[name], [0, 0.25, 0.5, 0.75, 1])
                lines.append(f"{name:<16}" + "".join(f"{value:>11.4g}" for value in quantiles))
        for name in dict.fromkeys(table["architecture"].tolist()):
            lines.append(f"  {int((table['architecture'] == name).sum()):>7,} x {name}")
        return "\n".join(lines)

    def _architecture_of(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise ZooError(f"zoo '{self.path}': expected a network in 0..{len(self) - 1}, got {i}.")
        return str(self._table["architecture"][i])

    def _read_rows(self, architecture: str, positions: np.ndarray) -> dict[str, Tensor]:
        """Stack the state dicts of networks that share an architecture, in the order given."""
        shards, rows = self._table["shard"][positions], self._table["row"][positions]
        pieces: dict[str, dict[str, Tensor]] = {}
        for shard in dict.fromkeys(shards.tolist()):
            here = torch.from_numpy(rows[shards == shard])
            pieces[shard] = self._read_shard(shard, architecture, here)
        if len(pieces) == 1:
            return next(iter(pieces.values()))
        stacked: dict[str, Tensor] = {}
        for shard, state in pieces.items():
            where = torch.from_numpy(np.flatnonzero(shards == shard))
            for key, value in state.items():
                if key not in stacked:
                    stacked[key] = value.new_empty((len(positions), *value.shape[1:]))
                stacked[key][where] = value
        return stacked

    def _read_shard(self, shard: str, architecture: str, rows: Tensor) -> dict[str, Tensor]:
        file_path = self.path / f"{shard}.safetensors"
        expected = _entry_shapes(self.architectures[architecture])
        state: dict[str, Tensor] = {}
        try:
            with safetensors.safe_open(file_path, framework="pt", device="cpu") as file:
                keys = set(file.keys())
                if keys != set(expected):
                    wrong = sorted(keys ^ set(expected))[0]
                    raise ZooError(
                        f"weights '{file_path}': the entry '{wrong}' is "
                        f"{'missing' if wrong in expected else 'not part of'} of the architecture "
                        f"'{architecture}'. The folder is damaged; build it again."
                    )
                for key, shape in expected.items():
                    entry = file.get_slice(key)
                    num_rows, *got = entry.get_shape()
                    if tuple(got) != shape or num_rows <= int(rows.max()):
                        raise ZooError(
                            f"weights '{file_path}': entry '{key}' has shape "
                            f"{(num_rows, *got)}; expected {shape} after the first axis, as in "
                            f"'{architecture}', and more than {int(rows.max())} rows."
                        )
                    first, last = int(rows.min()), int(rows.max())
                    block = entry[first : last + 1]
                    if len(rows) != last + 1 - first or bool((rows.diff() != 1).any()):
                        block = block[rows - first]
                    state[key] = block
        except (safetensors.SafetensorError, OSError) as error:
            raise ZooError(
                f"weights '{file_path}' cannot be read: {error}. Delete '{shard}.json' and run "
                "the same build again to make this file anew."
            ) from error
        return state


def _entry_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = architecture.build().state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((path / name).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ZooError(
            f"'{path}' is not a zoo: it has no file '{name}'. Expected a folder made by "
            "paramgraph.zoo.fit_inrs or train_classifiers."
        ) from error
    except (OSError, ValueError) as error:
        raise ZooError(f"zoo '{path}': cannot read '{name}': {error}. Build it again.") from error
    if not isinstance(data, dict):
        raise ZooError(f"zoo '{path}': expected '{name}' to hold a JSON object. Build it again.")
    return data


def _read_index(path: Path) -> dict[str, np.ndarray]:
    import pyarrow.parquet  # not at import time: `import paramgraph` stays light

    try:
        table = pyarrow.parquet.read_table(path / _INDEX)
    except (OSError, pyarrow.ArrowException) as error:
        raise ZooError(
            f"zoo '{path}': cannot read the index '{_INDEX}': {error}. Run the same build again: "
            "it makes the index anew from the weights-*.json records."
        ) from error
    missing = [name for name in REQUIRED_COLUMNS if name not in table.column_names]
    if missing:
        raise ZooError(f"zoo '{path}': the index '{_INDEX}' lacks the column '{missing[0]}'.")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return {
        name: values.astype(np.str_) if values.dtype == object else values
        for name, values in columns.items()
    }


def _check_shard(path: Path, shard: str, num_rows: int) -> None:
    record = _read_json(path, f"{shard}.json")
    file_path = path / f"{shard}.safetensors"
    if not file_path.is_file():
        raise ZooError(
            f"zoo '{path}': the weights '{file_path.name}' are missing. "
            "Run the same build again to make them anew."
        )
    got, expected = file_path.stat().st_size, cast(int, record.get("size_bytes"))
    if got != expected or record.get("num_rows") != num_rows:
        raise ZooError(
            f"zoo '{path}': the weights '{file_path.name}' do not fit their record: expected "
            f"{expected} bytes and {record.get('num_rows')} rows, got {got} bytes and {num_rows} "
            "rows in the index. The file was truncated or replaced; run the same build again."
        )
