"""bfloat16 where it is safe, float64, checkpointed layers: what changes, and what must not."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_settings import small_options
from test_configs import own_networks
from tiny_zoos import tiny_inrs
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn import CONFIGS, Metanetwork, make_metanetwork
from paramgraph.tasks import (
    TrainConfig,
    TrainingError,
    check_bfloat16,
    checkpoint_layers,
    evaluate,
    keep_float32,
    train,
)
from paramgraph.tasks.precision import FLOAT32_CLASSES, TOLERANCE, low_precision

# Those that must work; each other one may work, or is refused by name.
SAFE = {
    *("operator", "gmn", "gmn-transformer", "dws", "nft", "dmc", "statnn", "flat-mlp"),
}


@functools.cache
def networks(name: str) -> GraphBatch:
    torch.manual_seed(0)
    return own_networks(name)


def made(name: str) -> Metanetwork:
    torch.manual_seed(0)
    metanetwork = make_metanetwork(name, 3, **small_options(name))
    metanetwork.fit_statistics([networks(name)])
    return metanetwork


def gradients(metanetwork: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in metanetwork.named_parameters()}


# --- bfloat16


@pytest.mark.parametrize("name", CONFIGS)
def test_a_metanetwork_is_safe_in_bfloat16_or_refused_by_name(name: str) -> None:
    metanetwork, batch = made(name), networks(name)
    keep_float32(metanetwork)
    refusal, change = "", math.nan
    try:
        change = check_bfloat16(metanetwork, batch, name=name)
    except TrainingError as error:
        refusal = str(error)
    if refusal:
        assert name not in SAFE, refusal
        assert re.fullmatch(f"{name} (cannot run|is not safe) in .* Use --precision 32.", refusal)
        return
    assert 1e-5 < change <= TOLERANCE  # 0 would mean that nothing ran in bfloat16
    metanetwork.eval()
    with torch.no_grad():
        full = metanetwork(batch)
    with low_precision():
        low = metanetwork(batch)
    low.float().square().mean().backward()
    assert float((low.detach() - full).norm()) <= TOLERANCE * float(full.norm())
    found = gradients(metanetwork)
    assert all(g is None or bool(g.isfinite().all()) for g in found.values())
    assert all(g is None or g.dtype == torch.float32 for g in found.values())


class _Overflow(Metanetwork):
    """Harmless in float32; its output is a small difference of large numbers."""

    def __init__(self, offset: float, *, breaks: bool = False) -> None:
        super().__init__(2)
        self.map = nn.Linear(3, 2)
        self.offset = offset
        self.breaks = breaks

    def forward(self, batch: GraphBatch) -> Tensor:
        read = batch.neuron_values[-batch.num_networks :]
        if self.breaks:
            return read.new_zeros(len(read), 2).index_add(
                0, torch.arange(len(read)), self.map(read)
            )
        return self.map(read + self.offset) - self.map(torch.full_like(read, self.offset)).detach()


def test_a_metanetwork_that_loses_too_much_is_refused_with_the_measured_change() -> None:
    batch = networks("operator")
    with pytest.raises(
        TrainingError, match=r"mine is not safe in bfloat16: .* by \d+.*, more than 5%"
    ):
        check_bfloat16(_Overflow(1000.0), batch, name="mine")
    with pytest.raises(
        TrainingError, match=r"_Overflow cannot run in bfloat16: index_add_.*BFloat16"
    ):
        check_bfloat16(_Overflow(0.0, breaks=True), batch)


def test_the_check_leaves_no_trace() -> None:
    metanetwork = made("operator").train()
    check_bfloat16(metanetwork, networks("operator"))
    assert metanetwork.training
    assert all(gradient is None for gradient in gradients(metanetwork).values())


def test_every_class_that_stays_in_float32_exists_in_some_metanetwork() -> None:
    found = {type(module).__name__ for name in CONFIGS for module in made(name).modules()}
    assert FLOAT32_CLASSES.keys() <= found


def test_modules_in_float32_see_float32_and_change_nothing_else() -> None:
    class NetworkNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return (x @ x.T).float()

    whole = nn.Sequential(nn.Linear(4, 4), NetworkNorm())
    x, before = torch.randn(3, 4), list(whole.state_dict())
    plain = whole(x)
    assert keep_float32(whole) == keep_float32(whole) == 1
    assert torch.equal(whole(x), plain)
    assert list(whole.state_dict()) == before
    with low_precision():
        mapped = whole[0](x)
        found = whole(x)
    assert mapped.dtype == torch.bfloat16
    # In bfloat16 the product would be another one.
    torch.testing.assert_close(found, mapped.float() @ mapped.float().T, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found, (mapped @ mapped.T).float())


# --- checkpointed layers


def _run(name: str, metanetwork: Metanetwork) -> tuple[Tensor, dict[str, Tensor | None], int]:
    """Output, gradients, and bytes that the forward pass keeps for the gradient."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = metanetwork(networks(name))
    num_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    metanetwork.zero_grad()
    output.square().sum().backward()
    return output.detach(), gradients(metanetwork), num_bytes


