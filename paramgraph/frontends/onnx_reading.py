"""From the messages of an ONNX file to nodes with plain attributes; local functions are put in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramgraph.errors import CaptureError, CheckpointError
from paramgraph.frontends.onnx_graph import SUPPORTED, Node, OnnxGraph
from paramgraph.frontends.onnx_tensors import read_tensor

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

__all__ = ["GraphReader"]

_STANDARD = ("", "ai.onnx")
_MAX_DEPTH = 30
_MAX_NODES = 200_000


class GraphReader:
    """Reads the graphs of one file.

    Args:
        proto: The whole file.
        folder: Its folder.
    """

    def __init__(self, proto: ModelProto, folder: Path) -> None:
        self._folder = folder
        self._opsets = {entry.domain: entry.version for entry in proto.opset_import}
        self._functions: dict[tuple[str, str], FunctionProto] = {
            (function.domain, function.name): function for function in proto.functions
        }
        self._unknown: dict[str, str] = {}
        self._count = 0

    def main_graph(self, proto: GraphProto, inputs: Sequence[str]) -> OnnxGraph:
        """The graph of the network, without its initializers.

        Raises:
            CaptureError: It uses operators that are not supported; all are named.
        """
        nodes = self._nodes(proto.node, self._opsets, {}, 0)
        if self._unknown:
            name, first = next(iter(self._unknown.items()))
            others = [f"{kind}" for kind in self._unknown][1:]
            raise CaptureError(
                f"the ONNX file uses operator {name}, which is not supported here: {first}."
                + (f" Neither are {', '.join(others)}." if others else "")
                + " Export the network again with torch.onnx.export(..., dynamo=True), or capture "
                "the PyTorch network itself; an operator is added by one function in "
                "paramgraph/frontends/onnx_operators."
            )
        outputs = tuple(value.name for value in proto.output)
        return OnnxGraph(tuple(inputs), outputs, _without_unused(nodes, outputs), {})

    def _nodes(
        self,
        protos: Iterable[NodeProto],
        opsets: Mapping[str, int],
        bound: Mapping[str, AttributeProto],
        depth: int,
    ) -> tuple[Node, ...]:
        if depth > _MAX_DEPTH:
            raise CheckpointError(
                f"cannot read the ONNX file: graphs or functions are nested more than {_MAX_DEPTH} "
                "deep; a function must not call itself."
            )
        return tuple(self._node(proto, opsets, bound, depth) for proto in protos)

    def _node(
        self,
        proto: NodeProto,
        opsets: Mapping[str, int],
        bound: Mapping[str, AttributeProto],
        depth: int,
    ) -> Node:
        self._count += 1
        if self._count > _MAX_NODES:
            raise CheckpointError(
                f"cannot read the ONNX file: it has more than {_MAX_NODES:,} nodes with its "
                "functions put in."
            )
        name = proto.name or next((out for out in proto.output if out), proto.op_type)
        attributes = {}
        for attribute in proto.attribute:
            if not attribute.ref_attr_name:
                attributes[attribute.name] = attribute
            elif attribute.ref_attr_name in bound:
                attributes[attribute.name] = bound[attribute.ref_attr_name]
        opset = opsets.get("", opsets.get("ai.onnx", 1))
        inputs, outputs = tuple(proto.input), tuple(proto.output)
        function = self._functions.get((proto.domain, proto.op_type))
        if function is not None:
            body = self._body(function, attributes, depth)
            return Node("", name, opset, {}, inputs, outputs, body)
        if proto.domain not in _STANDARD or proto.op_type not in SUPPORTED:
            kind = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
            version = opset if proto.domain in _STANDARD else opsets.get(proto.domain, 0)
            self._unknown.setdefault(kind, f"node {name!r}, opset {version}")
        plain = {key: self._plain(value, opsets, bound, depth) for key, value in attributes.items()}
        return Node(proto.op_type, name, opset, plain, inputs, outputs)

    def _body(
        self, function: FunctionProto, given: Mapping[str, AttributeProto], depth: int
    ) -> OnnxGraph:
        bound = {default.name: default for default in function.attribute_proto} | dict(given)
        opsets = {entry.domain: entry.version for entry in function.opset_import} or self._opsets
        nodes = self._nodes(function.node, opsets, bound, depth + 1)
        outputs = tuple(function.output)
        return OnnxGraph(tuple(function.input), outputs, _without_unused(nodes, outputs), {})

    def _plain(
        self,
        attribute: AttributeProto,
        opsets: Mapping[str, int],
        bound: Mapping[str, AttributeProto],
        depth: int,
    ) -> Any:
        kinds = attribute.AttributeType
        match attribute.type:
            case kinds.FLOAT:
                return attribute.f
            case kinds.INT:
                return attribute.i
            case kinds.STRING:
                return attribute.s.decode("utf-8", "replace")
            case kinds.FLOATS:
                return list(attribute.floats)
            case kinds.INTS:
                return list(attribute.ints)
            case kinds.STRINGS:
                return [text.decode("utf-8", "replace") for text in attribute.strings]
            case kinds.TENSOR:
                return read_tensor(attribute.t, self._folder)
            case kinds.GRAPH:
                graph = attribute.g
                nodes = self._nodes(graph.node, opsets, bound, depth + 1)
                outputs = tuple(value.name for value in graph.output)
                constants = {t.name: read_tensor(t, self._folder) for t in graph.initializer}
                names = tuple(value.name for value in graph.input)
                return OnnxGraph(names, outputs, _without_unused(nodes, outputs), constants)
        return None  # sparse tensors and types; an operator that needs one says so


def _used(nodes: Iterable[Node]) -> set[str]:
    """Names that nodes read, also in the graphs inside them."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.inputs)
        for value in node.attributes.values():
            if isinstance(value, OnnxGraph):
                found |= _used(value.nodes) | set(value.outputs)
    return found


def _without_unused(nodes: tuple[Node, ...], outputs: tuple[str, ...]) -> tuple[Node, ...]:
    """The nodes without the names of outputs that nobody reads."""
    used = _used(nodes) | set(outputs)
    changed = []
    for node in nodes:
        kept = [name if name in used else "" for name in node.outputs]
        while node.kind != "Split" and len(kept) > 1 and not kept[-1]:
            kept.pop()
        changed.append(replace(node, outputs=tuple(kept)))
    return tuple(changed)
