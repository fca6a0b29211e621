"""Data sets that do not fit on the device: grain reads a step's examples ahead of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.cluster.devices import ONE, Devices
from experiments.data._dataset import Source
from experiments.settings.errors import UserError

MOST_THREADS = 16


@dataclass(frozen=True)
class StreamedExamples:
    """What ``experiments.data.examples.Examples`` is, for examples that are not on the device.

    The examples of every step are those that the resident data set would give, in the same order.
    Worker threads read them ahead, in a number of steps that is that of the threads at most.

    Attributes:
        train: training examples.
        test: equal batches ``(x, y, counts)`` that cover every test example.
        test_count: number of test examples.
        classes: number of classes.
        sha256: of the data set.
        augment: whether the source augments what it reads.
        devices: all of them get the examples of a step.
    """

    train: Source
    test: EvaluationBatches
    test_count: int
    classes: int
    sha256: str
    augment: bool = False
    devices: Devices = ONE

    @property
    def count(self) -> int:
        """Number of training examples."""
        return self.train.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(*spatial, channels)`` of one example."""
        return self.train.shape[1:]

    def head(self, count: int) -> tuple[jax.Array, jax.Array]:
        """The first training examples, not augmented, and their labels."""
        return jax.device_put(self.train.read(np.arange(min(count, self.count)), None))

    def steps(
        self, order: jax.Array, key: jax.Array, size: int, indices: range
    ) -> Iterator[tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
        """The examples of each of an epoch's steps, their labels, 0, 1, 2, ... and the key.

        Args:
            order: of the epoch.
            key: of the epoch; with the step's index it seeds what the source draws.
            size: examples in a step.
            indices: the steps, from 0, that are to be taken.
        """
        rows = np.asarray(order)
        words = np.asarray(jax.random.key_data(key)).tolist()

        def read(index: int) -> tuple[np.ndarray, np.ndarray]:
            random = np.random.default_rng([*words, index]) if self.augment else None
            return self.train.read(rows[index * size : (index + 1) * size], random)

        same = self.devices.replicate(np.arange(size, dtype=rows.dtype))
        for x, y in read_ahead(read, indices):
            yield *self.devices.replicate((x, y)), same, key


@dataclass(frozen=True)
class EvaluationBatches:
    """Test examples in equal batches, read anew each time.

    Attributes:
        source: the examples.
        rows: ``(batches, size)``, which ones.
        counts: as ``rows``, False on what pads the last batch.
        devices: each gets its part of a batch.
    """

    source: Source
    rows: np.ndarray
    counts: np.ndarray
    devices: Devices = ONE

    def __iter__(self) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        def read(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return *self.source.read(self.rows[index], None), self.counts[index]

        return map(self.devices.spread_batch, read_ahead(read, range(len(self.rows))))


def read_ahead(read: Callable[[int], Any], indices: range) -> Iterator[Any]:
    """``read`` of each index in turn, by worker threads, ahead of the caller.

    Raises:
        UserError: grain is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise UserError("streaming needs grain: pip install 'bandjax[experiments]'") from error
    threads = min(max(2, os.cpu_count() or 1), MOST_THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = grain.MapDataset.range(indices.start, indices.stop).map(read)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def evaluation_rows(count: int, largest: int, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all test examples in equal batches, ``(batches, size)``, and which of them count.

    What fills the last batch is the first example; it is computed but not counted.

    Args:
        count: test examples.
        largest: size of a batch, but for what makes it a multiple of ``parts``.
        parts: of a batch.
    """
    batches = math.ceil(count / largest)
    size = math.ceil(count / batches / parts) * parts
    rows = np.arange(batches * size)
    counts = rows < count
    rows[count:] = 0
    return rows.reshape(batches, size), counts.reshape(batches, size)
