"""Networks in files: the same outputs as in memory, whatever the views; errors name the key."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import as_double, randomise
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import paramgraph as pg
import paramgraph.testing as pt
from benchmarks.streaming_networks import Gpt2, Llama, Sizes
from paramgraph.nn import OperatorMetanetwork, make_metanetwork
from paramgraph.nn.streamed_files import Entries, TensorFiles
from paramgraph.nn.streaming import embed_streamed, fit_statistics_streamed

HAZARDS = {row.name: row for row in pt.hazard_networks()}


def gpt2() -> tuple[nn.Module, Tensor]:
    return Gpt2(
        Sizes(width=8, num_layers=2, num_heads=2, vocabulary=11, wide=16, context=6)
    ), TOKENS


def llama() -> tuple[nn.Module, Tensor]:
    sizes = Sizes(width=8, num_layers=2, num_heads=4, vocabulary=11, wide=12, num_key_heads=2)
    return Llama(sizes), TOKENS


def convolution() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, (3, 2), groups=3)]
    flat = [nn.Tanh(), nn.Flatten(), nn.Linear(6 * 2 * 3, 4), nn.Sigmoid(), nn.Linear(4, 3)]
    return nn.Sequential(*layers, *flat), torch.randn(3, 2, 6, 6)


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 9), nn.GELU(), nn.Linear(9, 2)]
    return nn.Sequential(*layers), torch.randn(4, 3)


def hazard(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (copy.deepcopy(HAZARDS[name].network), HAZARDS[name].example_inputs)


TOKENS = torch.tensor([[1, 4, 2, 9, 0], [3, 3, 7, 10, 5]])
NETWORKS = {
    "gpt2": gpt2,
    "llama": llama,
    "convolution": convolution,
    "mlp": mlp,
    **{n: hazard(n) for n in ("siren_large_biases", "lstm", "grouped_conv", "vision_transformer")},
}


def written(
    name: str, folder: Path, dtype: torch.dtype = torch.float64, shards: int = 1
) -> tuple[pg.ParamGraph, dict[str, Tensor], list[Path]]:
    """A network with random weights and statistics, and its files."""
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    network = randomise(network.double(), 1)
    graph = pg.capture(network, as_double(inputs))
    state = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    known = {n for row in graph.parameters for n in (row.name, *row.members)}
    names = [n for n in state if n in known]
    paths = []
    for number in range(shards):
        paths.append(folder / f"model-{number}.safetensors")
        save_file({n: state[n].contiguous() for n in names[number::shards]}, paths[-1])
    return graph, {n: t.double() for n, t in state.items()}, paths


def operator(**options: object) -> OperatorMetanetwork:
    torch.manual_seed(0)
    m = OperatorMetanetwork(3, hidden_dim=8, **options)  # type: ignore[arg-type]
    m.standardizer.edge_scale.uniform_(0.5, 2)
    m.standardizer.neuron_scale.uniform_(0.5, 2)
    return m.double().eval()


@pytest.mark.parametrize("tile", [7, 64, 2**20])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_from_files_are_those_from_memory(name: str, tile: int, tmp_path: Path) -> None:
    """Tiles smaller than a row of some blocks, and larger than the network."""
    graph, state, paths = written(name, tmp_path, shards=2)
    for options in ({}, {"symmetry": "scale"}, {"level": "neuron", "second_order": True}):
        m = operator(**options)
        with torch.no_grad():
            expected = m(pg.collate([(graph, graph.features(state))]))
        found = embed_streamed(m, graph, paths, tile=tile)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama", "convolution"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_files_in_16_bits_are_converted_tile_by_tile(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    graph, state, paths = written(name, tmp_path, dtype)
    m = operator().float()
    single = {n: t.float() for n, t in state.items()}
    with torch.no_grad():
        expected = m(pg.collate([(graph, graph.features(single))]))
    found = embed_streamed(m, graph, paths, tile=50)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32


def test_statistics_from_files_are_those_from_memory(tmp_path: Path) -> None:
    pairs, batches = [], []
    for name in ("gpt2", "convolution", "siren_large_biases"):
        (tmp_path / name).mkdir()
        graph, state, paths = written(name, tmp_path / name)
        pairs.append((graph, paths))
        batches.append(pg.collate([(graph, graph.features(state))]))
    one, two = operator(), operator()
    one.fit_statistics(batches)
    fit_statistics_streamed(two, pairs, tile=30)
    for name, buffer in one.standardizer.named_buffers():
        found = two.standardizer.get_buffer(name)
        torch.testing.assert_close(found, buffer, rtol=1e-12, atol=0)


def test_training_mode_comes_back(tmp_path: Path) -> None:
    graph, _, paths = written("mlp", tmp_path)
    m = operator(dropout=0.5).train()
    assert torch.equal(embed_streamed(m, graph, paths), embed_streamed(m, graph, paths))
    assert m.training


# --- errors


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    graph, _, paths = written("mlp", tmp_path, shards=2)
    with pytest.raises(pg.GraphError, match=r"no tensor '0.bias' of shape 9 in .*model-0.safe"):
        embed_streamed(operator(), graph, paths[0])


def test_an_unknown_tensor_is_named_or_left_out(tmp_path: Path) -> None:
    graph, _, paths = written("mlp", tmp_path)
    save_file({"other.weight": torch.ones(2)}, tmp_path / "more.safetensors")
    more = [*paths, tmp_path / "more.safetensors"]
    with pytest.raises(pg.GraphError, match=r"belong to no parameter .*'other.weight|other.weight"):
        embed_streamed(operator(), graph, more)
    expected = embed_streamed(operator(), graph, paths)
    assert torch.equal(embed_streamed(operator(), graph, more, strict=False), expected)


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    graph, _, paths = written("mlp", tmp_path)
    with pytest.raises(pg.GraphError, match=r"tensor '0.bias' is in .*model-0.* and in .*model-0"):
        embed_streamed(operator(), graph, paths * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:, :-1].contiguous(), r"'2.weight' in .* has shape 9 x 8, expected 9 x 9"),
        (lambda t: t.to(torch.int8), r"'2.weight' in .*0.safetensors is torch.int8, expected"),
        (
            lambda t: t.fill_(float("nan")),
            r"'2.weight' in .*0.safetensors has entries that are not",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    graph, state, paths = written("mlp", tmp_path)
    save_file({**state, "2.weight": change(state["2.weight"])}, paths[0])
    with pytest.raises(pg.GraphError, match=message):
        embed_streamed(operator(symmetry="scale"), graph, paths)


def test_a_bias_that_is_not_finite_is_named(tmp_path: Path) -> None:
    graph, state, paths = written("mlp", tmp_path)
    save_file({**state, "2.bias": torch.full((9,), float("inf"))}, paths[0])
    with pytest.raises(pg.GraphError, match=r"'2.bias' in .* has entries that are not finite"):
        embed_streamed(operator(), graph, paths)


def test_no_file_and_a_file_of_another_kind(tmp_path: Path) -> None:
    graph, _, _ = written("mlp", tmp_path)
    (tmp_path / "text.safetensors").write_text("no tensors in here")
    for path in ("text.safetensors", "nowhere.safetensors"):
        with pytest.raises(pg.GraphError, match=rf"{path} cannot be read as safetensors"):
            embed_streamed(operator(), graph, tmp_path / path)
    with pytest.raises(pg.GraphError, match="no file of weights was given"):
        embed_streamed(operator(), graph, [])


def test_other_metanetworks_are_refused(tmp_path: Path) -> None:
    graph, _, paths = written("mlp", tmp_path)
    with pytest.raises(TypeError, match="for the operator metanetwork, got NeuralGraphGNN"):
        embed_streamed(make_metanetwork("ng-gnn", 2), graph, paths)
    with pytest.raises(ValueError, match="num_probes=4"):
        embed_streamed(operator(num_probes=4), graph, paths)
    with pytest.raises(ValueError, match='is at level "parameter"'):
        embed_streamed(operator(level="parameter"), graph, paths)


def test_files_are_mapped_and_not_loaded(tmp_path: Path) -> None:
    """A 64 MB matrix, of which one row is looked at."""
    graph = pg.capture(nn.Linear(4096, 4096, device="meta"), torch.randn(2, 4096, device="meta"))
    weights = {"weight": torch.zeros(4096, 4096), "bias": torch.zeros(4096)}
    save_file(weights, tmp_path / "large.safetensors")
    weights.clear()
    before = anonymous_mb()
    files = TensorFiles(graph, tmp_path / "large.safetensors")
    block = next(b for b in graph.blocks if b.view is not None)
    assert block.view is not None
    tile = next(files.entries(block.view).tiles(torch.float64, 4096))
    assert tile.values.shape == (1, 1, 4096, 1)
    assert anonymous_mb() - before < 16


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


# --- tiles


@pytest.mark.parametrize("size", [1, 11, 60, 1000])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 1, 0, 2, 4), (1, 4, 3, 0, 2)])
def test_tiles_put_together_are_the_view(order: tuple[int, ...], size: int) -> None:
    """Axes that lie side by side in memory, and axes that do not."""
    mapped = torch.arange(2.0 * 3 * 4 * 5 * 3).view(2, 3, 4, 5, 3).permute(order)
    sizes = mapped.shape
    shape = (sizes[0], sizes[1] * sizes[2], sizes[3], sizes[4])
    for joined in (shape, (sizes[0] * sizes[1], sizes[2], sizes[3] * sizes[4], 1)):
        expected = mapped.reshape(joined)
        found = torch.full(joined, -1.0)
        for tile in Entries(mapped, joined).tiles(torch.float32, size):
            assert tile.values.numel() <= max(size, max(joined[1:3]) * joined[3])
            found[tile.blocks, tile.receivers, tile.senders] = tile.values
        assert torch.equal(found, expected)


def test_tiles_of_a_turned_matrix_are_whole_stretches_of_the_file() -> None:
    """Rows of the file are the senders of an embedding: cutting receivers would read all of it."""
    turned = Entries(torch.zeros(1000, 8).t(), (1, 8, 1000, 1))
    tile = next(turned.tiles(torch.float32, 80))
    assert (tile.receivers, tile.senders) == (slice(0, 8), slice(0, 10))


class _LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that is not on the meta device and has its own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return result


def test_shapes_alone_need_no_memory_for_matrices() -> None:
    """Which scales readers see is known without weights of ones."""
    layers = [nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 500), nn.Tanh(), nn.Linear(500, 7)]
    network = nn.Sequential(*layers).to("meta")
    graph = pg.capture(network, torch.randn(2, 300, device="meta"))
    blocks = tuple(torch.empty(1, *block.shape, device="meta") for block in graph.blocks)
    neurons = tuple(torch.zeros(1, group.size, 3) for group in graph.neuron_groups)
    with _LargestTensor() as largest:
        batch = pg.collate([(graph, pg.Values(blocks, neurons))])
    assert batch.num_edges == 300 * 400 + 400 * 500 + 500 * 7
    assert largest.num_bytes < 300 * 400 * 4
