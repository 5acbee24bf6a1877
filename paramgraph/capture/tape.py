"""The tape: every ATen operation of one run of the network, as it happened.

Recording below ``nn.Module`` means that a hand-written ``forward`` is read as well as
``nn.Sequential``: only what was computed counts, not what a module is called.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramgraph.capture.running import (
    ExampleInputs,
    OutputChoice,
    chosen_output,
    detached,
    evaluation_copy,
    output_tensors,
    plain_execution,
    run_network,
)
from paramgraph.errors import CaptureError

__all__ = ["ALIASED", "FACTORIES", "Tape", "TapeEntry", "TensorRef", "entry_refs", "record"]

FACTORIES = {
    *("zeros", "ones", "full", "empty", "arange", "scalar_tensor", "eye", "linspace"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn", "randint", "randperm"),
    *("tril_indices", "triu_indices", "empty_strided", "new_empty_strided", "logspace", "range"),
}
"""Operations that make a constant, whatever tensors they get."""

ALIASED = "paramgraph.aliased"
"""A tensor that changed because an in-place operation wrote to memory that it shares."""


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
    """

    operation: str
    args: dict[str, Any]
    outputs: tuple[TensorRef | None, ...]
    module: str
    is_pointwise: bool
    is_in_place: bool = False
    position: int = -1
    number: float | None = None


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


@dataclass
class _Storage:
    """A piece of memory, the tensors that view it, and the references to its present values."""

    number: int
    address: int
    size_bytes: int
    views: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    constants: list[int] = field(default_factory=list)


class _WroteParameterError(Exception):
    """The network writes to its own parameters, so it must run on a copy of their memory."""


