"""Types that all transforms share. Shapes are written as jaxtyping has them.

``N`` is the batch, ``C`` and ``O`` are input and output channels, ``c`` the input channels of a
group; ``*spatial``, ``*taps`` and ``*box`` have one entry for each spatial axis.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

Precision: TypeAlias = (
    jax.lax.Precision
    | jax.lax.DotAlgorithmPreset
    | jax.lax.DotAlgorithm
    | str
    | tuple[jax.lax.Precision, jax.lax.Precision]
    | tuple[str, str]
    | None
)
"""Of matrix products, as ``jax.lax`` takes it; a pair is that of both operands."""

# Spectra are frequency-major and planar: the real and the imaginary part, each an array.
InputSpectrum: TypeAlias = tuple[Float[Array, "*box N C"], Float[Array, "*box N C"]]
OutputSpectrum: TypeAlias = tuple[Float[Array, "*box N O"], Float[Array, "*box N O"]]
PackedSpectrum: TypeAlias = Float[Array, "*box N C2"]  # see bandjax._spectra.packed
FilterSpectrum: TypeAlias = tuple[Float[Array, "*box c O"], Float[Array, "*box c O"]]
Spectrum: TypeAlias = tuple[Float[Array, "..."], Float[Array, "..."]]


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which arrays of a type are computed: float64, or float32 for all others."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
