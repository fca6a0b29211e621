"""CIFAR-10 from its official Python batch files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.data._cifar import folder_of, read_batch, standardised
from experiments.data._dataset import Dataset

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
    folder = folder_of("CIFAR-10", data_dir / FOLDER)
    batches = {name: read_batch(folder / name, md5, "labels") for name, md5 in MD5.items()}
    train = [batch for name, batch in batches.items() if name != "test_batch"]
    test_images, test_labels = batches["test_batch"]
    return Dataset(
        "cifar10",
        standardised(np.concatenate([images for images, _ in train]), MEAN, DEVIATION),
        np.concatenate([labels for _, labels in train]),
        standardised(test_images, MEAN, DEVIATION),
        test_labels,
        classes=10,
    )
