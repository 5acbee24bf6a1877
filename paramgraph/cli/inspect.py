"""``paramgraph inspect``: the graph of a network, its symmetries, and their verification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paramgraph.capture import capture, verify
from paramgraph.cli.command import Answer, Command, UsageError
from paramgraph.cli.sources import example_tensors, network_from_files, zoo_network
from paramgraph.frontends import build_from_factory
from paramgraph.frontends.factory import import_network
from paramgraph.frontends.loaded import ExampleInputs
from paramgraph.graph import ParamGraph
from paramgraph.report.graph_page import write_graph_page
from paramgraph.report.inspect_text import inspect_data, inspect_text
from paramgraph.report.plain import table
from paramgraph.storage import load_state_dict
from paramgraph.zoo import Zoo

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["INSPECT"]

_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=str,
        help="module:attribute (a network, or what makes one); a network in a file (.pt2 of "
        "torch.export, .onnx) or a folder of transformers; a file of weights; or a zoo.",
    )
    parser.add_argument(
        "--factory",
        type=str | None,
        help="For a file of weights: module:function that builds the network they belong to.",
    )
    parser.add_argument(
        "--input-shape",
        type=str,
        nargs="+",
        default=None,
        help="Shape of each example input with a batch of two or more: 4x3x8x8 (4x12:int for "
        "whole numbers). Not needed where the file says it.",
    )
    parser.add_argument(
        "--architecture", type=str | None, help="For a zoo: the name of one of its architectures."
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="Refuse a network with an operation that has no rule, instead of freezing its axes.",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="Name or number of the output that symmetries must keep, where there are several.",
    )
    parser.add_argument(
        "--html",
        type=str | None,
        help="Also write a page that shows the graph: pan, zoom, search, details; opens offline.",
    )


def _run(arguments: Namespace) -> Answer:
    if arguments.html is not None and not Path(arguments.html).parent.is_dir():
        raise UsageError(f"--html {arguments.html}: its folder does not exist.")
    path = Path(arguments.source)
    is_weights = path.suffix.lower() in _SUFFIXES and ":" not in arguments.source
    is_zoo = path.is_dir() and not (path / "config.json").is_file()
    for flag, is_used in (("factory", is_weights), ("architecture", is_zoo)):
        if arguments[flag] is not None and not is_used:
            raise UsageError(f"--{flag} has no meaning for {arguments.source!r}.")
    if is_zoo:
        network, inputs = zoo_network(Zoo.open(path), arguments.architecture)
        return _inspect(network, inputs, arguments)
    if is_weights:
        text, data = _parameters(load_state_dict(path), arguments.source)
        if arguments.factory is None:
            if arguments.html is not None:
                raise UsageError("--html shows a network: for a file of weights, give --factory.")
            return Answer(text, data)
        network = build_from_factory(arguments.factory, path).network
        answer = _inspect(network, _inputs(arguments), arguments)
        return Answer(f"{text}\n\n{answer.text}", {**data, **answer.data}, answer.code)
    loaded = network_from_files(arguments.source)
    if loaded is not None:
        return _inspect(loaded.network, _inputs(arguments, loaded.example_inputs), arguments)
    if ":" not in arguments.source:
        raise UsageError(
            f"expected module:attribute (as in my_networks:make_cnn), got {arguments.source!r}. A "
            "file with a network ends in .pt2 or .onnx, a file of weights in .safetensors, .npz, "
            ".pt, .pth, .bin or .ckpt; a zoo is a folder, and so is a network of transformers "
            "(with a config.json)."
        )
    return _inspect(import_network(arguments.source), _inputs(arguments), arguments)


def _inputs(arguments: Namespace, found: ExampleInputs | None = None) -> ExampleInputs:
    if arguments.input_shape:
        return example_tensors(arguments.input_shape)
    if found is None:
        raise UsageError(
            "the network must be run once: give the shape of its inputs, as in "
            "--input-shape 4x3x8x8 (a batch of 4)."
        )
    return found


def _options(arguments: Namespace) -> dict[str, Any]:
    """What ``capture`` is told beside the inputs, as far as it was given."""
    options: dict[str, Any] = {"strict": True} if arguments.strict else {}
    if arguments.output is not None:
        number = arguments.output.removeprefix("-")
        options["output"] = int(arguments.output) if number.isdigit() else arguments.output
    return options


def _parameters(state: dict[str, Tensor], source: str) -> tuple[str, dict[str, Any]]:
    """Name, shape, mean and standard deviation of every entry of a file."""
    rows = [("parameter", "shape", "mean", "std")]
    entries = []
    for name, value in state.items():
        plain = value.double() if not value.is_complex() else value.abs().double()
        mean = float(plain.mean()) if plain.numel() else float("nan")
        std = float(plain.std(correction=0)) if plain.numel() else float("nan")
        shape = " x ".join(map(str, value.shape)) or "scalar"
        rows.append((name, shape, f"{mean:.4g}", f"{std:.4g}"))
        entries.append({"name": name, "shape": list(value.shape), "mean": mean, "std": std})
    total = sum(value.numel() for value in state.values())
    text = f"{source}: {len(state)} tensors, {total:,} numbers\n\n{table(rows)}"
    return text, {"source": source, "num_entries": total, "parameters": entries}


def _inspect(network: nn.Module, inputs: ExampleInputs, arguments: Namespace) -> Answer:
    torch.manual_seed(0)
    graph = capture(network, inputs, **_options(arguments))
    checked = verify(network, graph, inputs)
    text = f"{inspect_text(graph)}\n\n{checked}"
    if arguments.html is not None:
        write_graph_page(arguments.html, graph, checked)
        text += f"\n\nWritten to {arguments.html} (open it in a browser)"
    data = {
        "source": arguments.source,
        "network": graph.name,
        "num_neurons": graph.num_neurons,
        "num_edges": graph.num_edges,
        "num_parameters": graph.num_parameters,
        "log_group_size": graph.log_group_size(),
        "axis_groups": _axis_groups(graph),
        "scale_groups": [
            {"name": group.name, "size": group.size, "kind": group.kind.value}
            for group in graph.scale_groups
        ],
        "unused_parameters": graph.unused_parameters,
        **inspect_data(graph),
        "html": arguments.html,
        "verification": {
            "passed": checked.passed,
            "max_error": checked.max_error,
            "tolerance": checked.tolerance,
            "num_draws": checked.num_draws,
            "num_free_groups": checked.num_free_groups,
        },
    }
    return Answer(text, data, 0 if checked.passed else 1)


def _axis_groups(graph: ParamGraph) -> list[dict[str, Any]]:
    return [
        {
            "name": group.name,
            "size": group.size,
            "free": group.free,
            "reason": group.reason,
            "given": list(group.given),
        }
        for group in graph.axis_groups
    ]


INSPECT = Command(
    ("inspect",),
    "Show the parameter graph of a network, its symmetries, and check them on the network.",
    "paramgraph inspect my_networks:make_cnn --input-shape 4x3x32x32",
    _add_arguments,
    _run,
)
