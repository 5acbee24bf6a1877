"""NG-GNN keeps its laws with every option, on networks with one hazard each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paramgraph.nn import NeuralGraphGNN
from paramgraph.testing import check_metanetwork, hazard_networks

SOME = slice(None, None, 3)
OPTIONS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "data flow": {"schedule": "forward"},
    "data flow, forward only": {"schedule": "forward", "reverse_edges": False},
    "virtual neuron": {"readout": "cls"},
    "virtual neuron, data flow": {"readout": "cls", "schedule": "forward"},
    "forward only": {"reverse_edges": False, "readout": "mean-outputs"},
    "set transformer": {"readout": "set-transformer"},
    "layers": {"readout": "layers", "norm": "neuron"},
    "largest": {"readout": "max", "magnitudes": True},
    "edges": {"readout": "mean-edges", "linear_as_conv": False},
    "padded": {"max_kernel": (9, 9), "linear_as_conv": False, "num_activations": 7},
    "padded, no Fourier features": {"max_kernel": (9, 9), "num_frequencies": 0},
    "small tables": {"max_inputs": 2, "max_outputs": 1, "max_hidden_layers": 2},
    "no embeddings": {
        "position_embedding": False,
        "activation_embedding": False,
        "kind_embedding": False,
    },
    "probes": {"num_probes": 3},
    "probes, parameters": {"num_probes": 3, "level": "parameter", "schedule": "forward"},
    "neurons": {"level": "neuron"},
    "neurons, data flow": {"level": "neuron", "schedule": "forward"},
    "parameters": {"level": "parameter"},
    "parameters, all options": {
        "level": "parameter",
        "readout": "cls",
        "schedule": "forward",
        "linear_as_conv": False,
    },
}


def failures(options: dict[str, Any], networks: slice) -> list[str]:
    """Broken laws; a gradient counts if it is wrong from two starts (max and ReLU have kinks)."""
    broken = []
    for start in (0, 1):
        torch.manual_seed(start)
        m = NeuralGraphGNN(2, hidden_dim=16, **options)
        report = check_metanetwork(m, hazard_networks()[networks])
        assert any(row.applies for row in report.of("permutation"))
        broken.append({(row.law, row.network): str(row) for row in report.failures})
        if not any(law == "gradient" for law, _ in broken[-1]):
            return list(broken[-1].values())
    return [text for key, text in broken[0].items() if key[0] != "gradient" or key in broken[1]]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_laws_hold_with_every_option(name: str) -> None:
    networks = slice(None) if name in ("parallel", "data flow", "parameters") else SOME
    assert failures(OPTIONS[name], networks) == []
