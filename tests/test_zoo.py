"""Zoos: what is written is what is read, batched training is training, and bad input is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paramgraph.errors import ZooError
from paramgraph.zoo import (
    CNN,
    Images,
    Siren,
    Zoo,
    architecture_from_json,
    architecture_to_json,
    digits_cnn_recipe,
    digits_inr_recipe,
    fit_inrs,
    image_points,
    load_images,
    sample_architectures,
    train_classifiers,
)
from paramgraph.zoo.building import ZooBuilder
from paramgraph.zoo.cnn_training import Hyperparameters, StackedTrainer, stacked_forward
from paramgraph.zoo.recipes import _recut
from paramgraph.zoo.siren_fitting import SirenFitter, _fast_sincos

SMALL = Siren(widths=(4, 5), omega=3.0)
RESIDUAL_BATCH = CNN(widths=(4, 4, 4), kernel_sizes=(3, 1, 3), norm="batch", residual=True)
HAZARDS = [
    RESIDUAL_BATCH,
    CNN(widths=(4, 8), kernel_sizes=(5, 3), norm="group", head="flatten", activation="tanh"),
    CNN(widths=(4, 4), kernel_sizes=(3, 3), norm="layer", activation="gelu", image_size=9),
    CNN(in_channels=3, num_classes=4, widths=(5,), kernel_sizes=(1,), activation="elu"),
]


@pytest.fixture(scope="module")
def inrs(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return digits_inr_recipe(tmp_path_factory.mktemp("zoo") / "inrs", scale="tiny", progress=False)


@pytest.fixture(scope="module")
def cnns(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return digits_cnn_recipe(tmp_path_factory.mktemp("zoo") / "cnns", scale="tiny", progress=False)


def _small_zoo(out: Path, **changes: object) -> Zoo:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    arguments: dict = {
        "out": out,
        "architecture": SMALL,
        "num_views": 2,
        "steps": 3,
        "shard_size": 4,
        "split": ["train", "train", "val", "test", "test"],
        "progress": False,
    }
    return fit_inrs(images, torch.arange(5), **{**arguments, **changes})


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- images and architectures ----


def test_digits_have_the_documented_split() -> None:
    digits = load_images("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    assert digits.x_train.dtype == torch.float32
    assert (float(digits.x_train.min()), float(digits.x_train.max())) == (0.0, 1.0)
    assert digits.num_classes == 10


@pytest.mark.parametrize("colour", [False, True])
def test_npz_images_become_nchw_in_0_to_1(tmp_path: Path, colour: bool) -> None:
    rng = np.random.default_rng(0)
    size = (6, 4, 5, 3) if colour else (6, 4, 5)
    x = rng.integers(0, 256, size, dtype=np.uint8)
    y = np.arange(6, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    images = load_images(tmp_path / "a.npz")
    assert images.x_train.shape == (6, 3 if colour else 1, 4, 5)
    expected = x[3, 1, 2, 0] if colour else x[3, 1, 2]
    assert images.x_train[3, 0, 1, 2].item() == pytest.approx(expected / 255)
    assert images.y_test.tolist() == [0, 1]


def test_unsuitable_images_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((3, 4, 4), np.uint8), np.zeros(3, np.int64)
    good = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    cases: list[tuple[dict, str]] = [
        ({"x_train": x.astype(float)}, r"x_train .* got float64 of shape \(3, 4, 4\)"),
        ({"x_test": x[:, 0]}, r"x_test .* got uint8 of shape \(3, 4\)"),
        ({"y_train": y[:2]}, r"y_train to hold 3 integer labels .* shape \(2,\)"),
        ({"x_test": np.zeros((3, 5, 5), np.uint8)}, r"\(1, 4, 4\).* but x_test of \(1, 5, 5\)"),
    ]
    for change, message in cases:
        np.savez(tmp_path / "a.npz", **{**good, **change})
        with pytest.raises(ZooError, match=message):
            load_images(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x_train=x)
    with pytest.raises(ZooError, match="lack the array 'y_train'"):
        load_images(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"nonsense")
    with pytest.raises(ZooError, match=r"cannot read images from .*b\.npz"):
        load_images(tmp_path / "b.npz")
    with pytest.raises(ZooError, match=r"no images at 'no\.npz'"):
        load_images("no.npz")


@pytest.mark.parametrize("spec", [SMALL, *HAZARDS], ids=lambda spec: spec.name)
def test_architectures_survive_json_and_build(spec: CNN | Siren) -> None:
    again = architecture_from_json(json.loads(json.dumps(architecture_to_json(spec))))
    assert again == spec
    network = again.build()
    network(*spec.example_inputs()).sum().backward()
    drawn = spec.sample_parameters(2)
    assert {k: v[0].shape for k, v in drawn.items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_drawn_and_built_initial_weights_have_one_law() -> None:
    for spec in (Siren(widths=(64, 64)), CNN(widths=(24, 24), kernel_sizes=(3, 3))):
        drawn = spec.sample_parameters(1)
        for name, value in spec.build().state_dict().items():
            if value.numel() >= 24:  # else the largest value says little about the bound
                ratio = float(value.abs().max() / drawn[name].abs().max())
                assert 0.7 < ratio < 1.4, name


def test_initial_siren_weights_fill_the_bounds_of_the_paper() -> None:
    state = Siren(widths=(24, 24), omega=7.0).sample_parameters(200)
    bounds = {"0.weight": 1 / 2, "1.weight": (6 / 24) ** 0.5 / 7, "2.weight": (6 / 24) ** 0.5 / 7}
    bounds |= {"0.bias": 2**-0.5, "1.bias": 24**-0.5, "2.bias": 24**-0.5}
    for name, bound in bounds.items():
        value = state[f"layers.{name}"]
        assert 0.95 * bound < float(value.max()) <= bound
        assert -bound <= float(value.min()) < -0.95 * bound


def test_names_differ_between_all_architectures() -> None:
    specs = sample_architectures(60, seed=3)
    changed = [dataclasses.replace(s, residual=not s.residual) for s in specs]
    assert len({s.name for s in specs}) == 60
    assert len({s.name for s in [*specs, *changed]}) == len({*specs, *changed})


def test_unsuitable_architectures_are_refused() -> None:
    with pytest.raises(ZooError, match=r"activation to be one of relu.*got 'cube'"):
        CNN(activation="cube")
    with pytest.raises(ZooError, match=r"3 odd numbers.*got \(3, 4, 3\)"):
        CNN(kernel_sizes=(3, 4, 3))
    with pytest.raises(ZooError, match=r"divisible by 4, got \(16, 6, 16\)"):
        CNN(widths=(16, 6, 16), norm="group")
    with pytest.raises(ZooError, match="omega to be positive a number, got 0"):
        Siren(omega=0)
    with pytest.raises(ZooError, match="unknown architecture kind 'rnn'"):
        architecture_from_json({"kind": "rnn"})
    data = {**architecture_to_json(SMALL), "code": "evil"}
    del data["omega"]
    with pytest.raises(ZooError, match=r"missing \['omega'\], additional \['code'\]"):
        architecture_from_json(data)


# ---- batched training equals one at a time ----


def test_inrs_fitted_together_equal_one_fitted_alone(float64: torch.dtype) -> None:
    steps, lr = 12, 1e-2
    points = image_points(5, 6).double()
    targets = torch.rand(7, 30, 2)
    spec = Siren(widths=(6, 5, 4), out_dim=2, omega=5.0)
    state = {name: value.double() for name, value in spec.sample_parameters(7).items()}
    start = {name: value.clone() for name, value in state.items()}
    fitter = SirenFitter.create(spec, points, num=7, stack_size=7, steps=steps, lr=lr)
    # Two micro-batches, the second one filled up with repeats.
    fitter = dataclasses.replace(fitter, micro_batch=4)
    errors = fitter.fit(state, targets)
    for i in (0, 6):
        network = spec.build().double()
        network.load_state_dict({name: value[i] for name, value in start.items()})
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(network(points), targets[i]).backward()
            optimizer.step()
            schedule.step()
        for name, value in network.state_dict().items():
            torch.testing.assert_close(state[name][i], value, rtol=1e-8, atol=1e-8)
        loss = F.mse_loss(network(points), targets[i])
        torch.testing.assert_close(errors[i], loss.detach(), rtol=1e-8, atol=1e-10)
    assert not torch.allclose(state["layers.1.weight"], start["layers.1.weight"], atol=1e-3)


def test_fast_sine_and_cosine_are_exact_to_a_few_roundings() -> None:
    z = torch.linspace(-500, 500, 100_001)
    sine, cosine = _fast_sincos(z)
    assert (sine - z.double().sin()).abs().max() < 1e-6
    assert (cosine - z.double().cos()).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
def test_compiled_fitting_equals_plain_fitting() -> None:
    points, targets = image_points(8, 8), torch.rand(6, 64, 1)
    spec = Siren(widths=(8, 8), omega=3.0)
    results = []
    for compile in (False, True):
        state = spec.sample_parameters(6, torch.Generator().manual_seed(0))
        fitter = SirenFitter.create(
            spec, points, num=6, stack_size=6, steps=20, lr=1e-2, compile=compile
        )
        assert fitter.is_compiled == compile
        fitter.fit(state, targets)
        results.append(state)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-3)


def test_without_a_compiler_fitting_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("backend raised:\nno C++ compiler found")

    def create(compile: bool | None) -> SirenFitter:
        arguments: dict = {"num": 6, "stack_size": 6, "steps": 2, "lr": 1e-2}
        return SirenFitter.create(SMALL, image_points(4, 4), compile=compile, **arguments)

    monkeypatch.setattr(torch, "compile", lambda step, **kwargs: refuse)
    monkeypatch.setattr("paramgraph.zoo.siren_fitting._COMPILE_FROM", 0.0)
    with pytest.warns(UserWarning, match=r"\(backend raised: no C\+\+ compiler found\)"):
        assert not create(None).is_compiled
    monkeypatch.setattr("warnings.warn", lambda *args, **kwargs: None)
    with pytest.raises(ZooError, match=r"compile=True: torch\.compile does not work here"):
        create(True)


@pytest.mark.parametrize("spec", HAZARDS, ids=lambda spec: spec.name)
def test_stacked_cnns_compute_what_each_network_computes(spec: CNN, float64: torch.dtype) -> None:
    networks = [spec.build().double() for _ in range(3)]
    state = {
        name: torch.stack([network.state_dict()[name] for network in networks])
        for name in networks[0].state_dict()
    }
    x = torch.rand(6, 3, spec.in_channels, spec.image_size, spec.image_size)
    for training in (True, False):  # the second round sees the running statistics of the first
        logits = stacked_forward(spec, state, x, training=training)
        for i, network in enumerate(networks):
            expected = network.train(training)(x[:, i])
            torch.testing.assert_close(logits[i], expected, rtol=1e-10, atol=1e-10)
            for name, value in network.state_dict().items():
                torch.testing.assert_close(state[name][i], value, rtol=1e-10, atol=1e-10)


def test_a_cnn_trained_among_others_equals_one_trained_alone(float64: torch.dtype) -> None:
    num, steps, batch = 3, 8, 10
    settings = Hyperparameters.sample(num, np.random.default_rng(0))
    settings = dataclasses.replace(
        settings,
        uses_adam=np.array([True, False, True]),
        learning_rate=np.array([1e-2, 1e-3, 1e-2]),
        weight_decay=np.array([0.5, 0.1, 0.0]),
    )
    spec = RESIDUAL_BATCH
    state = spec.sample_parameters(num)
    state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    # The last network has large weights, so that its gradient is clipped.
    for name in ("convs.1.weight", "head.weight"):
        state[name][2] *= 20
    start = {name: value.clone() for name, value in state.items()}
    trainer = StackedTrainer(spec, state, settings)
    x = torch.rand(steps, batch, num, 1, 8, 8)
    y = torch.randint(0, 10, (steps, num, batch))
    for step in range(steps):
        trainer.step(x[step], y[step])
    was_clipped = []
    for i in range(num):
        network = spec.build().double()
        network.load_state_dict({name: value[i] for name, value in start.items()})
        parameters = list(network.parameters())
        lr, decay = float(settings.learning_rate[i]), float(settings.weight_decay[i])
        adam = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
        means = [torch.zeros_like(p) for p in parameters]
        for step in range(steps):
            network.zero_grad()
            F.cross_entropy(network(x[step, :, i]), y[step, i]).backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            was_clipped.append(bool(norm > 5.0))
            if settings.uses_adam[i]:
                adam.step()
                continue
            with torch.no_grad():
                for mean, p in zip(means, parameters, strict=True):
                    assert p.grad is not None
                    mean.mul_(0.9).add_(0.1 * p.grad)
                    p.mul_(1 - 10 * lr * decay).sub_(10 * lr * mean / (1 - 0.9 ** (step + 1)))
        for name, value in network.state_dict().items():
            torch.testing.assert_close(state[name][i], value, rtol=1e-5, atol=1e-8)
    assert any(was_clipped)
    assert not all(was_clipped)


# ---- what is written is what is read ----


def test_recorded_psnr_is_that_of_the_network_read_back(inrs: Zoo) -> None:
    digits = load_images("digits")
    images = torch.cat([digits.x_train[:36], digits.x_test[:12]])
    for i in (0, 1, 50, len(inrs) - 1):
        y = inrs.network(i)(image_points(8, 8)).detach().flatten()
        target = images[inrs.column("image")[i]].flatten()
        psnr = -10 * float(((y - target) ** 2).mean().log10())
        assert psnr == pytest.approx(inrs.column("psnr")[i], abs=1e-3)
    assert inrs.info["conventions"]["omega"] == 3.0


def test_recorded_accuracy_is_that_of_the_network_read_back(cnns: Zoo) -> None:
    digits = _recut(load_images("digits"), num_train=797, seed=0)
    for i in range(0, len(cnns), 7):
        predicted = cnns.network(i)(digits.x_test).argmax(1)
        accuracy = float((predicted == digits.y_test).double().mean())
        assert accuracy == pytest.approx(cnns.column("test_accuracy")[i], abs=0.003)


def test_views_stacks_and_single_networks_agree(cnns: Zoo) -> None:
    order = np.random.default_rng(0).permutation(len(cnns))[:17]
    view = cnns.select(order)
    seen = []
    for name, (positions, stacked) in view.stacked().items():
        for row, position in enumerate(positions.tolist()):
            seen.append(position)
            assert view.column("architecture")[position] == name
            for other in (view.state_dict(position), cnns.state_dict(order[position])):
                assert sorted(other) == sorted(stacked)
                for key, value in other.items():
                    assert torch.equal(value, stacked[key][row])
    assert sorted(seen) == list(range(17))


def test_a_zoo_is_the_same_opened_again(cnns: Zoo) -> None:
    again = Zoo.open(cnns.path)
    assert again.columns == cnns.columns
    for name in cnns.columns:
        assert np.array_equal(again.column(name), cnns.column(name))
    assert again.architectures == cnns.architectures
    assert len(again) == again.info["counts"]["networks"] == 3 * 6 * 2
    assert "36 networks of 18 parents, 3 architectures" in again.summary()
    assert "test_accuracy" in again.summary()


def test_reading_leaves_the_callers_random_numbers_alone(cnns: Zoo) -> None:
    before = torch.get_rng_state()
    cnns.network(0)
    cnns.stacked()
    assert torch.equal(torch.get_rng_state(), before)


def test_splits_keep_parents_together(cnns: Zoo, inrs: Zoo) -> None:
    for zoo in (cnns, inrs):
        parents = {s: set(zoo.split(s).column("parent").tolist()) for s in ("train", "val", "test")}
        assert sum(len(p) for p in parents.values()) == len(set.union(*parents.values()))
        assert sum(len(zoo.split(s)) for s in parents) == len(zoo)
    unseen = cnns.select(cnns.column("unseen_architecture"))
    assert set(unseen.column("split")) == {"test"}
    assert set(unseen.column("architecture")).isdisjoint(cnns.split("train").column("architecture"))
    counts = np.unique(cnns.select(cnns.column("parent") < 6).column("split"), return_counts=True)
    assert dict(zip(*counts, strict=True)) == {"test": 2, "val": 2, "train": 8}
    assert inrs.split("test").column("image").min() == 36  # never a training image


def test_runs_and_views_differ(cnns: Zoo, inrs: Zoo) -> None:
    for zoo in (cnns, inrs):
        for _, stacked in zoo.stacked().values():
            weights = next(value for key, value in stacked.items() if key.endswith("0.weight"))
            assert len(torch.unique(weights.flatten(1), dim=0)) == len(weights)
    assert len(set(cnns.column("learning_rate"))) == 18


# ---- same seed, kill and resume ----


def test_inrs_of_different_shards_start_differently(tmp_path: Path) -> None:
    zoo = _small_zoo(tmp_path / "zoo", lr=1e-30)  # so small that the weights stay where they began
    (_, stacked), *_ = zoo.stacked().values()
    assert len(torch.unique(stacked["layers.0.weight"].flatten(1), dim=0)) == len(zoo) == 10


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    first, second = _small_zoo(tmp_path / "a"), _small_zoo(tmp_path / "b")
    assert _content(first.path) == _content(second.path)
    third = _small_zoo(tmp_path / "c", seed=1)
    name = "weights-00000.safetensors"
    assert _content(first.path)[name] != _content(third.path)[name]


@pytest.mark.parametrize("kind", ["inrs", "classifiers"])
def test_a_killed_build_resumes_to_the_same_bytes(kind: str, tmp_path: Path) -> None:
    def build() -> Zoo:
        if kind == "inrs":
            return _small_zoo(tmp_path / "zoo")
        return digits_cnn_recipe(tmp_path / "zoo", scale="tiny", progress=False)

    folder = build().path
    clean = _content(folder)
    kept = (folder / "weights-00000.safetensors").stat().st_mtime_ns
    info = json.loads(clean["zoo.json"])
    (folder / "zoo.json").write_text(json.dumps({**info, "counts": None}))
    (folder / "networks.parquet").unlink()
    (folder / "weights-00001.json").unlink()
    weights = folder / "weights-00002.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3] + b"abc")
    with pytest.raises(ZooError, match=r"is not finished\. Run the same build again"):
        Zoo.open(folder)
    build()
    assert _content(folder) == clean
    assert (folder / "weights-00000.safetensors").stat().st_mtime_ns == kept  # not done twice


def test_continuing_with_another_recipe_is_refused(tmp_path: Path) -> None:
    folder = _small_zoo(tmp_path / "zoo").path
    before = _content(folder)
    with pytest.raises(ZooError, match=r"begun with steps = 3, this call has 4"):
        _small_zoo(folder, steps=4)
    with pytest.raises(ZooError, match=r"begun with split = "):
        _small_zoo(folder, split=["train"] * 5)
    with pytest.raises(ZooError, match=r"holds another zoo.*conventions|architectures"):
        _small_zoo(folder, architecture=Siren(widths=(4, 6), omega=3.0))
    assert _content(folder) == before


def test_diverged_networks_are_kept_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = SirenFitter.fit

    def fit_badly(
        self: SirenFitter,
        state: dict[str, Tensor],
        targets: Tensor,
        on_progress: Callable[[int], None],
    ) -> Tensor:
        errors = fit(self, state, targets, on_progress)
        errors[1] = torch.nan
        return errors

    monkeypatch.setattr(SirenFitter, "fit", fit_badly)
    zoo = _small_zoo(tmp_path / "zoo")  # 10 INRs in shards of 4, 4 and 2
    assert (len(zoo), zoo.info["counts"]["dropped"]) == (7, 3)
    rows = list(zip(zoo.column("image").tolist(), zoo.column("view").tolist(), strict=True))
    assert rows == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 0)]
    (positions, stacked), *_ = zoo.stacked().values()
    assert len(positions) == len(stacked["layers.0.weight"]) == 7


def test_diverged_classifiers_are_kept_out_with_all_their_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Hyperparameters.sample

    def sample_one_impossible(num: int, rng: np.random.Generator) -> Hyperparameters:
        settings = sample(num, rng)
        settings.init_gain[2] = np.inf
        return settings

    monkeypatch.setattr(Hyperparameters, "sample", sample_one_impossible)
    zoo = train_classifiers(
        load_images("digits"),
        [RESIDUAL_BATCH],
        num_per_architecture=4,
        out=tmp_path / "zoo",
        steps=3,
        checkpoints=(0, 3),
        progress=False,
    )
    assert zoo.column("parent").tolist() == [0, 0, 1, 1, 3, 3]
    assert zoo.info["counts"]["dropped"] == 2
    assert np.isfinite(zoo.column("test_loss")).all()  # the others are not touched by it


# ---- bad folders and bad arguments ----


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-50])

    return damage


def _set_info(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        info = json.loads((folder / "zoo.json").read_text())
        (folder / "zoo.json").write_text(json.dumps({**info, **changes}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("zoo.json"), r"is not a zoo: it has no file 'zoo\.json'"),
        (_drop("architectures.json"), r"is not a zoo: it has no file 'architectures\.json'"),
        (_drop("networks.parquet"), r"cannot read the index 'networks\.parquet'"),
        (_drop("weights-00001.json"), r"it has no file 'weights-00001\.json'"),
        (_drop("weights-00001.safetensors"), r"'weights-00001\.safetensors' are missing"),
        (_truncate("weights-00001.safetensors"), r"expected \d+ bytes and 4 rows, got \d+ bytes"),
        (_truncate("networks.parquet"), r"cannot read the index 'networks\.parquet'"),
        (_truncate("zoo.json"), r"cannot read 'zoo\.json'"),
        (_set_info(format_version=99), "expected format version 1, got 99"),
        (_set_info(counts=None), "is not finished"),
    ],
)
def test_a_damaged_zoo_is_not_opened(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = _small_zoo(tmp_path / "zoo").path
    damage(folder)
    with pytest.raises(ZooError, match=message):
        Zoo.open(folder)


def test_weights_of_another_architecture_are_noticed(tmp_path: Path) -> None:
    folder = _small_zoo(tmp_path / "zoo").path
    specs = json.loads((folder / "architectures.json").read_text())
    specs[SMALL.name]["widths"] = [4, 6]
    (folder / "architectures.json").write_text(json.dumps(specs))
    with pytest.raises(
        ZooError, match=r"'layers.1.weight' has shape \(4, 5, 4\); expected \(6, 4\)"
    ):
        Zoo.open(folder).stacked()


def test_an_empty_zoo_is_refused(tmp_path: Path) -> None:
    builder = ZooBuilder(
        tmp_path / "zoo", kind="inrs", recipe={}, architectures=[SMALL], conventions={}
    )
    nothing: dict[str, Tensor] = SMALL.sample_parameters(0)
    columns = {name: np.zeros(0, np.int64) for name in ("parent", "step", "split", "seed")}
    builder.commit("weights-00000", SMALL, nothing, columns, num_dropped=4)
    with pytest.raises(ZooError, match=r"is empty: its index 'networks\.parquet' has 0 rows"):
        builder.finish(["weights-00000"])


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ZooError, match="is not an empty folder or an unfinished zoo"):
        _small_zoo(tmp_path)
    with pytest.raises(ZooError, match=r"note\.txt': it exists and is not"):
        _small_zoo(tmp_path / "note.txt")
    with pytest.raises(ZooError, match=r"cannot create the folder '.*note\.txt/zoo'"):
        _small_zoo(tmp_path / "note.txt" / "zoo")
    assert _content(tmp_path) == {"note.txt": b"mine"}


def test_unknown_columns_splits_and_positions_name_what_there_is(inrs: Zoo) -> None:
    with pytest.raises(ZooError, match=r"no column 'colour'.*label"):
        inrs.column("colour")
    with pytest.raises(ZooError, match=r"no networks in split 'dev'.*'test' \(24\)"):
        inrs.split("dev")
    with pytest.raises(ZooError, match=r"expected a network in 0\.\.95, got 96"):
        inrs.network(96)
    with pytest.raises(ZooError, match=r"expected positions in 0\.\.95, got -1\.\.3"):
        inrs.select([3, -1])
    with pytest.raises(ZooError, match=r"mask of 96 booleans, got shape \(3,\)"):
        inrs.select(np.array([True, False, True]))
    with pytest.raises(ZooError, match="one of tiny, demo, got 'huge'"):
        digits_inr_recipe("never", scale="huge")


def test_unsuitable_arguments_of_fit_inrs_are_refused(tmp_path: Path) -> None:
    images, labels = torch.rand(3, 1, 4, 4), torch.arange(3)
    cases: list[tuple[Tensor, Tensor, dict, str]] = [
        (images[0], labels, {}, r"got torch.float32 of shape \(1, 4, 4\)"),
        (images * 255, labels, {}, r"pixel values in 0\.\.1, got .*\.\.2"),
        (images, labels[:2], {}, r"3 whole-number labels.*shape \(2,\)"),
        (images.expand(3, 3, 4, 4), labels, {}, "3 channels need .* out_dim 3, got 'siren-2x32"),
        (images, labels, {"split": ["train"] * 2}, "expected 3 entries in split"),
        (images, labels, {"split": ["train", "dev", "test"]}, "train, val, test, got 'dev'"),
        (images, labels, {"steps": 0}, "expected steps to be positive, got 0"),
    ]
    for x, y, changes, message in cases:
        with pytest.raises(ZooError, match=message):
            fit_inrs(x, y, out=tmp_path / "zoo", progress=False, **changes)
    assert not (tmp_path / "zoo").exists()


def test_unsuitable_arguments_of_train_classifiers_are_refused(tmp_path: Path) -> None:
    digits, spec = load_images("digits"), CNN()
    cases: list[tuple[Images, list[CNN], dict, str]] = [
        (digits, [], {}, "expected at least one architecture"),
        (digits, [CNN(image_size=28)], {}, r"images of shape \(1, 28, 28\).*\(1, 8, 8\)"),
        (digits, [spec], {"checkpoints": (20, 10)}, r"ascending steps in 0\.\.20, got \(20, 10\)"),
        (digits, [spec], {"checkpoints": (30,)}, r"ascending steps in 0\.\.20, got \(30,\)"),
        (digits, [spec], {"num_unseen_architectures": 1}, r"in 0\.\.0, got 1"),
        (digits, [spec], {"val_fraction": 0.9}, "got 0.9 and 0.2"),
        (digits, [spec, spec], {}, "2 architectures: only 1 are different"),
    ]
    for images, specs, changes, message in cases:
        arguments: dict = {"num_per_architecture": 2, "steps": 20, "progress": False, **changes}
        with pytest.raises(ZooError, match=message):
            train_classifiers(images, specs, out=tmp_path / "zoo", **arguments)
    assert not (tmp_path / "zoo").exists()
