"""The tape: every ATen operation of one run of the network, as it happened.

Recording below ``nn.Module`` means that a hand-written ``forward`` is read as well as
``nn.Sequential``: only what was computed counts, not what a module is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramgraph.capture.running import (
    ExampleInputs,
    detached,
    evaluation_copy,
    kept_random_state,
    output_tensors,
    run_network,
)
from paramgraph.errors import CaptureError

__all__ = ["Tape", "TapeEntry", "TensorRef", "record"]


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
    """

    operation: str
    args: dict[str, Any]
    outputs: tuple[TensorRef | None, ...]
    module: str
    is_pointwise: bool


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
        tensors: Value of every reference, by its number.
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


@dataclass
class _Storage:
    """A piece of memory, the tensors that view it, and the references to its present values."""

    address: int
    size_bytes: int
    views: dict[int, Tensor] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    """Writes the tape. Holds every tensor it saw, so that identities stay unique."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.refs: dict[int, TensorRef] = {}
        self.kept: list[Tensor] = []
        self.storages: dict[int, _Storage] = {}
        self.stale: dict[int, str] = {}
        self.count = 0
        self.modules: list[str] = [""]

    def reference(self, tensor: Tensor) -> TensorRef:
        """The reference of a tensor; one never seen before is a constant."""
        known = self.refs.get(id(tensor))
        if known is None:
            self._assert_new_memory(tensor)
            known = self.define(tensor)
            self.tape.constants.append(known)
        if id(tensor) in self.stale:
            raise CaptureError(
                f"module {self.modules[-1] or 'the network'!r} reads a tensor of shape "
                f"{tuple(tensor.shape)} after the in-place operation "
                f"{self.stale[id(tensor)]!r} changed it through another view. Capture cannot "
                "follow values through overlapping views: write the operation out of place."
            )
        return known

    def define(self, tensor: Tensor) -> TensorRef:
        """A new reference for a tensor that was just made or changed."""
        ref = TensorRef(self.count, tuple(tensor.shape))
        self.count += 1
        self.refs[id(tensor)] = ref
        self.stale.pop(id(tensor), None)
        self.tape.tensors[ref.number] = tensor
        self.kept.append(tensor)  # a freed tensor would hand its identity to another one
        storage = tensor.untyped_storage()
        new = _Storage(storage.data_ptr(), storage.nbytes())
        known = self.storages.setdefault(storage._cdata, new)
        known.views[id(tensor)] = tensor
        known.numbers.append(ref.number)
        return ref

    def _assert_new_memory(self, tensor: Tensor) -> None:
        """Refuse a tensor that shares memory with a recorded one but was made unseen."""
        start = tensor.data_ptr()
        for storage in self.storages.values():
            if start and storage.address <= start < storage.address + storage.size_bytes:
                raise CaptureError(
                    f"module {self.modules[-1] or 'top level'!r} reads a tensor of shape "
                    f"{tuple(tensor.shape)} that shares the memory of a recorded tensor but was "
                    "not made by a recorded operation (numpy, or a view stored earlier?). What it "
                    "depends on is unknown: use torch operations on the parameter itself."
                )

    def _keep_old_values(self, changed: Tensor) -> None:
        """Copy what an in-place operation is about to overwrite."""
        storage = self.storages.get(changed.untyped_storage()._cdata)
        for number in storage.numbers if storage else ():
            self.tape.tensors[number] = self.tape.tensors[number].detach().clone()
        if storage:
            storage.numbers.clear()

    def entering(self, path: str) -> Callable[..., None]:
        """A forward pre-hook that notes which module runs."""

        def hook(*_: Any) -> None:
            self.modules.append(path)

        return hook

    def leaving(self, *_: Any) -> None:
        """A forward hook that notes that the module has run."""
        self.modules.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        schema = func._schema
        named: dict[str, Any] = {}
        for position, argument in enumerate(schema.arguments):
            if position < len(args):
                named[argument.name] = args[position]
            elif kwargs and argument.name in kwargs:
                named[argument.name] = kwargs[argument.name]
            elif argument.has_default_value():
                named[argument.name] = argument.default_value
        recorded = {name: self._freeze(value) for name, value in named.items()}
        for argument in schema.arguments:
            value = named.get(argument.name)
            if argument.is_write and isinstance(value, Tensor):
                self._keep_old_values(value)
        result = func(*args, **(kwargs or {}))
        outs = [leaf for leaf in tree_leaves(result) if leaf is not None]
        name = func.overloadpacket._qualified_op_name.replace("::", ".")
        if name.endswith("_") and not name.endswith("__"):
            name = name[:-1]
        refs: list[TensorRef | None] = []
        for out in outs:
            if not isinstance(out, Tensor):
                refs.append(None)
                continue
            if id(out) in self.refs and schema.is_mutable:
                for other in self.storages[out.untyped_storage()._cdata].views:
                    self.stale[other] = name
            refs.append(self.define(out))
        pointwise = torch.Tag.pointwise in func.tags
        self.tape.entries.append(
            TapeEntry(name, recorded, tuple(refs), self.modules[-1], pointwise)
        )
        return result

    def _freeze(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.reference(value)
        if isinstance(value, tuple | list):
            return [self._freeze(item) for item in value]
        return value


def record(network: nn.Module, example_inputs: ExampleInputs) -> Tape:
    """Run a copy of the network once, in evaluation mode, and write the tape.

    The network itself is not touched: not its parameters, mode, buffers, hooks or the global
    random state.

    Args:
        network: Any module.
        example_inputs: What to call it with; use a batch of two or more.

    Raises:
        CaptureError: The network failed on the example inputs or returned no tensor.

    Example:
        >>> tape = record(nn.Linear(3, 2), torch.randn(4, 3))
        >>> [entry.operation for entry in tape.entries]
        ['aten.t', 'aten.addmm']
    """
    tape = Tape()
    recorder = _Recorder(tape)
    network = evaluation_copy(network)
    stored = network.state_dict().keys()
    seen: dict[int, str] = {}
    named: list[tuple[str, Tensor, bool]]
    named = [(n, p, False) for n, p in network.named_parameters(remove_duplicate=False)]
    named += [(n, b, True) for n, b in network.named_buffers(remove_duplicate=False)]
    for name, tensor, is_buffer in named:
        if id(tensor) in seen:
            first = seen[id(tensor)]
            tape.aliases[first] = (*tape.aliases.get(first, ()), name)
            continue
        seen[id(tensor)] = name
        tape.parameters[name] = recorder.define(tensor)
        if is_buffer:
            tape.buffers.add(name)
            tape.constants.append(tape.parameters[name])
            if name in stored:
                tape.stored.add(tape.parameters[name].number)
    for path, module in network.named_modules():
        module.register_forward_pre_hook(recorder.entering(path))
        module.register_forward_hook(recorder.leaving)
    inputs = detached(example_inputs)
    tape.inputs = [recorder.define(tensor) for tensor in output_tensors(inputs)]
    if not tape.inputs:
        raise CaptureError("example_inputs hold no tensor: capture needs something to run on.")
    try:
        with torch.no_grad(), kept_random_state(network), recorder:
            result = run_network(network, inputs)
    except CaptureError:
        raise
    except Exception as error:
        shapes = ", ".join(str(ref.shape) for ref in tape.inputs)
        raise CaptureError(
            f"the network {type(network).__name__} failed on the example inputs (shapes {shapes}) "
            f"in module {recorder.modules[-1] or 'top level'!r}: {type(error).__name__}: {error}"
        ) from error
    outputs = output_tensors(result)
    if not outputs:
        raise CaptureError(f"the network {type(network).__name__} returned no tensor.")
    tape.outputs = [recorder.reference(tensor) for tensor in outputs]
    return tape
