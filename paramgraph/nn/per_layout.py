"""Facts of a batch that follow from its structure alone, made once for all batches of one layout.

Training reads thousands of batches of the same few layouts; which rows are inputs, which types
occur at which level, and what multiplies what need not be found again for each of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

from paramgraph.batch import GraphBatch

__all__ = ["per_layout"]

T = TypeVar("T")

_MAX_LAYOUTS = 64
_MAX_NEURONS = 2**22  # of all layouts together: some hundred bytes each
_known: OrderedDict[Hashable, dict[Hashable, Any]] = OrderedDict()


_SIZE = ("number of neurons",)


def _num_neurons() -> int:
    return sum(facts[_SIZE] for facts in _known.values())


def per_layout(batch: GraphBatch, name: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` returns, kept for later batches of the same networks in the same numbers.

    Args:
        batch: Whose layout it is.
        name: Of the fact.
        make: Must not read weights, nor the order of the networks.

    Example:
        >>> import paramgraph as pg
        >>> from torch import nn
        >>> network = nn.Linear(2, 3)
        >>> graph = pg.capture(network, torch.randn(4, 2))
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))])
        >>> calls = []
        >>> for _ in range(2):
        ...     _ = per_layout(batch, "an example", lambda: calls.append(1))
        >>> len(calls)
        1
    """
    if torch.compiler.is_compiling():
        return make()
    key = (
        tuple((part.graph.signature, part.values.num_networks) for part in batch.parts),
        batch.neuron_values.device,
        batch.dtype,
    )
    facts = _known.get(key)
    if facts is None:
        facts = _known[key] = {_SIZE: batch.num_neurons}
        while len(_known) > 1 and (len(_known) > _MAX_LAYOUTS or _num_neurons() > _MAX_NEURONS):
            _known.popitem(last=False)
    else:
        _known.move_to_end(key)
    if name not in facts:
        with torch.inference_mode(False), torch.no_grad():
            facts[name] = make()
    return cast("T", facts[name])
