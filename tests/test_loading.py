"""Mini-batches made in turn or by workers: the same numbers, and little to hand over."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_zoos import tiny_cnns, tiny_inrs
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.cli import main
from paramgraph.errors import CheckpointError
from paramgraph.graph import ParamGraph
from paramgraph.nn import make_metanetwork
from paramgraph.tasks import (
    Batches,
    BatchMaker,
    BudgetOrder,
    EpochOrder,
    LoadedNetworks,
    TrainConfig,
    capture_zoo,
    load_networks,
    train,
)
from paramgraph.tasks.data import _is_finite
from paramgraph.tasks.packing import pack, unpack


@functools.cache
def networks() -> LoadedNetworks:
    zoo = tiny_cnns()
    return load_networks(zoo, "test_accuracy", capture_zoo(zoo))


def same(first: Any, second: Any) -> bool:
    """Equal in every field, down to the last tensor."""
    if isinstance(first, ParamGraph):
        return first is second
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, tuple):
        pairs = zip(first, second, strict=True)
        return len(first) == len(second) and all(same(a, b) for a, b in pairs)
    if hasattr(first, "__dataclass_fields__"):
        return all(same(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    return bool(first == second)


def through_a_buffer(batch: GraphBatch) -> tuple[GraphBatch, int, int]:
    number_of = {graph.function_key: i for i, graph in enumerate(networks().graphs)}
    packed = pack(batch, torch.arange(batch.num_networks), number_of)
    again = unpack(packed, networks().graphs, "cpu")
    return again, len(packed.structure), len(packed.tensors)


@pytest.mark.parametrize("numbers", [range(36), [3], [35, 0, 20, 13]])
def test_a_batch_comes_out_of_the_buffer_as_it_went_in(numbers: Any) -> None:
    batch, _ = networks().batch(torch.tensor(list(numbers)))
    again, structure, tensors = through_a_buffer(batch)
    assert same(batch, again)
    assert structure < 30_000  # no graph in it, no weights
    weights = sum(bucket.values.nbytes for bucket in batch.buckets)
    assert weights < tensors
    changed = replace(batch, neuron_values=batch.neuron_values + 1)
    assert not same(changed, again)


def test_views_of_one_memory_are_told_apart() -> None:
    x = torch.randn(3, 3)
    batch, _ = networks().batch(torch.tensor([0]))
    batch = replace(batch, neuron_values=x, neuron_has=x.T, phase=x.flatten(), power=x.flatten())
    again, *_ = through_a_buffer(batch)
    assert same(batch, again)
    assert again.phase.data_ptr() == again.power.data_ptr()  # sent once


def test_a_metanetwork_cannot_tell_which_way_a_batch_came() -> None:
    batch, _ = networks().batch(torch.arange(36))
    again, *_ = through_a_buffer(batch)
    for name in ("operator", "ng-gnn", "gmn", "statnn"):
        metanetwork = make_metanetwork(name, 2, hidden_dim=8).eval()
        assert torch.equal(metanetwork(batch), metanetwork(again))


def maker(*, seed: int = 1, rank: int = 0, **augmentation: Any) -> BatchMaker:
    return BatchMaker(networks(), seed=seed, rank=rank, **augmentation)


AUGMENTED: dict[str, Any] = {"weight_noise": 0.1, "sign_flips": True}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_make_the_batches_that_would_be_made_in_turn(num_workers: int) -> None:
    """In each epoch, in the order of the steps, augmentation included."""
    loaded, seen = networks(), []
    order = BudgetOrder(loaded.architecture, loaded.graphs, max_edges=3000, seed=2)
    by_workers = Batches(maker(**AUGMENTED), order, num_workers=num_workers)
    in_turn = Batches(maker(**AUGMENTED), order)
    assert len(by_workers) == len(in_turn) == len(order) > 2
    for epoch in (0, 3):
        order.set_epoch(epoch)
        for made, expected in zip(by_workers, in_turn, strict=True):
            assert torch.equal(made.numbers, expected.numbers)
            assert same(made.batch, expected.batch)
            seen.append(tuple(made.numbers.tolist()))
    assert sorted(n for numbers in seen for n in numbers) == sorted([*range(36), *range(36)])


def test_iterating_asks_for_the_epoch_at_the_first_batch() -> None:
    """Lightning makes the iterator before it says which epoch begins."""
    order = EpochOrder(networks().architecture, 8, seed=0)
    started = iter(Batches(maker(), order))
    order.set_epoch(5)
    first = next(started).numbers.tolist()
    assert sorted(first) == sorted(next(iter(order)))
    order.set_epoch(0)
    assert sorted(first) != sorted(next(iter(order)))


def test_augmentation_is_a_function_of_seed_epoch_step_and_process() -> None:
    from paramgraph.tasks.loading import Job

    job = Job(2, 3, [4, 5])
    same_numbers = maker(**AUGMENTED).make(job).batch
    torch.manual_seed(99)  # nothing that others draw matters
    assert same(same_numbers, maker(**AUGMENTED).make(job).batch)
    for other in (
        maker(**AUGMENTED).make(job._replace(epoch=1)),
        maker(**AUGMENTED).make(job._replace(step=1)),
        maker(rank=1, **AUGMENTED).make(job),
        maker(seed=7, **AUGMENTED).make(job),
    ):
        assert not torch.equal(same_numbers.neuron_values, other.batch.neuron_values)
    assert same(maker().make(job).batch, networks().batch(torch.tensor([4, 5]))[0])


def test_an_error_in_a_worker_reaches_the_user() -> None:
    order = EpochOrder(torch.zeros(40, dtype=torch.long), 8, seed=0)  # four networks too many
    with pytest.raises(IndexError, match=r"index 3[6-9] is out of bounds"):
        list(Batches(maker(), order, num_workers=1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_found(bad: float) -> None:
    values = torch.randn(1000)
    assert _is_finite(values)
    values[517] = bad
    assert not _is_finite(values)
    assert _is_finite(torch.empty(3, 0))


@pytest.mark.parametrize(("batch_size", "max_edges"), [(7, 10**9), (100, 2000), (100, 10)])
def test_batches_for_reading_stay_within_both_limits(batch_size: int, max_edges: int) -> None:
    loaded, seen, sizes = networks(), [], []
    for batch, numbers in loaded.batches(batch_size, max_edges=max_edges):
        sizes.append((batch.num_networks, batch.num_edges))
        seen += numbers.tolist()
    assert sorted(seen) == list(range(36))
    assert all(num == 1 or edges <= max_edges for num, edges in sizes)
    assert max(num for num, _ in sizes) <= batch_size
    # None could have been joined to the next one.
    for (num, edges), (other, more) in itertools.pairwise(sizes):
        assert num == batch_size or edges + more / other > max_edges


# --- training

CONFIG = TrainConfig(
    "operator",
    options={"hidden_dim": 8, "num_rounds": 1, "dropout": 0.1},
    epochs=3,
    max_edges=4000,
    weight_noise=0.05,
    sign_flips=True,
    seed=3,
    num_threads=1,
)


def _train(config: TrainConfig, folder: Path, **options: Any) -> bytes:
    pytest.importorskip("lightning")
    train(tiny_inrs(), "inr-classification", config, out=folder, progress=False, **options)
    return (folder / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The losses of an undisturbed run by budget."""
    return _train(CONFIG, tmp_path_factory.mktemp("runs") / "undisturbed")


