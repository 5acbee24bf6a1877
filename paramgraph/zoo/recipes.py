"""Ready-made zoos of scikit-learn's digits: one call each, small enough for a laptop.

``scale="tiny"`` takes seconds and serves tests; ``scale="demo"`` takes about a minute on two cores.
"""

import os

import numpy as np
import torch

from paramgraph.errors import ZooError
from paramgraph.zoo.architectures import Siren
from paramgraph.zoo.classifiers import sample_architectures, train_classifiers
from paramgraph.zoo.cnn import ACTIVATION_NAMES
from paramgraph.zoo.format import Zoo
from paramgraph.zoo.images import Images, load_images
from paramgraph.zoo.inrs import fit_inrs

__all__ = ["digits_cnn_recipe", "digits_inr_recipe"]

_SCALES = ("tiny", "demo")


def digits_inr_recipe(
    out: str | os.PathLike[str], *, scale: str = "demo", seed: int = 0, progress: bool = True
) -> Zoo:
    """Build a zoo of INRs of the digits: SIRENs [2, 10, 10, 1] with omega 3.

    The 360 test images are in split ``"test"``; every eighth training image is in ``"val"``. All
    views of an image share its split.

    Args:
        out: Folder of the zoo.
        scale: ``"demo"``: 8 views of each of the 1,797 images; ``"tiny"``: 2 views of 48 images.
        seed: Everything random follows from it.
        progress: Show a progress bar.

    Returns:
        The zoo.

    Raises:
        ZooError: Unknown scale, or ``out`` cannot be used.
    """
    is_tiny = _is_tiny(scale)
    digits = load_images("digits")
    num_train, num_test = (36, 12) if is_tiny else (len(digits.x_train), len(digits.x_test))
    split = np.array(["train"] * num_train + ["test"] * num_test)
    split[:num_train:8] = "val"
    return fit_inrs(
        torch.cat([digits.x_train[:num_train], digits.x_test[:num_test]]),
        torch.cat([digits.y_train[:num_train], digits.y_test[:num_test]]),
        out=out,
        architecture=Siren(widths=(10, 10), omega=3.0),
        num_views=2 if is_tiny else 8,
        steps=100 if is_tiny else 500,
        lr=2e-2,
        seed=seed,
        split=split,
        shard_size=32 if is_tiny else 2048,
        source="scikit-learn digits",
        progress=progress,
    )


def digits_cnn_recipe(
    out: str | os.PathLike[str], *, scale: str = "demo", seed: int = 0, progress: bool = True
) -> Zoo:
    """Build a zoo of CNNs trained on the digits with success from chance to the best.

    1,000 of the 1,797 images measure the accuracies (a small test set would blur the order of
    networks), 797 train. Sigmoid and softplus networks are left out: in 160 steps they stay at
    chance. The last architectures are held out entirely (split ``"test"``, ``unseen_architecture``
    true); of the others, a fifth of the runs are in ``"test"`` and a tenth in ``"val"``.

    Args:
        out: Folder of the zoo.
        scale: ``"demo"``: 48 architectures (6 held out), 20 runs each, 5 checkpoints per run;
            ``"tiny"``: 3 architectures (1 held out), 6 runs each, 2 checkpoints.
        seed: Everything random follows from it.
        progress: Show a progress bar.

    Returns:
        The zoo.

    Raises:
        ZooError: Unknown scale, or ``out`` cannot be used.
    """
    is_tiny = _is_tiny(scale)
    activations = [name for name in ACTIVATION_NAMES if name not in ("sigmoid", "softplus")]
    return train_classifiers(
        _recut(load_images("digits"), num_train=797, seed=0),
        sample_architectures(3 if is_tiny else 48, seed=seed, activations=activations),
        num_per_architecture=6 if is_tiny else 20,
        out=out,
        steps=20 if is_tiny else 160,
        checkpoints=(10, 20) if is_tiny else (12, 24, 48, 90, 160),
        seed=seed,
        num_unseen_architectures=1 if is_tiny else 6,
        progress=progress,
    )


def _recut(images: Images, *, num_train: int, seed: int) -> Images:
    """The same images, cut into training and test images anew."""
    x = torch.cat([images.x_train, images.x_test])
    y = torch.cat([images.y_train, images.y_test])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    x, y = x[order], y[order]
    return Images(
        f"{images.name}, {num_train} for training",
        x[:num_train],
        y[:num_train],
        x[num_train:],
        y[num_train:],
    )


def _is_tiny(scale: str) -> bool:
    if scale not in _SCALES:
        raise ZooError(f"expected scale to be one of {', '.join(_SCALES)}, got {scale!r}.")
    return scale == "tiny"
