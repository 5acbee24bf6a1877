"""DMC and DeepSets: laws on every network, slow twins."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from chain_networks import collated, mlp_pair, network
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import ROLES
from paramgraph.nn.deepsets import DeepSets
from paramgraph.nn.dmc import DeepMetaClassifier
from paramgraph.nn.tensor_stacks import end_waves
from paramgraph.structure import NeuronRole
from paramgraph.testing import check_metanetwork, hazard_networks


def test_laws_of_dmc_hold_on_every_network() -> None:
    m = DeepMetaClassifier(2, hidden_dim=16, num_layers=3, chunk_size=32, head_dim=32)
    report = check_metanetwork(m, hazard_networks())
    assert report.passed, str(report)
    assert all(row.applies for row in report.of("mixed batch"))


def test_laws_of_deepsets_hold_on_every_network() -> None:
    """All but one: which neurons a weight joins is not seen, and the class says so."""
    report = check_metanetwork(DeepSets(2, hidden_dim=32, head_dim=32), hazard_networks())
    assert {row.law for row in report.failures} == {"wrong permutation"}
    assert all(row.passed for row in report.of("permutation"))
    assert all(row.applies for row in report.of("mixed batch"))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("name", ["mlp", "strided_cnn", "batch_norm", "two_inputs"])
def test_deepsets_equals_its_slow_twin(name: str, pool: str) -> None:
    """One parameter at a time, each with the place that the docstring says."""
    graph, module = network(name)
    batch = pg.collate([(graph, graph.features(module.state_dict()))])
    m = DeepSets(3, hidden_dim=8, num_waves=4, head_dim=8, pool=pool)
    m.fit_statistics([batch, collated(mlp_pair(3, 4, 2))])
    total, count = torch.zeros(8), 0
    values, depth = batch.parts[0].values, graph.depth
    waves = end_waves(depth + 1, 4, torch.zeros(1))

    def place_of(level: int) -> Tensor:
        return m.depths(torch.cat([waves[level], waves[depth - level]]))

    def phi(value: Tensor, place: Tensor) -> Tensor:
        return m.phi(nn.functional.silu(m.value(value[None]) + place))

    with torch.no_grad():
        for block, entries in zip(graph.blocks, values.blocks, strict=True):
            if not block.kind.has_parameters:
                continue
            receiver, sender = (
                graph.neuron_groups[block.receiver],
                graph.neuron_groups[block.sender],
            )
            where = "last" if receiver.kind.value == "output" else "hidden"
            where = "first" if sender.kind.value == "input" else where
            role = ROLES.index((block.kind, where))
            scale = m.standardizer.edge_scale[role]
            scale = scale / math.sqrt(block.num_senders * block.num_positions)
            for index in itertools.product(*map(range, block.shape)):
                at = torch.tensor(block.positions[index[-1]])
                radius = at.square().sum().sqrt()
                kernel = m.kernel(torch.cat([at, radius[None]]) / (1 + radius))
                place = m.roles.weight[role] + kernel + place_of(receiver.depth)
                total += phi(entries[0][index] / scale, place)
                count += 1
        for neurons, numbers in zip(graph.neuron_groups, values.neurons, strict=True):
            kind = {"input": 0, "hidden": 1, "output": 2}[neurons.kind.value]
            for feature in neurons.features:
                channel = feature.role.channel
                for value in numbers[0, :, channel] / m.standardizer.neuron_scale[channel]:
                    note = m.features.weight[kind * len(NeuronRole) + channel]
                    total += phi(value, note + place_of(neurons.depth))
                    count += 1
        expected = total / count if pool == "mean" else total
        torch.testing.assert_close(m._sums(batch)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_dmc_equals_its_slow_twin() -> None:
    """One network and one chunk at a time, from the parameters at unit scale."""
    pairs = [mlp_pair(3, 4, 2, seed=1), mlp_pair(2, 5, 5, 1, seed=2), mlp_pair(3, 4, 2, seed=3)]
    m = DeepMetaClassifier(2, hidden_dim=6, num_layers=2, kernel_size=3, chunk_size=8, num_waves=4)
    m.fit_statistics([collated(*pairs)])
    waves = end_waves(20, 4, torch.zeros(1))
    with torch.no_grad():
        rows = m(collated(*pairs))
        for (graph, state), row in zip(pairs, rows, strict=True):
            layers = [name for name in state if name.endswith("weight")]
            entries = []
            for name in [row.name for row in graph.parameters]:
                if name.endswith("bias"):
                    entries += (state[name] / m.standardizer.neuron_scale[0]).tolist()
                    continue
                where = {layers[0]: "first", layers[-1]: "last"}.get(name, "hidden")
                kind = graph.blocks[0].kind
                scale = m.standardizer.edge_scale[ROLES.index((kind, where))]
                value = state[name] / scale * math.sqrt(state[name].shape[1])
                entries += value.flatten().tolist()
            seen = []
            for number, start in enumerate(range(0, len(entries), 8)):
                chunk = entries[start : start + 8]
                found = m.layers(torch.tensor(chunk + [0.0] * (8 - len(chunk)))[None, None])[0]
                both = torch.cat([found.mean(1), found.max(1).values])
                seen.append(m.chunks(torch.cat([both, waves[number]])))
            expected = m.head.read(torch.stack(seen).mean(0)[None])[0]
            torch.testing.assert_close(row, expected, rtol=1e-10, atol=1e-10)
