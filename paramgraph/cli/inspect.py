"""``paramgraph inspect``: the graph of a network, its symmetries, and their verification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paramgraph.capture import capture, verify
from paramgraph.cli.command import Answer, Command, UsageError
from paramgraph.cli.sources import example_tensors, import_network, load_weights, zoo_network
from paramgraph.graph import ParamGraph
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
        help="module:attribute (a network, or what makes one), a file of weights, or a zoo.",
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
        "whole numbers).",
    )
    parser.add_argument(
        "--architecture", type=str | None, help="For a zoo: the name of one of its architectures."
    )


def _run(arguments: Namespace) -> Answer:
    path = Path(arguments.source)
    is_weights = path.suffix.lower() in _SUFFIXES and ":" not in arguments.source
    for flag, is_used in (("factory", is_weights), ("architecture", path.is_dir())):
        if arguments[flag] is not None and not is_used:
            raise UsageError(f"--{flag} has no meaning for {arguments.source!r}.")
    if path.is_dir():
        network, inputs = zoo_network(Zoo.open(path), arguments.architecture)
        return _inspect(network, inputs, arguments.source)
    if is_weights:
        state = load_state_dict(path)
        text, data = _parameters(state, arguments.source)
        if arguments.factory is None:
            return Answer(text, data)
        network = import_network(arguments.factory)
        load_weights(network, state, arguments.source)
        answer = _inspect(network, _inputs(arguments), arguments.source)
        return Answer(f"{text}\n\n{answer.text}", {**data, **answer.data}, answer.code)
    return _inspect(import_network(arguments.source), _inputs(arguments), arguments.source)


def _inputs(arguments: Namespace) -> tuple[Tensor, ...]:
    if not arguments.input_shape:
        raise UsageError(
            "the network must be run once: give the shape of its inputs, as in "
            "--input-shape 4x3x8x8 (a batch of 4)."
        )
    return example_tensors(arguments.input_shape)


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


def _inspect(network: nn.Module, inputs: tuple[Tensor, ...], source: str) -> Answer:
    torch.manual_seed(0)
    graph = capture(network, inputs)
    checked = verify(network, graph, inputs)
    text = f"{graph.summary()}\n\n{checked}"
    data = {
        "source": source,
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
