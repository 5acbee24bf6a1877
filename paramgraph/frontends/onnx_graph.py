"""The graph of an ONNX file: nodes with attributes as plain values, run one after the other.

Two kinds of values flow through it. A *known* value follows from shapes and constants alone: it is
computed out of sight of whoever records the run, so that shape arithmetic does not look like work
on weights. All other values are tensors, computed with torch operators in plain sight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from paramgraph.errors import CaptureError
from paramgraph.frontends.onnx_operators import OPERATORS, Call
from paramgraph.frontends.precision import Precision

__all__ = ["SUPPORTED", "KnownValue", "Node", "OnnxGraph", "run_graph", "visible"]


@dataclass(frozen=True)
class KnownValue:
    """A value that does not depend on the inputs or parameters of the network."""

    value: Any


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        kind: The name of its operator, or ``""`` for a local function.
        name: Its name, or that of its first output.
        opset: The version of the operators.
        attributes: Plain values; graphs for control flow.
        inputs: Names of values; empty where an optional input is left out.
        outputs: Names of values; empty where an output is not kept.
        body: The graph of a local function.
    """

    kind: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: OnnxGraph | None = None


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes in the order in which they are computed, and the names of inputs and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]


def run_graph(
    graph: OnnxGraph, values: Mapping[str, Any], precision: Precision, outer: Any = None
) -> list[Any]:
    """Compute the outputs of a graph.

    Args:
        graph: The graph.
        values: Its inputs and weights by name.
        precision: The floating-point type and the device to use.
        outer: Values of the graphs around it, which it may read.

    Raises:
        CaptureError: A node cannot be computed; it is named.
    """
    known = {**(outer or {}), **{n: KnownValue(t) for n, t in graph.constants.items()}, **values}
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    has_subgraphs = any(_subgraphs(node) for node in graph.nodes)
    for number, node in enumerate(graph.nodes):
        results = _compute(node, known, precision)
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                known[name] = result
        if not has_subgraphs:  # a subgraph may read any value
            for name in node.inputs:
                if name and last_use[name] == number and name not in graph.outputs:
                    known.pop(name, None)
    return [_found(name, known, "the graph") for name in graph.outputs]


def visible(value: Any, precision: Precision) -> Any:
    """A value as an operator on tensors takes it."""
    if isinstance(value, list):
        return [visible(item, precision) for item in value]
    if not isinstance(value, KnownValue):
        return value
    tensor = value.value
    if isinstance(tensor, list):
        return [visible(KnownValue(item), precision) for item in tensor]
    if isinstance(tensor, Tensor):
        wanted = precision.dtype(tensor.dtype) if tensor.is_floating_point() else tensor.dtype
        if tensor.dtype != wanted or tensor.device != precision.device:
            with _disable_current_modes():
                tensor = tensor.to(precision.device, wanted)
    return tensor


def _found(name: str, known: Mapping[str, Any], where: str) -> Any:
    if name not in known:
        raise CaptureError(
            f"the ONNX file uses value {name!r} in {where}, but nothing computes it before. "
            "The file is damaged, or its nodes are not in order; export it again."
        )
    return known[name]


def _compute(node: Node, known: dict[str, Any], precision: Precision) -> Sequence[Any]:
    inputs = [_found(n, known, f"node {node.name!r}") if n else None for n in node.inputs]
    if node.body is not None:
        given = dict(zip(node.body.inputs, inputs, strict=False))
        given |= {name: None for name in node.body.inputs if name not in given}
        return run_graph(node.body, given, precision)
    if node.kind in _CONTROL:
        try:
            return _CONTROL[node.kind](node, inputs, known, precision)
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise CaptureError(
                f"cannot run node {node.name!r} (operator {node.kind}, opset {node.opset}) of the "
                f"ONNX file: {type(error).__name__}: {error}. Export it again without this."
            ) from error
    operator = OPERATORS[node.kind]
    call = Call(node.kind, node.name, node.opset, node.attributes, len(node.outputs), precision)
    is_known = operator.is_shape or all(x is None or isinstance(x, KnownValue) for x in inputs)
    try:
        if is_known:
            with _disable_current_modes():
                plain = [x.value if isinstance(x, KnownValue) else x for x in inputs]
                result = operator.function(call, *plain)
        else:
            result = operator.function(call, *[visible(x, precision) for x in inputs])
        call.assert_all_read()
    except (
        RuntimeError,
        TypeError,
        ValueError,
        IndexError,
        NotImplementedError,
        KeyError,
    ) as error:
        raise call.error(f"{type(error).__name__}: {error}") from error
    results = result if isinstance(result, tuple) else (result,)
    return [KnownValue(item) for item in results] if is_known else results


# --- operators that run graphs


def _subgraphs(node: Node) -> bool:
    return any(isinstance(value, OnnxGraph) for value in node.attributes.values())


def _scalar(value: Any) -> Any:
    if not isinstance(value, KnownValue):
        return value.reshape(-1)[0].item()
    with _disable_current_modes():
        return value.value.reshape(-1)[0].item()


def _if(node: Node, inputs: list[Any], known: dict[str, Any], precision: Precision) -> list[Any]:
    branch = "then_branch" if bool(_scalar(inputs[0])) else "else_branch"
    return run_graph(node.attributes[branch], {}, precision, known)


def _loop(node: Node, inputs: list[Any], known: dict[str, Any], precision: Precision) -> list[Any]:
    body: OnnxGraph = node.attributes["body"]
    limit = None if inputs[0] is None else int(_scalar(inputs[0]))
    going = True if inputs[1] is None else bool(_scalar(inputs[1]))
    carried = list(inputs[2:])
    scanned: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    count = 0
    while going and (limit is None or count < limit):
        first = [KnownValue(torch.tensor(count)), KnownValue(torch.tensor(going))]
        given = dict(zip(body.inputs, [*first, *carried], strict=True))
        result = run_graph(body, given, precision, known)
        going = bool(_scalar(result[0]))
        carried = result[1 : 1 + len(carried)]
        for kept, value in zip(scanned, result[1 + len(carried) :], strict=True):
            kept.append(visible(value, precision))
        count += 1
    return [*carried, *(torch.stack(kept) if kept else torch.empty(0) for kept in scanned)]


def _scan(node: Node, inputs: list[Any], known: dict[str, Any], precision: Precision) -> list[Any]:
    body: OnnxGraph = node.attributes["body"]
    count = node.attributes["num_scan_inputs"]
    plain = {"scan_input_directions", "scan_output_directions", "scan_input_axes"}
    if any(any(node.attributes.get(name, ())) for name in (*plain, "scan_output_axes")):
        raise CaptureError(
            f"node {node.name!r} (operator Scan) scans backwards or along another axis than the "
            "first, which is not supported. Export the network without this."
        )
    states, items = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    items = [visible(item, precision) for item in items]
    scanned: list[list[Any]] = [[] for _ in range(len(body.outputs) - len(states))]
    for place in range(items[0].shape[0]):
        given = [*states, *(item[place] for item in items)]
        result = run_graph(body, dict(zip(body.inputs, given, strict=True)), precision, known)
        states = result[: len(states)]
        for kept, value in zip(scanned, result[len(states) :], strict=True):
            kept.append(visible(value, precision))
    return [*states, *(torch.stack(kept) for kept in scanned)]


_CONTROL = {"If": _if, "Loop": _loop, "Scan": _scan}
SUPPORTED = frozenset([*OPERATORS, *_CONTROL])
"""Names of all operators that can be run."""
