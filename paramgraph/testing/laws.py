"""The laws of metanetworks, each a number measured on one network and a bound on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import collate
from paramgraph.structure import ParameterLayout, ScaleKind
from paramgraph.testing.case import Case
from paramgraph.testing.draws import StateDict, draw_scale, other_weights

__all__ = ["LAWS", "DoesNotApply", "Law"]

NUM_DRAWS = 4
MUST_CHANGE = 1e3
MIN_SPREAD = 1e-3

Measured = tuple[float, str]
"""A number, and where it was found."""


class DoesNotApply(Exception):
    """The law says nothing about this network; the message says why."""


@dataclass(frozen=True)
class Law:
    """A statement about a metanetwork and one network.

    Attributes:
        name: Shown in reports.
        measure: The number that is bounded.
        factor: The bound, in units of the tolerance.
        fixed: The bound, if it does not depend on the tolerance.
        must_exceed: Whether the bound is a lower one.
    """

    name: str
    measure: Callable[[Case], Measured]
    factor: float = 1.0
    fixed: float | None = None
    must_exceed: bool = False

    def bound(self, tolerance: float) -> float:
        """The bound at this tolerance."""
        return self.factor * tolerance if self.fixed is None else self.fixed


def _largest(errors: Mapping[str, float]) -> Measured:
    """The largest error, NaN above all, and its name."""
    name = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))
    return errors[name], name


def _smallest(changes: Mapping[str, float]) -> Measured:
    """The smallest change, NaN below all, and its name."""
    name = min(changes, key=lambda key: (changes[key] == changes[key], changes[key]))
    return changes[name], name


# ---------------------------------------------------------------------------------- symmetries


def _permutation(case: Case) -> Measured:
    if "permutation" not in case.promised:
        raise DoesNotApply("the metanetwork does not promise it")
    if not any(group.free and group.size > 1 for group in case.graph.axis_groups):
        raise DoesNotApply("the network has no neurons to permute")
    generator = case.generator()
    drawn = [case.graph.sample_symmetry(generator) for _ in range(NUM_DRAWS)]
    errors = case.changes([symmetry.apply(case.state) for symmetry in drawn])
    return _largest({f"draw {draw}": error for draw, error in enumerate(errors)})


def _rescaling(case: Case, kind: ScaleKind, promise: str) -> Measured:
    if promise not in case.promised:
        raise DoesNotApply("the metanetwork does not promise it")
    if not case.graph.neuron_scales(kind):
        raise DoesNotApply(f"the network has no neurons with a {kind.value} symmetry")
    generator = case.generator()
    drawn = [draw_scale(case.graph, kind, generator) for _ in range(NUM_DRAWS)]
    errors = case.changes([symmetry.apply(case.state) for symmetry in drawn])
    return _largest({f"draw {draw}": error for draw, error in enumerate(errors)})


def _sign(case: Case) -> Measured:
    return _rescaling(case, ScaleKind.SIGN, "sign")


def _scale(case: Case) -> Measured:
    return _rescaling(case, ScaleKind.POSITIVE, "scale")


# -------------------------------------------------------------------------------------- batches


def _batch_of_one(case: Case) -> Measured:
    generator = case.generator()
    first, second = (other_weights(case.graph, case.state, generator) for _ in range(2))
    alone = case.read([case.state])[0]
    among = {
        "before one mate": case.read([case.state, first])[0],
        "between two mates": case.read([second, case.state, first])[1],
        "after another mate": case.read([second, case.state])[1],
    }
    return _largest({place: case.change(alone, row) for place, row in among.items()})


def _deterministic(case: Case) -> Measured:
    first, second = case.read([case.state]), case.read([case.state])
    return float((first != second).sum()), "number of outputs that differ"


# ---------------------------------------------------------------------------------- sensitivity


def _replaced(case: Case, layout: ParameterLayout, source: StateDict) -> StateDict:
    """The weights, with one tensor and its aliases taken from elsewhere."""
    names = (layout.name, *layout.aliases)
    return {**case.state, **dict.fromkeys(names, source[layout.name])}


def _one_tensor(case: Case, *, is_buffer: bool) -> Measured:
    layouts = [row for row in case.graph.parameters if row.is_buffer == is_buffer]
    if not layouts:
        raise DoesNotApply("the network has no such tensors")
    other = other_weights(case.graph, case.state, case.generator())
    changes = case.changes([_replaced(case, layout, other) for layout in layouts])
    return _smallest({row.name: change for row, change in zip(layouts, changes, strict=True)})


def _sensitive(case: Case) -> Measured:
    return _one_tensor(case, is_buffer=False)


def _running_statistics(case: Case) -> Measured:
    return _one_tensor(case, is_buffer=True)


def _wrong_permutation(case: Case) -> Measured:
    moved = case.graph.sample_symmetry(case.generator()).apply(case.state)
    layouts = [
        row
        for row in case.graph.parameters
        if not row.is_buffer and not torch.equal(moved[row.name], case.state[row.name])
    ]
    if not layouts:
        raise DoesNotApply("the network has no neurons to permute")
    changes = case.changes([_replaced(case, layout, moved) for layout in layouts])
    return _smallest({row.name: change for row, change in zip(layouts, changes, strict=True)})


def _spread(case: Case) -> Measured:
    return case.spread / case.size, "standard deviation over root mean square"


# -------------------------------------------------------------------------------------- numbers


def _differentiable(case: Case, state: StateDict) -> dict[str, Tensor]:
    return {row.name: state[row.name].clone().requires_grad_() for row in case.graph.parameters}


def _gradient(case: Case) -> Measured:
    """Derivatives along random directions: by autograd, and by central differences."""
    generator = case.generator()
    weights = _differentiable(case, case.state)
    outputs = case.metanetwork(collate([(case.graph, case.graph.features(weights))]))
    probe = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
    loss = (outputs * probe).sum()
    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    step = 1e-6  # rounding errors of 1e-10, and hardly ever a kink of a ReLU in between
    exact, states = [], []
    for _ in range(NUM_DRAWS):
        along = {
            name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
            * value.detach().square().mean().sqrt()
            for name, value in weights.items()
        }
        pairs = zip(grads, along.values(), strict=True)
        exact.append(sum(float((g * d).sum()) for g, d in pairs if g is not None))
        for sign in (1, -1):
            states.append(
                {
                    name: value.detach() + sign * step * along[name]
                    for name, value in weights.items()
                }
            )
    losses = (case.read(states) * probe).sum(dim=1)
    measured = ((losses[0::2] - losses[1::2]) / (2 * step)).tolist()
    size = max(*map(abs, exact), *map(abs, measured), 1e-30)
    return _largest(
        {
            f"direction {draw}": abs(a - b) / size
            for draw, (a, b) in enumerate(zip(exact, measured, strict=True))
        }
    )


def _num_not_finite(case: Case, state: StateDict) -> Measured:
    """Outputs and gradients that are not finite, in float32 as in training."""
    metanetwork = copy.deepcopy(case.metanetwork).float()
    weights = _differentiable(case, {name: value.float() for name, value in state.items()})
    outputs = metanetwork(collate([(case.graph, case.graph.features(weights))]))
    trained = dict(metanetwork.named_parameters())
    inputs = {
        **{f"gradient of weight {name}": value for name, value in weights.items()},
        **{f"gradient of parameter {name}": value for name, value in trained.items()},
    }
    inputs = {name: value for name, value in inputs.items() if value.requires_grad}
    count, where = int((~outputs.isfinite()).sum()), "outputs"
    if not outputs.requires_grad:
        return float(count), where if count else ""
    grads = torch.autograd.grad(outputs.sum(), list(inputs.values()), allow_unused=True)
    for name, grad in zip(inputs, grads, strict=True):
        wrong = 0 if grad is None else int((~grad.isfinite()).sum())
        where = name if wrong and not count else where
        count += wrong
    return float(count), f"numbers that are not finite, first in {where}" if count else ""


def _finite(case: Case) -> Measured:
    return _num_not_finite(case, case.state)


def _zero_weight(case: Case) -> Measured:
    zeros = {name: torch.zeros_like(value) for name, value in case.state.items()}
    expected, got = case.read([case.state]).shape, case.read([zeros]).shape
    if got != expected:
        return float("nan"), f"the shape of the output changes from {expected} to {got}"
    return _num_not_finite(case, zeros)


LAWS = (
    Law("permutation", _permutation),
    Law("sign", _sign),
    Law("scale", _scale),
    Law("batch of one", _batch_of_one),
    Law("sensitive", _sensitive, factor=MUST_CHANGE, must_exceed=True),
    Law("running statistics", _running_statistics, factor=MUST_CHANGE, must_exceed=True),
    Law("wrong permutation", _wrong_permutation, factor=MUST_CHANGE, must_exceed=True),
    Law("spread", _spread, fixed=MIN_SPREAD, must_exceed=True),
    Law("gradient", _gradient, factor=MUST_CHANGE),
    Law("finite", _finite, fixed=0.0),
    Law("zero weight", _zero_weight, fixed=0.0),
    Law("deterministic", _deterministic, fixed=0.0),
)
