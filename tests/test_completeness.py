"""No permutation is missed: counted on the computation graph of each network, by BLISS.

``oracle.py`` runs a network number by number and counts the permutations of its parameters that
leave what it computes as it is. It shares no code with capture, and knows nothing of axes. Inputs
and outputs stay where they are, so no automorphism moves positions: each pixel of a feature map is
a function of other input pixels than the next one.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from expected_groups import (
    CANCELS,
    EXPECTED_GROUPS,
    KNOWN_SMALLER,
    num_permutations,
    permutations_of_rows,
)
from more_networks import ALL_HAZARDS
from networks import Hazard, Wired, as_double, by_name, outputs, randomise, vectors
from torch import Tensor, nn

import paramgraph as pg

pytest.importorskip("igraph")

from oracle import count_symmetries, example_for_oracle, permuted
from scalar_graph import Automorphisms

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

# Which experts are chosen is taken as given: the oracle does not see that all may be exchanged.
NOT_SEEN = {"chosen_experts": math.factorial(3)}


@functools.cache
def counted(name: str) -> Automorphisms:
    hazard = next(hazard for hazard in ALL_HAZARDS if hazard.name == name)
    return count_symmetries(hazard.make(), example_for_oracle(hazard))


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_the_expected_groups_are_all_automorphisms(hazard: Hazard) -> None:
    expected = permutations_of_rows(EXPECTED_GROUPS[hazard.name])
    assert counted(hazard.name).count * NOT_SEEN.get(hazard.name, 1) == expected


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_capture_finds_all_automorphisms(hazard: Hazard) -> None:
    graph = pg.capture(hazard.make(), hazard.example_inputs)
    found = num_permutations(graph.axis_groups)
    _, missed = KNOWN_SMALLER.get(hazard.name, ([], 1))
    assert found * missed == counted(hazard.name).count * NOT_SEEN.get(hazard.name, 1)
    assert graph.log_group_size() == pytest.approx(math.log(found))


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_automorphisms_leave_the_function_as_it_is(hazard: Hazard) -> None:
    """Proposition 1 of Lim et al. 2024, on generators of the group."""
    network = hazard.make().double()
    # the same choice of experts is part of the graph, so these keep to the inputs that it saw
    inputs = (
        example_for_oracle(hazard) if hazard.name in NOT_SEEN else as_double(hazard.example_inputs)
    )
    reference = outputs(network, inputs)
    assert counted(hazard.name).generators
    for generator in counted(hazard.name).generators:
        assert generator  # it moves a parameter
        for before, after in zip(
            reference, outputs(permuted(network, generator), inputs), strict=True
        ):
            torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hazard", ALL_HAZARDS, ids=str)
def test_an_automorphism_of_one_parameter_alone_changes_the_function(hazard: Hazard) -> None:
    network, inputs = hazard.make().double(), as_double(hazard.example_inputs)
    reference, without_effect = outputs(network, inputs), set()
    for generator in counted(hazard.name).generators:
        for parameter, order in generator.items():
            changed = outputs(permuted(network, {parameter: order}), inputs)
            pairs = zip(changed, reference, strict=True)
            if all(torch.allclose(new, old, rtol=1e-6, atol=1e-9) for new, old in pairs):
                without_effect.add(parameter)
    assert without_effect == CANCELS.get(hazard.name, set())


def test_the_oracle_agrees_with_trying_all_permutations() -> None:
    """Every way to reorder the entries of each parameter of a network of ten weights."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.last(torch.nn.functional.softplus(n.first(x)))

    wired = Wired(wiring, first=nn.Linear(1, 3), last=nn.Linear(3, 1, bias=False))
    network, inputs = randomise(wired, 0).double(), vectors(4, 1).double()
    reference, kept = outputs(network, inputs)[0], 0
    orders = [torch.tensor(order) for order in itertools.permutations(range(3))]
    for first, bias, last in itertools.product(orders, repeat=3):
        order = {"first.weight": first, "first.bias": bias, "last.weight": last}
        kept += torch.allclose(outputs(permuted(network, order), inputs)[0], reference, rtol=1e-9)
    assert count_symmetries(network, inputs[:1]).count == kept == math.factorial(3)


def test_the_oracle_sees_what_breaks_a_symmetry() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(torch.relu(n.first(x)) * torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0]))

    network = Wired(wiring, first=nn.Linear(3, 5), head=nn.Linear(5, 2))
    assert count_symmetries(randomise(network, 0), vectors(1, 3)).count == 2 * 6
    plain = by_name("mlp").make()
    open_ended = nn.Sequential(*list(plain.children())[:3])  # its last layer is the output
    assert count_symmetries(open_ended, vectors(1, 3)).count == math.factorial(5)
