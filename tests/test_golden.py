"""Graphs of the networks that the first release could read: today's are the same, bit by bit.

Published numbers were measured on these graphs, so names, order, kinds, positions and values must
not change. ``golden/first_release.json`` was written by the first release: for small networks all
rows, for those of the zoo a checksum.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import HAZARDS
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.testing.hazards import hazard_networks
from paramgraph.zoo.architectures import CNN, Siren

GOLDEN = json.loads((Path(__file__).parent / "golden" / "first_release.json").read_text())
NORMS, HEADS = ("none", "batch", "layer", "group"), ("pool", "flatten")
ACTIVATIONS = ("relu", "tanh", "gelu", "softplus")


def _architectures() -> Iterator[CNN | Siren]:
    for norm, residual, head, act in itertools.product(NORMS, (False, True), HEADS, ACTIVATIONS):
        yield CNN(
            widths=(8, 8, 8),
            kernel_sizes=(3, 5, 3),
            activation=act,
            norm=norm,
            residual=residual,
            head=head,
        )
    yield CNN(widths=(1,), kernel_sizes=(3,))
    yield CNN(in_channels=3, widths=(8, 3), kernel_sizes=(1, 3), image_size=16, residual=True)
    yield CNN(in_channels=8, widths=(8, 8), kernel_sizes=(1, 3), image_size=4, residual=True)
    yield Siren()
    yield Siren(in_dim=3, widths=(5,), out_dim=3, omega=10.0)
    yield Siren(widths=(1, 4))


def _networks() -> Iterator[tuple[str, nn.Module, Any]]:
    for hazard in HAZARDS:
        yield f"hazard/{hazard.name}", hazard.make(), hazard.example_inputs
    for row in hazard_networks()[:15]:  # those of the first release
        yield f"testing/{row.name}", row.network, row.example_inputs
    for architecture in _architectures():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = architecture.build().float().eval()
        yield f"zoo/{architecture.name}", network, architecture.example_inputs()


def _digest(tensor: Tensor) -> list[Any]:
    return [list(tensor.shape), zlib.crc32(tensor.detach().contiguous().numpy().tobytes())]


def _checksum(rows: Any) -> int:
    return zlib.crc32(json.dumps(rows, separators=(",", ":")).encode())


@pytest.fixture(autouse=True)
def _single_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def _rows(network: nn.Module, inputs: Any) -> dict[str, Any]:
    graph = pg.capture(network, inputs)
    values = graph.features(network.state_dict())
    groups = [
        [g.name, g.size, g.kind.value, g.activation.value, g.activation_text, g.omega, g.depth]
        for g in graph.neuron_groups
    ]
    blocks = [
        [
            *(b.name, b.kind.value, b.sender, b.receiver, list(b.shape)),
            *([list(p) for p in b.positions], b.constant),
        ]
        for b in graph.blocks
    ]
    tensors = [[_digest(t) for t in values.blocks], [_digest(t) for t in values.neurons]]
    return {
        "values": _checksum(tensors),
        "tables": _checksum([groups, blocks]),
        "groups": [" ".join(map(str, row)) for row in groups],
        "blocks": [" ".join(map(str, row)) for row in blocks],
    }


def test_graphs_are_those_of_the_first_release() -> None:
    different, seen = [], set()
    for name, network, inputs in _networks():
        rows = _rows(network, inputs)
        seen.add(name)
        wrong = [key for key, value in GOLDEN[name].items() if rows[key] != value]
        if wrong:
            different.append(f"{name}: {', '.join(wrong)}")
    assert not different, "\n".join(different)
    assert seen == GOLDEN.keys()
