"""The metanetworks whose laws are checked: each name at each of its levels, and how it is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from paramgraph.errors import BatchError
from paramgraph.nn import CONFIGS, Metanetwork, make_metanetwork
from paramgraph.nn.chains import ChainMetanetwork, chain_options
from paramgraph.testing import (
    LAW_NAMES,
    CapturedNetworks,
    LawReport,
    LawRow,
    check_metanetwork,
)

__all__ = [
    "OPTIONS",
    "OUT_OF_REACH",
    "Subject",
    "check",
    "check_chains",
    "subjects",
    "unexplained",
]

_OUT_DIM = 2

_NG_GNN = {"hidden_dim": 8, "num_layers": 3, "num_frequencies": 16}
_NG_T = {
    **{"node_dim": 8, "edge_dim": 8, "num_heads": 4, "num_layers": 4, "num_frequencies": 8},
    # With the published start attention is almost even, so an edge is hardly heard.
    "start": "loud",
}
_PROBES = {"num_probes": 32, "hidden_dim": 16, "num_channels": 8}

OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("ng-gnn", "ng-gnn-inr", "ng-gnn-inr-probes"), _NG_GNN),
    **dict.fromkeys(("ng-gnn-cnn-zoo", "ng-gnn-wild-park"), _NG_GNN),
    **dict.fromkeys(("ng-t", "ng-t-inr", "ng-t-inr-probes"), _NG_T),
    **{
        name: {**_NG_T, "attn_dim": 16, "head_dim": 64}
        for name in ("ng-t-cnn-zoo", "ng-t-wild-park")
    },
    **dict.fromkeys(("probing", "probegen"), _PROBES),
    "operator": {"hidden_dim": 12},
    "gmn": {"hidden_dim": 8, "num_layers": 4},
    "gmn-transformer": {"hidden_dim": 8, "num_layers": 4},
    "scale-gmn": {"hidden_dim": 8, "num_layers": 6},
    "scale-gmn-b": {"hidden_dim": 8},
    "dmc": {"hidden_dim": 16},
    "deepsets": {"hidden_dim": 32},
    "statnn": {"hidden_dim": 32, "max_layers": 64},
    "flat-mlp": {"hidden_dim": 32},
}
"""Sizes by name, so that all is quick; those without a row are only made ``HIDDEN_DIM`` wide."""

HIDDEN_DIM = 8

OUT_OF_REACH: dict[tuple[str, str], str] = {
    ("StatNN", "wrong permutation"): "statistics of a tensor do not know the order of its entries",
    ("StatNN", "running statistics"): "only weights and biases are summarised",
    ("DeepSets", "wrong permutation"): "the set of entries does not say which meet at a neuron",
}
"""(class, law) to the reason why the method cannot keep the law; on no network is it expected."""

_LEVELS = ("graph", "neuron", "parameter")


@dataclass(frozen=True)
class Subject:
    """A metanetwork at one of its levels.

    Attributes:
        name: Key of ``CONFIGS``.
        level: What its outputs are about.
    """

    name: str
    level: str

    @property
    def title(self) -> str:
        """As in the tables."""
        return self.name if self.level == "graph" else f"{self.name}, {self.level}"

    @property
    def kind(self) -> type[Metanetwork]:
        """Its class."""
        return CONFIGS[self.name].kind

    def make(self, **further: Any) -> Metanetwork:
        """A small one, with the same weights each time."""
        accepted = inspect.signature(self.kind).parameters
        default = {"hidden_dim": HIDDEN_DIM} if "hidden_dim" in accepted else {}
        options = {**OPTIONS.get(self.name, default), **further}
        if "level" in accepted:
            options["level"] = self.level
        torch.manual_seed(0)
        return make_metanetwork(self.name, _OUT_DIM, **options)


def subjects(names: Iterable[str] = tuple(CONFIGS)) -> list[Subject]:
    """Every named metanetwork, and every class at every level that it has.

    Settings of one kind of networks (``-inr``, ``-cnn-zoo`` and so on) are checked at the level
    that they are made for.

    Args:
        names: Keys of ``CONFIGS``.

    Example:
        >>> [subject.title for subject in subjects(["statnn"])]
        ['statnn']
    """
    found: list[Subject] = []
    seen: set[type[Metanetwork]] = set()
    for name in names:
        config = CONFIGS[name]
        levels = _LEVELS if config.kind not in seen else ("graph",)
        seen.add(config.kind)
        found += [Subject(name, level) for level in levels if level in config.kind.levels]
    return found


def check(subject: Subject, networks: CapturedNetworks) -> LawReport:
    """Check a metanetwork; one that is made for chains of given widths is made for each of them.

    Args:
        subject: Which metanetwork.
        networks: On what.

    Returns:
        One report for all networks; those that are no chains count as refused.
    """
    if not issubclass(subject.kind, ChainMetanetwork):
        return check_metanetwork(subject.make(), networks)
    return check_chains(subject.make, networks)


def check_chains(make: Callable[..., Metanetwork], networks: CapturedNetworks) -> LawReport:
    """Check a metanetwork for chains on all networks that are chains, those alike together.

    Args:
        make: Takes the options of ``chain_options``.
        networks: On what.
    """
    alike: dict[str, list[int]] = {}
    rows: list[LawRow] = []
    for number, row in enumerate(networks.networks):
        try:
            options = chain_options(row.graph)
        except BatchError as refusal:
            rows += [LawRow(law, row.name, None, 0.0, f"refused: {refusal}") for law in LAW_NAMES]
            continue
        ends = options["widths"][0], options["widths"][-1], options["num_positions"]
        alike.setdefault(repr(ends), []).append(number)
    name = ""
    for numbers in alike.values():
        options = chain_options(networks.networks[numbers[0]].graph)
        report = check_metanetwork(make(**options), networks.of(numbers))
        name, rows = report.name, [*report.rows, *rows]
    laws = {law: number for number, law in enumerate(LAW_NAMES)}
    place = {row.name: number for number, row in enumerate(networks.networks)}
    rows.sort(key=lambda row: (laws.get(row.law, -1), place.get(row.network, -1)))
    return LawReport(name, tuple(rows))


def unexplained(subject: Subject, report: LawReport) -> list[LawRow]:
    """What is broken and not out of reach."""
    return [r for r in report.failures if (subject.kind.__name__, r.law) not in OUT_OF_REACH]
