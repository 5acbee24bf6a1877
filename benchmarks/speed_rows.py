"""What is compared: metanetworks with their settings, and the slow twins of some."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import paramgraph as pg
from benchmarks.speed_networks import Networks
from benchmarks.twin_dense_transformer import DenseTransformerTwin
from benchmarks.twin_layers import InrWeights, Twin
from benchmarks.twin_published import PublishedTwin
from paramgraph.nn import NeuralGraphGNN, NeuralGraphTransformer, make_metanetwork

__all__ = ["ROWS", "Row", "Subject", "make_subject"]

OUT_DIM = 10


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        config: Key of ``paramgraph.nn.CONFIGS``.
        options: What differs from it.
        twin: ``"published"`` or ``"pyg"`` for slow twins of NG-GNN, ``"dense"`` for that of NG-T.
        reads: Which sets of networks it can read.
        num: Networks in a batch, at most.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    twin: str | None = None
    reads: tuple[str, ...] = ("inr", "cnn", "mixed", "large")
    num: int = 64

    def can_read(self, networks: str) -> bool:
        """Whether it reads a set of networks by that name."""
        return networks.split("-")[0] in self.reads


_INR = ("inr", "large")
_WIDE = {"hidden_dim": 64}
#: ``ng-gnn`` reads any network; ``ng-gnn-inr`` is the same class with the published settings.
ROWS: dict[str, Row] = {
    "operator, 1 round": Row("operator", {"num_rounds": 1}),
    "operator, 2 rounds": Row("operator", {"num_rounds": 2}),
    "operator, 4 rounds": Row("operator", {"num_rounds": 4}),
    "NG-GNN d=32": Row("ng-gnn-inr", reads=_INR),
    "NG-GNN d=64": Row("ng-gnn-inr", _WIDE, reads=_INR),
    "NG-GNN d=32, edges recomputed": Row("ng-gnn-inr", {"edge_state": "recomputed"}, reads=_INR),
    "NG-GNN d=32, PyG twin": Row("ng-gnn-inr", twin="pyg", reads=_INR),
    "NG-GNN d=64, PyG twin": Row("ng-gnn-inr", _WIDE, twin="pyg", reads=_INR),
    "NG-GNN d=32, published twin": Row("ng-gnn-inr", twin="published", reads=_INR),
    "NG-GNN d=64, published twin": Row("ng-gnn-inr", _WIDE, twin="published", reads=_INR),
    "NG-GNN d=32, any network": Row("ng-gnn", reads=("cnn", "mixed")),
    "NG-T": Row("ng-t-inr", reads=_INR, num=16),
    "NG-T, dense twin": Row("ng-t-inr", twin="dense", reads=_INR, num=16),
    # All pairs of neurons of a transformer or an LSTM of the mixed batch take minutes.
    "NG-T, any network": Row("ng-t", reads=("cnn",), num=16),
    "GMN": Row("gmn"),
    "ScaleGMN": Row("scale-gmn"),
    "DWSNet": Row("dws", reads=_INR),
    "NFN-NP": Row("nfn-np", reads=_INR),
    "StatNN": Row("statnn", {"max_layers": 32}),
    "flat MLP": Row("flat-mlp", reads=_INR),
}
"""Name in the tables to what is run."""


@dataclass
class Subject:
    """A metanetwork and the batch that it reads.

    Attributes:
        name: Key of ``ROWS``.
        module: The metanetwork, or a twin.
        read: What it reads.
        num_networks: In a batch.
    """

    name: str
    module: nn.Module
    read: Any
    num_networks: int

    def forward(self) -> Tensor:
        """Predict, without gradients."""
        self.module.eval()
        with torch.no_grad():
            predicted: Tensor = self.module(self.read)
        return predicted

    def train(self) -> None:
        """Forward and backward, dropout on; no optimizer step."""
        self.module.train()
        self.module.zero_grad(set_to_none=True)
        self.module(self.read).square().mean().backward()

    def stage(self, name: str) -> Callable[[], object]:
        """``forward`` or ``train`` by name."""
        found: Callable[[], object] = {"forward": self.forward, "train": self.train}[name]
        return found


def make_subject(
    name: str,
    networks: Networks,
    batch: pg.GraphBatch | None = None,
    *,
    device: torch.device | None = None,
) -> Subject:
    """A row on its networks, with statistics fitted and random weights.

    Args:
        name: Key of ``ROWS``.
        networks: What it reads.
        batch: The same as a batch, if there is one already.
        device: Of the metanetwork, where the weights of the networks are.

    Raises:
        ValueError: It cannot read these networks, or there is no such row.
    """
    if name not in ROWS:
        raise ValueError(f"no row is named {name!r}; choose one of {', '.join(ROWS)}.")
    row = ROWS[name]
    if not row.can_read(networks.name):
        raise ValueError(
            f"{name} reads {' and '.join(row.reads)}, but the networks are {networks.name!r}: "
            "choose another row with --rows."
        )
    batch = networks.batch() if batch is None else batch
    torch.manual_seed(0)
    options = {**_layout(row.config, networks), **row.options}
    ours = make_metanetwork(row.config, OUT_DIM, **options).to(device or torch.device("cpu"))
    ours.fit_statistics([batch])
    if row.twin is None:
        return Subject(name, ours, batch, networks.num)
    raw = InrWeights.of(networks.families[0].states)
    return Subject(name, _twin(row.twin, ours, networks, batch), raw, networks.num)


def _twin(kind: str, ours: nn.Module, networks: Networks, batch: pg.GraphBatch) -> nn.Module:
    """The slow form of a metanetwork; PyG is imported only where it is asked for."""
    assert networks.widths is not None
    if isinstance(ours, NeuralGraphTransformer):
        return DenseTransformerTwin(copy.deepcopy(ours), networks.widths)
    assert isinstance(ours, NeuralGraphGNN)
    twin: Twin
    if kind == "pyg":
        from benchmarks.twin_pyg import PygTwin

        twin = PygTwin(ours, networks.widths)
    else:
        twin = PublishedTwin(ours, networks.widths)
    twin = twin.to(batch.neuron_values.device)
    twin.load_weights(ours, batch)
    return twin


def _layout(config: str, networks: Networks) -> dict[str, Any]:
    """Options that follow from the layout of INRs."""
    if networks.widths is None:
        return {}
    if config in ("dws", "nfn-np", "nfn-hnp"):
        return {"widths": list(networks.widths)}
    if config.endswith("-inr"):
        num_outputs = networks.widths[-1]
        return {"num_outputs": num_outputs, "max_outputs": num_outputs}
    return {}
