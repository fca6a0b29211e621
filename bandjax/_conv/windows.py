"""Exact convolution window by window: ``ffi/cpu/windows.h`` tells how."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from bandjax._conv.exact import ExactSpec


@dataclasses.dataclass(frozen=True)
class WindowSpec(ExactSpec):
    """One convolution by windows, with strides and ``input_dilation`` 1.

    Attributes:
      length: outputs of a window, for each axis.
    """

    length: tuple[int, ...]

    target: ClassVar[str] = "windows"
    reads_bfloat16: ClassVar[bool] = True

    def attributes(self, which: str) -> dict[str, Any]:
        """Those of the handler for a contraction."""
        return {**super().attributes(which), "lengths": np.array(self.length, np.int64)}

    def tables(self, dtype: np.dtype[Any]) -> list[np.ndarray[Any, Any]]:
        """Three for each axis, as the handler takes them."""
        spec = self.dense
        each = zip(self.length, spec.taps, spec.kernel_dilation, strict=True)
        return [table for i, axis in enumerate(each) for table in _tables(*axis, i == 0, dtype)]


@functools.lru_cache(maxsize=256)
def _tables(
    length: int, taps: int, dilation: int, half: bool, dtype: np.dtype[Any]
) -> tuple[np.ndarray[Any, Any], ...]:
    """Cosines and sines of an axis; of the first one half of the frequencies stands for all."""
    reach = (taps - 1) * dilation
    grid = length + reach
    u = np.arange(grid // 2 + 1)

    def about_the_middle(count: int) -> np.ndarray[Any, Any]:
        turns = np.outer(u, (count - 1) / 2 - np.arange((count + 1) // 2))
        return np.stack([np.cos(2 * np.pi / grid * turns), np.sin(2 * np.pi / grid * turns)])

    kept = u if half else np.where(np.arange(grid) <= grid // 2, 0, -grid) + np.arange(grid)
    once = (kept == 0) | (2 * kept == grid)
    weights = np.where(once | (not half), 1.0, 2.0) / grid
    turns = 2 * np.pi / grid * np.outer(kept, np.arange(taps) * dilation - reach / 2)
    filters = np.stack([np.cos(turns), np.sin(turns)]) * weights[:, None]
    tables = about_the_middle(grid), about_the_middle(length), filters
    return tuple(np.asarray(table, dtype) for table in tables)
