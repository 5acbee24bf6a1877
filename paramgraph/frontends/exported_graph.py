"""The graph of an exported program: read from its JSON, run operator by operator.

No Python code is made from the file: each node becomes a call of one operator that
:mod:`paramgraph.frontends.exported_operators` allows, on values looked up by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paramgraph.errors import CaptureError
from paramgraph.frontends.archive import DTYPES
from paramgraph.frontends.exported_operators import SKIPPED, operator_named
from paramgraph.frontends.precision import Precision

__all__ = ["ExportedGraph"]

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


_TRAINING = ("training", "train", "dropout_p")
"""Arguments by which an operator is in training mode."""


@dataclass(frozen=True)
class _Name:
    """A value computed earlier."""

    name: str


class _Device:
    """The device where the network is."""


@dataclass(frozen=True)
class _Node:
    name: str
    target: str
    function: Callable[..., Any] | None
    arguments: tuple[tuple[str, Any, bool], ...]  # name, value, whether it is given by keyword
    outputs: tuple[Any, ...]


class ExportedGraph:
    """A graph or a subgraph.

    Args:
        graph: The JSON object that PyTorch's schema calls Graph.
        depth: How many graphs it is inside of.

    Raises:
        CaptureError: A node calls an operator that is not allowed or not supported.
    """

    def __init__(self, graph: Mapping[str, Any], depth: int = 0) -> None:
        if depth > 20:
            raise ValueError("graphs are nested more than 20 deep")
        self._depth = depth
        self.inputs = [_output(item) for item in graph["inputs"]]
        self.outputs = [self._argument(item) for item in graph["outputs"]]
        self.returns_one = bool(graph.get("is_single_tensor_return", False))
        self._nodes = [self._node(item) for item in graph["nodes"]]
        self._last_use = self._last_uses()

    def run(
        self, values: Sequence[Any], precision: Precision, *, is_training: bool = False
    ) -> list[Any]:
        """Compute the outputs.

        Args:
            values: One for each input.
            precision: Types and device to use instead of those at the export.
            is_training: Whether dropout and batch normalisation that were exported in training
                mode are in training mode.

        Raises:
            CaptureError: A node cannot be computed; it is named.
        """
        known: dict[str, Any] = {}
        for place, value in zip(self.inputs, values, strict=True):
            _store(known, place, value)
        for number, node in enumerate(self._nodes):
            try:
                result = self._call(node, known, precision, is_training)
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
                raise CaptureError(
                    f"node {node.name!r} ({node.target}) of the exported program cannot be "
                    f"computed: {error}. A program accepts the shapes that it was exported with, "
                    "and others only where dynamic_shapes was given to torch.export.export."
                ) from error
            if len(node.outputs) == 1:
                _store(known, node.outputs[0], result)
            elif node.outputs:
                for place, value in zip(node.outputs, result, strict=False):
                    _store(known, place, value)
            for name in self._last_use.get(number, ()):
                known.pop(name, None)
        return [_resolve(item, known, precision) for item in self.outputs]

    def _call(
        self, node: _Node, known: dict[str, Any], precision: Precision, is_training: bool
    ) -> Any:
        positional, keywords = [], {}
        for name, item, is_keyword in node.arguments:
            value = _resolve(item, known, precision)
            if name in _TRAINING and not is_training:
                value = type(value)(0)  # False, or a dropout of 0.0
            if is_keyword:
                keywords[name] = value
            else:
                positional.append(value)
        if node.function is not None:
            return node.function(*positional, **keywords)
        result = _higher_order(node, positional, precision, is_training)
        is_one = len(node.outputs) == 1 and isinstance(node.outputs[0], str)
        return result[0] if is_one else result

    def _node(self, node: Mapping[str, Any]) -> _Node:
        target = str(node["target"])
        outputs = tuple(_output(item) for item in node["outputs"])
        first = next((out for out in outputs if isinstance(out, str)), None)
        name = str(node.get("name") or first or target)
        if SKIPPED.match(target):
            return _Node(name, target, _nothing, (), outputs)
        is_higher_order = target in _HIGHER_ORDER
        function = None if is_higher_order else operator_named(target, name)
        arguments = tuple(
            (str(item["name"]), self._argument(item["arg"]), item.get("kind") == 2)
            for item in node["inputs"]
        )
        if isinstance(function, torch._ops.OpOverload):
            arguments = _by_schema(function, node["inputs"], arguments)
        return _Node(name, target, function, arguments, outputs)

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        ((kind, value),) = argument.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return _Name(value["name"])
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return self._symbol(value)
            case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return [self._symbol(item) for item in value]
            case "as_int" | "as_float" | "as_bool" | "as_string":
                return value
            case "as_ints" | "as_floats" | "as_bools" | "as_strings":
                return list(value)
            case "as_int_lists" | "as_float_lists":
                return [list(item) for item in value]
            case "as_tensors":
                return [_Name(item["name"]) for item in value]
            case "as_nested_tensors":
                return [[_Name(item["name"]) for item in inner] for inner in value]
            case "as_optional_tensor":
                return self._argument(value)
            case "as_optional_tensors":
                return [self._argument(item) for item in value]
            case "as_scalar_type":
                return DTYPES[value]
            case "as_memory_format":
                return _MEMORY_FORMATS[value]
            case "as_layout":
                return torch.strided
            case "as_device":
                return _Device()
            case "as_complex":
                return complex(value["real"], value["imag"])
            case "as_graph":
                return ExportedGraph(value["graph"], self._depth + 1)
        raise CaptureError(
            f"the exported program has an argument of kind {kind!r}, which is not supported: "
            "only tensors, numbers, text, types and subgraphs are."
        )

    @staticmethod
    def _symbol(value: Mapping[str, Any]) -> Any:
        ((kind, content),) = value.items()
        return _Name(content) if kind == "as_name" else content

    def _last_uses(self) -> dict[int, list[str]]:
        """Number of a node -> values that no later node reads, so that memory is given back."""
        last: dict[str, int] = {}
        for number, node in enumerate(self._nodes):
            for name in (*_names(node.outputs), *_names([a[1] for a in node.arguments])):
                last[name] = number
        kept = set(_names(self.outputs))
        found: dict[int, list[str]] = {}
        for name, number in last.items():
            if name not in kept:
                found.setdefault(number, []).append(name)
        return found


def _by_schema(
    function: Any, inputs: Sequence[Mapping[str, Any]], arguments: tuple[tuple[str, Any, bool], ...]
) -> tuple[tuple[str, Any, bool], ...]:
    """Older files do not say which arguments are given by keyword; the operator does."""
    if all(item.get("kind") in (1, 2) for item in inputs):
        return arguments
    only = {argument.name: argument for argument in function._schema.arguments}
    return tuple(
        (name, value, only[name].kwarg_only or only[name].has_default_value())
        for name, value, _ in arguments
    )


def _output(argument: Mapping[str, Any]) -> Any:
    """A name, a list of names, or None where nothing is kept."""
    ((kind, value),) = argument.items()
    if kind == "as_tensor":
        return str(value["name"])
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return value.get("as_name")
    if kind == "as_tensors":
        return [str(item["name"]) for item in value]
    if kind in ("as_optional_tensors", "as_sym_ints"):
        return [
            _output(item) if kind == "as_optional_tensors" else item.get("as_name")
            for item in value
        ]
    return None


def _store(known: dict[str, Any], place: Any, value: Any) -> None:
    if isinstance(place, str):
        known[place] = value
    elif isinstance(place, list):
        for inner, item in zip(place, value, strict=True):
            _store(known, inner, item)


def _names(items: Any) -> list[str]:
    found: list[str] = []
    for item in items:
        if isinstance(item, _Name):
            found.append(item.name)
        elif isinstance(item, str):
            found.append(item)
        elif isinstance(item, list | tuple):
            found += _names(item)
    return found


def _resolve(item: Any, known: Mapping[str, Any], precision: Precision) -> Any:
    if isinstance(item, _Name):
        if item.name not in known:
            raise ValueError(f"value {item.name!r} is used before it is computed")
        return known[item.name]
    if isinstance(item, list):
        return [_resolve(inner, known, precision) for inner in item]
    if isinstance(item, torch.dtype):
        return precision.dtype(item)
    if isinstance(item, _Device):
        return precision.device
    return item


def _nothing() -> None:
    return None


# --- operators that run a graph


_HIGHER_ORDER = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": 1,
    "torch.ops.higher_order.wrap_with_autocast": 4,
    "torch.ops.higher_order.cond": 0,
}
"""Name -> how many arguments stand before the graph."""


def _higher_order(
    node: _Node, arguments: list[Any], precision: Precision, is_training: bool
) -> list[Any]:
    if node.target.endswith(".cond"):
        condition, on_true, on_false, operands = arguments
        chosen = on_true if bool(condition) else on_false
        return chosen.run(operands, precision, is_training=is_training)
    before = _HIGHER_ORDER[node.target]
    graph, operands = arguments[before], arguments[before + 1 :]
    context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if before == 1:
        context = torch.set_grad_enabled(bool(arguments[0]) and torch.is_grad_enabled())
    elif precision.current == precision.stored:
        kind, dtype, enabled, cache = arguments[:4]
        context = torch.autocast(
            precision.device.type if kind else "cpu",
            dtype=dtype,
            enabled=bool(enabled),
            cache_enabled=cache,
        )
    with context:
        return graph.run(operands, precision, is_training=is_training)
