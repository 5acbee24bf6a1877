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
        batch_size: Networks per step: small for those that take long for each network.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    batch_size: int = 64


SUBJECTS: dict[str, Subject] = {
    "operator": Subject("operator", {}, 4e-3),
    "operator, 64 probes": Subject(
        "operator", {"num_probes": 64, "probe_options": {"num_channels": 2, "num_waves": 0}}, 4e-3
    ),
    "operator, 64 generated probes": Subject(
        "operator", {"num_probes": 64, "probe_options": {"generator": "deep-linear"}}, 4e-3
    ),
    "operator, free neurons": Subject("operator", {"symmetry": "permutation"}, 4e-3),
    "operator, no phase": Subject("operator", {"phase": False}, 4e-3),
    "ScaleGMN-B": Subject("scale-gmn-b", {}, 2e-3, 16),
    "ScaleGMN": Subject("scale-gmn", {}, 2e-3, 16),
    "NG-GNN": Subject("ng-gnn-inr", {}, 1e-3, 16),
    "NG-GNN, 64 probes": Subject("ng-gnn-inr-probes", {}, 1e-3, 16),
    "NG-GNN, no positions": Subject("ng-gnn-inr", {"position_embedding": False}, 1e-3, 16),
    "NG-T": Subject("ng-t-inr", {}, 1e-3, 16),
    "NG-T, 64 probes": Subject("ng-t-inr-probes", {}, 1e-3, 16),
    "GMN": Subject("gmn", {}, 1e-3, 16),
    "GMN, transformer": Subject("gmn-transformer", {}, 1e-3, 16),
    "probing": Subject("probing"),
    "ProbeGen": Subject("probegen"),
    "NFN (NP)": Subject("nfn-np"),
    "NFN (HNP)": Subject("nfn-hnp"),
    "NFT": Subject("nft", {}, 1e-3, 16),
    "DWSNet": Subject("dws"),
    "DMC": Subject("dmc"),
    "DeepSets": Subject("deepsets"),
    "StatNN": Subject("statnn"),
    "flat MLP": Subject("flat-mlp"),
}
"""Name in the table to what is trained."""
