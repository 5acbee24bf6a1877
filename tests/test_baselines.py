"""Baselines on weights: DWS, NFN and NFT on chains, what they refuse; sizes and training of all."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from chain_networks import collated, mlp, mlp_pair, network
from networks import randomise
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import Entries
from paramgraph.nn import Metanetwork
from paramgraph.nn.chains import ChainMetanetwork, chain_of, chain_options
from paramgraph.nn.deepsets import DeepSets
from paramgraph.nn.dmc import DeepMetaClassifier
from paramgraph.nn.dws import DWSNet
from paramgraph.nn.editing import NetworkEditor
from paramgraph.nn.nfn import NFN
from paramgraph.nn.nft import NFT
from paramgraph.nn.tensor_layers import (
    EquivariantLinear,
)
from paramgraph.testing import ExampleNetwork, check_metanetwork, hazard_networks

CHAINS = ["mlp", "no_bias", "strided_cnn", "cnn_1d", "flatten", "siren", "tied"]


def small(kind: str, **options: object) -> ChainMetanetwork:
    """A small metanetwork for chains in float64."""
    sizes: dict[str, dict[str, object]] = {
        "dws": {"num_layers": 3},
        "dws-mean": {"num_layers": 3, "reduction": "mean"},
        "nfn-np": {"variant": "NP", "num_layers": 2, "num_frequencies": 4, "num_waves": 4},
        "nfn-hnp": {"num_layers": 2, "num_frequencies": 4},
        "nft": {"num_layers": 2, "num_heads": 2, "num_frequencies": 4, "num_waves": 4},
    }
    kinds = {"dws": DWSNet, "dws-mean": DWSNet, "nfn-np": NFN, "nfn-hnp": NFN, "nft": NFT}
    make: Callable[..., ChainMetanetwork] = kinds[kind]
    return make(2, **{"hidden_dim": 8, "head_dim": 16, **sizes[kind], **options}).double()


KINDS = ["dws", "dws-mean", "nfn-np", "nfn-hnp", "nft"]


# --- chains


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_laws_hold_on_chains(kind: str, name: str) -> None:
    (example,) = [row for row in hazard_networks() if row.name == name]
    options = chain_options(pg.capture(example.network, example.example_inputs))
    report = check_metanetwork(small(kind, **options), [example])
    assert report.passed, str(report)
    (row,) = report.of("permutation")
    assert row.error is not None
    assert row.error < 1e-10


@pytest.mark.parametrize("name", ["mlp", "strided_cnn", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_laws_hold_for_outputs_per_entry(kind: str, name: str) -> None:
    (example,) = [row for row in hazard_networks() if row.name == name]
    options = chain_options(pg.capture(example.network, example.example_inputs))
    report = check_metanetwork(small(kind, **options, level="parameter"), [example])
    assert report.passed, str(report)
    assert all(row.applies for row in report.of("permutation"))


@pytest.mark.parametrize("kind", KINDS)
def test_laws_hold_on_one_layer(kind: str) -> None:
    """Nothing is permuted, and with HNP and DWS all axes stand in the channels."""
    example = ExampleNetwork("one", randomise(nn.Linear(3, 2), 0), torch.randn(4, 3))
    report = check_metanetwork(small(kind, widths=[3, 2]), [example])
    assert report.passed, str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_laws_hold_in_batches_of_several_chains(kind: str) -> None:
    """Hidden layers of other widths, other activations; what is no chain is refused by name."""
    torch.manual_seed(1)
    others = [
        ExampleNetwork("wide", randomise(mlp(3, 7, 6, 2, act=nn.Tanh), 1), torch.randn(4, 3)),
        ExampleNetwork("narrow", randomise(mlp(3, 2, 3, 2, act=nn.SiLU), 2), torch.randn(4, 3)),
    ]
    examples = [row for row in hazard_networks() if row.name in ("mlp", "residual", "lstm")]
    report = check_metanetwork(small(kind, widths=[3, 5, 4, 2]), [*examples, *others])
    assert report.passed, str(report)
    rows = {row.network: row for row in report.of("mixed batch")}
    assert {name for name, row in rows.items() if row.applies} == {"mlp", "wide", "narrow"}
    assert "is of kind 'skip'" in rows["residual"].note


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHAINS)
def test_entries_move_with_the_neurons(kind: str, name: str) -> None:
    """Level "parameter": read, then permuted = permuted, then read; and one tensor alone is not."""
    graph, module = network(name)
    options = chain_options(graph)
    m = small(kind, **options, level="parameter").eval()
    state = {key: value.double() for key, value in module.state_dict().items()}
    m.fit_statistics([collated((graph, state))])

    def outputs(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        batch = collated((graph, weights))
        with torch.no_grad():
            entries = m(batch)
        assert isinstance(entries, Entries)
        ((first, second),) = entries.values(batch)
        both = [graph.write_back(first), graph.write_back(second)]
        return [{key: value[0] for key, value in one.items()} for one in both]

    plain = outputs(state)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        symmetry = graph.sample_symmetry(generator)
        moved = outputs(symmetry.apply(state))
        for expected, got in zip(plain, moved, strict=True):
            for key, value in symmetry.apply(expected).items():
                assert value.shape == state[key].shape
                torch.testing.assert_close(got[key], value, rtol=0, atol=1e-10)
    changed = max(float((moved[0][key] - plain[0][key]).abs().max()) for key in plain[0])
    assert changed > 1e-3  # it did move


def test_an_editor_takes_the_entries() -> None:
    graph, state = mlp_pair(2, 4, 3, 1)
    editor = NetworkEditor(small("nfn-hnp", widths=[2, 4, 3, 1], level="parameter")).double()
    batch = collated((graph, state), (graph, state))
    editor.fit_statistics([batch])
    (edited,) = editor(batch)
    assert {key: tuple(value.shape) for key, value in edited.parameters[0].items()} == {
        key: (2, *value.shape) for key, value in state.items()
    }


def test_np_reads_any_number_of_inputs_and_hnp_does_not() -> None:
    pairs = [mlp_pair(3, 5, 4, 2), mlp_pair(6, 2, 3, 5)]
    for kind in ("nfn-np", "nft"):
        rows = small(kind, widths=[3, 5, 4, 2])(collated(*pairs))
        assert rows.shape == (2, 2)
    m = small("nfn-hnp", widths=[3, 5, 4, 2])
    with pytest.raises(
        pg.BatchError, match=r"3 inputs and 2 outputs, but 'Sequential' has 6 and 5"
    ):
        m(collated(*pairs))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_outputs_are_told_apart(kind: str) -> None:
    """Swapping two inputs (or outputs) of a network is another network."""
    graph, state = mlp_pair(3, 5, 4, 2)
    m = small(kind, widths=[3, 5, 4, 2]).eval()
    m.fit_statistics([collated((graph, state), mlp_pair(3, 5, 4, 2, seed=7))])
    inputs = {**state, "0.weight": state["0.weight"][:, [1, 0, 2]]}
    outputs = {**state, "4.weight": state["4.weight"][[1, 0]], "4.bias": state["4.bias"][[1, 0]]}
    with torch.no_grad():
        plain, one, two = (m(collated((graph, s)))[0] for s in (state, inputs, outputs))
    assert float((plain - one).abs().max()) > 1e-4
    assert float((plain - two).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("residual", r"block 'first->add' is of kind 'skip'"),
        ("layer_norm", r"block '1.weight' is of kind 'scale'"),
        ("batch_norm", r"block '0.weight' leads to neurons with running statistics"),
        ("depthwise", r"block '2.weight' is a grouped convolution or linear map \(4 groups\)"),
        ("two_inputs", r"block 'left.weight' reads 'input' and not the layer before, 'right'"),
        ("embedding", r"block 'table.weight' is of kind 'embedding'"),
        ("attention", r"block 'norm.weight' is of kind 'scale'"),
        ("lstm", r"block 'cell.weight_ih_l0\[1\]' reads 'input' and not the layer before, 'cell'"),
    ],
)
def test_networks_that_are_no_chains_are_refused(name: str, reason: str) -> None:
    (example,) = [row for row in hazard_networks() if row.name == name]
    graph = pg.capture(example.network, example.example_inputs)
    batch = pg.collate([(graph, graph.features(example.network.state_dict()))])
    text = f"is no chain of layers: {reason}.*linear and plain convolution.*'operator'"
    with pytest.raises(pg.BatchError, match=text):
        DWSNet(1, widths=[3, 5, 2])(batch)
    with pytest.raises(pg.BatchError, match=text):
        chain_options(graph)


def test_a_norm_without_parameters_is_refused() -> None:
    module = nn.Sequential(
        nn.Linear(3, 5), nn.LayerNorm(5, elementwise_affine=False), nn.ReLU(), nn.Linear(5, 2)
    )
    with pytest.raises(
        pg.BatchError, match=r"is no chain of layers: block '0->1' is of kind 'scale'"
    ):
        chain_of(pg.capture(module, torch.randn(4, 3)))


def test_hidden_neurons_with_a_fixed_order_are_refused() -> None:
    class Ramp(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self[0](x)) * torch.arange(1.0, 6.0)
            result: Tensor = self[1](hidden)
            return result

    graph = pg.capture(Ramp(nn.Linear(3, 5), nn.Linear(5, 2)), torch.randn(4, 3))
    text = r"'0.weight' leads to hidden neurons that cannot be permuted \(meets inputs or positions"
    with pytest.raises(pg.BatchError, match=text):
        chain_of(graph)


def test_chains_of_another_shape_are_refused() -> None:
    m = DWSNet(1, widths=[3, 5, 4, 2]).double()
    with pytest.raises(
        pg.BatchError, match=r"widths \[3, 5, 4, 2\], that is 3 layers, but .* has 2: make one with"
    ):
        m(collated(mlp_pair(3, 5, 2)))
    with pytest.raises(
        pg.BatchError, match=r"3 inputs and 2 outputs, but 'Sequential' has 4 and 2"
    ):
        m(collated(mlp_pair(3, 5, 4, 2), mlp_pair(4, 5, 4, 2)))
    graph, module = network("strided_cnn")
    batch = pg.collate([(graph, graph.features(module.state_dict()))])
    with pytest.raises(
        pg.BatchError, match=r"layers with \[1, 1, 1\] kernel elements, but .* have \[9, 4, 1\]"
    ):
        m(batch)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DWSNet(1, widths=[3]), r"neurons of two or more layers.*got \[3\] and \[\]"),
        (lambda: DWSNet(1, widths=[3, 0, 2]), r"at least 1; got \[3, 0, 2\]"),
        (lambda: DWSNet(1, widths=[3, 4, 2], num_positions=[9]), r"got \[3, 4, 2\] and \[9\]"),
        (lambda: DWSNet(1, widths=[3, 2], reduction="sum"), "'mean' or 'max', got 'sum'"),
        (lambda: DWSNet(1, widths=[3, 2], num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: NFN(1, widths=[3, 2], variant="PT"), "'NP' or 'HNP', got 'PT'"),
        (lambda: NFN(1, widths=[3, 2], num_waves=3), "num_waves must be even .*, got 3"),
        (lambda: NFT(1, widths=[3, 2], num_waves=3), "num_waves must be even .*, got 3"),
        (lambda: NFT(1, widths=[3, 2], num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: NFT(1, widths=[3, 2], num_heads=3), "must divide hidden_dim, got 3 and 64"),
        (lambda: NFT(1, widths=[3, 2], level="neuron"), "no outputs at level 'neuron'"),
        (lambda: DeepMetaClassifier(1, kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: DeepMetaClassifier(1, num_waves=1), "num_waves must be even .*, got 1"),
        (lambda: DeepMetaClassifier(1, chunk_size=0), "at least 1, got 5 and 0"),
        (lambda: DeepSets(1, pool="max"), "'mean' or 'sum', got 'max'"),
        (lambda: DeepSets(1, num_waves=5), "num_waves must be even .*, got 5"),
        (lambda: EquivariantLinear([(1,)], [1, 2], [1]), "for 1 tensors, got 2 going in and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


# --- sizes, options, training


INR = [2, 32, 32, 1]


def head_size(in_dim: int, hidden_dim: int) -> int:
    return (in_dim + 1) * hidden_dim + (hidden_dim + 1) * hidden_dim + (hidden_dim + 1) * 10


@pytest.mark.parametrize(
    ("make", "num"),
    [
        # 75 maps between tensors (2 x 2 more at the inputs); 5 layers of 32 channels.
        (
            lambda: DWSNet(10, widths=INR),
            75 * (32 + 4 * 32**2) + 5 * 7 * 32 + head_size(7 * 32, 32),
        ),
        # Zhou et al. have 62 maps in the NP layer too, for which 45.5 million are published.
        (
            lambda: NFN(
                10,
                widths=INR,
                variant="NP",
                hidden_dim=512,
                num_frequencies=128,
                num_waves=0,
                head_dim=1000,
            ),
            62 * (256 * 512 + 2 * 512**2) + 3 * 6 * 512 + head_size(6 * 512, 1000),
        ),
        (
            lambda: NFN(10, widths=INR, hidden_dim=512, num_frequencies=128, head_dim=1000),
            75 * (256 * 512 + 2 * 512**2) + 3 * 7 * 512 + head_size(7 * 512, 1000),
        ),
    ],
)
def test_parameter_counts(make: Callable[[], nn.Module], num: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == num


@pytest.mark.parametrize(
    "make",
    [
        lambda **chain: DWSNet(1, **chain),
        lambda **chain: NFN(1, hidden_dim=16, **chain),
        lambda **chain: NFN(1, hidden_dim=16, variant="NP", **chain),
        lambda **chain: NFT(1, hidden_dim=16, num_layers=2, **chain),
        lambda **_: DeepMetaClassifier(1, hidden_dim=16, num_layers=3, chunk_size=32),
        lambda **_: DeepSets(1, hidden_dim=32),
    ],
)
def test_baselines_learn(make: Callable[..., Metanetwork]) -> None:
    """A property of the weights is learned in a few steps, in float32, options as JSON."""
    torch.manual_seed(0)
    module = mlp(3, 8, 8, 2)
    graph = pg.capture(module, torch.randn(4, 3))
    chain = json.loads(json.dumps(chain_options(graph)))
    states = [randomise(mlp(3, 8, 8, 2), seed).state_dict() for seed in range(32)]
    batch = pg.collate([(graph, graph.features(states))])
    target = torch.stack([(state["2.weight"].square().mean()) for state in states])[:, None]
    target = (target - target.mean()) / target.std()
    m = make(**chain)
    m.fit_statistics([batch])
    optimizer = torch.optim.Adam(m.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = (m(batch) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    for name, parameter in m.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.isfinite().all(), name
