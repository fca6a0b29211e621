"""The smallest box that holds a share of the input's energy, found inside the jitted function.

The boxes that :class:`bandjax.Energy` may keep lie within one another. A coefficient's *level* is
the index of the first box that holds it, so that a box is kept by a comparison with one integer.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax import spectral
from bandjax._geometry import ConvGeometry
from bandjax._transform import Spectrum


def find_level(geometry: ConvGeometry, spectrum: Spectrum, x: jax.Array) -> jax.Array:
    """Returns the level of the smallest box that holds the share of the energy, an int32 scalar.

    Args:
      geometry: of a convolution with an :class:`bandjax.Energy` band.
      spectrum: the input's, two times ``(*box, N, C)``, the box being the largest that may be kept.
      x: the input.
    """
    band, levels = geometry.energy, _levels(geometry)
    assert band is not None
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    weights = spectral.hermitian_weights(geometry.grid[-1], geometry.modes[-1])
    weights = weights.reshape((1,) * (len(geometry.box) - 1) + (-1,))
    energy = _energy(spectrum, dtype) * jnp.asarray(weights, dtype)
    of_level = jax.ops.segment_sum(energy.ravel(), levels.ravel(), len(_boxes(geometry)))
    # What a box drops, rather than what it keeps: summed from the high frequencies down it is exact
    # to its own size, and with a share of 1 zero only where nothing is dropped.
    dropped = jnp.pad(jnp.cumsum(of_level[:0:-1])[::-1], (0, 1))
    total = jnp.sum(of_level)
    if any(2 * limit < g - 1 for limit, g in zip(geometry.modes, geometry.grid, strict=True)):
        # By Parseval's theorem: each input sample lies on a point of the circle of its own.
        values = x.astype(dtype)
        everything = math.prod(geometry.grid) * jnp.sum(values * values)
        dropped += jnp.maximum(everything - total, 0)
        total = everything
    # Not "greater than": NaN keeps all there is.
    return jnp.sum(~(dropped <= (1 - band.share) * total)[:-1], dtype=jnp.int32)


def modes_of(geometry: ConvGeometry, level: jax.Array) -> jax.Array:
    """Returns the limits of the box of a level, int32 ``(rank,)``."""
    return jnp.asarray(_boxes(geometry), jnp.int32)[level]


def compression_at(geometry: ConvGeometry, modes: jax.Array) -> jax.Array:
    """Returns the share of coefficients outside the box of ``modes``, a float32 scalar."""
    kept = modes[-1] + 1
    for axis, g in enumerate(geometry.grid[:-1]):
        kept *= jnp.minimum(2 * modes[axis] + 1, g)
    return 1 - kept.astype(jnp.float32) / geometry.total


def cut(geometry: ConvGeometry, spectrum: Spectrum, level: jax.Array) -> Spectrum:
    """Sets to zero what lies outside the box of a level; its own adjoint."""
    keep = (jnp.asarray(_levels(geometry)) <= level)[..., None, None]
    real, imaginary = (jnp.where(keep, part, jnp.zeros((), part.dtype)) for part in spectrum)
    return real, imaginary


def _energy(spectrum: Spectrum, dtype: Any) -> jax.Array:
    """Returns the sum of squares over the last two axes."""
    # Products of vectors. XLA's CPU backend may write the squares out before it sums them.
    real, imaginary = (
        jnp.einsum("...nc,...nc->...", part, part, preferred_element_type=dtype)
        for part in (part.astype(dtype) for part in spectrum)
    )
    return real + imaginary


def _boxes(geometry: ConvGeometry) -> tuple[tuple[int, ...], ...]:
    assert geometry.energy is not None
    return geometry.energy.boxes(geometry.grid)


def _levels(geometry: ConvGeometry) -> np.ndarray:
    """Returns the level of every coefficient, int32 ``box``."""
    assert geometry.energy is not None
    return _levels_of(geometry.grid, geometry.modes, _boxes(geometry))


@functools.lru_cache(maxsize=256)
def _levels_of(
    grid: tuple[int, ...], modes: tuple[int, ...], boxes: tuple[tuple[int, ...], ...]
) -> np.ndarray:
    rank = len(grid)
    levels = np.zeros((1,) * rank, np.int32)
    for axis, (g, limit) in enumerate(zip(grid, modes, strict=True)):
        u = np.abs(spectral.frequencies(g, limit, half=axis == rank - 1))
        first = np.searchsorted([box[axis] for box in boxes], u).astype(np.int32)
        levels = np.maximum(levels, first.reshape([-1 if i == axis else 1 for i in range(rank)]))
    levels.flags.writeable = False
    return levels
