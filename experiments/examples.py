"""A data set on the device, checked."""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import Dataset
from experiments.devices import ONE, Devices
from experiments.errors import UserError


class Examples(NamedTuple):
    """A data set on the device.

    Attributes:
        x: training examples.
        y: their labels.
        test: equal batches ``(x, y, counts)`` that cover every test example; ``counts`` is False
            on what pads the last one.
        test_count: number of test examples.
        classes: number of classes.
        sha256: of the arrays, so that a resumed run is known to go on with the same data.
    """

    x: jax.Array
    y: jax.Array
    test: list[tuple[jax.Array, jax.Array, jax.Array]]
    test_count: int
    classes: int
    sha256: str


def place(dataset: Dataset, evaluation_batch: int = 256, devices: Devices = ONE) -> Examples:
    """Move a data set to the device, once for all the trainers that use it.

    Every device of a mesh has all training examples, and its part of each test batch.

    Raises:
        UserError: the arrays are not those of a classification task, see :func:`check`.
    """
    check(dataset)
    count = len(dataset.x_test)
    batches = math.ceil(count / evaluation_batch)
    size = math.ceil(count / batches / devices.data) * devices.data
    # Padding repeats the first example; it is computed but not counted.
    rows = np.arange(batches * size)
    counts = rows < count
    rows[count:] = 0
    split = (np.split(a, batches) for a in (dataset.x_test[rows], dataset.y_test[rows], counts))
    digest = hashlib.sha256()
    for array in (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return Examples(
        x=devices.replicate(dataset.x_train),
        y=devices.replicate(dataset.y_train),
        test=[devices.spread_batch(batch) for batch in zip(*split, strict=True)],
        test_count=count,
        classes=dataset.classes,
        sha256=digest.hexdigest(),
    )


def check(dataset: Dataset) -> None:
    """Refuse arrays that would train a wrong network without a word.

    Raises:
        UserError: there are no examples, examples and labels differ in number, training and test
            examples in shape, a label is out of range, or a value is NaN or infinite.
    """
    name, classes = dataset.name, dataset.classes
    train, test = (dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)
    for part, (x, y) in (("training", train), ("test", test)):
        if len(x) == 0:
            raise UserError(f"data set {name}: there are no {part} examples")
        if x.ndim < 3 or y.shape != (len(x),):
            raise UserError(
                f"data set {name}: {part} examples must be (examples, *spatial, channels) with one "
                f"label each, got {x.shape} and labels {y.shape}"
            )
        if x.shape[1:] != dataset.example_shape:
            raise UserError(
                f"data set {name}: {part} examples are {x.shape[1:]}, training examples "
                f"{dataset.example_shape}"
            )
        wrong = np.flatnonzero((y < 0) | (y >= classes))
        if len(wrong):
            raise UserError(
                f"data set {name}: labels must lie in 0 .. {classes - 1}, got {y[wrong[0]]} "
                f"({part} example {wrong[0]})"
            )
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
        if len(bad):
            raise UserError(
                f"data set {name}: values must be finite, {part} example {bad[0]} has NaN or "
                "infinity"
            )
