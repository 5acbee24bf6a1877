"""Parameters in memory-mapped safetensors files, as the views that blocks and neurons have of them.

Nothing is read when a file is opened: a tensor is a map of its place in the file, its views are
made of strides, and the system reads pages when a tile is worked on and may drop them afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.graph import ParamGraph
from paramgraph.structure import EntryView, ParameterLayout
from paramgraph.views import joined_axes, take_part

__all__ = ["TensorFiles", "Tile"]

_KINDS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class TensorFiles:
    """The parameters of one network in one or several safetensors files.

    Args:
        graph: Which parameters there are.
        paths: A file, or files that hold different parameters (shards).
        strict: Refuse tensors that the graph does not know.

    Raises:
        GraphError: A file cannot be opened, a parameter is missing, twice there, of another shape
            or of a type without fractions, or (with ``strict``) a tensor belongs to no parameter.
    """

    def __init__(
        self, graph: ParamGraph, paths: str | Path | Sequence[str | Path], *, strict: bool = True
    ) -> None:
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        if not given:
            raise GraphError("no file of weights was given.")
        self._tensors: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}
        for path in map(Path, given):
            for name, tensor in _open(path).items():
                if name in self._tensors:
                    raise GraphError(
                        f"tensor {name!r} is in {self._files[name]} and in {path}: each parameter "
                        "must be in one file. Give the shards of one network."
                    )
                self._tensors[name], self._files[name] = tensor, path
        self._layouts = {layout.name: layout for layout in graph.parameters}
        self._names = {layout.name: self._members_of(layout) for layout in graph.parameters}
        if strict:
            self._refuse_extra(graph)

    def _members_of(self, layout: ParameterLayout) -> tuple[str, ...]:
        """Names under which a parameter, or the members of a stack of them, is stored."""
        if layout.members:
            for name in layout.members:
                self._check(name, (name,), layout.shape[1:])
            return layout.members
        stored = [name for name in (layout.name, *layout.aliases) if name in self._tensors]
        self._check(layout.name, tuple(stored), layout.shape)
        return (stored[0],)

    def _check(self, name: str, stored: tuple[str, ...], shape: tuple[int, ...]) -> None:
        files = ", ".join(str(path) for path in dict.fromkeys(self._files.values()))
        if not stored or stored[0] not in self._tensors:
            raise GraphError(
                f"no tensor {name!r} of shape {_text(shape)} in {files}, which has "
                f"{len(self._tensors)} tensors: {_some(self._tensors)}. The files belong to "
                "another architecture, or a shard is missing."
            )
        for one in stored:
            tensor, path = self._tensors[one], self._files[one]
            if tuple(tensor.shape) != shape:
                raise GraphError(
                    f"tensor {one!r} in {path} has shape {_text(tensor.shape)}, expected "
                    f"{_text(shape)}: the file belongs to another architecture. Capture that one."
                )
            if tensor.dtype not in _KINDS:
                raise GraphError(
                    f"tensor {one!r} in {path} is {tensor.dtype}, expected one of "
                    f"{', '.join(map(str, _KINDS))}. Convert quantised weights first."
                )

    def _refuse_extra(self, graph: ParamGraph) -> None:
        known = {n for row in graph.parameters for n in (row.name, *row.aliases, *row.members)}
        known |= {*graph.unused_parameters, *graph.constant_parameters}
        extra = [name for name in self._tensors if name not in known]
        if extra:
            raise GraphError(
                f"{len(extra)} tensors belong to no parameter of {graph.name!r}: {_some(extra)} "
                f"(in {self._files[extra[0]]}). Capture the network that the file is of, or pass "
                "strict=False to leave them out."
            )

    def place(self, view: EntryView) -> str:
        """Name and file of what a view reads, for messages."""
        name = self._names[view.parameter][0]
        return f"tensor {name!r} in {self._files[name]}"

    def entries(self, view: EntryView) -> Entries:
        """What a view reads, in tiles."""
        layout, names = self._layouts[view.parameter], self._names[view.parameter]
        if layout.members:
            # The parameters of a stack lie in different places: the stack is read as a whole.
            whole = torch.stack([self._tensors[name] for name in names])
        else:
            whole = self._tensors[names[0]]
        part = take_part(whole, layout.parts[view.part].steps)
        return Entries(part.permute(view.order), view.shape)


@dataclass(frozen=True)
class Tile:
    """Some receivers and senders of some blocks.

    Attributes:
        blocks: Which blocks.
        receivers: Which receivers of each of them.
        senders: Which senders.
        values: ``[blocks, receivers, senders, positions]``.
    """

    blocks: slice
    receivers: slice
    senders: slice
    values: Tensor


class Entries:
    """A view of a mapped tensor whose axes may be joined.

    Args:
        mapped: The axes of a part of a parameter in their final order.
        shape: What neighbouring axes are joined to.
    """

    def __init__(self, mapped: Tensor, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._whole: Tensor | None = None
        try:
            self._whole = mapped.view(shape)
        except RuntimeError:  # the joined axes do not lie behind each other in memory
            self._mapped, self._groups = mapped, joined_axes(mapped.shape, shape)

    def read(self, dtype: torch.dtype) -> Tensor:
        """All of it (biases and the like)."""
        whole = self._mapped.reshape(self.shape) if self._whole is None else self._whole
        return whole.to(dtype)

    def tiles(self, dtype: torch.dtype, size: int) -> Iterator[Tile]:
        """Blocks ``[blocks, receivers, senders, positions]``, about ``size`` entries at a time."""
        blocks, receivers, senders, positions = self.shape
        # What is cut is the axis along which neighbours lie far from each other.
        is_turned = self._whole is not None and self._whole.stride(2) > self._whole.stride(1)
        along, across = (senders, receivers) if is_turned else (receivers, senders)
        num_rows = max(1, size // max(1, across * positions))
        num_blocks = max(1, num_rows // max(1, along))
        for start in range(0, blocks, num_blocks):
            block = slice(start, min(start + num_blocks, blocks))
            for first in range(0, along, num_rows):
                rows = slice(first, min(first + num_rows, along))
                places = (slice(0, receivers), rows) if is_turned else (rows, slice(0, senders))
                yield Tile(block, *places, self._cut(block, *places).to(dtype))

    def _cut(self, block: slice, receivers: slice, senders: slice) -> Tensor:
        if self._whole is not None:
            return self._whole[block, receivers, senders]
        # Rows of joined axes are gathered; what is gathered is one tile.
        found = self._mapped
        for axis, rows in ((1, receivers), (0, block)):
            axes = self._groups[axis]
            if not axes:
                continue
            sizes = [self._mapped.shape[i] for i in axes]
            numbers = torch.unravel_index(torch.arange(rows.start, rows.stop), sizes)
            at: list[slice | Tensor] = [slice(None)] * axes[0]
            found = found[tuple([*at, *numbers])]
        num = block.stop - block.start, receivers.stop - receivers.start
        return found.reshape(*num, *self.shape[2:])


def _open(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise GraphError(
            f"{path} cannot be read as safetensors ({error}). Give the paths of .safetensors files."
        ) from error


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if len(shape) else "scalar"


def _some(names: Sequence[str] | dict[str, Tensor]) -> str:
    return ", ".join(list(names)[:6]) + (", ..." if len(names) > 6 else "")
