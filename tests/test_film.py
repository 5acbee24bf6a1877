"""Tiled passes over edges equal one message at a time, whatever the tiles, gradients included."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import HAZARDS
from test_engine import pair
from torch import Tensor
from torch.nn.functional import silu

import paramgraph as pg
from paramgraph.batch import GraphBatch
from paramgraph.engine import (
    EdgePass,
    EdgeSource,
    EdgeUpdate,
    FilmWeights,
    compiling,
    edge_passes,
    film_pass,
    message_statistics,
    num_messages,
    slow_moments,
    tile_bytes,
)
from paramgraph.engine.compiling import native_status, runs_natively
from paramgraph.engine.tiles import Tiles

NUM_ROWS = 4
NAMES = ("mlp", "residual_mlp", "depthwise", "width_one", "two_inputs")
# One tile per bucket, tiles of some blocks, tiles of some targets, tiles of one target.
SIZES = (1 << 18, 8 * 16 * 40, 8 * 16 * 7, 1)


@pytest.fixture(scope="module")
def batch() -> GraphBatch:
    batch = pg.collate([pair(name, 0) for name in NAMES] + [pair("mlp", 1, 2), pair("cnn_1d", 3)])
    assert any(bucket.senders.index is not None for bucket in batch.buckets)
    assert any(bucket.receivers.index is not None for bucket in batch.buckets)
    assert {hazard.name for hazard in HAZARDS} >= set(NAMES)
    return batch


class Pieces:
    """Random inputs of a pass with two updates, and a basis per kernel size."""

    def __init__(self, batch: GraphBatch, dim: int = 6) -> None:
        self.dim = dim
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (0.5 * values).requires_grad_()

        num = batch.num_neurons
        self.updates = [(random(dim, dim), random(num, 2 * dim)) for _ in range(2)]
        self.film = random(2 * dim, dim), random(2 * dim), random(num, 2 * dim)
        self.lift = random(dim, 2 * NUM_ROWS), random(dim)
        self.values = [b.values.flatten(0, 1).clone().requires_grad_() for b in batch.buckets]
        self.bases = [random(len(b.positions), NUM_ROWS).detach() for b in batch.buckets]

    @property
    def inputs(self) -> list[Tensor]:
        return [*sum(self.updates, ()), *self.film, *self.lift, *self.values]


def one_by_one(batch: GraphBatch, pieces: Pieces, num_updates: int) -> tuple[list[Tensor], Tensor]:
    """Features and statistics by an explicit list of edges, per pass and neuron."""
    states, targets, messages = [], [], []
    dim = pieces.dim
    for is_reverse in (False, True):
        for edges, values, basis in zip(
            edge_passes(batch, is_reverse=is_reverse), pieces.values, pieces.bases, strict=True
        ):
            target, source = ends_of(edges, batch.num_neurons)
            phase = edges.arrange(values).reshape(-1, values.shape[-1]) @ basis
            x = torch.cat([phase.cos(), phase.sin()], 1) @ pieces.lift[0].T + pieces.lift[1]
            for weight, ends in pieces.updates[:num_updates]:
                x = silu(x @ weight.T + ends[target, :dim] + ends[source, dim:])
            weight, bias, ends = pieces.film
            scale, shift = (x @ weight.T + bias).chunk(2, dim=1)
            states.append(x)
            targets.append(target)
            messages.append(scale * (ends[target, :dim] + ends[source, dim:]) + shift)
    return states, slow_moments(torch.cat(messages), torch.cat(targets), batch.num_neurons)


def ends_of(edges: EdgePass, num_neurons: int) -> tuple[Tensor, Tensor]:
    """Target and source of every edge, in the order of the pass."""
    every = torch.arange(num_neurons)
    blocks, targets, sources = edges.shape
    target = every[edges.target_rows].reshape(blocks, targets, 1).expand(-1, -1, sources)
    source = every[edges.source_rows].reshape(blocks, 1, sources).expand(-1, targets, -1)
    return target.reshape(-1), source.reshape(-1)


def in_tiles(
    batch: GraphBatch, pieces: Pieces, num_updates: int, *, is_stored: bool
) -> tuple[list[Tensor], Tensor]:
    passes = [*edge_passes(batch, is_reverse=False), *edge_passes(batch, is_reverse=True)]
    numbers = [*range(len(batch.buckets))] * 2
    sources = [
        EdgeSource(None, one.arrange(pieces.values[i]), pieces.bases[i], True, *pieces.lift)
        for one, i in zip(passes, numbers, strict=True)
    ]
    updates = [EdgeUpdate(*update) for update in pieces.updates[:num_updates]]
    film = FilmWeights(*pieces.film)
    while is_stored and updates:
        states, _ = film_pass(passes, sources, [], None, keeps_state=True)
        sources = [EdgeSource(state=state) for state in states]
        states, _ = film_pass(passes, sources, updates[:1], None, keeps_state=True)
        sources, updates = [EdgeSource(state=state) for state in states], updates[1:]
    states, totals = film_pass(passes, sources, updates, film, keeps_state=True)
    assert totals is not None
    return states, message_statistics(totals, num_messages(passes, film.ends))


def gradients(result: tuple[list[Tensor], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    total = sum(
        (part * torch.randn(part.shape, generator=generator, dtype=torch.float64)).sum()
        for part in (*result[0], result[1])
    )
    assert isinstance(total, Tensor)
    return [
        torch.zeros_like(t) if g is None else g
        for t, g in zip(inputs, torch.autograd.grad(total, inputs, allow_unused=True), strict=True)
    ]


@pytest.mark.parametrize("num_bytes", SIZES)
@pytest.mark.parametrize("num_updates", [0, 1, 2])
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "recomputed"])
@pytest.mark.parametrize("is_native", [False, True], ids=["pytorch", "native"])
def test_tiles_equal_one_message_at_a_time(
    batch: GraphBatch, num_bytes: int, num_updates: int, is_stored: bool, is_native: bool
) -> None:
    pieces = Pieces(batch, dim=16 if is_native else 6)  # compiled code has whole vectors only
    if is_native and not runs_natively(pieces.film[0]):
        pytest.skip(native_status())
    assert runs_natively(pieces.film[0]) is is_native
    slow = one_by_one(batch, pieces, num_updates)
    with tile_bytes(num_bytes):
        fast = in_tiles(batch, pieces, num_updates, is_stored=is_stored)
        found = gradients(fast, pieces.inputs)
    for got, expected in zip((*fast[0], fast[1]), (*slow[0], slow[1]), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    expected_gradients = gradients(slow, pieces.inputs)
    for got, expected in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dim", [6, 16], ids=["pytorch", "native"])
def test_messages_that_are_equal_share_the_gradient_of_the_least(dim: int) -> None:
    """All weights 0: every message to a neuron is the same, so is what it gets back."""
    batch = pg.collate([pair("mlp", 0)])
    pieces = Pieces(batch, dim)
    ends = torch.zeros_like(pieces.film[2]).requires_grad_()
    passes = edge_passes(batch, is_reverse=False)
    sources = [EdgeSource(bias=pieces.lift[1])] * len(passes)
    film = FilmWeights(pieces.film[0], pieces.film[1], ends)
    _, totals = film_pass(passes, sources, [], film, keeps_state=False)
    assert totals is not None
    (gradient,) = torch.autograd.grad(totals.lows[3:8].sum(), [ends])  # a layer of 3 inputs
    of_inputs = gradient[:3, pieces.dim :]
    assert of_inputs.abs().min() > 0
    torch.testing.assert_close(of_inputs, of_inputs[:1].expand(3, -1))
    # The gradient of the least message is shared, not given to each.
    targets = gradient[3:8, :dim].sum(0)
    torch.testing.assert_close(of_inputs.sum(0), targets)
    scale = (pieces.lift[1] @ pieces.film[0].T + pieces.film[1])[:dim]
    torch.testing.assert_close(targets, 5 * scale)


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [
        ((6, 4, 4), 32, [32, 32, 32]),
        ((5, 4, 4), 40, [32, 32, 16]),
        ((2, 10, 8), 40, [40, 40, 40, 40]),
        ((1, 5, 100), 40, [100] * 5),
        ((0, 3, 3), 40, []),
    ],
)
def test_tiles_hold_what_fits_and_cover_every_edge(
    shape: tuple[int, int, int], rows: int, expected: list[int]
) -> None:
    tiles = Tiles(shape, rows)
    assert tiles.num_rows == expected
    blocks, targets, sources = shape
    everything = torch.arange(blocks * targets * sources)
    assert torch.equal(torch.cat([*tiles.of_rows(everything), everything[:0]]), everything)
    by_target = tiles.of_targets(everything.reshape(shape))
    assert [part.reshape(-1).tolist() for part in by_target] == [
        part.tolist() for part in (tiles.of_rows(everything) if expected else ())
    ]


def test_the_size_of_a_tile_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_bytes of a tile must be positive, got 0"):
        with tile_bytes(0):
            pass


def test_a_second_derivative_is_refused() -> None:
    batch = pg.collate([pair("mlp", 0)])
    metanetwork = pg.nn.make_metanetwork("ng-gnn", 1, hidden_dim=4).double()
    loss = metanetwork(batch).sum()
    weight = metanetwork.get_parameter("layers.0.film.weight")
    (gradient,) = torch.autograd.grad(loss, [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --- compiled code


def test_compiled_code_equals_pytorch_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several threads, extreme values and blocks larger than what is done at a time."""
    if not runs_natively(torch.zeros(1, 32)):
        pytest.skip(native_status())
    network = torch.nn.Sequential(torch.nn.Linear(3, 70), torch.nn.Tanh(), torch.nn.Linear(70, 5))
    graph = pg.capture(network, torch.randn(2, 3))
    states = [{k: 100 * v for k, v in network.state_dict().items()}, network.state_dict()]
    batch = pg.collate([(graph, graph.features(states))])
    torch.manual_seed(0)
    metanetwork = pg.nn.make_metanetwork("ng-gnn", 4, edge_state="stored")

    def run() -> list[Tensor]:
        metanetwork.zero_grad()
        out = metanetwork(batch)
        out.square().sum().backward()
        return [out.detach(), *(p.grad for p in metanetwork.parameters() if p.grad is not None)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        native = run()
        torch.set_num_threads(1)
        single = run()
        monkeypatch.setattr("paramgraph.engine.edge_tiles.runs_natively", lambda like: False)
        plain = run()
    finally:
        torch.set_num_threads(before)
    for first, second, third in zip(native, single, plain, strict=True):
        scale = float(third.abs().max()) + 1e-6
        torch.testing.assert_close(first, third, rtol=0, atol=1e-4 * scale)
        torch.testing.assert_close(second, third, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("PARAMGRAPH_NATIVE", "0", "PyTorch: PARAMGRAPH_NATIVE=0"),
        ("PATH", "", r"PyTorch: no C\+\+ compiler \(g\+\+ or clang\+\+\) is on the path"),
    ],
)
def test_without_compiled_code_the_reason_is_told(variable: str, value: str, reason: str) -> None:
    code = (
        "import torch, paramgraph as pg; from paramgraph.engine import native_status; "
        "print(native_status()); n = torch.nn.Linear(2, 3); g = pg.capture(n, torch.ones(1, 2)); "
        "m = pg.nn.make_metanetwork('ng-gnn', 1); v = g.features(n.state_dict()); "
        "print(m(pg.collate([(g, v)])).isfinite().all().item())"
    )
    environment = {**os.environ, "PARAMGRAPH_NATIVE": "1", variable: value}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    status, result = found.stdout.splitlines()
    assert re.fullmatch(reason, status)
    assert result == "True"


