"""Metanetworks by name: each published setting is one line of ``CONFIGS``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paramgraph.nn.baselines import FlatMLP, StatNN
from paramgraph.nn.deepsets import DeepSets
from paramgraph.nn.dmc import DeepMetaClassifier
from paramgraph.nn.dws import DWSNet
from paramgraph.nn.gmn import GraphMetanetwork
from paramgraph.nn.gmn_transformer import GraphMetanetworkTransformer
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.nn.nfn import NFN
from paramgraph.nn.nft import NFT
from paramgraph.nn.ng_gnn import NeuralGraphGNN
from paramgraph.nn.ng_transformer import NeuralGraphTransformer
from paramgraph.nn.operator import OperatorMetanetwork
from paramgraph.nn.probing import ProbingMetanetwork
from paramgraph.nn.scale_gmn import ScaleGMN

__all__ = ["CONFIGS", "Config", "from_config", "make_metanetwork"]


@dataclass(frozen=True)
class Config:
    """A setting with a name.

    Attributes:
        kind: The class.
        summary: What it is, in one line.
        source: Where it was published.
        options: Constructor arguments; those not named keep the defaults of the class.
    """

    kind: type[Metanetwork]
    summary: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


_KOFINAS = "Kofinas et al. 2024 (https://arxiv.org/abs/2403.12143)"
_LIM = "Lim et al. 2024 (https://arxiv.org/abs/2312.04501)"
_ZHOU = "Zhou et al. 2023 (https://arxiv.org/abs/2302.14040)"
_PROBEGEN = "Kahana et al. 2024 (https://arxiv.org/abs/2410.10811)"

_KALOGER = "Kalogeropoulos et al. 2024 (https://arxiv.org/abs/2406.10685)"

_INR = {"widths": [2, 32, 32, 1]}
_PAPER = {"num_frequencies": 128, "sigma": 3.0, "kind_embedding": False, "readout": "outputs"}
_NG_INR = {
    **_PAPER,
    "dropout": 0.2,
    "activation_embedding": False,
    "max_inputs": 2,
    "max_hidden_layers": 2,
    "max_outputs": 1,
}
_NG_PROBES = {"num_layers": 4, "std": False, "num_channels": 2, "num_waves": 0}
_NG_CNN = {
    **_PAPER,
    "num_outputs": 10,
    "reverse_edges": False,
    "max_outputs": 10,
    "num_activations": 7,
}
_NG_CNN_ZOO = {
    **_NG_CNN,
    "hidden_dim": 256,
    "linear_as_conv": False,
    "max_kernel": (3, 3),
    "max_inputs": 1,
    "max_hidden_layers": 3,
}
_NG_WILD_PARK = {
    **_NG_CNN,
    "hidden_dim": 64,
    "max_kernel": (7, 7),
    "max_inputs": 3,
    "max_hidden_layers": 5,
}
_NGT = {
    "num_frequencies": 128,
    "sigma": 1.0,
    "kind_embedding": False,
    "reverse_edges": False,
    "readout": "outputs",
    "start": "xavier",
}
_NGT_INR = {
    **_NGT,
    "dropout": 0.2,
    "activation_embedding": False,
    "max_inputs": 2,
    "max_hidden_layers": 2,
    "max_outputs": 1,
}
_NGT_CNN_ZOO = {
    **_NGT,
    "node_dim": 128,
    "edge_dim": 64,
    "head_dim": 256,
    "num_head_layers": 2,
    "num_outputs": 10,
    "max_kernel": (3, 3),
    "num_activations": 7,
    "max_inputs": 1,
    "max_hidden_layers": 3,
    "max_outputs": 10,
}
_NGT_WILD_PARK = {
    **_NGT_CNN_ZOO,
    "node_dim": 32,
    "edge_dim": 16,
    "attn_dim": 32,
    "edge_hidden_dim": 64,
    "head_dim": 64,
    "num_heads": 4,
    "num_layers": 3,
    "dropout": 0.2,
    "max_kernel": (7, 7),
    "max_inputs": 3,
    "max_hidden_layers": 5,
}

CONFIGS: dict[str, Config] = {
    "operator": Config(
        OperatorMetanetwork,
        "our own: learned signals pushed through the weights, any network",
        "docs/operator.md",
    ),
    "ng-gnn": Config(NeuralGraphGNN, "graph network on neurons and weights, any network", _KOFINAS),
    "ng-gnn-inr": Config(NeuralGraphGNN, "as published for INRs 2-32-32-1", _KOFINAS, _NG_INR),
    "ng-gnn-inr-probes": Config(
        NeuralGraphGNN,
        "as published for INRs 2-32-32-1, with 64 learned inputs",
        _KOFINAS,
        {**_NG_INR, "num_probes": 64, "probe_options": _NG_PROBES},
    ),
    "ng-gnn-cnn-zoo": Config(
        NeuralGraphGNN,
        "as published for the small CNN zoo: 1 input channel, kernels to 3 x 3, 10 classes",
        _KOFINAS,
        _NG_CNN_ZOO,
    ),
    "ng-gnn-wild-park": Config(
        NeuralGraphGNN,
        "as published for CNNs of mixed architecture: 3 channels, kernels to 7 x 7, 10 classes",
        _KOFINAS,
        _NG_WILD_PARK,
    ),
    "ng-t": Config(
        NeuralGraphTransformer, "attention over all pairs of neurons, any network", _KOFINAS
    ),
    "ng-t-inr": Config(
        NeuralGraphTransformer, "transformer, as published for INRs 2-32-32-1", _KOFINAS, _NGT_INR
    ),
    "ng-t-inr-probes": Config(
        NeuralGraphTransformer,
        "transformer, as published for INRs 2-32-32-1, with 64 learned inputs",
        _KOFINAS,
        {**_NGT_INR, "num_probes": 64, "probe_options": _NG_PROBES},
    ),
    "ng-t-cnn-zoo": Config(
        NeuralGraphTransformer,
        "transformer for the small CNN zoo: 1 input channel, kernels to 3 x 3, 10 classes",
        _KOFINAS,
        _NGT_CNN_ZOO,
    ),
    "ng-t-wild-park": Config(
        NeuralGraphTransformer,
        "transformer for CNNs of mixed architecture: 3 channels, kernels to 7 x 7, 10 classes",
        _KOFINAS,
        _NGT_WILD_PARK,
    ),
    "gmn": Config(GraphMetanetwork, "message passing with one edge per scalar, any network", _LIM),
    "gmn-transformer": Config(
        GraphMetanetworkTransformer, "attention along edges and among nodes, any network", _LIM
    ),
    "scale-gmn": Config(ScaleGMN, "messages that keep how neurons rescale, any network", _KALOGER),
    "scale-gmn-b": Config(
        ScaleGMN, "the same in both directions, any network", _KALOGER, {"bidirectional": True}
    ),
    "probing": Config(
        ProbingMetanetwork,
        "outputs on 64 free learned inputs, any network that can be run",
        _PROBEGEN,
        {"generator": "free"},
    ),
    "probegen": Config(
        ProbingMetanetwork,
        "outputs on 64 inputs that a deep linear generator makes, any network that can be run",
        _PROBEGEN,
        {"generator": "deep-linear"},
    ),
    "dws": Config(
        DWSNet,
        "all linear maps that commute with hidden permutations, INRs 2-32-32-1",
        "Navon et al. 2023 (https://arxiv.org/abs/2301.12780)",
        _INR,
    ),
    "nfn-np": Config(
        NFN,
        "equivariant linear maps, inputs and outputs told apart by waves, INRs 2-32-32-1",
        _ZHOU,
        {**_INR, "variant": "NP"},
    ),
    "nfn-hnp": Config(
        NFN,
        "equivariant linear maps, inputs and outputs as channels, INRs 2-32-32-1",
        _ZHOU,
        {**_INR, "variant": "HNP"},
    ),
    "nft": Config(
        NFT,
        "attention between rows and columns of weights, INRs 2-32-32-1",
        "Zhou et al. 2023 (https://arxiv.org/abs/2305.13546)",
        _INR,
    ),
    "dmc": Config(
        DeepMetaClassifier,
        "a 1-D CNN on the flat weights, any network; knows no symmetry",
        "Eilertsen et al. 2020 (https://arxiv.org/abs/2002.05688)",
    ),
    "deepsets": Config(
        DeepSets,
        "the set of all weights, each with its place, any network",
        "Zaheer et al. 2017 (https://arxiv.org/abs/1703.06114)",
    ),
    "statnn": Config(
        StatNN,
        "an MLP on statistics of each layer's weights, any network",
        "Unterthiner et al. 2020 (https://arxiv.org/abs/2002.11448)",
    ),
    "flat-mlp": Config(
        FlatMLP,
        "an MLP on the flat weights of one architecture; knows no symmetry",
        "baseline of Navon et al. 2023 (https://arxiv.org/abs/2301.12780)",
    ),
}
"""Name to setting; a further setting is a further line."""


def from_config(config: str | Mapping[str, Any], **options: Any) -> Metanetwork:
    """Build a metanetwork from the name of a setting, or from a dict such as its own ``config``.

    Args:
        config: A key of ``CONFIGS``, or a dict with that ``"name"`` (or the name of a ``"class"``),
            ``"out_dim"``, ``"level"`` and ``"options"``.
        options: Constructor arguments, ``out_dim`` among them; they replace those of the config.

    Raises:
        ValueError: Unknown name or option (the message lists those there are), a dict with other
            keys, no ``out_dim``, or a value that the class refuses.

    Example:
        >>> from_config("operator", out_dim=10, hidden_dim=16).hidden_dim
        16
        >>> nft = from_config({"name": "nft", "out_dim": 3, "options": {"widths": [4, 8, 2]}})
        >>> from_config(nft.config).widths
        (4, 8, 2)
    """
    given: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
    if extra := given.keys() - {"class", "name", "out_dim", "level", "options"}:
        raise ValueError(
            "a config has the keys class, name, out_dim, level and options, but this one also has "
            f"{', '.join(sorted(map(repr, extra)))}: other arguments stand in options."
        )
    name, setting = _setting(given)
    names = list(inspect.signature(setting.kind).parameters)
    own = dict(given.get("options", {}))
    own |= {key: given[key] for key in ("out_dim", "level") if key in given and key in names}
    own |= options
    if unknown := [option for option in own if option not in names]:
        raise ValueError(
            f"metanetwork {name!r} has no option {', '.join(map(repr, unknown))}; choose from "
            f"{', '.join(names)}."
        )
    if "out_dim" not in own:
        raise ValueError(f"metanetwork {name!r} needs out_dim, its number of outputs.")
    try:
        metanetwork = setting.kind(**{**setting.options, **own})
    except TypeError as error:
        raise ValueError(f"metanetwork {name!r} cannot be built with {own}: {error}") from error
    if given.get("level", metanetwork.level) != metanetwork.level and "level" not in own:
        raise ValueError(f"metanetwork {name!r} has no outputs at level {given['level']!r}.")
    metanetwork.setting = given.get("name")
    return metanetwork


def _setting(given: Mapping[str, Any]) -> tuple[str, Config]:
    """The setting that a dict names; without a name, its class with no options."""
    name, kind = given.get("name"), given.get("class")
    if name is None and kind is not None:
        kinds = {config.kind.__name__: config.kind for config in CONFIGS.values()}
        if kind not in kinds:
            raise ValueError(f"no metanetwork is a {kind!r}; choose one of {', '.join(kinds)}.")
        return kind, Config(kinds[kind], "", "")
    if name not in CONFIGS:
        raise ValueError(f"no metanetwork is named {name!r}; choose one of {', '.join(CONFIGS)}.")
    if kind not in (None, CONFIGS[name].kind.__name__):
        raise ValueError(
            f"metanetwork {name!r} is a {CONFIGS[name].kind.__name__}, but the config says "
            f"{kind!r}."
        )
    return name, CONFIGS[name]


def make_metanetwork(name: str, out_dim: int, **options: Any) -> Metanetwork:
    """Build a metanetwork by name; ``from_config`` with the number of outputs in second place.

    Args:
        name: A key of ``CONFIGS``.
        out_dim: Number of outputs per network.
        options: Constructor arguments that replace those of the named setting.

    Raises:
        ValueError: Unknown name, or an option that the class does not have.

    Example:
        >>> make_metanetwork("operator", 10, hidden_dim=16).hidden_dim
        16
    """
    return from_config(name, out_dim=out_dim, **options)
