"""CIFAR-100 from its official Python files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from experiments.data._cifar import folder_of, read_batch, standardised
from experiments.data._dataset import Dataset
from experiments.settings.errors import UserError

FOLDER = "cifar-100-python"
# The sums of the archive's two files, as torchvision checks them.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
# How many of the first images, and the SHA-256 of these (uint8, channels last) and of their labels
# (int32, little-endian).
FIRST = {
    "train": (20_000, "c1a55b7242773ca2d3247c071cfb36e557c48e67ad1299f31235f5dbda705e8d"),
    "test": (10_000, "bf7086fd9842a9f0be7932496600e6473ca2ff6a573d999d2798824bd07e4864"),
}
# Mean and standard deviation of the training images' channels (red, green, blue), 0 .. 1.
MEAN = np.array([0.5071, 0.4865, 0.4409], np.float32)
DEVIATION = np.array([0.2673, 0.2564, 0.2762], np.float32)


def load_cifar100(data_dir: Path) -> Dataset:
    """50,000 training and 10,000 test images from ``data_dir/cifar-100-python/``.

    The labels are the hundred fine ones. Each file must have its official MD5. Images are
    ``(32, 32, 3)``, each channel shifted and scaled by the training images' mean and standard
    deviation.

    Raises:
        UserError: a file is missing or differs from the official one.
    """
    folder = folder_of("CIFAR-100", data_dir / FOLDER)
    parts = {name: read_batch(folder / name, md5, "fine_labels") for name, md5 in MD5.items()}
    return _dataset("cifar100", parts)


def load_first_of_cifar100(data_dir: Path) -> Dataset:
    """The first 20,000 training images and all test images.

    They may lie in the official files, or in files of the same layout that hold no more than these:
    what is checked is the images and labels themselves.

    Raises:
        UserError: a file is missing, or holds others.
    """
    folder = folder_of("CIFAR-100", data_dir / FOLDER)
    parts = {}
    for name, (count, expected) in FIRST.items():
        images, labels = read_batch(folder / name, None, "fine_labels")
        images, labels = images[:count], labels[:count]
        sums = hashlib.sha256(np.ascontiguousarray(images).tobytes())
        sums.update(labels.astype("<i4").tobytes())
        if sums.hexdigest() != expected:
            raise UserError(
                f"{folder / name}: its first {count} images are not those of the official file"
            )
        parts[name] = images, labels
    return _dataset("cifar100:first20000", parts)


def _dataset(name: str, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Dataset:
    (train, train_labels), (test, test_labels) = parts["train"], parts["test"]
    return Dataset(
        name,
        standardised(train, MEAN, DEVIATION),
        train_labels,
        standardised(test, MEAN, DEVIATION),
        test_labels,
        classes=100,
    )
