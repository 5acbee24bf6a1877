"""ONNX files: a network whose parameters are the initializers, run with torch operators."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paramgraph.errors import CaptureError, CheckpointError
from paramgraph.frontends.loaded import LoadedNetwork
from paramgraph.frontends.onnx_graph import KnownValue, OnnxGraph, run_graph, visible
from paramgraph.frontends.onnx_operators.registry import DTYPES
from paramgraph.frontends.onnx_reading import GraphReader
from paramgraph.frontends.onnx_tensors import read_tensor
from paramgraph.frontends.parameter_tree import attach, tensor_at
from paramgraph.frontends.precision import Precision

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["NamedOutputs", "OnnxNetwork", "load_onnx"]

_MAX_BYTES = 2**31  # of the protobuf format; larger weights are in other files

# Inputs that say how to compute, and are no weights even where they are fractions.
_SETTINGS = {"Clip": (1, 2), "OneHot": (1, 2), "Pad": (1, 2, 3), "Range": (0, 1, 2),
             "Resize": (1, 2, 3), "Upsample": (1,)}  # fmt: skip
_STATISTICS = {"BatchNormalization": (3, 4)}
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"


def load_onnx(path: str | os.PathLike[str]) -> LoadedNetwork:
    """Read an ONNX file as a network that runs with torch operators.

    Initializers of floating-point numbers become parameters under their names, one parameter each,
    however often it is used. Running statistics, and what PyTorch's exporter marks as buffer,
    become buffers; whole numbers and single numbers are constants.

    An exporter that optimizes merges weights: it transposes them, puts batch normalisation into
    convolutions, and replaces equal tensors by one. To get the network's own parameters, export
    with ``torch.onnx.export(network, inputs, path, dynamo=True, optimize=False)``.

    Args:
        path: The ``.onnx`` file; weights in other files must be inside its folder.

    Returns:
        The network, and random inputs where the file fixes their shapes (a first axis that it
        leaves open is a batch, here of 3).

    Raises:
        CheckpointError: The package ``onnx`` is missing, or the file is damaged or not safe.
        CaptureError: The file uses operators that are not supported.
    """
    path = Path(path)
    proto = _parse(path)
    graph = proto.graph
    try:
        tensors = {item.name: read_tensor(item, path.parent) for item in graph.initializer}
        names = [value.name for value in graph.input if value.name not in tensors]
        reader = GraphReader(proto, path.parent)
        main = reader.main_graph(graph, names)
    except (RecursionError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"cannot read '{path}': {type(error).__name__}: {error}. The file is damaged."
        ) from error
    network = OnnxNetwork(main, *_sorted_tensors(graph, main, tensors))
    return LoadedNetwork(network.eval(), _example_inputs(graph, main, tensors))


class NamedOutputs(dict[str, Tensor]):
    """Outputs by name, and by number in their order.

    Example:
        >>> NamedOutputs(mean=torch.zeros(1), scale=torch.ones(1))[1]
        tensor([1.])
    """

    def __missing__(self, key: object) -> Tensor:
        """The output of this number."""
        if isinstance(key, int) and -len(self) <= key < len(self):
            return list(self.values())[key]
        raise KeyError(key)


class OnnxNetwork(nn.Module):
    """A network that runs the graph of an ONNX file.

    Args:
        graph: The graph.
        weights: Parameters and buffers by their names in the file.
        constants: Further tensors that the graph reads.
    """

    def __init__(
        self, graph: OnnxGraph, weights: dict[str, Tensor], constants: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self._places: dict[str, str] = {}
        for name, tensor in weights.items():
            try:
                attach(self, name, tensor)
                self._places[name] = name
            except CheckpointError:  # "a" beside "a.b", "a..b", or a name of nn.Module
                place = f"weight_{len(self._places)}_{name.replace('.', '_')}"
                attach(self, place, tensor)
                self._places[name] = place
        nodes = tuple(node for node in graph.nodes if node.outputs[0] not in weights)
        self._graph, self._constants = replace(graph, nodes=nodes), constants
        self._precision = Precision(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph: one tensor for each input of the file, in order or by name.

        Returns:
            The output, or :class:`NamedOutputs` if there are several.
        """
        given = dict(zip(self._graph.inputs, args, strict=False)) | kwargs
        if len(args) > len(self._graph.inputs) or set(given) != set(self._graph.inputs):
            raise CaptureError(
                f"the ONNX file has the inputs {list(self._graph.inputs)}, but was given "
                f"{len(args)} in order and {list(kwargs)} by name."
            )
        self._precision.update(self)
        values: dict[str, Any] = {n: KnownValue(t) for n, t in self._constants.items()}
        values |= {name: tensor_at(self, place) for name, place in self._places.items()}
        results = run_graph(self._graph, {**values, **given}, self._precision)
        plain = [visible(result, self._precision) for result in results]
        if len(plain) == 1:
            return plain[0]
        return NamedOutputs(zip(self._graph.outputs, plain, strict=True))


