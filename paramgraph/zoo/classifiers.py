"""Builds zoos of image classifiers that were trained well, badly, and everything between."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from paramgraph.errors import ZooError
from paramgraph.zoo.building import ZooBuilder, derive_seed, digest, show_progress
from paramgraph.zoo.checks import require_numbers
from paramgraph.zoo.cnn import ACTIVATION_NAMES, CNN
from paramgraph.zoo.cnn_training import Hyperparameters, StackedTrainer
from paramgraph.zoo.format import Zoo
from paramgraph.zoo.images import Images
from paramgraph.zoo.threads import run_in_threads

__all__ = ["sample_architectures", "train_classifiers"]

_MAX_EVAL_IMAGES = 1000  # per set; more would cost as much as the training


def train_classifiers(
    images: Images,
    architectures: Sequence[CNN],
    *,
    num_per_architecture: int,
    out: str | os.PathLike[str],
    steps: int = 300,
    checkpoints: Sequence[int] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    num_unseen_architectures: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    progress: bool = True,
) -> Zoo:
    """Train many classifiers, all of one architecture at once, and keep them as a zoo.

    Every run has its own initial weights, its own order of images, and its own settings from wide
    ranges (see :class:`~paramgraph.zoo.cnn_training.Hyperparameters`), so test accuracies spread
    from chance to the best. The gradient of each network is clipped to norm 5; a run whose weights
    or losses are not finite at some checkpoint is kept out as a whole and counted. A killed build
    continues when the same call is made again, and ends in the same bytes.

    Columns of the zoo: ``test_accuracy``, ``test_loss``, ``train_accuracy`` (true labels; at most
    1,000 images of each set); the settings; ``parent`` (training run), ``step``, ``split``,
    ``unseen_architecture``, ``seed`` (of the architecture's shard).

    Args:
        images: What to classify.
        architectures: One shard each.
        num_per_architecture: Training runs per architecture.
        out: Folder of the zoo: new, empty, or an unfinished build of the same zoo.
        steps: Number of training steps.
        checkpoints: Steps after which weights are kept, ascending (0 is the start); only the end if
            None.
        batch_size: Images per step and network.
        seed: Everything random follows from it.
        num_unseen_architectures: So many architectures, the last ones, are in split ``"test"``
            with all their runs, marked by ``unseen_architecture``.
        val_fraction: Fraction of the runs of each other architecture in split ``"val"``.
        test_fraction: The same for ``"test"``.
        progress: Show a progress bar.

    Returns:
        The finished zoo: ``num_per_architecture * len(checkpoints)`` rows per architecture, less
        the diverged ones.

    Raises:
        ZooError: Arguments do not fit together, or ``out`` cannot be used.
    """
    checkpoints = tuple(checkpoints) if checkpoints is not None else (steps,)
    require_numbers(num_per_architecture=num_per_architecture, steps=steps, batch_size=batch_size)
    _check_arguments(images, architectures, steps, checkpoints, num_unseen_architectures)
    if not (0 <= val_fraction and 0 <= test_fraction and val_fraction + test_fraction <= 1):
        raise ZooError(
            "train_classifiers: expected val_fraction and test_fraction from 0 up with a sum of at "
            f"most 1, got {val_fraction} and {test_fraction}."
        )
    builder = ZooBuilder(
        out,
        kind="classifiers",
        architectures=architectures,
        recipe={
            "source": images.name,
            "images": digest(images.x_train, images.y_train, images.x_test, images.y_test),
            "order": [spec.name for spec in architectures],
            "num_per_architecture": num_per_architecture,
            "steps": steps,
            "checkpoints": checkpoints,
            "batch_size": batch_size,
            "seed": seed,
            "num_unseen_architectures": num_unseen_architectures,
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
        },
        conventions={"value_range": [0.0, 1.0], "layout": "NCHW"},
    )
    shards = [f"weights-{index:05d}" for index in range(len(architectures))]
    todo = [index for index, shard in enumerate(shards) if not builder.is_done(shard)]
    num_todo = len(todo) * num_per_architecture * steps
    with show_progress("Training classifiers", num_todo, "steps", enabled=progress) as advance:

        def work(index: int) -> None:
            spec, num = architectures[index], num_per_architecture
            shard_seed = derive_seed(seed, index)
            rng = np.random.default_rng(shard_seed)
            settings = Hyperparameters.sample(num, rng)
            unseen = index >= len(architectures) - num_unseen_architectures
            split = _draw_split(num, val_fraction, test_fraction, rng)
            if unseen:
                split[:] = "test"
            stages = _train(spec, images, settings, steps, checkpoints, batch_size, rng, advance)
            weights = {name: torch.stack([s[0][name] for s in stages], 1) for name in stages[0][0]}
            metrics = {name: np.stack([s[1][name] for s in stages], 1) for name in stages[0][1]}
            alive = np.all([np.isfinite(m).all(1) for m in metrics.values()], axis=0)
            for value in weights.values():
                alive &= torch.isfinite(value.flatten(1)).all(1).numpy()
            per_run = {
                **settings.columns(),
                "parent": index * num + np.arange(num),
                "split": split,
                "unseen_architecture": np.full(num, unseen),
                "seed": np.full(num, shard_seed),
            }
            columns = {
                name: np.repeat(value[alive], len(checkpoints)) for name, value in per_run.items()
            }
            columns |= {name: value[alive].reshape(-1) for name, value in metrics.items()}
            columns["step"] = np.tile(checkpoints, int(alive.sum()))
            builder.commit(
                shards[index],
                spec,
                {name: value[alive].flatten(0, 1) for name, value in weights.items()},
                columns,
                num_dropped=int((~alive).sum()) * len(checkpoints),
            )

        run_in_threads(work, todo)
    return builder.finish(shards)


def sample_architectures(
    num: int,
    *,
    seed: int = 0,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 8,
    activations: Sequence[str] = ACTIVATION_NAMES,
) -> list[CNN]:
    """Draw different small CNN architectures.

    Two or three layers, widths 8 or 12, kernels 1, 3 or 5, any activation, norm and head, with or
    without residual additions (residual networks have one width, so that there is what to add).

    Args:
        num: How many.
        seed: Source of randomness.
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        activations: To choose from.

    Returns:
        Architectures, all different.

    Example:
        >>> len({spec.name for spec in sample_architectures(20)})
        20
    """
    rng = np.random.default_rng(derive_seed(seed, num))
    found: dict[str, CNN] = {}
    while len(found) < num:
        depth = int(rng.integers(2, 4))
        residual = bool(rng.random() < 0.4)
        widths = rng.choice([8, 12], 1 if residual else depth)
        spec = CNN(
            in_channels=in_channels,
            num_classes=num_classes,
            widths=tuple(np.resize(widths, depth).tolist()),
            kernel_sizes=tuple(rng.choice([1, 3, 5], depth, p=[0.15, 0.75, 0.1]).tolist()),
            activation=str(rng.choice(list(activations))),
            norm=str(rng.choice(["none", "batch", "layer", "group"], p=[0.4, 0.2, 0.2, 0.2])),
            residual=residual,
            head=str(rng.choice(["pool", "flatten"])),
            image_size=image_size,
        )
        found.setdefault(spec.name, spec)
    return list(found.values())


def _train(
    spec: CNN,
    images: Images,
    settings: Hyperparameters,
    steps: int,
    checkpoints: Sequence[int],
    batch_size: int,
    rng: np.random.Generator,
    advance: Callable[[int], None],
) -> list[tuple[dict[str, Tensor], dict[str, np.ndarray]]]:
    """Train all networks of one architecture; return weights and metrics at each checkpoint."""
    num = len(settings.learning_rate)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    state = spec.sample_parameters(num, generator)
    gain = torch.from_numpy(settings.init_gain).float()
    for name, value in state.items():
        if name.endswith(".weight") and not name.startswith("norms."):
            value.mul_(gain.view(-1, *[1] * (value.ndim - 1)))
    trainer = StackedTrainer(spec, state, settings)
    subsets, labels = _draw_data(images, settings, rng)
    sizes = np.array([len(subset) for subset in subsets])
    padded = np.zeros((num, sizes.max()), np.int64)
    for i, subset in enumerate(subsets):
        padded[i, : len(subset)] = subset
    x_test, y_test = images.x_test[:_MAX_EVAL_IMAGES], images.y_test[:_MAX_EVAL_IMAGES]
    x_train, y_train = images.x_train[:_MAX_EVAL_IMAGES], images.y_train[:_MAX_EVAL_IMAGES]
    stages = []
    for step in range(steps + 1):
        if step in checkpoints:
            test_accuracy, test_loss = trainer.evaluate(x_test, y_test)
            metrics = {
                "test_accuracy": test_accuracy.numpy(),
                "test_loss": test_loss.numpy(),
                "train_accuracy": trainer.evaluate(x_train, y_train)[0].numpy(),
            }
            stages.append(({name: value.clone() for name, value in state.items()}, metrics))
        if step < steps:
            draw = (rng.random((num, batch_size)) * sizes[:, None]).astype(np.int64)
            index = np.take_along_axis(padded, draw, axis=1)
            y = torch.from_numpy(np.take_along_axis(labels, index, axis=1))
            trainer.step(images.x_train[torch.from_numpy(index.T.copy())], y)
            advance(num)
    return stages


def _draw_data(
    images: Images, settings: Hyperparameters, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw each network's training images and its (partly wrong) labels ``[num, num_images]``."""
    num, num_images = len(settings.learning_rate), len(images.y_train)
    subsets = [
        rng.permutation(num_images)[: max(1, round(fraction * num_images))]
        for fraction in settings.data_fraction
    ]
    clean = np.broadcast_to(images.y_train.numpy(), (num, num_images))
    random = rng.integers(0, images.num_classes, (num, num_images))
    is_noisy = rng.random((num, num_images)) < settings.label_noise[:, None]
    return subsets, np.where(is_noisy, random, clean)


def _draw_split(
    num: int, val_fraction: float, test_fraction: float, rng: np.random.Generator
) -> np.ndarray:
    num_test, num_val = round(test_fraction * num), round(val_fraction * num)
    split = np.array(["test"] * num_test + ["val"] * num_val + ["train"] * num)[:num]
    return rng.permutation(split)


def _check_arguments(
    images: Images,
    architectures: Sequence[CNN],
    steps: int,
    checkpoints: Sequence[int],
    num_unseen_architectures: int,
) -> None:
    if not architectures:
        raise ZooError("train_classifiers: expected at least one architecture, got none.")
    shape = tuple(images.x_train.shape[1:])
    for spec in architectures:
        expected = (spec.in_channels, spec.image_size, spec.image_size)
        if shape != expected or spec.num_classes < images.num_classes:
            raise ZooError(
                f"train_classifiers: '{spec.name}' is for images of shape {expected} and "
                f"{spec.num_classes} classes, but '{images.name}' has images of shape {shape} and "
                f"{images.num_classes} classes."
            )
    if not checkpoints or list(checkpoints) != sorted(set(checkpoints) & set(range(steps + 1))):
        raise ZooError(
            f"train_classifiers: expected checkpoints to be ascending steps in 0..{steps}, got "
            f"{tuple(checkpoints)}."
        )
    if not 0 <= num_unseen_architectures < len(architectures):
        raise ZooError(
            "train_classifiers: expected num_unseen_architectures in "
            f"0..{len(architectures) - 1}, got {num_unseen_architectures}."
        )
