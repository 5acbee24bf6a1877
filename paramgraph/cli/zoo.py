"""``paramgraph zoo``: build zoos of INRs or classifiers, and tell what is in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paramgraph.cli.command import Answer, Command
from paramgraph.cli.command import UsageError as _UsageError
from paramgraph.zoo import (
    Siren,
    Zoo,
    digits_cnn_recipe,
    digits_inr_recipe,
    fit_inrs,
    load_images,
    sample_architectures,
    train_classifiers,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["BUILD_CLASSIFIERS", "BUILD_INRS", "INFO"]

_RECIPE_NOTE = "Without any other flag, the zoo of the demo is built."
# Used when at least one setting is given; without any, the recipe of the demo.
_INR_DEFAULTS: dict[str, Any] = {
    "images": "digits",
    "num": None,
    "views": 1,
    "steps": 500,
    "lr": 2e-2,
    "widths": [10, 10],
    "omega": 3.0,
    "shard_size": 2048,
}
_CLASSIFIER_DEFAULTS: dict[str, Any] = {
    "images": "digits",
    "num": 36,
    "architectures": 18,
    "unseen": 3,
    "steps": 300,
    "checkpoints": None,
    "batch_size": 32,
}


def _add_common(parser: ArgumentParser, defaults: dict[str, Any]) -> None:
    parser.add_argument("--out", type=str, required=True, help="Folder of the zoo.")
    parser.add_argument("--seed", type=int, default=0, help="Everything random follows from it.")
    parser.add_argument(
        "--scale",
        default="demo",
        choices=("demo", "tiny"),
        help=f"{_RECIPE_NOTE} tiny is a quick test.",
    )
    parser.add_argument(
        "--images",
        type=str | None,
        help="digits, or an .npz file with uint8 x_train, y_train, x_test, y_test "
        f"(default: {defaults['images']}).",
    )


def _add(parser: ArgumentParser, flag: str, kind: Any, default: Any, text: str) -> None:
    many: dict[str, Any] = (
        {"nargs": "+"} if isinstance(default, list) or flag == "--checkpoints" else {}
    )
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    note = "" if default is None else f" (default: {shown})"
    parser.add_argument(flag, type=kind, default=None, help=f"{text}{note}.", **many)


def _add_inrs(parser: ArgumentParser) -> None:
    default = _INR_DEFAULTS
    _add_common(parser, default)
    _add(parser, "--num", int, None, "How many images; all of them if not given")
    _add(parser, "--views", int, default["views"], "INRs per image")
    _add(parser, "--steps", int, default["steps"], "Adam steps")
    _add(parser, "--lr", float, default["lr"], "Highest learning rate")
    _add(parser, "--widths", int, default["widths"], "Width of each sine layer")
    _add(parser, "--omega", float, default["omega"], "Frequency of the sine layers")
    _add(parser, "--shard-size", int, default["shard_size"], "INRs per file")


def _add_classifiers(parser: ArgumentParser) -> None:
    default = _CLASSIFIER_DEFAULTS
    _add_common(parser, default)
    _add(parser, "--num", int, default["num"], "Training runs per architecture")
    _add(parser, "--architectures", int, default["architectures"], "How many architectures")
    _add(parser, "--unseen", int, default["unseen"], "Architectures kept for testing alone")
    _add(parser, "--steps", int, default["steps"], "Training steps")
    _add(parser, "--checkpoints", int, None, "Steps after which weights are kept; the end if none")
    _add(parser, "--batch-size", int, default["batch_size"], "Images per step")


def _settings(arguments: Namespace, defaults: dict[str, Any]) -> dict[str, Any] | None:
    """Given flags over defaults; None when none was given."""
    given = {name: arguments[name] for name in defaults if arguments[name] is not None}
    if given and arguments.scale != "demo":
        raise _UsageError(
            f"--scale {arguments.scale} chooses a ready-made zoo and cannot be combined with "
            f"{', '.join('--' + name.replace('_', '-') for name in given)}. Leave one out."
        )
    return {**defaults, **given} if given else None


def _build_inrs(arguments: Namespace) -> Answer:
    settings = _settings(arguments, _INR_DEFAULTS)
    if settings is None:
        return _describe(
            digits_inr_recipe(arguments.out, scale=arguments.scale, seed=arguments.seed)
        )
    images = load_images(settings["images"])
    x = torch.cat([images.x_train, images.x_test])
    y = torch.cat([images.y_train, images.y_test])
    split = np.array(["train"] * len(images.x_train) + ["test"] * len(images.x_test))
    split[: len(images.x_train) : 8] = "val"
    num = settings["num"]
    if num is not None and not 0 < num <= len(x):
        raise _UsageError(f"expected --num in 1..{len(x)} for {images.name}, got {num}.")
    # Evenly over training and test images, so that both are there in a part of them.
    chosen = np.arange(len(x)) if num is None else np.arange(num) * len(x) // num
    zoo = fit_inrs(
        x[chosen],
        y[chosen],
        out=arguments.out,
        architecture=Siren(
            widths=tuple(settings["widths"]), out_dim=x.shape[1], omega=settings["omega"]
        ),
        num_views=settings["views"],
        steps=settings["steps"],
        lr=settings["lr"],
        seed=arguments.seed,
        split=split[chosen],
        shard_size=settings["shard_size"],
        source=images.name,
    )
    return _describe(zoo)


def _build_classifiers(arguments: Namespace) -> Answer:
    settings = _settings(arguments, _CLASSIFIER_DEFAULTS)
    if settings is None:
        return _describe(
            digits_cnn_recipe(arguments.out, scale=arguments.scale, seed=arguments.seed)
        )
    images = load_images(settings["images"])
    _, channels, height, width = images.x_train.shape
    if height != width:
        raise _UsageError(f"expected square images, got {height} x {width} in {images.name}.")
    if settings["architectures"] < 1:
        raise _UsageError(f"expected --architectures above 0, got {settings['architectures']}.")
    zoo = train_classifiers(
        images,
        sample_architectures(
            settings["architectures"],
            seed=arguments.seed,
            in_channels=channels,
            num_classes=images.num_classes,
            image_size=height,
        ),
        num_per_architecture=settings["num"],
        out=arguments.out,
        steps=settings["steps"],
        checkpoints=settings["checkpoints"],
        batch_size=settings["batch_size"],
        seed=arguments.seed,
        num_unseen_architectures=settings["unseen"],
    )
    return _describe(zoo)


def _describe(zoo: Zoo) -> Answer:
    splits, counts = np.unique(zoo.column("split"), return_counts=True)
    data = {
        "path": zoo.path,
        "kind": zoo.kind,
        "num_networks": len(zoo),
        "splits": dict(zip(splits.tolist(), counts.tolist(), strict=True)),
        "columns": zoo.columns,
        "architectures": sorted(zoo.architectures),
        "info": zoo.info,
    }
    return Answer(zoo.summary(), data)


BUILD_INRS = Command(
    ("zoo", "build", "inrs"),
    "Fit one small network (INR) to each image and keep them as a zoo.",
    "paramgraph zoo build inrs --out zoos/inrs --num 100 --views 2",
    _add_inrs,
    _build_inrs,
)

BUILD_CLASSIFIERS = Command(
    ("zoo", "build", "classifiers"),
    "Train many small CNNs, from bad to good, and keep their checkpoints as a zoo.",
    "paramgraph zoo build classifiers --out zoos/cnns --num 10 --architectures 4 --unseen 1",
    _add_classifiers,
    _build_classifiers,
)

INFO = Command(
    ("zoo", "info"),
    "Tell what is in a zoo: counts, splits, architectures, range of each metric.",
    "paramgraph zoo info demo/zoos/cnn",
    lambda parser: parser.add_argument("zoo", type=str, help="Folder of the zoo.") and None,
    lambda arguments: _describe(Zoo.open(arguments.zoo)),
)
