"""Capture: a network and example inputs in, its ``ParamGraph`` out.

Takes any ``nn.Module`` and inputs to call it with. Runs it once, records every ATen operation, and
infers from these alone which axes are permuted together and which neurons can be rescaled. Where
an operation has no rule, what it reads is frozen, with the reason: the graph stays right, only less
symmetric. Does not look at module types or parameter names, and does not change the network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from paramgraph.capture.groups import find_groups
from paramgraph.capture.infer import infer
from paramgraph.capture.program_making import make_program
from paramgraph.capture.record import record
from paramgraph.capture.repair import repair
from paramgraph.capture.running import ExampleInputs, OutputChoice
from paramgraph.capture.scales import find_scales
from paramgraph.capture.tape import Tape
from paramgraph.capture.verify import Verification, assert_unused, verify
from paramgraph.capture.weave import build_graph
from paramgraph.errors import CaptureError, GraphError
from paramgraph.graph import ParamGraph

__all__ = ["Verification", "capture", "repair", "verify"]

_MOST_CHECKED = 5_000_000
"""Parameters up to which the check costs less than a second."""


def capture(
    network: nn.Module,
    example_inputs: ExampleInputs | list[Any],
    *,
    strict: bool = False,
    output: OutputChoice = None,
    check: bool | None = None,
) -> ParamGraph:
    """Read the structure and the symmetries of a network from one run.

    Args:
        network: Any module; it is not changed.
        example_inputs: A tensor, a tuple of positional arguments or a mapping of keyword arguments;
            a list of these for a network that runs otherwise on other inputs. Use a batch of two
            or more, and sequences and images of more than one position.
        strict: Raise at an operation without a rule instead of freezing what it reads.
        output: Which outputs must be preserved: a key, attribute or place, or a function of what
            the network returns. By default its attribute ``logits`` where it has one, else all.
        check: Whether to try the symmetries on the network and take out those that do not hold
            (``repair``); by default for networks of up to 5 million parameters that have weights.

    Returns:
        The parameter graph: neuron groups, edge blocks, permutations, scales. It holds no weights.

    Raises:
        CaptureError: The network does not run on the inputs, reads its parameters unseen, or
            (``strict``) uses an operation without a rule or fails its check; the message names
            operation and module.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> graph = capture(network, torch.randn(4, 2))
        >>> [group.name for group in graph.neuron_groups], graph.num_edges
        (['input', '0', '2'], 24)
    """
    several = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    if not several:
        raise CaptureError("example_inputs is an empty list: capture needs something to run on.")
    tapes: list[Tape] = []
    for inputs in several:
        start = tapes[-1].start + len(tapes[-1].entries) if tapes else 0
        tapes.append(record(network, inputs, output, start=start))
    run = infer(tapes, strict=strict)
    groups = find_groups(run)
    if not groups.used:
        raise CaptureError(
            "no output of the network depends on its parameters, so there is nothing to read."
        )
    scales = find_scales(run, groups)
    graph, loom, woven = build_graph(tapes[0], run, groups, scales, type(network).__name__)
    graph = replace(graph, output=output)
    graph = replace(graph, program=make_program(network, several[0], graph, loom, woven))
    for inputs in several:
        assert_unused(network, graph, inputs)
    return _checked(network, graph, several, check, strict=strict)


def _checked(
    network: nn.Module,
    graph: ParamGraph,
    several: list[Any],
    check: bool | None,
    *,
    strict: bool,
) -> ParamGraph:
    """The graph without what does not hold on the network."""
    if check is None:
        has_weights = not any(parameter.is_meta for parameter in network.parameters())
        check = has_weights and graph.num_parameters <= _MOST_CHECKED
    if not check:
        return graph
    try:
        repaired = repair(network, graph, several)
    except GraphError:
        return graph  # outputs that are not finite: ``verify`` says so when it is asked
    if strict and repaired is not graph:
        raise CaptureError(
            f"symmetries found in {graph.name} do not hold on the network: "
            f"{'; '.join(repaired.repairs)}. Leave out strict=True to treat these as fixed."
        )
    return repaired
