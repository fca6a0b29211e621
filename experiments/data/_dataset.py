"""What every loader returns: a data set in memory, or one that is read when it is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """Training and test examples of one classification task.

    Attributes:
        name: as given on the command line.
        x_train: float32, ``(examples, *spatial, channels)``.
        y_train: int32 labels in ``0 .. classes - 1``.
        x_test: as ``x_train``.
        y_test: as ``y_train``.
        classes: number of classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(*spatial, channels)`` of one example."""
        return self.x_train.shape[1:]

    @property
    def numbers(self) -> int:
        """How many numbers there are to train on."""
        return self.x_train.size

    def limited(self, count: int | None) -> Dataset:
        """The same task with the first ``count`` training examples alone (None: all)."""
        return replace(self, x_train=self.x_train[:count], y_train=self.y_train[:count])


class Source(Protocol):
    """Examples that can be read in any order, by several threads at once."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(examples, *spatial, channels)``."""

    def read(
        self, rows: np.ndarray, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Some examples, ``(rows, *spatial, channels)`` float32, and their int32 labels.

        Args:
            rows: which ones.
            random: for their augmentation; None for none.
        """


@dataclass(frozen=True)
class Arrays:
    """A source that is in memory; it augments nothing."""

    x: np.ndarray
    y: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    def read(
        self, rows: np.ndarray, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.x[rows], self.y[rows]


@dataclass(frozen=True)
class _First:
    """The first examples of a source."""

    source: Source
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.source.shape[1:])

    def read(
        self, rows: np.ndarray, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.source.read(rows, random)


@dataclass(frozen=True)
class StoredDataset:
    """A task whose examples stay on the disk until they are needed.

    Attributes:
        name: as given on the command line.
        train: training examples.
        test: test examples.
        classes: number of classes.
        identity: a text that no other data set has.
    """

    name: str
    train: Source
    test: Source
    classes: int
    identity: str

    @property
    def numbers(self) -> int:
        """How many numbers there are to train on."""
        return int(np.prod(self.train.shape))

    def limited(self, count: int | None) -> StoredDataset:
        """The same task with the first ``count`` training examples alone (None: all)."""
        if count is None or count >= self.train.shape[0]:
            return self
        first = _First(self.train, count)
        return replace(self, train=first, identity=f"{self.identity}, first {count}")
