"""Types that all transforms share."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import numpy as np

Precision: TypeAlias = jax.lax.Precision | str | None


Spectrum: TypeAlias = tuple[jax.Array, jax.Array]


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
