"""A data set on the device or streamed to it, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import repeat
from typing import Literal, NamedTuple

import jax
import numpy as np

from experiments.cluster.devices import ONE, Devices
from experiments.data._dataset import Arrays, Dataset, StoredDataset
from experiments.data.streaming import EvaluationBatches, StreamedExamples, evaluation_rows
from experiments.settings.errors import UserError

Stream = Literal["auto", "always", "never"]
LARGEST = 2**31  # bytes that a data set may take on the device, unless it is said to


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

    @property
    def count(self) -> int:
        """Number of training examples."""
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(*spatial, channels)`` of one example."""
        return self.x.shape[1:]

    def head(self, count: int) -> tuple[jax.Array, jax.Array]:
        """The first training examples and their labels."""
        return self.x[:count], self.y[:count]

    def steps(
        self, order: jax.Array, key: jax.Array, size: int, indices: range
    ) -> Iterator[tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
        """For each of an epoch's steps all the examples, their labels, order and key.

        Args:
            order: of the epoch.
            key: of the epoch.
            size: examples in a step.
            indices: the steps, from 0, that are to be taken.
        """
        return repeat((self.x, self.y, order, key), len(indices))


def place(
    dataset: Dataset | StoredDataset,
    evaluation_batch: int = 256,
    *,
    stream: Stream = "auto",
    augment: bool = False,
    devices: Devices = ONE,
) -> Examples | StreamedExamples:
    """Make a data set ready, once for all the trainers that use it.

    Args:
        dataset: the task.
        evaluation_batch: test examples in a batch, at most.
        stream: ``never`` puts all of it on the device; ``always`` reads each step's examples when
            it is their turn; ``auto`` does so with what takes more than 2 GiB. The steps, and so
            the results, are the same.
        augment: whether a stored data set augments its training examples by itself.
        devices: every one has all training examples (or, streamed, all those of a step), and its
            part of each test batch.

    Raises:
        UserError: the arrays are not those of a classification task, see :func:`check`, or the
            data set is stored and not to be streamed.
    """
    if isinstance(dataset, StoredDataset):
        if stream == "never":
            raise UserError(
                f"data set {dataset.name} is read from the disk while it is used: it must be "
                "streamed (--stream auto, in experiments.train)"
            )
        digest = hashlib.sha256(dataset.identity.encode()).hexdigest()
        return _streamed(dataset, evaluation_batch, digest, augment, devices)
    if augment:
        raise UserError(
            f"data set {dataset.name} is kept in memory: random-resized-crop is for images that "
            "are read from the disk (tfds:NAME, with --image-size if they have one size)"
        )
    check(dataset)
    parts = dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test
    sums = hashlib.sha256()
    for array in parts:
        sums.update(f"{array.dtype} {array.shape}".encode())
        sums.update(np.ascontiguousarray(array))
    digest = sums.hexdigest()
    if stream == "always" or (stream == "auto" and sum(a.nbytes for a in parts) > LARGEST):
        train, test = Arrays(*parts[:2]), Arrays(*parts[2:])
        stored = StoredDataset(dataset.name, train, test, dataset.classes, digest)
        return _streamed(stored, evaluation_batch, digest, augment=False, devices=devices)
    rows, counts = evaluation_rows(len(dataset.x_test), evaluation_batch, devices.data)
    batches = zip(dataset.x_test[rows], dataset.y_test[rows], counts, strict=True)
    return Examples(
        x=devices.replicate(dataset.x_train),
        y=devices.replicate(dataset.y_train),
        test=[devices.spread_batch(batch) for batch in batches],
        test_count=len(dataset.x_test),
        classes=dataset.classes,
        sha256=digest,
    )


def _streamed(
    dataset: StoredDataset, evaluation_batch: int, digest: str, augment: bool, devices: Devices
) -> StreamedExamples:
    for part, source in (("training", dataset.train), ("test", dataset.test)):
        if source.shape[0] == 0:
            raise UserError(f"data set {dataset.name}: there are no {part} examples")
    count = dataset.test.shape[0]
    rows, counts = evaluation_rows(count, evaluation_batch, devices.data)
    batches = EvaluationBatches(dataset.test, rows, counts, devices)
    return StreamedExamples(
        dataset.train, batches, count, dataset.classes, digest, augment, devices
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
