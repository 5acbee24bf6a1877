"""Weaving: a typed run to its neuron groups and edge blocks.

Takes the tape, the types of its tensors and the axis groups; gives a ``ParamGraph``. Promises that
every part of every parameter that reaches the outputs stands in the graph, whatever the network
computes: what no rule knows becomes neurons that depend on all that was read. Makes no symmetry:
which axes are permuted together was decided before.
"""

from __future__ import annotations

from typing import Any

from paramgraph.capture.groups import Groups
from paramgraph.capture.inference import Inference
from paramgraph.capture.tape import Tape
from paramgraph.capture.weave.assemble import assemble
from paramgraph.capture.weave.walk import weave
from paramgraph.graph import ParamGraph

__all__ = ["build_graph"]


def build_graph(tape: Tape, run: Inference, groups: Groups, scales: Any, name: str) -> ParamGraph:
    """Assemble the graph of a run.

    Args:
        tape: The run.
        run: Types of its tensors.
        groups: Axis groups of its parameters.
        scales: Scale groups, or ``None`` for a graph without scales.
        name: Of the network.
    """
    return assemble(weave(run, groups), tape, scales, name)
