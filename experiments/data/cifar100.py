"""CIFAR-100 from its official Python files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.data._cifar import folder_of, read_batch, standardised
from experiments.data._dataset import Dataset

FOLDER = "cifar-100-python"
# The sums of the archive's two files, as torchvision checks them.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
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
    (train, train_labels), (test, test_labels) = parts["train"], parts["test"]
    return Dataset(
        "cifar100",
        standardised(train, MEAN, DEVIATION),
        train_labels,
        standardised(test, MEAN, DEVIATION),
        test_labels,
        classes=100,
    )
