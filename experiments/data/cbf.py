"""Cylinder, bell and funnel: time series that are generated, and need no file."""

from __future__ import annotations

import numpy as np

from experiments.data._dataset import Dataset
from experiments.settings.errors import UserError

LENGTH = 128
TRAIN, TEST = 30, 300


def load_cbf(seed: str) -> Dataset:
    """30 training and 300 test series of length 128, of three classes in equal numbers.

    A series is noise, and from one moment to another a plateau (cylinder), a rise (bell) or a fall
    (funnel); z-normalised, as the UCR archive has them. Of the archive's set CBF it is the recipe,
    not the file.

    Reference: Saito, "Local feature extraction and its applications using a library of bases", PhD
    thesis, Yale University, 1994.

    Args:
        seed: of the random numbers, a whole number; another one makes another set.

    Raises:
        UserError: it is none.
    """
    if not seed.isdecimal():
        raise UserError(f"data set cbf:SEED takes a whole number, got {seed!r}")
    random = np.random.default_rng(int(seed))
    labels = np.arange(TRAIN + TEST, dtype=np.int32) % 3
    series = np.stack([_series(label, random) for label in labels])
    series -= series.mean(1, keepdims=True)
    series /= series.std(1, keepdims=True)
    x = series.astype(np.float32)[..., None]
    return Dataset(f"cbf:{seed}", x[:TRAIN], labels[:TRAIN], x[TRAIN:], labels[TRAIN:], classes=3)


def _series(label: int, random: np.random.Generator) -> np.ndarray:
    """One series, ``(128,)``, of the class 0 (cylinder), 1 (bell) or 2 (funnel)."""
    time = np.arange(1, LENGTH + 1)
    start = random.integers(16, 33)
    length = random.integers(32, 97)
    height = 6 + random.standard_normal()
    within = (start <= time) & (time <= start + length)
    shape = (1.0, (time - start) / length, (start + length - time) / length)[label]
    return height * within * shape + random.standard_normal(LENGTH)