def test_a_compiler_that_fails_is_told_and_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho no such flag >&2; exit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("PARAMGRAPH_NATIVE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, reason = compiling.library.__wrapped__("film")
    assert library is None
    assert reason == f"{compiler} failed: no such flag"
    assert "film is computed by PyTorch" in caplog.text


def test_code_is_not_loaded_from_a_folder_that_others_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "paramgraph").mkdir()
    (tmp_path / "paramgraph").chmod(0o777)
    monkeypatch.delenv("PARAMGRAPH_NATIVE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
    library, reason = compiling.library.__wrapped__("film")
    assert library is None
    assert "can be written by others; code is not loaded from there" in reason


def test_calls_that_make_no_sense_are_refused() -> None:
    batch = pg.collate([pair("mlp", 0)])
    passes = edge_passes(batch, is_reverse=False)
    sources = [EdgeSource(bias=torch.zeros(6, dtype=torch.float64))] * len(passes)
    with pytest.raises(ValueError, match="film_pass needs at least one pass"):
        film_pass([], [], [], None, keeps_state=True)
    with pytest.raises(ValueError, match="cannot reuse states that the backward pass will read"):
        film_pass(passes, sources, [], None, keeps_state=True, reuses_state=True)
    with pytest.raises(ValueError, match="an EdgeSource needs a state or a bias"):
        film_pass(passes, [EdgeSource()] * len(passes), [], None, keeps_state=True)


def test_without_gradients_states_are_reused_and_nothing_changes() -> None:
    batch = pg.collate([pair("mlp", 0), pair("residual_mlp", 1)])
    torch.manual_seed(0)
    metanetwork = pg.nn.make_metanetwork("ng-gnn", 2, hidden_dim=16, edge_state="stored").double()
    metanetwork.eval()
    expected = metanetwork(batch).detach()
    with torch.no_grad():
        first, second = metanetwork(batch), metanetwork(batch)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12)
    assert torch.equal(first, second)
