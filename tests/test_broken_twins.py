"""Each law is seen to fail: on metanetworks with one defect each, and on these only where due."""

from __future__ import annotations

import functools

import pytest
import torch
from broken_twins import TWINS, Broken, Twin, sound

import paramgraph.testing as pt

NAMES = ("mlp", "mixed_activations", "batch_norm", "siren_large_biases")


@functools.cache
def networks() -> pt.CapturedNetworks:
    return pt.capture_networks([row for row in pt.hazard_networks() if row.name in NAMES])


@pytest.mark.parametrize("twin", TWINS, ids=str)
def test_a_defect_breaks_its_laws_and_no_other(twin: Twin) -> None:
    report = pt.check_metanetwork(twin.make(), networks())
    assert {row.law for row in report.failures} == twin.laws, str(report)


@pytest.mark.parametrize("law", [*pt.LAW_NAMES, "promises"])
def test_each_law_has_a_twin_that_breaks_it_alone(law: str) -> None:
    assert any(twin.laws == {law} for twin in TWINS)


@pytest.mark.parametrize("level", ["neuron", "parameter"])
def test_each_law_that_depends_on_the_level_has_a_twin_there(level: str) -> None:
    laws = {next(iter(t.laws)) for t in TWINS if len(t.laws) == 1 and t.make().level == level}
    assert laws >= {"shape", "permutation", "sign", "scale", "phase", "wrong permutation"}


@pytest.mark.parametrize("level", ["graph", "neuron", "parameter"])
@pytest.mark.parametrize("symmetry", ["permutation", "sign", "scale"])
def test_without_a_defect_all_laws_hold(symmetry: str, level: str) -> None:
    torch.manual_seed(1)
    promised = {
        "permutation": ["permutation"],
        "sign": ["permutation", "sign", "phase"],
        "scale": ["permutation", "sign", "scale", "phase"],
    }
    twin = Broken(sound, symmetry, *promised[symmetry], level=level)  # type: ignore[arg-type]
    pt.assert_metanetwork(twin, networks())
