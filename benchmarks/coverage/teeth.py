"""Can the check bite? A group permuted in only one of its tensors must change the outputs.

Without this, a check could pass because nothing that it permutes matters: gains of 1, biases that
cancel in a softmax, experts that no token visits. A pair (group, tensor) that changes nothing is
explained only by a second, independent test: noise in the same place changes nothing either.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import paramgraph as pg
from paramgraph.capture.verify import Probe
from paramgraph.structure import ParameterLayout
from paramgraph.views import get_parameter, set_parameter, take_part

__all__ = ["Teeth", "bite"]

_MOST_PAIRS = 40
_NUM_DRAWS = 3


@dataclass
class Teeth:
    """What happened to pairs of a free group and one tensor that carries it.

    Attributes:
        num_pairs: Pairs that there are.
        noticed: Pairs whose permutation changed the outputs.
        dead: Pairs without effect, in which noise has none either.
        unexplained: The others, as ``group in tensor``.
    """

    num_pairs: int = 0
    noticed: int = 0
    dead: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """Pairs that were tried."""
        return self.noticed + len(self.dead) + len(self.unexplained)


def bite(graph: pg.ParamGraph, probe: Probe, *, seed: int = 0, time_limit_s: float = 20.0) -> Teeth:
    """Permute groups in one of their tensors at a time and see whether the outputs change.

    Args:
        graph: A graph that passed its check.
        probe: Runs the network with other weights.
        seed: Of the sample of pairs and the draws.
        time_limit_s: No further pairs are tried after this time.
    """
    pairs = _pairs(graph)
    teeth = Teeth(len(pairs))
    random.Random(seed).shuffle(pairs)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for name, layout in pairs[:_MOST_PAIRS]:
        if teeth.tried and time.perf_counter() - start > time_limit_s:
            break
        if _is_noticed(graph, probe, name, layout, generator):
            teeth.noticed += 1
        elif _is_dead(probe, name, layout, generator):
            teeth.dead.append(f"{name} in {layout.name}")
        else:
            teeth.unexplained.append(f"{name} in {layout.name}")
    return teeth


def _pairs(graph: pg.ParamGraph) -> list[tuple[str, ParameterLayout]]:
    """Every free group with each tensor that carries it, if there are two or more of these.

    A group with one tensor is permuted there alone, rightly.
    """
    pairs = []
    for group in graph.axis_groups:
        if group.free and group.size > 1:
            carriers = [layout for layout in graph.parameters if _carries(layout, group.name)]
            pairs += [(group.name, layout) for layout in carriers if len(carriers) > 1]
    return pairs


def _carries(layout: ParameterLayout, name: str) -> bool:
    return any(name in part.factors for part in layout.parts)


def _is_noticed(
    graph: pg.ParamGraph,
    probe: Probe,
    name: str,
    layout: ParameterLayout,
    generator: torch.Generator,
) -> bool:
    rows = [g if g.name == name else replace(g, free=False) for g in graph.axis_groups]
    alone = replace(graph, axis_groups=tuple(rows))
    for _ in range(_NUM_DRAWS):
        symmetry = alone.sample_symmetry(generator, scale=False)
        state = replace(symmetry, parameters=(layout,)).apply(probe.state)
        if probe.error(state) > probe.tolerance:
            return True
    return False


def _is_dead(probe: Probe, name: str, layout: ParameterLayout, generator: torch.Generator) -> bool:
    """Whether other numbers in those parts of a tensor that carry a group change nothing."""
    tensor: Tensor = get_parameter(probe.state, layout).clone()
    for part in layout.parts:
        if name in part.factors:
            here = take_part(tensor, part.steps)
            size = here.double().square().mean().sqrt() + 0.1
            noise = torch.randn(here.shape, generator=generator, dtype=torch.float64, device="cpu")
            here.add_((noise * size).to(here.dtype))
    state = dict(probe.state)
    set_parameter(state, layout, tensor)
    return probe.error(state) <= probe.tolerance
