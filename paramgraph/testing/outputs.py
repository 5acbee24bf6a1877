"""What a metanetwork returns, as rows of numbers per network, whatever its level."""

from __future__ import annotations

import torch
from torch import Tensor

from paramgraph.batch import Entries, GraphBatch, Part, neurons_by_part
from paramgraph.errors import BatchError, GraphError
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.testing.moves import trained
from paramgraph.views import get_parameter

__all__ = ["WrongOutput", "read", "round_trip"]


class WrongOutput(Exception):
    """What a metanetwork returned is not what its level promises; the message says how."""


def read(metanetwork: Metanetwork, batch: GraphBatch) -> list[Tensor]:
    """Read a batch.

    Args:
        metanetwork: Of any level.
        batch: The networks.

    Returns:
        For each part of the batch ``[num_networks, places, out_dim]``: one place per network, per
        neuron (group by group), or per entry of the trained parameters (parameter by parameter).

    Raises:
        WrongOutput: The output has another type or shape than its level says.
    """
    output = metanetwork(batch)
    if metanetwork.level == "graph":
        _expect(output, (batch.num_networks, metanetwork.out_dim), "graph")
        return [output[part.rows][:, None] for part in batch.parts]
    if metanetwork.level == "neuron":
        _expect(output, (batch.num_neurons, metanetwork.out_dim), "neuron")
        return [torch.cat(groups, dim=1) for groups in neurons_by_part(batch, output)]
    found = []
    for part, sets in zip(batch.parts, _written(metanetwork, batch, output), strict=True):
        columns = [
            torch.cat([get_parameter(s, row, lead=1).flatten(1) for row in trained(part.graph)], 1)
            for s in sets
        ]
        found.append(torch.stack(columns, dim=-1))
    return found


def round_trip(metanetwork: Metanetwork, batch: GraphBatch) -> str:
    """What is wrong with the form of the outputs, "" if nothing is.

    Outputs at level "parameter" are written to parameters, which must have the names and shapes of
    those of the network, and read again: written once more they have the same bits.

    Args:
        metanetwork: Of any level.
        batch: The networks.
    """
    try:
        read(metanetwork, batch)
        if metanetwork.level != "parameter":
            return ""
        output = metanetwork(batch)
        for part, sets in zip(batch.parts, _written(metanetwork, batch, output), strict=True):
            for parameters in sets:
                _round_trip(part, parameters)
    except WrongOutput as problem:
        return str(problem)
    return ""


def _round_trip(part: Part, parameters: dict[str, Tensor]) -> None:
    again = part.graph.write_back(part.graph.features(parameters))
    for name, value in parameters.items():
        if not torch.equal(again[name], value):
            raise WrongOutput(f"entries of {name!r}, written and read again, are others")


def _written(
    metanetwork: Metanetwork, batch: GraphBatch, output: Tensor | Entries
) -> list[list[dict[str, Tensor]]]:
    """For each part and each set the entries as stacked parameters."""
    if not isinstance(output, Entries):
        raise WrongOutput(f"level 'parameter' promises Entries, got {type(output).__name__}")
    num_sets = metanetwork.out_dim
    _expect(output.neurons, (*batch.neuron_values.shape, num_sets), "parameter")
    try:
        values = output.values(batch)
        return [
            [part.graph.write_back(row) for row in rows]
            for part, rows in zip(batch.parts, values, strict=True)
        ]
    except (BatchError, GraphError, ValueError) as problem:
        raise WrongOutput(f"entries cannot be written to parameters: {problem}") from problem


def _expect(output: object, shape: tuple[int, ...], level: str) -> None:
    if not isinstance(output, Tensor) or tuple(output.shape) != shape:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise WrongOutput(f"level {level!r} promises {shape}, got {got}")
