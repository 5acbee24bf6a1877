"""Every metanetwork on every hazard network: all laws that apply hold.

A metanetwork is checked once (``report``), each test looks at its rows for one network. What a
metanetwork cannot do stands in ``BLIND`` with the reason, and is tested to be so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from networks import HAZARDS

from paramgraph.nn import FlatMLP, Metanetwork, NeuralGraphGNN, OperatorMetanetwork, StatNN
from paramgraph.testing import ExampleNetwork, LawReport, check_metanetwork

METANETWORKS: dict[str, Callable[[], Metanetwork]] = {
    "operator_permutation": lambda: OperatorMetanetwork(2, hidden_dim=8, symmetry="permutation"),
    "operator_sign": lambda: OperatorMetanetwork(2, hidden_dim=8, symmetry="sign"),
    "operator_scale": lambda: OperatorMetanetwork(2, hidden_dim=8, symmetry="scale"),
    "ng_gnn": lambda: NeuralGraphGNN(2, hidden_dim=8, num_layers=3, num_frequencies=16),
    # 16 wide: of the 8 ReLUs of a narrower head all but one can be silent for some network.
    "ng_gnn_linear": lambda: NeuralGraphGNN(2, hidden_dim=16, num_layers=3, num_frequencies=0),
    "stat_nn": lambda: StatNN(2, hidden_dim=32),
    "flat_mlp": lambda: FlatMLP(2, hidden_dim=32),
}

# Laws that a metanetwork cannot keep, and why.
BLIND = {
    ("stat_nn", "wrong permutation"): "statistics of a tensor do not know the order of its entries",
    ("stat_nn", "running statistics"): "only weights and biases are summarised",
}

NETWORKS = [ExampleNetwork(h.name, h.make(), h.example_inputs) for h in HAZARDS]


@functools.cache
def report(metanetwork: str) -> LawReport:
    torch.manual_seed(0)
    return check_metanetwork(METANETWORKS[metanetwork](), NETWORKS)


@pytest.mark.parametrize("network", [hazard.name for hazard in HAZARDS])
@pytest.mark.parametrize("metanetwork", METANETWORKS)
def test_all_laws_hold(metanetwork: str, network: str) -> None:
    broken = [
        f"{metanetwork}: {row}"
        for row in report(metanetwork).failures
        if row.network == network and (metanetwork, row.law) not in BLIND
    ]
    assert not broken, "\n".join(broken)
    assert any(row.applies for row in report(metanetwork).rows if row.network == network)


@pytest.mark.parametrize(("metanetwork", "law"), BLIND)
def test_what_a_baseline_cannot_see_is_reported_as_broken(metanetwork: str, law: str) -> None:
    applied = [row for row in report(metanetwork).of(law) if row.applies]
    assert applied
    assert all(row.passed is False for row in applied)


EVERY = {hazard.name for hazard in HAZARDS}
WITHOUT_AN_ODD_FUNCTION = EVERY - {
    *("mixed_activations", "cnn_1d", "siren", "dict_output", "width_one"),  # tanh, softsign, sine
    *("resnet", "batch_norm", "batch_norm_without_affine"),  # a running mean can be negated
}
WITHOUT_RELU = {"batch_norm_without_affine", "layer_norm", "group_norm", "siren", "dict_output"}
APPLIES = {
    "permutation": EVERY,
    "sign": EVERY - WITHOUT_AN_ODD_FUNCTION,
    "scale": EVERY - WITHOUT_RELU,
    "batch of one": EVERY,
    "mixed batch": EVERY,
    "sensitive": EVERY,
    "running statistics": {"resnet", "batch_norm", "batch_norm_without_affine"},
    "wrong permutation": EVERY,
    "spread": EVERY,
    "gradient": EVERY,
    "finite": EVERY,
    "zero weight": EVERY,
    "deterministic": EVERY,
}


@pytest.mark.parametrize("metanetwork", METANETWORKS)
def test_laws_apply_to_the_networks_they_should(metanetwork: str) -> None:
    """A law that wrongly excuses itself would pass unseen."""
    promised = METANETWORKS[metanetwork]().promised_symmetries()
    expected = dict(APPLIES)
    for symmetry in {"permutation", "sign", "scale"} - promised:
        expected[symmetry] = set()
    if metanetwork == "flat_mlp":
        expected["mixed batch"] = set()  # it reads one architecture
    rows = report(metanetwork).rows
    assert {row.law for row in rows} == set(APPLIES)
    for law, names in expected.items():
        assert {row.network for row in rows if row.law == law and row.applies} == names, law
        assert len(report(metanetwork).of(law)) == len(HAZARDS)


def test_promises_are_those_of_the_options() -> None:
    promised = {name: make().promised_symmetries() for name, make in METANETWORKS.items()}
    assert promised["operator_permutation"] == {"permutation"}
    assert promised["operator_sign"] == {"permutation", "sign"}
    assert promised["operator_scale"] == {"permutation", "sign", "scale"}
    assert promised["ng_gnn"] == promised["stat_nn"] == {"permutation"}
    assert promised["flat_mlp"] == frozenset()