class _Recorder(TorchDispatchMode):
    """Writes the tape. Keeps constants only, so that capture needs little memory."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.refs: dict[int, TensorRef] = {}
        self.weak: dict[int, weakref.ref[Tensor]] = {}
        self.storages: dict[int, _Storage] = {}
        self.shared: set[int] = set()
        self.depends: set[int] = set()
        self.count = 0
        self.num_storages = 0
        self.modules: list[str] = [""]

    def reference(self, tensor: Tensor) -> TensorRef:
        """The reference of a tensor; one never seen before is a constant."""
        known = self.refs.get(id(tensor))
        if known is None and (same := self._same_view(tensor)) is not None:
            known = self.define(tensor, is_constant=same.number not in self.depends)
            self._append(TapeEntry("aten.alias", {"self": same}, (known,), self.modules[-1], False))
        elif known is None:
            self._assert_new_memory(tensor)
            known = self.define(tensor, is_constant=True)
            self.tape.constants.append(known)
        return known

    def define(self, tensor: Tensor, *, is_constant: bool) -> TensorRef:
        """A new reference for a tensor that was just made or changed."""
        ref = TensorRef(self.count, tuple(tensor.shape))
        self.count += 1
        key, number = id(tensor), ref.number
        self.refs[key] = ref
        self.tape.dtypes[number] = tensor.dtype
        self.tape.windows[number] = (tensor.storage_offset(), tensor.stride())
        storage = tensor.untyped_storage()
        memory = self.storages.get(storage._cdata)
        if memory is None:
            self.num_storages += 1
            memory = _Storage(self.num_storages, storage.data_ptr(), storage.nbytes())
            self.storages[storage._cdata] = memory
        self.tape.storages[number] = memory.number
        if key not in self.weak:
            self.weak[key] = weakref.ref(tensor, self._forget(key, storage._cdata))
        memory.views[key] = self.weak[key]
        if is_constant:
            self.tape.tensors[number] = tensor
            memory.constants.append(number)
        else:
            self.depends.add(number)
        return ref

    def _forget(self, key: int, address: int) -> Callable[[object], None]:
        """What to do when a tensor is freed: another one may get its identity and its memory."""

        def forget(_: object) -> None:
            self.refs.pop(key, None)
            self.weak.pop(key, None)
            memory = self.storages.get(address)
            if memory is not None:
                memory.views.pop(key, None)
                if not memory.views:
                    del self.storages[address]

        return forget

    def _same_view(self, tensor: Tensor) -> TensorRef | None:
        """A recorded tensor of which this is the same view, wrapped anew (``nn.Parameter(x)``)."""
        storage = self.storages.get(tensor.untyped_storage()._cdata)
        for weak in storage.views.values() if storage else ():
            view = weak()
            if (
                view is not None
                and view.shape == tensor.shape
                and view.stride() == tensor.stride()
                and view.storage_offset() == tensor.storage_offset()
                and view.dtype == tensor.dtype
            ):
                return self.refs[id(view)]
        return None

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
        """Copy the constants that an in-place operation is about to overwrite."""
        storage = self.storages.get(changed.untyped_storage()._cdata)
        for number in storage.constants if storage else ():
            self.tape.tensors[number] = self.tape.tensors[number].detach().clone()
        if storage:
            storage.constants.clear()

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
                if value.untyped_storage()._cdata in self.shared:
                    raise _WroteParameterError
                self._keep_old_values(value)
        result = func(*args, **(kwargs or {}))
        outs = [leaf for leaf in tree_leaves(result) if leaf is not None]
        name = func.overloadpacket._qualified_op_name.replace("::", ".")
        if name.endswith("_") and not name.endswith("__"):
            name = name[:-1]
        written = [out for out in outs if isinstance(out, Tensor) and id(out) in self.refs]
        is_in_place = schema.is_mutable and bool(written)
        is_new = name.removeprefix("aten.") in FACTORIES
        sources = {ref.number for ref in entry_refs(recorded)}
        constant = is_new or self.depends.isdisjoint(sources)
        refs = [
            self.define(out, is_constant=constant) if isinstance(out, Tensor) else None
            for out in outs
        ]
        number = next((o for o in outs if isinstance(o, int | float)), None)
        self._append(
            TapeEntry(
                operation=name,
                args=recorded,
                outputs=tuple(refs),
                module=self.modules[-1],
                is_pointwise=torch.Tag.pointwise in func.tags,
                is_in_place=is_in_place,
                number=number,
            )
        )
        for out in written if is_in_place else ():
            self._update_views(out)
        return result

    def _append(self, entry: TapeEntry) -> None:
        position = self.tape.start + len(self.tape.entries)
        self.tape.entries.append(replace(entry, position=position))

    def _update_views(self, changed: Tensor) -> None:
        """All other tensors in the memory of a changed one get new references."""
        source = self.refs[id(changed)]
        for weak in list(self.storages[changed.untyped_storage()._cdata].views.values()):
            view = weak()
            if view is not None and view is not changed:
                old = self.refs[id(view)]
                args = {"self": old, "source": source}
                constant = self.depends.isdisjoint({old.number, source.number})
                outputs = (self.define(view, is_constant=constant),)
                self._append(TapeEntry(ALIASED, args, outputs, self.modules[-1], False, True))

    def _freeze(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.reference(value)
        if isinstance(value, tuple | list):
            return [self._freeze(item) for item in value]
        return value


def entry_refs(value: object) -> list[TensorRef]:
    """All tensor references in the arguments of an operation, in order."""
    if isinstance(value, TensorRef):
        return [value]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in entry_refs(item)]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in entry_refs(item)]
    return []


def record(
    network: nn.Module,
    example_inputs: ExampleInputs,
    output: OutputChoice = None,
    *,
    start: int = 0,
) -> Tape:
    """Run a copy of the network once, in evaluation mode, and write the tape.

    The network itself is not touched: not its parameters, mode, buffers, hooks or the global
    random state.

    Args:
        network: Any module.
        example_inputs: What to call it with; use a batch of two or more.
        output: Which of the outputs count, see ``capture``.
        start: Position of the first operation.

    Raises:
        CaptureError: The network failed on the example inputs or returned no tensor.

    Example:
        >>> tape = record(nn.Linear(3, 2), torch.randn(4, 3))
        >>> [entry.operation for entry in tape.entries]
        ['aten.t', 'aten.addmm']
    """
    try:
        own = evaluation_copy(network, share_parameters=True)
        return _record(own, example_inputs, output, start, is_shared=True)
    except _WroteParameterError:
        return _record(evaluation_copy(network), example_inputs, output, start, is_shared=False)


def _record(
    network: nn.Module,
    example_inputs: ExampleInputs,
    output: OutputChoice,
    start: int,
    *,
    is_shared: bool,
) -> Tape:
    tape = Tape(start=start)
    recorder = _Recorder(tape)
    _define_state(tape, recorder, network, is_shared)
    for path, module in network.named_modules():
        module.register_forward_pre_hook(recorder.entering(path))
        module.register_forward_hook(recorder.leaving)
    inputs = detached(example_inputs)
    tape.inputs = [recorder.define(t, is_constant=False) for t in output_tensors(inputs)]
    if not tape.inputs:
        raise CaptureError("example_inputs hold no tensor: capture needs something to run on.")
    try:
        with plain_execution(network), recorder:
            result = run_network(network, inputs)
    except (CaptureError, _WroteParameterError):
        raise
    except Exception as error:
        shapes = ", ".join(str(ref.shape) for ref in tape.inputs)
        raise CaptureError(
            f"the network {type(network).__name__} failed on the example inputs (shapes {shapes}) "
            f"in module {recorder.modules[-1] or 'top level'!r}: {type(error).__name__}: {error}"
        ) from error
    outputs = output_tensors(chosen_output(result, output))
    if not outputs:
        raise CaptureError(f"the network {type(network).__name__} returned no tensor.")
    tape.outputs = [recorder.reference(tensor) for tensor in outputs]
    tape.leafy = _acted_on(tape)
    return tape


def _define_state(tape: Tape, recorder: _Recorder, network: nn.Module, is_shared: bool) -> None:
    """References of all parameters and buffers, tied ones once."""
    stored = network.state_dict().keys()
    seen: dict[int, str] = {}
    named: list[tuple[str, Tensor, bool]]
    named = [(n, p, False) for n, p in network.named_parameters(remove_duplicate=False)]
    named += [(n, b, True) for n, b in network.named_buffers(remove_duplicate=False)]
    is_trained = any(parameter.requires_grad for parameter in network.parameters())
    for name, tensor, is_buffer in named:
        if id(tensor) in seen:
            first = seen[id(tensor)]
            tape.aliases[first] = (*tape.aliases.get(first, ()), name)
            continue
        seen[id(tensor)] = name
        tape.parameters[name] = recorder.define(tensor, is_constant=is_buffer)
        if is_shared and not is_buffer:
            recorder.shared.add(tensor.untyped_storage()._cdata)
        if not is_buffer and is_trained and not tensor.requires_grad:
            tape.untrained.add(name)
        if is_buffer:
            tape.buffers.add(name)
            tape.constants.append(tape.parameters[name])
            if name in stored:
                tape.stored.add(tape.parameters[name].number)


_PASSES = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "detach", "alias", "_to_copy"),
    *("unsqueeze", "squeeze", "expand", "clone", "select", "slice", "lift_fresh"),
}
_CONTRACTIONS = {
    *("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution", "_grouped_mm"),
    *("native_layer_norm", "native_group_norm", "_fused_rms_norm"),
}


def _acted_on(tape: Tape) -> set[str]:
    """Parameters and running statistics that symmetries act on.

    Buffers are constants, except running statistics. So are tables (of positions) among trained
    parameters that are not trained themselves: a symmetry that moved them would leave the set of
    networks that training can reach.
    """
    names = {ref.number: name for name, ref in tape.parameters.items()}
    acted = {name for name in tape.parameters if name not in tape.buffers | tape.untrained}
    for entry in tape.entries:
        operation = entry.operation.removeprefix("aten.")
        if "batch_norm" in operation:
            refs = entry_refs([entry.args.get("running_mean"), entry.args.get("running_var")])
            acted |= {names[ref.number] for ref in refs if ref.number in names}
        if not tape.untrained:
            continue
        origins = [names[r.number] for r in entry_refs(entry.args) if r.number in names]
        if operation in _CONTRACTIONS:
            acted |= {name for name in origins if name in tape.untrained}
        elif operation in _PASSES and origins:
            names.update({ref.number: origins[0] for ref in entry.outputs if ref is not None})
    return acted
