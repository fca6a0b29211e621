"""Handwritten digits, 8x8, shipped inside scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np

from experiments.data._dataset import Dataset
from experiments.settings.errors import UserError

SIZE = 8


def load_digits(size: int | None = None) -> Dataset:
    """1,437 training and 360 test images, a fixed split with equal shares of each digit.

    The images are ``(8, 8, 1)``; their grey levels 0 .. 16 are scaled to 0 .. 1.

    Args:
        size: height and width of the images, where networks need larger ones: each pixel becomes a
            square of so many times its size. None for 8.

    Raises:
        UserError: it is no multiple of 8.
    """
    if size is not None and (size < SIZE or size % SIZE):
        raise UserError(f"image_size of digits must be a multiple of {SIZE}, got {size}")
    # Takes longer to import than JAX; other data sets do without.
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = datasets.load_digits()
    images = (bunch.images[..., None] / 16).astype(np.float32)
    for axis in (1, 2):
        images = images.repeat((size or SIZE) // SIZE, axis)
    labels = bunch.target.astype(np.int32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset("digits", x_train, y_train, x_test, y_test, classes=10)