# Without a list of layers, or with layers that their stack runs in pieces (ng-t, which has tiles).
FLAT = {"probing", "probegen", "dmc", "deepsets", "statnn", "flat-mlp"} | {
    name for name in CONFIGS if name.startswith("ng-t")
}


@pytest.mark.parametrize("name", CONFIGS.keys() - FLAT)
def test_checkpointed_layers_give_the_same_outputs_and_gradients_for_less(name: str) -> None:
    """With dropout: the random numbers of a layer that runs again are those of its first run."""
    metanetwork = made(name).train()
    keys = list(metanetwork.state_dict())
    output, plain, before = _run(name, metanetwork)
    plain = {key: None if g is None else g.clone() for key, g in plain.items()}
    assert checkpoint_layers(metanetwork) == checkpoint_layers(metanetwork) > 1
    again, found, after = _run(name, metanetwork)
    assert list(metanetwork.state_dict()) == keys
    assert torch.equal(again, output)
    for key, gradient in plain.items():
        assert (gradient is None) == (found[key] is None), key
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6)
    assert after < before / 2
    metanetwork.eval()
    with torch.no_grad():
        assert metanetwork(networks(name)).isfinite().all()


@pytest.mark.parametrize("name", sorted(FLAT - {"ng-t-inr-probes"}))
def test_a_metanetwork_without_layers_is_refused(name: str) -> None:
    metanetwork = made(name)
    with pytest.raises(TrainingError, match=f"layers of {type(metanetwork).__name__}: it has no"):
        checkpoint_layers(metanetwork)


def test_changed_metanetworks_can_be_copied_and_keep_both_changes() -> None:
    name = "ng-gnn"
    metanetwork = made(name).train()
    keep_float32(metanetwork)
    checkpoint_layers(metanetwork)
    expected = _run(name, metanetwork)
    for copied in (copy.deepcopy(metanetwork), pickle.loads(pickle.dumps(metanetwork))):
        with torch.no_grad():
            for parameter in metanetwork.parameters():
                parameter.add_(0.0)
        output, found, num_bytes = _run(name, copied)
        assert torch.equal(output, expected[0])
        assert num_bytes <= 1.01 * expected[2]
        assert any(g is not None for g in found.values())  # its own, not those of the original


# --- training

CONFIG = TrainConfig(
    "operator",
    options={"hidden_dim": 8, "num_rounds": 2, "dropout": 0.1},
    epochs=2,
    batch_size=16,
    seed=3,
    num_threads=1,
)


def _train(config: TrainConfig, folder: Path) -> dict[str, dict[str, float]]:
    pytest.importorskip("lightning")
    task = "inr-classification"
    return train(tiny_inrs(), task, config, out=folder, progress=False).metrics


def test_training_in_each_precision_and_with_checkpoints(tmp_path: Path) -> None:
    plain = _train(CONFIG, tmp_path / "32")
    saved = _train(replace(CONFIG, checkpoint_layers=True), tmp_path / "saved")
    assert saved == plain
    losses = {"32": plain["val"]["loss"]}
    for precision, dtype in (("bf16", torch.float32), ("64", torch.float64)):
        folder = tmp_path / precision
        metrics = _train(replace(CONFIG, precision=precision), folder)
        losses[precision] = metrics["val"]["loss"]
        stored = Metanetwork.load_file(folder / "best.safetensors")[0]
        assert {p.dtype for p in stored.parameters()} == {dtype}
        assert evaluate(folder, tiny_inrs(), split="val") == pytest.approx(metrics["val"])
    assert len(set(losses.values())) == 3
    assert losses["bf16"] == pytest.approx(losses["32"], rel=0.02)
    assert losses["64"] == pytest.approx(losses["32"], rel=0.2)  # dropout draws other numbers


def test_training_refuses_what_bfloat16_or_checkpoints_cannot_do(tmp_path: Path) -> None:
    config = replace(CONFIG, metanetwork="scale-gmn", options={"hidden_dim": 8})
    with pytest.raises(TrainingError, match="layers of StatNN"):
        _train(replace(config, metanetwork="statnn", checkpoint_layers=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
