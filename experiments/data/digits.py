"""Handwritten digits, 8x8, shipped inside scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np

from experiments.data._dataset import Dataset


def load_digits() -> Dataset:
    """1,437 training and 360 test images, a fixed split with equal shares of each digit.

    The images are ``(8, 8, 1)``; their grey levels 0 .. 16 are scaled to 0 .. 1.
    """
    # Takes longer to import than JAX; other data sets do without.
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = datasets.load_digits()
    images = (bunch.images[..., None] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset("digits", x_train, y_train, x_test, y_test, classes=10)