def test_a_run_with_a_worker_is_the_same_run(curve: bytes, tmp_path: Path) -> None:
    assert _train(replace(CONFIG, num_workers=1), tmp_path / "run") == curve


def test_a_run_by_budget_is_resumed_as_it_was(
    curve: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paramgraph.tasks import lightning

    end_of_epoch = lightning._Module.on_train_epoch_end

    def killed(module: Any) -> None:
        if module.current_epoch == 1:
            raise RuntimeError("killed")
        end_of_epoch(module)

    folder, config = tmp_path / "run", replace(CONFIG, num_workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(lightning._Module, "on_train_epoch_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            _train(config, folder)
    torch.manual_seed(1234)
    assert _train(config, folder, resume=True) == curve


def test_settings_that_an_older_version_lacked_have_their_defaults(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", replace(CONFIG, epochs=1)
    _train(config, folder)
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in stored.items() if k != "num_processes"}))
    _train(config, folder, resume=True)
    path.write_text(json.dumps({k: v for k, v in stored.items() if k != "max_edges"}))
    with pytest.raises(CheckpointError, match=r"'max_edges': \(0, 4000\)"):
        _train(config, folder, resume=True)


# --- the command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "16"], "expected --precision 32, bf16, 64, got '16'"),
        (["--max-edges", "-1"], "expected --max-edges of at least 0, got -1"),
        (["--num-workers", "-2"], "expected --num-workers of at least 0, got -2"),
        (["--num-processes", "0"], "expected --num-processes above 0, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--zoo", "nowhere", "--task", "inr-classification", "--out", str(tmp_path)]
    assert main([*words, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_teaches_budgets_and_processes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--max-edges 50000 fills each step up to 50,000 edges" in told
    assert "torchrun --nproc-per-node 2 -m paramgraph train" in told
    assert "Processes that make the next mini-batches meanwhile" in told
