"""Builds zoos of implicit neural representations (INRs): one small SIREN per image and view."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramgraph.errors import ZooError
from paramgraph.zoo.architectures import Siren
from paramgraph.zoo.building import (
    ZooBuilder,
    derive_seed,
    digest,
    show_progress,
)
from paramgraph.zoo.checks import require_numbers
from paramgraph.zoo.format import Zoo
from paramgraph.zoo.siren_fitting import SirenFitter

__all__ = ["fit_inrs", "image_points"]

SPLITS = ("train", "val", "test")


def fit_inrs(
    images: Tensor,
    labels: Tensor,
    *,
    out: str | os.PathLike[str],
    architecture: Siren | None = None,
    num_views: int = 1,
    steps: int = 500,
    lr: float = 1e-3,
    seed: int = 0,
    split: Sequence[str] | np.ndarray | None = None,
    shard_size: int = 2048,
    source: str = "",
    compile: bool | None = None,
    progress: bool = True,
) -> Zoo:
    """Fit INRs to images, many at once, and keep them as a zoo.

    Each INR starts from its own random weights and is fitted to all pixels of its image with Adam
    and the mean squared error; the learning rate falls to zero along a cosine. Several views of an
    image are several INRs that differ only in their initial weights. A killed build continues when
    the same call is made again, and ends in the same bytes.

    Columns of the zoo: ``label``; ``image`` (index into ``images``), which is also the ``parent``;
    ``view``; ``psnr`` in decibel; ``step``; ``split``; ``seed`` (of the shard).

    Args:
        images: Pixel values in ``[0, 1]``, float32, shape
            ``[num_images, channels, height, width]``.
        labels: One whole number per image.
        out: Folder of the zoo: new, empty, or an unfinished build of the same zoo.
        architecture: What to fit; ``Siren()`` if None. Its ``out_dim`` is the number of channels.
        num_views: INRs per image.
        steps: Number of Adam steps.
        lr: Highest learning rate.
        seed: Everything random follows from it.
        split: ``"train"``, ``"val"`` or ``"test"`` for each image; all ``"train"`` if None.
        shard_size: INRs per file.
        source: Name of the image source, kept in ``zoo.json``.
        compile: Compile the training step; None does so if there is much to fit and a C++ compiler
            works.
        progress: Show a progress bar.

    Returns:
        The finished zoo. INRs whose error is not finite are kept out and counted in
        ``zoo.info["counts"]["dropped"]``.

    Raises:
        ZooError: Images, labels, split or architecture do not fit together, or ``out`` cannot be
            used.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zoo = fit_inrs(torch.rand(3, 1, 4, 4), torch.arange(3), out=folder, steps=2,
        ...                    architecture=Siren(widths=(4,)), num_views=2, progress=False)
        ...     len(zoo), zoo.column("image").tolist()
        (6, [0, 0, 1, 1, 2, 2])
    """
    architecture = architecture or Siren()
    split = np.asarray(["train"] * len(images) if split is None else split, dtype=np.str_)
    _check_arguments(images, labels, architecture, split)
    require_numbers(num_views=num_views, steps=steps, lr=lr, shard_size=shard_size)
    num, num_channels, height, width = images.shape
    total = num * num_views
    builder = ZooBuilder(
        out,
        kind="inrs",
        architectures=[architecture],
        recipe={
            "source": source,
            "images": digest(images, labels),
            "split": digest(torch.from_numpy(np.searchsorted(sorted(SPLITS), split))),
            "num_images": num,
            "num_views": num_views,
            "steps": steps,
            "lr": lr,
            "seed": seed,
            "shard_size": shard_size,
        },
        conventions={
            "omega": architecture.omega,
            "output_offset": architecture.output_offset,
            "coordinates": "(row, column), each from -1 (first pixel) to 1 (last pixel)",
            "value_range": [0.0, 1.0],
            "image_size": [height, width],
            "channels": num_channels,
        },
    )
    starts = range(0, total, shard_size)
    shards = [f"weights-{index:05d}" for index in range(len(starts))]
    todo = [index for index, shard in enumerate(shards) if not builder.is_done(shard)]
    if todo:
        fitter = SirenFitter.create(
            architecture,
            image_points(height, width),
            num=total,
            stack_size=min(shard_size, total),
            steps=steps,
            lr=lr,
            compile=compile,
        )
        num_todo = sum(min(shard_size, total - starts[index]) for index in todo)
        with show_progress("Fitting INRs", num_todo, "INRs", enabled=progress) as advance:
            for index in todo:
                rows = np.arange(starts[index], min(starts[index] + shard_size, total))
                image, view = rows // num_views, rows % num_views
                shard_seed = derive_seed(seed, index)
                state = architecture.sample_parameters(
                    len(rows), torch.Generator().manual_seed(shard_seed)
                )
                targets = images[image].float().flatten(2).transpose(1, 2)
                errors = fitter.fit(state, targets, advance)
                columns: dict[str, Any] = {
                    "label": labels[image].numpy(),
                    "image": image,
                    "view": view,
                    "psnr": (-10 * errors.double().clamp_min(1e-12).log10()).numpy(),
                    "parent": image,
                    "split": split[image],
                    "seed": np.full(len(rows), shard_seed),
                    "step": np.full(len(rows), steps),
                }
                kept = torch.isfinite(errors).numpy()
                builder.commit(
                    shards[index],
                    architecture,
                    {name: value[kept] for name, value in state.items()},
                    {name: values[kept] for name, values in columns.items()},
                    num_dropped=int((~kept).sum()),
                )
    return builder.finish(shards)


def image_points(height: int, width: int) -> Tensor:
    """Return the coordinates of the pixels of an image, row by row.

    Returns:
        ``(row, column)`` of each pixel, from -1 at the first to 1 at the last; float32, shape
        ``[height * width, 2]``.

    Example:
        >>> image_points(2, 2).tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    rows = torch.linspace(-1, 1, height, dtype=torch.float32)
    return torch.cartesian_prod(rows, torch.linspace(-1, 1, width, dtype=torch.float32))


def _check_arguments(
    images: Tensor, labels: Tensor, architecture: Siren, split: np.ndarray
) -> None:
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise ZooError(
            "fit_inrs: expected images as a non-empty float tensor [num_images, channels, height, "
            f"width], got {images.dtype} of shape {tuple(images.shape)}."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ZooError(
            f"fit_inrs: expected pixel values in 0..1, got {low:g}..{high:g}. "
            "Divide 8-bit images by 255, and remove NaN."
        )
    if tuple(labels.shape) != (len(images),) or labels.is_floating_point():
        raise ZooError(
            f"fit_inrs: expected {len(images)} whole-number labels, one per image, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    if (architecture.in_dim, architecture.out_dim) != (2, images.shape[1]):
        raise ZooError(
            f"fit_inrs: images with {images.shape[1]} channels need an architecture with in_dim 2 "
            f"and out_dim {images.shape[1]}, got '{architecture.name}'."
        )
    if split.shape != (len(images),):
        raise ZooError(
            f"fit_inrs: expected {len(images)} entries in split, one per image, got shape "
            f"{split.shape}."
        )
    unknown = sorted(set(split.tolist()) - set(SPLITS))
    if unknown:
        raise ZooError(
            f"fit_inrs: expected every split to be one of {', '.join(SPLITS)}, got '{unknown[0]}'."
        )