def _parse(path: Path) -> ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise CheckpointError(
            f"cannot read '{path}': the package onnx is not installed. Install it with "
            "pip install 'paramgraph[onnx]'."
        ) from error
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "missing"
        raise CheckpointError(f"cannot read '{path}': it is {kind}. Expected an .onnx file.")
    size = path.stat().st_size
    if size >= _MAX_BYTES:
        raise CheckpointError(
            f"cannot read '{path}': it has {size:,} bytes, but the format allows {_MAX_BYTES:,}. "
            "Save it with its weights in another file (external data)."
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(
            f"cannot read '{path}' ({size:,} bytes) as ONNX: {error}. It is truncated or of "
            "another format; export it again."
        ) from error
    if not proto.graph.output or not proto.opset_import:
        raise CheckpointError(
            f"cannot read '{path}' ({size:,} bytes) as ONNX: it describes no network with outputs. "
            "It is truncated or of another format; export it again."
        )
    return proto


def _sorted_tensors(
    graph: GraphProto, main: OnnxGraph, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers, and constants."""
    if not any(t.is_floating_point() and t.dim() for t in tensors.values()):
        tensors = {**tensors, **_constant_nodes(main)}  # a file with all its weights in nodes
    uses: dict[str, set[str]] = {}
    for node in main.nodes:
        for place, name in enumerate(node.inputs):
            use = "weight"
            if place in _STATISTICS.get(node.kind, ()):
                use = "buffer"
            elif place in _SETTINGS.get(node.kind, ()):
                use = "setting"
            uses.setdefault(name, set()).add(use)
    marks = {
        value.name: entry.value.lower()
        for value in graph.value_info
        for entry in value.metadata_props
        if entry.key == _KIND
    }
    weights: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        used = uses.get(name, {"weight"})
        is_number = tensor.is_floating_point() or tensor.is_complex()
        if not is_number or (tensor.dim() == 0 and marks.get(name) != "parameter"):
            constants[name] = tensor
        elif used == {"setting"}:
            constants[name] = tensor
        elif marks.get(name, "parameter") != "parameter" or used == {"buffer"}:
            weights[name] = tensor
        else:
            weights[name] = nn.Parameter(tensor)
    return weights, constants


def _constant_nodes(main: OnnxGraph) -> dict[str, Tensor]:
    found = {}
    for node in main.nodes:
        value = node.attributes.get("value")
        if node.kind == "Constant" and isinstance(value, Tensor) and value.dim():
            if value.is_floating_point():
                found[node.outputs[0]] = value
    return found


def _example_inputs(
    graph: GraphProto, main: OnnxGraph, tensors: dict[str, Tensor]
) -> tuple[Tensor, ...] | None:
    """Random inputs, if the file says enough about them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for value in graph.input:
        if value.name not in main.inputs:
            continue
        kind = value.type.tensor_type
        sizes: list[int] = []
        for place, size in enumerate(kind.shape.dim):
            is_fixed = size.HasField("dim_value") and 0 < size.dim_value < 10**6
            if not is_fixed and place:
                return None
            sizes.append(int(size.dim_value) if is_fixed else 3)
        dtype = DTYPES.get(kind.elem_type)
        if dtype is None or not kind.HasField("shape") or torch.Size(sizes).numel() > 10**8:
            return None
        if dtype.is_floating_point:
            found.append(torch.randn(sizes, generator=generator).to(dtype))
        elif dtype == torch.bool:
            found.append(torch.ones(sizes, dtype=dtype))
        else:
            most = _rows_read_by(value.name, main, tensors)
            found.append(torch.randint(0, most, sizes, generator=generator).to(dtype))
    return tuple(found)


def _rows_read_by(name: str, main: OnnxGraph, tensors: dict[str, Tensor]) -> int:
    """How many values a whole number may have: rows of the tables that it is looked up in."""
    rows = [
        tensors[node.inputs[0]].shape[node.attributes.get("axis", 0)]
        for node in main.nodes
        if node.kind == "Gather" and node.inputs[1] == name and node.inputs[0] in tensors
    ]
    return max(1, min(rows, default=2))
