"""Metanetworks by name: published sizes, each runs on its own kind of network, clear refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from networks import by_name
from torch import nn

import paramgraph as pg
from paramgraph.batch import GraphBatch
from paramgraph.nn import CONFIGS, DWSNet, NeuralGraphGNN, from_config, make_metanetwork

PUBLISHED = {
    ("ng-gnn-inr", 10): 92_010,
    ("ng-gnn-inr-probes", 10): 100_714,
    ("ng-gnn-cnn-zoo", 1): 5_587_969,
    ("ng-gnn-wild-park", 1): 369_025,
    ("ng-t-inr", 10): 376_586,
    ("ng-t-inr-probes", 10): 393_866,
    ("ng-t-cnn-zoo", 1): 1_807_873,
}
"""As the papers, or their released code, count them."""

OURS = {
    "ng-gnn": 99_082,
    "ng-t": 396_618,
    "ng-t-wild-park": 93_290,  # the paper gives no number
    "gmn": 83_146,
    "gmn-transformer": 404_618,
    "scale-gmn": 163_754,
    "scale-gmn-b": 219_626,
    "probing": 266_762,
    "probegen": 261_434,
    "dws": 319_306,
    "nfn-np": 834_698,
    "nfn-hnp": 952_650,
    "nft": 446_858,
    "dmc": 727_946,
    "deepsets": 284_426,
    "statnn": 125_962,
    "flat-mlp": 68_362,  # and its first layer, which depends on the networks
}
"""Counted when the names were given, with 10 outputs: a change of a default shows here."""


def count(m: nn.Module) -> int:
    return sum(parameter.numel() for parameter in m.parameters())


def batch_of(*networks: tuple[nn.Module, Any]) -> GraphBatch:
    several = []
    for network, inputs in networks:
        graph = pg.capture(network, inputs)
        for seed in range(3):
            torch.manual_seed(seed)
            state = {k: torch.randn_like(v) * 0.3 for k, v in network.state_dict().items()}
            several.append((graph, graph.features(state)))
    return pg.collate(several)


def own_networks(name: str) -> GraphBatch:
    """Networks of the kind that a setting was made for."""
    inr = ("-inr" in name, name in ("dws", "nft"), name.startswith("nfn"))
    if any(inr):
        network = nn.Sequential(
            *(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        )
        return batch_of((network, torch.randn(4, 2)))
    if "cnn-zoo" in name or "wild-park" in name:
        in_channels, kernel = (1, 3) if "zoo" in name else (3, 7)
        network = nn.Sequential(
            *(nn.Conv2d(in_channels, 4, kernel), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
            *(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(4, 10),
        )
        return batch_of((network, torch.randn(2, in_channels, 14, 14)))
    kinds = ["mlp"] if name == "flat-mlp" else ["mlp", "strided_cnn", "siren"]
    return batch_of(*((by_name(kind).make(), by_name(kind).example_inputs) for kind in kinds))


# --- sizes


@pytest.mark.parametrize(("name", "out_dim"), PUBLISHED)
def test_published_sizes(name: str, out_dim: int) -> None:
    assert count(make_metanetwork(name, out_dim)) == PUBLISHED[name, out_dim]


@pytest.mark.parametrize("name", OURS)
def test_sizes_stay(name: str) -> None:
    assert count(make_metanetwork(name, 10)) == OURS[name]


def test_each_setting_has_a_size_a_line_and_a_source() -> None:
    sized = {name for name, _ in PUBLISHED} | OURS.keys()
    assert CONFIGS.keys() - sized <= {"operator"}  # own design, still moving
    for name, config in CONFIGS.items():
        assert re.fullmatch(r"\S.{10,90}", config.summary), name
        assert "https://arxiv.org/abs/" in config.source or config.source.startswith("docs/"), name
    assert len({config.summary for config in CONFIGS.values()}) == len(CONFIGS)


# --- each runs


@pytest.mark.parametrize("name", CONFIGS)
def test_each_name_runs_forward_and_backward_on_its_own_networks(name: str) -> None:
    torch.manual_seed(0)
    batch = own_networks(name)
    m = make_metanetwork(name, 2)
    m.fit_statistics([batch])
    output = m.eval()(batch)
    assert output.shape == (batch.num_networks, 2)
    assert output.isfinite().all()
    assert (output[0] - output[1]).abs().max() > 1e-4
    output.square().sum().backward()
    for parameter, value in m.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter


def test_a_setting_is_that_of_its_class_and_options() -> None:
    m = make_metanetwork("dws", 4, hidden_dim=8)
    assert isinstance(m, DWSNet)
    assert m.widths == (2, 32, 32, 1)
    assert m.config["options"]["hidden_dim"] == 8
    assert m.setting == m.config["name"] == "dws"


# --- from_config


def test_a_metanetwork_is_built_again_from_its_config() -> None:
    torch.manual_seed(0)
    first = make_metanetwork("ng-gnn-inr", 3, level="neuron", hidden_dim=8)
    torch.manual_seed(0)
    second = from_config(first.config)
    assert second.config == first.config
    assert second.level == "neuron"
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_config_of_a_metanetwork_that_was_made_by_its_class() -> None:
    m = from_config(NeuralGraphGNN(3, hidden_dim=8).config, num_layers=2)
    assert isinstance(m, NeuralGraphGNN)
    assert (m.out_dim, m.hidden_dim, len(m.layers), m.setting) == (3, 8, 2, None)


def test_options_win_over_those_of_the_config() -> None:
    config = {"name": "statnn", "out_dim": 3, "options": {"hidden_dim": 8, "max_layers": 2}}
    m = from_config(config, out_dim=5, hidden_dim=4)
    assert m.config["options"] == {"hidden_dim": 4, "max_layers": 2, "dropout": 0.0}
    assert m.out_dim == 5
    assert config["options"] == {"hidden_dim": 8, "max_layers": 2}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("resnet", {"out_dim": 1}, "named 'resnet'; choose one of operator, ng-gnn, ng-gnn-inr"),
        ({}, {"out_dim": 1}, "no metanetwork is named None; choose one of operator, "),
        ({"class": "Mine"}, {"out_dim": 1}, "is a 'Mine'; choose one of OperatorMetanetwork, "),
        ({"name": "nft", "class": "NFN"}, {"out_dim": 1}, "'nft' is a NFT, .* says 'NFN'"),
        ("statnn", {}, "metanetwork 'statnn' needs out_dim"),
        (
            "statnn",
            {"out_dim": 1, "width": 8},
            "'statnn' has no option 'width'; choose from out_dim, hidden_dim, max_layers, dropout",
        ),
        ({"name": "nft", "widths": [1, 2]}, {"out_dim": 1}, "this one also has 'widths'"),
        ({"name": "dmc", "out_dim": 1, "level": "neuron"}, {}, "no outputs at level 'neuron'"),
        ("nft", {"out_dim": 1, "level": "neuron"}, "no outputs at level 'neuron'; choose one of"),
        ("nft", {"out_dim": 1, "num_layers": "two"}, "'nft' cannot be built with .*'two'"),
    ],
)
def test_unknown_names_and_options_are_refused(
    config: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_config(config, **options)
