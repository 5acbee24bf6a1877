"""The tape: every ATen operation of one run of the network, as it happened.

Recording below ``nn.Module`` means that a hand-written ``forward`` is read as well as
``nn.Sequential``: only what was computed counts, not what a module is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["ALIASED", "FACTORIES", "Tape", "TapeEntry", "TensorRef", "entry_refs"]


FACTORIES = {
    *("zeros", "ones", "full", "empty", "arange", "scalar_tensor", "eye", "linspace"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn", "randint", "randperm"),
    *("tril_indices", "triu_indices", "empty_strided", "new_empty_strided", "logspace", "range"),
}


ALIASED = "paramgraph.aliased"


@dataclass(frozen=True)
class TensorRef:
    """One tensor at one moment: in-place operations make a new reference.

    Attributes:
        number: Unique on the tape.
        shape: Shape when recorded.
    """

    number: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TapeEntry:
    """One operation.

    Attributes:
        operation: For example ``aten.convolution`` (in-place variants carry the plain name).
        args: Positional arguments by the operation's schema, tensors replaced by references.
        outputs: References of what it returned, ``None`` for a number.
        module: Path of the module that ran it.
        is_pointwise: Whether PyTorch tags it as elementwise.
        is_in_place: Whether it writes to one of its arguments.
        position: Its index on the tape.
        number: The number that it returned, if it returned one.
        overload: Which variant of the operation ran, such as ``Tensor`` or ``default``.
    """

    operation: str
    args: dict[str, Any]
    outputs: tuple[TensorRef | None, ...]
    module: str
    is_pointwise: bool
    is_in_place: bool = False
    position: int = -1
    number: float | None = None
    overload: str = ""


@dataclass
class Tape:
    """All operations of one run, with the roots that they start from.

    Attributes:
        entries: In order of execution.
        parameters: Reference of each parameter and buffer, by its first name.
        aliases: Further names of tied tensors.
        buffers: Names that are buffers.
        stored: References of buffers that are in the state dict, so differ between networks.
        inputs: References of the example inputs.
        outputs: References of the tensors that the network returned.
        constants: Tensors that came from nowhere on the tape: buffers, or made before the run.
        tensors: Value of every constant, by its number.
        dtypes: Data type of every reference, by its number.
        storages: The memory of every reference, by its number.
        windows: Offset and strides of every reference in its memory, by its number.
        leafy: Names of the parameters and running statistics that symmetries act on.
        untrained: Names of parameters that need no gradient although others do.
        start: Position of the first operation; those of several tapes of one network differ.
    """

    entries: list[TapeEntry] = field(default_factory=list)
    parameters: dict[str, TensorRef] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    stored: set[int] = field(default_factory=set)
    inputs: list[TensorRef] = field(default_factory=list)
    outputs: list[TensorRef] = field(default_factory=list)
    constants: list[TensorRef] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    dtypes: dict[int, torch.dtype] = field(default_factory=dict)
    storages: dict[int, int] = field(default_factory=dict)
    windows: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    leafy: set[str] = field(default_factory=set)
    untrained: set[str] = field(default_factory=set)
    start: int = 0


def entry_refs(value: object) -> list[TensorRef]:
    """All tensor references in the arguments of an operation, in order."""
    if isinstance(value, TensorRef):
        return [value]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in entry_refs(item)]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in entry_refs(item)]
    return []
