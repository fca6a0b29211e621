"""What every loader returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    def limited(self, count: int | None) -> Dataset:
        """The same task with the first ``count`` training examples alone (None: all)."""
        return replace(self, x_train=self.x_train[:count], y_train=self.y_train[:count])
