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
from jax import Array
from jaxtyping import Float, Int

from bandjax._bands.boxes import levels as levels_of
from bandjax._bands.boxes import smallest_level
from bandjax._bands.frequencies import hermitian_weights
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.residuals import Kept


def find_level(
    geometry: ConvGeometry, spectrum: Kept, x: Float[Array, "N *spatial C"]
) -> Int[Array, ""]:
    """Returns the level of the smallest box that holds the share of the energy, an int32 scalar.

    Args:
      geometry: of a convolution with an :class:`bandjax.Energy` band.
      spectrum: the input's, the box being the largest that may be kept.
      x: the input.
    """
    band, levels = geometry.energy, _levels(geometry)
    assert band is not None
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    weights = hermitian_weights(geometry.grid[-1], geometry.modes[-1])
    weights = weights.reshape((1,) * (len(geometry.box) - 1) + (-1,))
    energy = _energy(spectrum, dtype) * jnp.asarray(weights, dtype)
    of_level = jax.ops.segment_sum(energy.ravel(), levels.ravel(), len(_boxes(geometry)))
    beyond = jnp.zeros((), dtype)
    if any(2 * limit < g - 1 for limit, g in zip(geometry.modes, geometry.grid, strict=True)):
        # By Parseval's theorem: each input sample lies on a point of the circle of its own.
        values = x.astype(dtype)
        everything = math.prod(geometry.grid) * jnp.sum(values * values)
        beyond = jnp.maximum(everything - jnp.sum(of_level), 0)
    return smallest_level(of_level, band.share, beyond)


def modes_of(geometry: ConvGeometry, level: Int[Array, ""]) -> Int[Array, " rank"]:
    """Returns the limits of the box of a level, int32 ``(rank,)``."""
    return jnp.asarray(_boxes(geometry), jnp.int32)[level]


def compression_at(geometry: ConvGeometry, modes: Int[Array, " rank"]) -> Float[Array, ""]:
    """Returns the share of coefficients outside the box of ``modes``, a float32 scalar."""
    kept = modes[-1] + 1
    for axis, g in enumerate(geometry.grid[:-1]):
        kept *= jnp.minimum(2 * modes[axis] + 1, g)
    return 1 - kept.astype(jnp.float32) / geometry.total


def cut(geometry: ConvGeometry, spectrum: Kept, level: Int[Array, ""]) -> Kept:
    """Sets to zero what lies outside the box of a level; its own adjoint."""
    keep = (jnp.asarray(_levels(geometry)) <= level)[..., None, None]
    return jax.tree.map(lambda part: jnp.where(keep, part, jnp.zeros((), part.dtype)), spectrum)


def _energy(spectrum: Kept, dtype: Any) -> Float[Array, "*box"]:
    """Returns the sum of squares over the last two axes."""
    # Products of vectors. XLA's CPU backend may write the squares out before it sums them.
    energies = [
        jnp.einsum("...nc,...nc->...", part, part, preferred_element_type=dtype)
        for part in (part.astype(dtype) for part in spectrum)
    ]
    return functools.reduce(jnp.add, energies)


def _boxes(geometry: ConvGeometry) -> tuple[tuple[int, ...], ...]:
    assert geometry.energy is not None
    return geometry.energy.boxes(geometry.grid)


def _levels(geometry: ConvGeometry) -> np.ndarray:
    """Returns the level of every coefficient, int32 ``box``."""
    return levels_of(geometry.grid, geometry.modes, _boxes(geometry))
