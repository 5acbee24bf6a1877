"""Every metanetwork on every hazard network, at each of its levels: all laws that apply hold.

A metanetwork is checked once per level (``report``). What it cannot do stands in ``BLIND`` with the
reason (from ``benchmarks.laws_subjects``, the document shows it), and is tested to be so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from networks import HAZARDS

import paramgraph.testing as pt
from benchmarks.laws_subjects import OUT_OF_REACH, check_chains
from paramgraph.nn import (
    CONFIGS,
    FlatMLP,
    Metanetwork,
    NeuralGraphGNN,
    NeuralGraphTransformer,
    OperatorMetanetwork,
    ScaleGMN,
    StatNN,
)
from paramgraph.nn.chains import ChainMetanetwork
from paramgraph.nn.deepsets import DeepSets
from paramgraph.nn.dmc import DeepMetaClassifier
from paramgraph.nn.dws import DWSNet
from paramgraph.nn.gmn import GraphMetanetwork
from paramgraph.nn.gmn_transformer import GraphMetanetworkTransformer
from paramgraph.nn.nfn import NFN
from paramgraph.nn.nft import NFT
from paramgraph.nn.probing import ProbingMetanetwork

METANETWORKS: dict[str, Callable[..., Metanetwork]] = {
    "operator_permutation": lambda **o: OperatorMetanetwork(
        2, hidden_dim=12, symmetry="permutation", **o
    ),
    "operator_sign": lambda **o: OperatorMetanetwork(2, hidden_dim=12, symmetry="sign", **o),
    "operator_scale": lambda **o: OperatorMetanetwork(2, hidden_dim=12, symmetry="scale", **o),
    "ng_gnn": lambda **o: NeuralGraphGNN(2, hidden_dim=8, num_layers=3, num_frequencies=16, **o),
    # 16 wide: of the 8 ReLUs of a narrower head all but one can be silent for some network.
    "ng_gnn_linear": lambda **o: NeuralGraphGNN(
        2, hidden_dim=16, num_layers=3, num_frequencies=0, **o
    ),
    "ng_t": lambda **o: NeuralGraphTransformer(
        2, node_dim=8, edge_dim=8, num_heads=4, num_layers=3, num_frequencies=8, **o
    ),
    "ng_t_graph": lambda **o: NeuralGraphTransformer(
        2, node_dim=8, edge_dim=8, num_heads=4, num_layers=3, num_frequencies=8, edges="graph", **o
    ),
    # 6 layers: a learned token is 5 edges away from the first weight that tells its entries apart.
    "scale_gmn": lambda **o: ScaleGMN(2, hidden_dim=8, num_layers=6, **o),
    "scale_gmn_b": lambda **o: ScaleGMN(2, hidden_dim=8, bidirectional=True, **o),
    # 4 layers: with 2 an entry hears nothing from beyond a skip.
    "gmn": lambda **o: GraphMetanetwork(2, hidden_dim=8, num_layers=4, **o),
    "gmn_transformer": lambda **o: GraphMetanetworkTransformer(2, hidden_dim=8, num_layers=4, **o),
    "dws": lambda **o: DWSNet(2, hidden_dim=8, num_layers=2, **o),
    "nfn": lambda **o: NFN(2, hidden_dim=8, **o),
    "nft": lambda **o: NFT(2, hidden_dim=8, **o),
    "probing": lambda: ProbingMetanetwork(2, hidden_dim=16, num_probes=32, num_channels=8),
    "dmc": lambda: DeepMetaClassifier(2, hidden_dim=16),
    "deep_sets": lambda: DeepSets(2, hidden_dim=32),
    "stat_nn": lambda: StatNN(2, hidden_dim=32, max_layers=64),
    "flat_mlp": lambda: FlatMLP(2, hidden_dim=32),
}

# Broken, but not for good: laws that a metanetwork should keep, the networks, and why it does not.
FAR = "the order of a learned token is heard through one direction alone, and hardly"
OPEN: dict[tuple[str, str, str], tuple[set[str], str]] = {
    ("scale_gmn", "graph", "wrong permutation"): ({"vision_transformer"}, FAR),
    ("scale_gmn", "parameter", "wrong permutation"): ({"vision_transformer"}, FAR),
}

EXTRA = {
    *("permute_then_flatten", "preactivation_residual", "batch_norm_without_affine"),
    *("unused_parameter", "raw_parameters", "raw_and_activated", "dict_output", "width_one"),
}
# Where outputs per neuron and per entry can go wrong: one network per kind of edge and of symmetry.
FEWER = {
    *("mlp", "projection_skip", "tied", "siren_large_biases", "two_inputs", "grouped_conv"),
    *("transposed_conv", "instance_norm", "prelu", "concatenation", "vision_transformer", "lstm"),
    *("embedding", "gated_unit", "group_norm", "square"),
}
CHAINS = {
    *("mlp", "no_bias", "mixed_activations", "strided_cnn", "cnn_1d", "flatten", "tied", "siren"),
    *("transposed_conv", "cosine", "absolute", "square"),
    *("permute_then_flatten", "raw_parameters", "width_one", "unused_parameter"),
}


@functools.cache
def networks() -> pt.CapturedNetworks:
    extra = [pt.ExampleNetwork(h.name, h.make(), h.example_inputs) for h in HAZARDS]
    return pt.capture_networks(
        [*pt.hazard_networks(), *(row for row in extra if row.name in EXTRA)]
    )


@functools.cache
def names(level: str) -> tuple[str, ...]:
    every = tuple(row.name for row in networks().networks)
    return every if level == "graph" else tuple(name for name in every if name in FEWER)


@functools.cache
def chosen(level: str) -> pt.CapturedNetworks:
    every = [row.name for row in networks().networks]
    return networks().of([every.index(name) for name in names(level)])


@functools.cache
def kind(metanetwork: str) -> type[Metanetwork]:
    make = METANETWORKS[metanetwork]
    try:
        return type(make())
    except TypeError:  # made for the widths of a chain
        return type(make(widths=[2, 3, 1]))


@functools.cache
def report(metanetwork: str, level: str) -> pt.LawReport:
    torch.manual_seed(0)
    options = {} if level == "graph" else {"level": level}
    make = functools.partial(METANETWORKS[metanetwork], **options)
    if issubclass(kind(metanetwork), ChainMetanetwork):
        return check_chains(make, chosen(level))
    return pt.check_metanetwork(make(), chosen(level))


# Laws that a metanetwork cannot keep, and why.
BLIND = {
    (name, law): why
    for name in METANETWORKS
    for (made, law), why in OUT_OF_REACH.items()
    if kind(name).__name__ == made
}
CASES = [(name, level) for name in METANETWORKS for level in sorted(kind(name).levels)]
READ_ALL = [case for case in CASES if not issubclass(kind(case[0]), ChainMetanetwork)]


@pytest.mark.parametrize(("metanetwork", "level"), CASES)
def test_all_laws_hold(metanetwork: str, level: str) -> None:
    broken = [
        f"{metanetwork}, {level}: {row}"
        for row in report(metanetwork, level).failures
        if (metanetwork, row.law) not in BLIND
        and row.network not in OPEN.get((metanetwork, level, row.law), ((), ""))[0]
    ]
    assert not broken, "\n".join(broken)
    rows = report(metanetwork, level).of("shape")
    read = {row.network for row in rows if row.applies}
    is_chain = issubclass(kind(metanetwork), ChainMetanetwork)
    assert read == set(names(level)) & (CHAINS if is_chain else set(names(level)))


@pytest.mark.parametrize(("metanetwork", "law"), BLIND)
def test_what_a_baseline_cannot_see_is_reported_as_broken(metanetwork: str, law: str) -> None:
    applied = [row for row in report(metanetwork, "graph").of(law) if row.applies]
    assert applied
    assert all(row.passed is False for row in applied)


@pytest.mark.parametrize(("metanetwork", "level", "law"), OPEN)
def test_what_is_mended_is_no_longer_listed_as_open(metanetwork: str, level: str, law: str) -> None:
    broken = {row.network for row in report(metanetwork, level).failures if row.law == law}
    assert broken == OPEN[metanetwork, level, law][0]


# No function but these is odd: tanh, softsign, sine, none at all, a norm whose mean can be negated,
# a product, a gain. And those with ReLU, a product or an even power can be scaled.
WITHOUT_SIGN = {
    *("mlp", "no_bias", "strided_cnn", "depthwise", "flatten", "residual", "layer_norm"),
    *("group_norm", "tied", "two_inputs", "grouped_conv", "transposed_conv", "prelu"),
    *("permute_then_flatten", "preactivation_residual", "unused_parameter", "raw_parameters"),
    *("raw_and_activated",),
}
WITHOUT_SCALE = {
    *("layer_norm", "group_norm", "siren", "siren_large_biases", "rnn", "lstm", "gru", "cosine"),
    *("batch_norm_without_affine", "dict_output"),
}
WITH_PHASE = {"siren", "siren_large_biases", "cosine"}
WITH_STATISTICS = {"projection_skip", "batch_norm", "batch_norm_without_affine"}


@pytest.mark.parametrize(("metanetwork", "level"), READ_ALL)
def test_laws_apply_to_the_networks_they_should(metanetwork: str, level: str) -> None:
    """A law that wrongly excuses itself would pass unseen."""
    every = set(names(level))
    found = {
        "permutation": every,
        "sign": every - WITHOUT_SIGN,
        "scale": every - WITHOUT_SCALE,
        "phase": every & WITH_PHASE,
    }
    promised = METANETWORKS[metanetwork]().promised_symmetries()
    symmetries = {law: found[law] if law in promised else set() for law in found}
    counts = [name for law in symmetries for name in symmetries[law]]
    expected = {law: every for law in pt.LAW_NAMES} | symmetries
    expected["running statistics"] = every & WITH_STATISTICS
    expected["combined"] = {name for name in every if counts.count(name) > 1}
    for (name, at, law), (where, _) in OPEN.items():
        if (name, at) == (metanetwork, level) and law in symmetries:
            expected["combined"] -= where  # one of its parts is broken by itself
    if metanetwork == "flat_mlp":
        expected["mixed batch"] = set()  # it reads one architecture
    rows = report(metanetwork, level).rows
    assert {row.law for row in rows} == set(pt.LAW_NAMES)
    for law, where in expected.items():
        assert {row.network for row in rows if row.law == law and row.applies} == where, law
        assert len(report(metanetwork, level).of(law)) == len(every)


def test_promises_are_those_of_the_options() -> None:
    promised = {
        name: METANETWORKS[name]().promised_symmetries()
        for name in METANETWORKS
        if not issubclass(kind(name), ChainMetanetwork)
    }
    assert promised["operator_permutation"] == {"permutation"}
    assert promised["operator_sign"] == {"permutation", "sign", "phase"}
    assert promised["operator_scale"] == {"permutation", "sign", "scale", "phase"}
    assert promised["probing"] == {"permutation", "sign", "scale", "phase"}
    assert promised["ng_gnn"] == promised["stat_nn"] == {"permutation"}
    assert promised["flat_mlp"] == promised["dmc"] == frozenset()


def test_what_is_out_of_reach_is_that_of_a_metanetwork_that_is_checked() -> None:
    assert {made for made, _ in OUT_OF_REACH} == {kind(name).__name__ for name, _ in BLIND}


def test_every_named_metanetwork_is_checked() -> None:
    checked = {kind(name) for name in METANETWORKS}
    assert {config.kind for config in CONFIGS.values()} <= checked
