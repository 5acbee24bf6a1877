"""The recorder: a dispatch mode that writes the tape while a network runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramgraph.capture.running import WroteParameterError
from paramgraph.capture.tape import ALIASED, FACTORIES, Tape, TapeEntry, TensorRef, entry_refs
from paramgraph.errors import CaptureError

__all__ = ["MemoryGuard", "Recorder"]


@dataclass
class _Storage:
    """A piece of memory, the tensors that view it, and the references to its present values."""

    number: int
    address: int
    size_bytes: int
    views: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    constants: list[int] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """Writes the tape. Keeps constants only, so that capture needs little memory."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.refs: dict[int, TensorRef] = {}
        self.weak: dict[int, weakref.ref[Tensor]] = {}
        self.storages: dict[int, _Storage] = {}
        self.shared: set[int] = set()
        self.foreign: set[int] = set()
        self.depends: set[int] = set()
        self.count = 0
        self.num_storages = 0
        self.modules: list[str] = [""]

    def reference(self, tensor: Tensor) -> TensorRef:
        """The reference of a tensor; one never seen before is a constant."""
        if id(tensor) in self.foreign:
            raise CaptureError(
                f"module {self.modules[-1] or 'top level'!r} uses a tensor of the network itself, "
                "not that of the copy that capture runs: a function kept in it (a lambda, a "
                "forward put in its place) holds on to it. Make it a method that uses self."
            )
        known = self.refs.get(id(tensor))
        if known is not None and self._has_moved(tensor, known):
            raise CaptureError(
                f"module {self.modules[-1] or 'top level'!r} gave a tensor of shape "
                f"{tuple(tensor.shape)} other memory while it ran (x.data = ...), which is not "
                "recorded. What it depends on is unknown: compute a new tensor instead."
            )
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
        self.tape.windows[number] = (int(tensor.storage_offset()), tensor.stride())
        storage = tensor.untyped_storage()
        memory = self.storages.get(storage._cdata)
        if memory is None:
            self.num_storages += 1
            memory = _Storage(self.num_storages, storage.data_ptr(), int(storage.nbytes()))
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

    def _has_moved(self, tensor: Tensor, known: TensorRef) -> bool:
        """Whether a tensor lies in other memory than when it was recorded."""
        memory = self.storages.get(tensor.untyped_storage()._cdata)
        return memory is None or memory.number != self.tape.storages[known.number]

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
        changed = [
            leaf
            for argument in schema.arguments
            if argument.is_write
            for leaf in tree_leaves(named.get(argument.name))
            if isinstance(leaf, Tensor)
        ]
        for tensor in changed:
            if tensor.untyped_storage()._cdata in self.shared:
                raise WroteParameterError
            self._keep_old_values(tensor)
        result = func(*args, **(kwargs or {}))
        # Some operations return nothing and only write (``_foreach_mul_``).
        outs = [leaf for leaf in tree_leaves(result) if leaf is not None] or changed
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
                overload=func._overloadname,
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


class MemoryGuard(TorchFunctionMode):
    """Stops numpy and others from getting shared memory, which they could write to unseen."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _GIVES_MEMORY and isinstance(args[0], Tensor):
            if args[0].untyped_storage()._cdata in self.recorder.shared:
                raise WroteParameterError
        return func(*args, **(kwargs or {}))


_GIVES_MEMORY = {Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
