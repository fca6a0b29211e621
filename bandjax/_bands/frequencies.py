"""The frequencies of a grid, and how often each one counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


def frequencies(grid: int, limit: int, *, half: bool = False) -> np.ndarray:
    """Returns the integers ``|u| <= limit`` on a grid, in FFT order; ``half`` drops the negative.

    The Nyquist frequency of an even grid is there once.

    Example:
      >>> frequencies(8, 2).tolist(), frequencies(8, 4).tolist()
      ([0, 1, 2, -2, -1], [0, 1, 2, 3, 4, -3, -2, -1])
    """
    positive = np.arange(limit + 1)
    if half:
        return positive
    negative = min(2 * limit + 1, grid) - len(positive)
    return np.concatenate([positive, np.arange(-negative, 0)])


def hermitian_weights(grid: int, limit: int) -> np.ndarray:
    """Returns how often each ``0 <= u <= limit`` of a half spectrum counts in the whole one.

    Once at DC and at the Nyquist frequency (``2 u = grid``), which are their own conjugate
    partners; twice elsewhere. float64, shape ``(limit + 1,)``.

    Example:
      >>> hermitian_weights(8, 4).tolist()
      [1.0, 2.0, 2.0, 2.0, 1.0]
    """
    u = np.arange(limit + 1)
    return np.where((u == 0) | (2 * u == grid), 1.0, 2.0)
