"""Programs of ``torch.export`` (``.pt2``): read without unpickling and without running their code.

``torch.export.load`` unpickles what a file says are constants and example inputs, evaluates text
in it as Python, and follows names in it to any function of ``torch``. A file from elsewhere can
thus run code. Here the file is data: JSON that names ATen operators, and raw bytes of tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.errors import CaptureError, CheckpointError
from paramgraph.frontends.archive import Archive
from paramgraph.frontends.exported_graph import ExportedGraph
from paramgraph.frontends.loaded import ExampleInputs, LoadedNetwork
from paramgraph.frontends.nesting import Nesting
from paramgraph.frontends.parameter_tree import attach, tensor_at
from paramgraph.frontends.precision import Precision

__all__ = ["ExportedNetwork", "load_exported"]

_SCHEMA = 8  # torch._export.serde.schema.SCHEMA_VERSION[0]


def load_exported(path: str | os.PathLike[str], *, read_inputs: bool = True) -> LoadedNetwork:
    """Read a program that ``torch.export.save`` wrote, without running code from the file.

    Args:
        path: The ``.pt2`` file.
        read_inputs: Read the example inputs that the program was exported with, if it keeps them.

    Returns:
        A network with the parameter names of the original one, tied parameters still tied, and
        the example inputs (None if there are none, or with ``read_inputs=False``).

    Raises:
        CheckpointError: The file is damaged, of another version, or holds anything that would
            have to be unpickled.
        CaptureError: It uses an operator that is none of PyTorch's own.

    Example:
        >>> import tempfile, warnings
        >>> program = torch.export.export(nn.Linear(3, 2), (torch.ones(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.export.save(program, f"{folder}/linear.pt2")
        ...     network, inputs = load_exported(f"{folder}/linear.pt2")
        >>> list(network.state_dict()), network(*inputs).shape
        (['weight', 'bias'], torch.Size([4, 2]))
    """
    path = Path(path)
    with Archive(path) as archive:
        if not archive.has("models/model.json"):
            have = [name.removeprefix("models/") for name in archive.members("models/")]
            raise CheckpointError(
                f"cannot read '{path}': expected one program named 'model', found {have or 'none'}."
                " Save it alone with torch.export.save(program, path); compiled code (AOTInductor) "
                "is not read."
            )
        for member in archive.members("data/constants/"):
            if not member.rpartition("/")[2].startswith(("tensor_", "model_constants_config")):
                raise CheckpointError(
                    f"refused to read '{path}': its constant '{member}' is a pickled object, which "
                    "can run any code when loaded. Export the network without custom objects."
                )
        program = archive.json("models/model.json")
        try:
            _assert_version(program, path)
            network = ExportedNetwork(
                program, archive.tensors("data/weights"), archive.tensors("data/constants")
            )
            inputs = _example_inputs(archive, network) if read_inputs else None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"cannot read '{path}': its description of the program is not what PyTorch writes "
                f"({type(error).__name__}: {error}). The file is damaged; write it again."
            ) from error
    return LoadedNetwork(network.eval(), inputs)


class ExportedNetwork(nn.Module):
    """A network that runs the graph of an exported program.

    Args:
        program: The JSON object that PyTorch's schema calls ExportedProgram.
        weights: Parameters and persistent buffers by name.
        constants: Other tensors by name.
    """

    def __init__(
        self,
        program: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        module = program["graph_module"]
        for name, tensor in weights.items():
            attach(self, name, tensor)
        signature = module["signature"]
        sources: list[tuple[str, Any]] = []
        for spec in signature["input_specs"]:
            ((kind, value),) = spec.items()
            if kind in ("parameter", "buffer", "tensor_constant"):
                name = value[f"{kind}_name"]
                if name not in weights:
                    attach(self, name, constants[name], is_persistent=False)
                sources.append(("tensor", name))
            elif kind in ("user_input", "constant_input"):
                sources.append(("input", None))
            else:
                raise CaptureError(
                    f"the exported program has an input of kind {kind!r}, which is not supported: "
                    "only parameters, buffers, constant tensors and inputs of the network are."
                )
        call = module["module_call_graph"][0]["signature"]
        self._sources = tuple(sources)
        self._in_nesting = _parse_nesting(call["in_spec"])
        self._out_nesting = _parse_nesting(call["out_spec"])
        self.argument_names: tuple[str, ...] = tuple(call.get("forward_arg_names") or ())
        self._out_kinds = [next(iter(spec.items())) for spec in signature["output_specs"]]
        self._graph = ExportedGraph(module["graph"])
        self._precision = Precision(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on the inputs that the original network takes."""
        leaves = iter(self.flat_inputs(args, kwargs))
        self._precision.update(self)
        values = [
            tensor_at(self, name) if kind == "tensor" else next(leaves)
            for kind, name in self._sources
        ]
        results = self._graph.run(values, self._precision, is_training=self.training)
        returned = []
        for (kind, spec), result in zip(self._out_kinds, results, strict=True):
            if kind == "user_output":
                returned.append(result)
            elif kind == "buffer_mutation":
                with torch.no_grad():
                    tensor_at(self, spec["buffer_name"]).copy_(result)
        return self._out_nesting.build(iter(returned))

    def flat_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs in the order of the program.

        Raises:
            CaptureError: They are not nested as those that the program was exported with.
        """
        positional, keyword = self._in_nesting.children
        remaining = dict(kwargs)
        given = list(args)
        names = self.argument_names[len(given) : len(positional.children)]
        given += [remaining.pop(name) for name in names if name in remaining]
        for name in keyword.keys[: max(0, len(args) - len(positional.children))]:
            remaining[name] = given.pop(len(positional.children))
        return [*positional.flatten(tuple(given)), *keyword.flatten(remaining, "named inputs")]


def _parse_nesting(text: str) -> Nesting:
    protocol, spec = json.loads(text)
    if protocol != 1:
        raise ValueError(f"unknown version {protocol} of nested inputs")
    return Nesting.parse(spec)


def _assert_version(program: Mapping[str, Any], path: Path) -> None:
    major = program["schema_version"]["major"]
    if major != _SCHEMA:
        raise CheckpointError(
            f"cannot read '{path}': it is of version {major} of the format (PyTorch "
            f"{program.get('torch_version')}), expected {_SCHEMA}. Load it with the PyTorch that "
            "wrote it, and save it again with PyTorch 2.11 or newer."
        )


def _example_inputs(archive: Archive, network: ExportedNetwork) -> ExampleInputs | None:
    member = "data/sample_inputs/model.pt"
    if not archive.has(member) or not archive.bytes(member):
        return None
    stored = archive.pickled_tensors(member)
    if not isinstance(stored, tuple) or len(stored) != 2:
        return None
    args, kwargs = stored
    if not kwargs:
        return tuple(args)
    if len(network.argument_names) < len(args):
        return None
    return {**dict(zip(network.argument_names, args, strict=False)), **kwargs}
