"""Images that the zoo builders learn from: scikit-learn's digits, or any ``.npz`` file."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paramgraph.errors import ZooError

__all__ = ["Images", "load_images"]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_NUM_TEST_DIGITS = 360


@dataclass(frozen=True)
class Images:
    """Labelled images with a fixed split.

    Attributes:
        name: Where they come from (``"digits"``, or the stem of the file).
        x_train: Pixel values in ``[0, 1]``, float32, shape ``[N, channels, height, width]``.
        y_train: Class of each image, int64, shape ``[N]``.
        x_test: Images never used for training.
        y_test: Their classes.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes: one more than the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def load_images(source: str | os.PathLike[str] = "digits") -> Images:
    """Load labelled images.

    ``"digits"`` are the 1,797 grey 8 x 8 digits that come with scikit-learn, cut into 1,437
    training and 360 test images: a permutation by ``numpy.random.default_rng(0)``, the last 360 of
    it for testing. Anything else is the path of an ``.npz`` file with arrays ``x_train``,
    ``y_train``, ``x_test``, ``y_test``; the images are uint8, grey ``[N, H, W]`` or colour
    ``[N, H, W, C]``.

    Args:
        source: ``"digits"`` or a path.

    Returns:
        Images as float32 in ``[0, 1]``, shape ``[N, C, H, W]``.

    Raises:
        ZooError: The file is missing, lacks an array, or an array has another type or shape.

    Example:
        >>> load_images("digits").x_train.shape
        torch.Size([1437, 1, 8, 8])
    """
    if source == "digits":
        return _load_digits()
    path = Path(source)
    if not path.is_file():
        raise ZooError(
            f"no images at '{path}': there is no such file. Expected 'digits' or the path of an "
            f".npz file with arrays {', '.join(_ARRAYS)}."
        )
    try:
        # Opened here, because numpy forgets to close a file that it cannot read.
        with path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            missing = [name for name in _ARRAYS if name not in file.files]
            if missing:
                raise ZooError(
                    f"images in '{path}' lack the array '{missing[0]}'. Expected "
                    f"{', '.join(_ARRAYS)}; got {', '.join(file.files) or 'none'}."
                )
            arrays = {name: file[name] for name in _ARRAYS}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ZooError(
            f"cannot read images from '{path}': {error}. Expected an .npz file of plain arrays."
        ) from error
    x_train, y_train = _convert(path, arrays, "train")
    x_test, y_test = _convert(path, arrays, "test")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ZooError(
            f"images in '{path}': x_train has images of shape {tuple(x_train.shape[1:])} "
            f"(channels, height, width) but x_test of {tuple(x_test.shape[1:])}; expected the same."
        )
    return Images(path.stem, x_train, y_train, x_test, y_test)


def _load_digits() -> Images:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    # The grey levels of this data set are 0..16.
    x = torch.from_numpy(digits.images[order] / 16.0).float()[:, None]
    y = torch.from_numpy(digits.target[order]).long()
    cut = len(order) - _NUM_TEST_DIGITS
    return Images("digits", x[:cut], y[:cut], x[cut:], y[cut:])


def _convert(path: Path, arrays: dict[str, np.ndarray], part: str) -> tuple[Tensor, Tensor]:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or len(x) == 0:
        raise ZooError(
            f"images in '{path}': expected x_{part} to be a non-empty uint8 array [N, H, W] or "
            f"[N, H, W, C], got {x.dtype} of shape {x.shape}."
        )
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or int(y.min()) < 0:
        raise ZooError(
            f"images in '{path}': expected y_{part} to hold {len(x):,} integer labels from 0 up, "
            f"got {y.dtype} of shape {y.shape}."
        )
    channels_last = x[..., None] if x.ndim == 3 else x
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(channels_last, -1, 1)))
    return pixels.float().div_(255), torch.from_numpy(y.astype(np.int64))
