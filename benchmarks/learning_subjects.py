"""What the learning check compares: metanetworks and baselines, with their settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["SUBJECTS", "Subject"]


@dataclass(frozen=True)
class Subject:
    """One row of the table.

    Attributes:
        config: Key of ``paramgraph.nn.CONFIGS``.
        options: What differs from it.
        learning_rate: Highest rate of the schedule.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3


_OPERATOR = {"dropout": 0.1}

SUBJECTS: dict[str, Subject] = {
    "operator": Subject("operator", _OPERATOR, 2e-3),
    "operator, no sign": Subject("operator", {**_OPERATOR, "symmetry": "permutation"}, 2e-3),
    "NG-GNN": Subject("ng-gnn-inr"),
    "NG-GNN, 64 probes": Subject("ng-gnn-inr-probes"),
    "NG-GNN, no positions": Subject("ng-gnn-inr", {"positional_embedding": False}),
    "NG-T": Subject("ng-t-inr"),
    "NG-T, 64 probes": Subject("ng-t-inr-probes"),
    "GMN": Subject("gmn"),
    "ScaleGMN": Subject("scale-gmn"),
    "ScaleGMN-B": Subject("scale-gmn-b"),
    "probing": Subject("probing"),
    "ProbeGen": Subject("probegen"),
    "NFN (NP)": Subject("nfn-np"),
    "NFN (HNP)": Subject("nfn-hnp"),
    "NFT": Subject("nft"),
    "DWSNet": Subject("dws"),
    "DMC": Subject("dmc"),
    "DeepSets": Subject("deepsets"),
    "StatNN": Subject("statnn"),
    "flat MLP": Subject("flat-mlp"),
}
"""Name in the table to what is trained."""
