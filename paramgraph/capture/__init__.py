"""Capture: a network and example inputs in, its ``ParamGraph`` out.

Takes any ``nn.Module`` and inputs to call it with. Runs it once, records every ATen operation, and
infers from these alone which axes are permuted together and which neurons can be rescaled. Promises
that what it claims holds on the network (``verify``); where it does not know, it raises. Does not
look at module types or parameter names, and does not change the network.
"""

from __future__ import annotations

from torch import nn

from paramgraph.capture.build import build_graph
from paramgraph.capture.interpret import interpret
from paramgraph.capture.running import ExampleInputs
from paramgraph.capture.tape import record
from paramgraph.capture.verify import Verification, assert_unused, verify
from paramgraph.graph import ParamGraph

__all__ = ["Verification", "capture", "verify"]


def capture(network: nn.Module, example_inputs: ExampleInputs) -> ParamGraph:
    """Read the structure and the symmetries of a network from one run.

    Args:
        network: Any module; it is not changed.
        example_inputs: A tensor, a tuple of positional arguments or a mapping of keyword arguments.
            Use a batch of two or more.

    Returns:
        The parameter graph: neuron groups, edge blocks, permutations, scales. It holds no weights.

    Raises:
        CaptureError: The network does not run on the inputs, uses an operation without a rule, or
            reads its parameters unseen; the message names operation and module.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> graph = capture(network, torch.randn(4, 2))
        >>> [group.name for group in graph.neuron_groups], graph.num_edges
        (['input', '0', '2'], 24)
    """
    tape = record(network, example_inputs)
    graph = build_graph(interpret(tape), tape, type(network).__name__)
    assert_unused(network, graph, example_inputs)
    return graph
