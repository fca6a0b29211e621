"""CIFAR-10 from its official Python batch files."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data._dataset import Dataset
from experiments.errors import UserError

FOLDER = "cifar-10-batches-py"
# The sums that the publisher gives for the files of the archive.
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
# Mean and standard deviation of the training images' channels (red, green, blue), 0 .. 1.
MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
DEVIATION = np.array([0.2470, 0.2435, 0.2616], np.float32)


def load_cifar10(data_dir: Path) -> Dataset:
    """50,000 training and 10,000 test images from ``data_dir/cifar-10-batches-py/``.

    Each file must have its official MD5. Images are ``(32, 32, 3)``, each channel shifted and
    scaled by the training images' mean and standard deviation.

    Raises:
        UserError: a file is missing or differs from the official one.
    """
    folder = data_dir / FOLDER
    if not folder.is_dir():
        raise UserError(f"CIFAR-10 not found: no folder {folder}")
    batches = {name: _read(folder / name, md5) for name, md5 in MD5.items()}
    train = [batch for name, batch in batches.items() if name != "test_batch"]
    test_images, test_labels = batches["test_batch"]
    return Dataset(
        "cifar10",
        _standardised(np.concatenate([images for images, _ in train])),
        np.concatenate([labels for _, labels in train]),
        _standardised(test_images),
        test_labels,
        classes=10,
    )


def _read(path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images ``(n, 32, 32, 3)`` and int32 labels ``(n,)`` of one batch file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(f"{path}: damaged or not the official file (MD5 {found}, expected {md5})")
    try:
        # The files are pickles of Python 2; latin1 maps their bytes one to one.
        batch = _ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()
        images = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch["labels"], np.int32).reshape(len(images))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a CIFAR-10 batch file: {error}") from error
    return images.transpose(0, 2, 3, 1), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, text, numbers and NumPy arrays; refuses to look up anything else.

    A plain unpickler would call whatever a file names. This one knows three names, and supplies
    NumPy's array constructor itself because its module has moved between versions of NumPy.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return lambda kind, shape, dtype: np.ndarray(shape, dtype)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")


def _standardised(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) / 255 - MEAN) / DEVIATION
