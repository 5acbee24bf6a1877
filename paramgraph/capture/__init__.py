"""Capture: a network and example inputs in, its ``ParamGraph`` out.

Takes any ``nn.Module`` and inputs to call it with. Runs it once, records every ATen operation, and
infers from these alone which axes are permuted together and which neurons can be rescaled. Where
an operation has no rule, what it reads is frozen, with the reason: the graph stays right, only less
symmetric. Does not look at module types or parameter names, and does not change the network.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from paramgraph.capture.groups import find_groups
from paramgraph.capture.inference import infer
from paramgraph.capture.running import ExampleInputs, OutputChoice
from paramgraph.capture.tape import Tape, record
from paramgraph.capture.verify import Verification, assert_unused, verify
from paramgraph.capture.weave import build_graph
from paramgraph.graph import ParamGraph

__all__ = ["Verification", "capture", "verify"]


def capture(
    network: nn.Module,
    example_inputs: ExampleInputs | list[ExampleInputs],
    *,
    strict: bool = False,
    output: OutputChoice = None,
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

    Returns:
        The parameter graph: neuron groups, edge blocks, permutations, scales. It holds no weights.

    Raises:
        CaptureError: The network does not run on the inputs, reads its parameters unseen, or
            (``strict``) uses an operation without a rule; the message names operation and module.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> graph = capture(network, torch.randn(4, 2))
        >>> [group.name for group in graph.neuron_groups], graph.num_edges
        (['input', '0', '2'], 24)
    """
    several = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    tapes: list[Tape] = []
    for inputs in several:
        start = tapes[-1].start + len(tapes[-1].entries) if tapes else 0
        tapes.append(record(network, inputs, output, start=start))
    tape = tapes[0]
    run = infer(tapes, strict=strict)
    groups = find_groups(run)
    graph = build_graph(tape, run, groups, None, type(network).__name__)
    return replace(graph, output=output)
