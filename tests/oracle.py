"""How many symmetries the parameters of a network have: counted without capture."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import scalar_rules  # noqa: F401 (makes the rules known)
import torch
from networks import Hazard, as_double
from scalar_graph import Automorphisms, ScalarGraph, automorphisms
from scalar_scales import count_scales
from scalar_shadow import Shadow
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = [
    "Run",
    "count_rescalings",
    "count_symmetries",
    "example_for_oracle",
    "permuted",
    "read_tensors",
    "run_by_numbers",
]

# Networks that read every row of a table only when they see the whole batch.
WHOLE_BATCH = {"message_passing", "tied_embedding", "tri_plane", "expert_modules", "chosen_experts"}


def example_for_oracle(hazard: Hazard) -> Any:
    """One example where that is enough: every example runs through the same parameters."""
    inputs = as_double(hazard.example_inputs)
    if hazard.name in WHOLE_BATCH:
        return inputs
    if isinstance(inputs, dict):
        return {name: value[:1] for name, value in inputs.items()}
    return tuple(v[:1] for v in inputs) if isinstance(inputs, tuple) else inputs[:1]


@dataclass(frozen=True)
class Run:
    """What a network computed: the graph, its outputs, and the size of each parameter."""

    graph: ScalarGraph
    outputs: list[int]
    sizes: dict[str, int]


def run_by_numbers(network: nn.Module, inputs: Any) -> Run:
    """Run a network number by number.

    Args:
        network: Any module; it is not changed.
        inputs: As for ``capture``.

    Returns:
        The computation graph. Parameters and running statistics are its leaves, like inputs.
    """
    network, inputs = copy.deepcopy(network).double().eval(), as_double(inputs)
    shadow, sizes = Shadow(), {}
    for name, tensor in read_tensors(network).items():
        shadow.register(name, tensor)
        sizes[name] = tensor.numel()
    for number, tensor in enumerate(tree_leaves(inputs)):
        if tensor.is_floating_point():
            shadow.register(f"input {number}", tensor)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), shadow:
            named = inputs if isinstance(inputs, Mapping) else {}
            listed = inputs if isinstance(inputs, tuple) else () if named else (inputs,)
            results = network(*listed, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    outputs = [n for t in tree_leaves(results) for n in shadow.nodes(t).reshape(-1).tolist()]
    return Run(shadow.graph, outputs, sizes)


def count_symmetries(network: nn.Module, inputs: Any) -> Automorphisms:
    """All permutations of entries within their parameters that the computation does not see.

    Each number of an input and of an output stays where it is.
    """
    run = run_by_numbers(network, inputs)
    return automorphisms(run.graph, run.outputs, run.sizes)


def count_rescalings(
    network: nn.Module, inputs: Any, *, free_running: bool = False
) -> tuple[int, int]:
    """Numbers of independent positive scales and of independent sign flips of entries."""
    run = run_by_numbers(network, inputs)
    return count_scales(run.graph, run.outputs, run.sizes, free_running=free_running)


def read_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics; a tied parameter once."""
    running = {n: b for n, b in network.named_buffers() if n.rsplit(".")[-1].startswith("running_")}
    return dict(network.named_parameters()) | running


def permuted(network: nn.Module, order: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with the entries of its parameters moved."""
    network = copy.deepcopy(network)
    tensors = read_tensors(network)
    for name, index in order.items():
        tensor = tensors[name]
        tensor.data = tensor.data.reshape(-1)[index].reshape(tensor.shape)
    return network
