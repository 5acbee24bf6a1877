"""Weaving: a typed run to its neuron groups and edge blocks.

Takes the tape, the types of its tensors and the axis groups; gives a ``ParamGraph``. Promises that
every part of every parameter that reaches the outputs stands in the graph, whatever the network
computes: what no rule knows becomes neurons that depend on all that was read. Makes no symmetry:
which axes are permuted together was decided before.

| file                                          | what is in it                                    |
|-----------------------------------------------|--------------------------------------------------|
| ``records``, ``partition``                    | what is known of one block of a tensor           |
| ``numbering``, ``loom``, ``reading``          | neuron groups and edge blocks while they are made|
| ``parameters``                                | functions of parameters alone                    |
| ``origins``, ``movement``                     | operations that move entries                     |
| ``operands``, ``sums``, ``factors``,          | operations on entries                            |
| ``elementwise``                               |                                                  |
| ``weights``, ``contraction``                  | matrix products and convolutions                 |
| ``norms``, ``reductions``, ``tables``,        | all other operations                             |
| ``layers``                                    |                                                  |
| ``runs``, ``walk``                            | one operation after the other, of every run      |
| ``assemble``                                  | the tables of the graph                          |
"""

from __future__ import annotations

from typing import Any

from paramgraph.capture.groups import Groups
from paramgraph.capture.inference import Inference
from paramgraph.capture.tape import Tape
from paramgraph.capture.weave.assemble import assemble, by_depth
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.records import Group
from paramgraph.capture.weave.walk import weave
from paramgraph.graph import ParamGraph

__all__ = ["build_graph"]


def build_graph(
    tape: Tape, run: Inference, groups: Groups, scales: Any, name: str
) -> tuple[ParamGraph, Loom, list[Group]]:
    """Assemble the graph of a run.

    Args:
        tape: The run.
        run: Types of its tensors.
        groups: Axis groups of its parameters.
        scales: Scale groups, or ``None`` for a graph without scales.
        name: Of the network.

    Returns:
        The graph, the loom that it was woven on, and what its neuron groups were there.
    """
    loom = weave(run, groups)
    return assemble(loom, tape, scales, name), loom, by_depth(loom)[0]
