"""Tensors of an ONNX file, also those that it keeps in other files of its folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paramgraph.errors import CheckpointError
from paramgraph.frontends.onnx_operators.registry import DTYPES

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["read_tensor"]

_EXTERNAL = 1  # onnx.TensorProto.EXTERNAL


def read_tensor(proto: TensorProto, folder: Path) -> Tensor:
    """A tensor of the file.

    Args:
        proto: The message that describes it.
        folder: The folder of the ONNX file; nothing outside of it is read.

    Raises:
        CheckpointError: Its bytes are missing, too few, outside of the folder, or of a type that
            torch does not have.
    """
    sizes, name = list(proto.dims), proto.name
    if proto.data_type not in DTYPES:
        raise CheckpointError(
            f"cannot read tensor {name!r} of the ONNX file: its type number {proto.data_type} has "
            "no counterpart in PyTorch here (text, 4-bit and 8-bit floats are not read)."
        )
    dtype = DTYPES[proto.data_type]
    if any(size < 0 for size in sizes):
        raise CheckpointError(f"cannot read tensor {name!r} of the ONNX file: shape {sizes}.")
    needed = math.prod(sizes) * dtype.itemsize
    if proto.data_location == _EXTERNAL:
        data = _external(proto, folder, needed)
    elif proto.HasField("raw_data"):
        data = bytearray(proto.raw_data)
    else:
        return _from_fields(proto, sizes, dtype)
    if len(data) != needed:
        raise CheckpointError(
            f"cannot read tensor {name!r} of the ONNX file: shape {sizes} of {dtype} needs "
            f"{needed:,} bytes, but {len(data):,} are stored. The file is damaged; export it again."
        )
    if not needed:
        return torch.empty(sizes, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(sizes)


def _from_fields(proto: TensorProto, sizes: list[int], dtype: torch.dtype) -> Tensor:
    from onnx import numpy_helper

    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    stored = sum(len(getattr(proto, field)) for field in fields)
    wanted = math.prod(sizes) * (2 if dtype.is_complex else 1)
    if stored != wanted:
        raise CheckpointError(
            f"cannot read tensor {proto.name!r} of the ONNX file: shape {sizes} needs {wanted:,} "
            f"numbers, but {stored:,} are stored. The file is damaged; export it again."
        )
    array = numpy_helper.to_array(proto)
    if dtype == torch.bfloat16:  # numpy has no such type of its own
        array = array.astype("float32")
    return torch.from_numpy(array.copy()).to(dtype)


def _external(proto: TensorProto, folder: Path, needed: int) -> bytearray:
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"refused to read tensor {proto.name!r}: the ONNX file says that it is in "
            f"{location!r}, which is not inside the folder of the file. Move the data there and "
            "name it by a relative path."
        )
    if not path.is_file():
        raise CheckpointError(
            f"cannot read tensor {proto.name!r}: its file {location!r} is missing beside the ONNX "
            "file. Copy both into one folder."
        )
    offset = _whole(proto, entries.get("offset", "0"))
    length = _whole(proto, entries.get("length", str(needed)))
    size = path.stat().st_size
    if length != needed or offset + length > size:
        raise CheckpointError(
            f"cannot read tensor {proto.name!r}: it needs {needed:,} bytes, but the ONNX file "
            f"points to {length:,} from {offset:,} on in {location!r}, which has {size:,}. "
            "The files do not belong together, or one is damaged."
        )
    data = bytearray(length)
    with path.open("rb") as file:
        file.seek(offset)
        file.readinto(data)
    return data


def _whole(proto: TensorProto, text: str) -> int:
    if not text.isdigit():
        raise CheckpointError(
            f"cannot read tensor {proto.name!r} of the ONNX file: expected a whole number as place "
            f"of its data, got {text!r}."
        )
    return int(text)
