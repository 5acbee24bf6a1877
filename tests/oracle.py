"""How many permutations of its parameters leave a network as it is: counted without capture."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from networks import as_double
from scalar_graph import Automorphisms, automorphisms
from scalar_rules import Shadow
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["count_symmetries", "permuted"]


def count_symmetries(network: nn.Module, inputs: Any) -> Automorphisms:
    """All automorphisms of the computation graph of one run, one node per number.

    Args:
        network: Any module; it is not changed.
        inputs: As for ``capture``. Each number of an input and of an output stays where it is.

    Returns:
        Their number, and generators as permutations of the entries of each parameter.
    """
    network, inputs = copy.deepcopy(network).double().eval(), as_double(inputs)
    shadow, sizes = Shadow(), {}
    for name, tensor in _read_tensors(network).items():
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
    return automorphisms(shadow.graph, outputs, sizes)


def _read_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics; a tied parameter once."""
    running = {n: b for n, b in network.named_buffers() if n.rsplit(".")[-1].startswith("running_")}
    return dict(network.named_parameters()) | running


def permuted(network: nn.Module, order: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with the entries of its parameters moved."""
    network = copy.deepcopy(network)
    tensors = _read_tensors(network)
    for name, index in order.items():
        tensor = tensors[name]
        tensor.data = tensor.data.reshape(-1)[index].reshape(tensor.shape)
    return network
