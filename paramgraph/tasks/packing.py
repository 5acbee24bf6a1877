"""A batch as one buffer, to hand it from a worker process to the trainer.

A batch holds about 60 tensors and the graphs of its networks. Pickling them one by one costs more
than making the batch; here all numbers go into one buffer in shared memory, graphs go by number,
and what is left (slots, roles) is a few kilobytes.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.graph import ParamGraph

__all__ = ["Packed", "pack", "unpack"]

_ALIGNMENT = 64  # bytes


class Packed(NamedTuple):
    """A batch and the numbers of its networks.

    Attributes:
        structure: What is no tensor and no graph, pickled.
        tensors: The bytes of all tensors, one after another.
        numbers: Of the networks, in the order of the batch.
    """

    structure: bytes
    tensors: Tensor
    numbers: Tensor


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, number_of: Mapping[str, int]) -> None:
        super().__init__(file, protocol=5)
        self.number_of = number_of
        self.places: dict[object, tuple[object, ...]] = {}
        self.tensors: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> tuple[object, ...] | None:
        if isinstance(obj, ParamGraph):
            return "graph", self.number_of[obj.function_key]
        if not isinstance(obj, Tensor):
            return None
        # The weights of a part and of its bucket are often the same memory: send it once.
        key = obj.data_ptr(), obj.dtype, tuple(obj.shape), obj.stride()
        if key not in self.places:
            self.places[key] = "tensor", self.size, obj.dtype, tuple(obj.shape)
            self.tensors.append((self.size, obj))
            num_bytes = obj.numel() * obj.element_size()
            self.size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return self.places[key]


class _Unpacker(pickle.Unpickler):
    """Reads what this process's own workers wrote, never a file."""

    def __init__(self, file: io.BytesIO, flat: Tensor, graphs: Sequence[ParamGraph]) -> None:
        super().__init__(file)
        self.flat = flat
        self.graphs = graphs

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "graph":
            return self.graphs[pid[1]]
        _, start, dtype, shape = pid
        end = start + math.prod(shape) * dtype.itemsize
        return self.flat[start:end].view(dtype).view(shape)


def pack(batch: GraphBatch, numbers: Tensor, number_of: Mapping[str, int]) -> Packed:
    """Put a batch into one buffer.

    Args:
        batch: On the CPU.
        numbers: Of its networks.
        number_of: ``ParamGraph.function_key`` to the place of the graph in the table that
            ``unpack`` gets.

    Example:
        >>> import paramgraph as pg
        >>> network = torch.nn.Linear(2, 3)
        >>> graph = pg.capture(network, torch.ones(1, 2))
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))])
        >>> packed = pack(batch, torch.tensor([7]), {graph.function_key: 0})
        >>> again = unpack(packed, [graph], "cpu")
        >>> torch.equal(again.buckets[0].values, batch.buckets[0].values)
        True
    """
    file = io.BytesIO()
    packer = _Packer(file, number_of)
    packer.dump(batch)
    flat = torch.empty(packer.size, dtype=torch.uint8)
    for start, tensor in packer.tensors:
        if tensor.numel():
            data = tensor.detach().contiguous().view(-1).view(torch.uint8)
            flat[start : start + len(data)] = data
    return Packed(file.getvalue(), flat, numbers)


def unpack(packed: Packed, graphs: Sequence[ParamGraph], device: torch.device | str) -> GraphBatch:
    """The batch again, its tensors as views of the one buffer, which goes to a device at once.

    Args:
        packed: From ``pack``.
        graphs: The table of graphs.
        device: Where the batch is wanted.
    """
    flat = packed.tensors.to(device, non_blocking=True)
    batch: GraphBatch = _Unpacker(io.BytesIO(packed.structure), flat, graphs).load()
    # Places in the batch stay on the CPU, as ``collate`` has them.
    return replace(batch, parts=tuple(replace(p, rows=p.rows.cpu()) for p in batch.parts))
