"""Laws of numbers: gradients are those of the function, and everything is finite in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from paramgraph.batch import collate
from paramgraph.graph import ParamGraph
from paramgraph.testing.case import Case
from paramgraph.testing.draws import StateDict
from paramgraph.testing.law import MUST_CHANGE, DoesNotApply, Law, Measured, largest
from paramgraph.testing.outputs import read
from paramgraph.testing.sample import STEPS
from paramgraph.views import get_parameter, set_parameter

__all__ = ["NUMBER_LAWS"]


def _leaves(graph: ParamGraph, state: StateDict, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of the parameters that gradients are taken with respect to."""
    return {
        row.name: get_parameter(state, row).to(dtype, copy=True).requires_grad_()
        for row in graph.parameters
    }


def _read(case: Case, leaves: dict[str, Tensor], *, single: bool) -> Tensor:
    """Outputs ``[places, out_dim]`` as differentiable functions of the parameters."""
    graph = case.network.graph
    state: dict[str, Tensor] = {}
    for row in graph.parameters:
        set_parameter(state, row, leaves[row.name])
    metanetwork = case.single if single else case.metanetwork
    return read(metanetwork, collate([(graph, graph.features(state))]))[0][0]


def _gradient(case: Case) -> Measured:
    """Derivatives along random directions: by autograd, and by central differences."""
    if not case.change(case.alone, case.outputs[0]) <= case.tolerance:
        raise DoesNotApply("batch of one is broken, and differences are taken in a batch")
    leaves = _leaves(case.network.graph, case.network.state, torch.float64)
    outputs = _read(case, leaves, single=False)
    generator = torch.Generator().manual_seed(case.network.seed)
    probe = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype) / case.unit
    grads: list[Tensor | None] = [None] * len(leaves)
    if outputs.requires_grad:
        loss = (outputs * probe).sum()
        grads = list(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
    exact = []
    for along in case.sample.directions:
        pairs = zip(grads, leaves, strict=True)
        exact.append(sum(float((g * along[name]).sum()) for g, name in pairs if g is not None))
    rows = case.sample.rows
    tried: list[list[float]] = []
    for step in STEPS:
        difference = case.outputs[rows[f"ahead {step}"]] - case.outputs[rows[f"behind {step}"]]
        measured = ((difference * probe).sum(dim=(1, 2)) / (2 * step)).tolist()
        size = max(*map(abs, exact), *map(abs, measured), 1e-30)
        tried.append([abs(a - b) / size for a, b in zip(exact, measured, strict=True)])
    # A wrong gradient differs at every step; a right one is met by the better of them.
    best = [min(pair, key=lambda e: (e == e, e)) for pair in zip(*tried, strict=True)]  # or NaN
    return largest({f"direction {draw}": error for draw, error in enumerate(best)})


def _num_not_finite(case: Case, state: StateDict) -> Measured:
    """Outputs and gradients that are not finite, in float32 as in training."""
    leaves = _leaves(case.network.graph, state, torch.float32)
    outputs = _read(case, leaves, single=True)
    inputs = {f"gradient of weight {name}": value for name, value in leaves.items()}
    for name, value in case.single.named_parameters():
        if value.requires_grad:
            inputs[f"gradient of parameter {name}"] = value
    count, where = int((~outputs.isfinite()).sum()), "outputs"
    if outputs.requires_grad:
        grads = torch.autograd.grad(outputs.sum(), list(inputs.values()), allow_unused=True)
        for name, grad in zip(inputs, grads, strict=True):
            wrong = 0 if grad is None else int((~grad.isfinite()).sum())
            where = name if wrong and not count else where
            count += wrong
    return float(count), f"numbers that are not finite, first in {where}" if count else ""


def _finite(case: Case) -> Measured:
    return _num_not_finite(case, case.network.state)


def _zero_weight(case: Case) -> Measured:
    zeros = {name: torch.zeros_like(value) for name, value in case.network.state.items()}
    return _num_not_finite(case, zeros)


NUMBER_LAWS = (
    Law("gradient", _gradient, factor=MUST_CHANGE),
    Law("finite", _finite, fixed=0.0),
    Law("zero weight", _zero_weight, fixed=0.0),
)
"""Gradients against finite differences; numbers that are not finite."""
