"""From a recorded run to its ``Program``, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.capture.program import Program
from paramgraph.capture.program_inputs import ProgramInput
from paramgraph.capture.program_places import Place, find_places
from paramgraph.capture.program_steps import Size, Steps, compile_tape, live, refs_of
from paramgraph.capture.record import record
from paramgraph.capture.running import ExampleInputs, rebuilt
from paramgraph.capture.tape import Tape, entry_refs
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.records import Group
from paramgraph.errors import CaptureError
from paramgraph.graph import ParamGraph

__all__ = ["make_program"]

_VIEWS = ("view", "_unsafe_view", "reshape", "slice", "select", "unsqueeze", "squeeze", "expand")
_SAME = (*_VIEWS, "_to_copy", "clone", "detach", "alias", "permute", "transpose", "t", "contiguous")
"""What token ids may pass through on the way to their table."""


def make_program(
    network: nn.Module,
    example_inputs: ExampleInputs,
    graph: ParamGraph,
    loom: Loom,
    groups: Sequence[Group],
) -> Program | str:
    """The program of the first run of a loom.

    Args:
        network: What was recorded.
        example_inputs: On what.
        graph: What was woven. Its parameters and statistics differ between networks, all others
            are constants.
        loom: On what it was woven.
        groups: The neuron groups of the graph, on the loom.

    Returns:
        The program, or why there is none: capture reads networks that cannot be run again, and
        whoever wants to run one gets the reason as an error.
    """
    try:
        return _made(network, example_inputs, graph, loom, find_places(loom, groups))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _made(
    network: nn.Module,
    example_inputs: ExampleInputs,
    graph: ParamGraph,
    loom: Loom,
    places: tuple[Place | None, ...],
) -> Program:
    tape = loom.runs[0].tape
    shape = tape.inputs[0].shape
    batch_size = shape[0] if shape else 1
    longer: Tape | None = None
    if shape and shape[0]:
        try:
            several = _longer(example_inputs, batch_size)
            longer = record(network, several, graph.output, start=tape.start)
        except CaptureError:
            longer = None  # it runs on so many samples only
    held = {name for row in graph.parameters for name in (row.name, *row.aliases, *row.members)}
    refs = {name: ref for name, ref in tape.parameters.items() if name in held}
    state: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    varying = [*(ref.number for ref in refs.values()), *(ref.number for ref in tape.inputs)]
    steps = compile_tape(tape, longer, batch_size, varying, state)
    outputs = tuple(ref.number for ref in tape.outputs)
    read = _prune(steps, {*outputs, *(place.number for place in places if place is not None)})
    floating = [tape.dtypes[ref.number] for ref in refs.values()]
    return Program(
        name=type(network).__name__,
        steps=steps,
        places=places,
        parameters=tuple(
            (ref.number, (name, *tape.aliases.get(name, ())), ref.shape)
            for name, ref in refs.items()
            if ref.number in read
        ),
        inputs=_inputs(tape, steps, example_inputs, batch_size),
        outputs=outputs,
        batch_size=batch_size,
        dtype=next((d for d in floating if d.is_floating_point), torch.get_default_dtype()),
    )


def _prune(steps: Steps, targets: set[int]) -> set[int]:
    """Drop the steps that no target depends on and the constants that nobody reads."""
    steps.steps = live(steps.steps, targets)
    read = {number for step in steps.steps for number in refs_of(step.args)} | targets
    # Copies, because these may be the memory of the network's buffers.
    steps.constants = {n: t.clone() for n, t in steps.constants.items() if n in read}
    return read


def _longer(inputs: Any, batch_size: int) -> Any:
    """The same inputs with their last sample once more."""
    if isinstance(inputs, Tensor):
        if not inputs.ndim or inputs.shape[0] != batch_size:
            return inputs
        return torch.cat([inputs, inputs[-1:]]).detach()
    return rebuilt(inputs, lambda item: _longer(item, batch_size))


def _inputs(
    tape: Tape,
    steps: Steps,
    example_inputs: ExampleInputs,
    batch_size: int,
) -> tuple[ProgramInput, ...]:
    tensors = _tensors(example_inputs)
    tables = _tables(tape)
    rows = []
    for ref, (name, tensor) in zip(tape.inputs, tensors, strict=True):
        shape = steps.shapes[ref.number]
        first = shape[0] if shape else 0
        whole = (0, 0)
        if not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta):
            least = int(tensor.min()) if tensor.numel() else 0
            most = int(tensor.max()) if tensor.numel() else 0
            whole = (0, tables[ref.number]) if ref.number in tables else (least, most)
        rows.append(
            ProgramInput(
                number=ref.number,
                name=name,
                dtype=tape.dtypes[ref.number],
                has_samples=isinstance(first, Size) if steps.is_flexible else first == batch_size,
                whole=whole,
            )
        )
    return tuple(rows)


def _tensors(inputs: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """The input tensors in order, each with the name of its argument."""
    if isinstance(inputs, Tensor):
        return [(name, inputs)]
    if isinstance(inputs, Mapping):
        return [found for key, item in inputs.items() for found in _tensors(item, name or key)]
    if isinstance(inputs, tuple | list):
        return [found for item in inputs for found in _tensors(item, name)]
    return []


def _tables(tape: Tape) -> dict[int, int]:
    """For inputs that are looked up in a table the number of its last row."""
    origin = {ref.number: ref.number for ref in tape.inputs}
    found: dict[int, int] = {}
    for entry in tape.entries:
        name = entry.operation.removeprefix("aten.")
        sources = [ref.number for ref in entry_refs(entry.args) if ref.number in origin]
        if name == "embedding" and entry.args["indices"].number in origin:
            source = origin[entry.args["indices"].number]
            last = entry.args["weight"].shape[0] - 1
            found[source] = min(last, found.get(source, last))
        elif name in _SAME and sources:
            origin.update({r.number: origin[sources[0]] for r in entry.outputs if r is not None})
    return found
