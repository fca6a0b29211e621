"""Finer ways to compress a convolution's spectra, for analysis: lead, top, growth from DC.

The operator keeps boxes, which save memory. Here masks choose single coefficients of whole half
spectra; :mod:`bandjax._approximate` tells what a choice costs. :mod:`bandjax.spectral` has the
conventions and the public names.

Masks are True where a coefficient is kept. Those that depend on the grid or on energies have the
shape ``(1, *frequencies, 1)``: they serve every example and every channel.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Float

from bandjax._bands.boxes import candidate_boxes, levels, smallest_level
from bandjax._bands.frequencies import frequencies, hermitian_weights
from bandjax._tables import tables


def energy(spectrum: Complex[Array, "N *box C"], grid: Sequence[int]) -> Float[Array, "*box"]:
    """Returns the energy at every stored frequency: ``c_u |X[u]|^2``, over batch and channels.

    The Hermitian weights ``c_u`` count the frequencies that a half spectrum leaves out, so that the
    sum over a whole half spectrum is that of ``|X|^2`` over the full one, by Parseval's theorem
    ``g_1 ... g_r`` times the sum of the signal's squares.

    Args:
      spectrum: complex, ``(batch, *frequencies, channels)``, a half spectrum or a box of it.
      grid: points on the circle of each axis.

    Returns:
      real, ``(*frequencies)``, in squared units of the spectrum.

    Raises:
      ValueError: the spectrum's frequency axes are not those of a box on the grid.

    Example:
      >>> x = jnp.ones((1, 6, 1)).at[0, 0, 0].set(3.0)
      >>> energy(spectral.analysis(x), (6,)).round().tolist()
      [64.0, 8.0, 8.0, 4.0]

    Source: Dziedzic et al. (ICML 2019), section 3.3 and supplement 2.6.
    """
    spectrum, grid = jnp.asarray(spectrum), tuple(grid)
    whole = half_shape(grid)
    shape = spectrum.shape[1:-1]
    if len(shape) != len(grid) or any(n > most for n, most in zip(shape, whole, strict=True)):
        raise ValueError(
            f"spectrum must be (batch, *frequencies, channels) with at most {whole} frequencies on "
            f"a grid of {grid}, got shape {spectrum.shape}"
        )
    squares = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    weights = hermitian_weights(grid[-1], shape[-1] - 1)
    weights = weights.reshape((1,) * (len(grid) - 1) + (-1,))
    return squares.sum((0, -1)) * jnp.asarray(weights, squares.dtype)


def half_shape(grid: Sequence[int]) -> tuple[int, ...]:
    """Frequencies of a half spectrum, for each axis."""
    return (*grid[:-1], grid[-1] // 2 + 1)


def growth_places(grid: Sequence[int], *, fine: bool = False) -> np.ndarray:
    """Returns the order in which the coefficients of a half spectrum join, growing from DC.

    The boxes of :class:`bandjax.Compression` lie within one another; the next one has a row at each
    end, a column or both more: a (mirrored) L. Coarse growth takes such a step as a whole. Fine
    growth fills it element by element: the new rows from DC's column outwards, both signs of a
    frequency side by side, then the new column. Conjugate partners (where ``u_last`` is DC or
    Nyquist) join together: one without the other belongs to no real signal.

    Args:
      grid: points on the circle of each axis.
      fine: element by element, instead of whole steps.

    Returns:
      int32, ``(*frequencies)``: places from 0, which is DC's. It is shared between calls: do not
      write to it.

    Example:
      >>> growth_places((5, 5)).tolist()
      [[0, 1, 2], [1, 1, 2], [2, 2, 2], [2, 2, 2], [1, 1, 2]]
      >>> growth_places((5, 5), fine=True).tolist()
      [[0, 4, 10], [1, 2, 11], [5, 6, 8], [5, 7, 9], [1, 3, 12]]

    Source: Dziedzic et al., supplement 2.6.
    """
    return _growth_places(tuple(grid), fine)


@tables
def _growth_places(grid: tuple[int, ...], fine: bool) -> np.ndarray:
    """Computes :func:`growth_places` once for each grid."""
    halves = tuple(g // 2 for g in grid)
    if not fine:
        return levels(grid, halves, candidate_boxes(grid))
    last = len(grid) - 1
    u = np.meshgrid(
        *(frequencies(g, g // 2, half=axis == last) for axis, g in enumerate(grid)),
        indexing="ij",
    )
    sizes = np.abs(np.stack(u)).reshape(len(grid), -1)  # (axes, coefficients)
    boxes = np.array(candidate_boxes(grid))
    first = np.stack([np.searchsorted(*pair) for pair in zip(boxes.T, sizes, strict=True)])
    places = first.max(0)
    # The axis along which a coefficient lies outside the box before, the first of several.
    axis = np.argmax(first, 0)
    outward = np.take_along_axis(sizes, axis[None], 0)[0]
    index = np.arange(len(places))
    partner = np.ravel_multi_index(
        [-v % n for v, n in zip(u[:-1], grid[:-1], strict=True)] + [u[-1]], u[0].shape
    ).ravel()
    pair = np.where(2 * sizes[-1] % grid[-1] == 0, np.minimum(index, partner), index)
    order = np.lexsort((index, pair, *sizes[::-1], outward, axis, places))
    places = np.empty_like(places)
    places[order] = np.cumsum(np.diff(pair[order], prepend=0) != 0)
    places = places.astype(np.int32).reshape(u[0].shape)
    places.flags.writeable = False
    return places


def growth_mask(
    grid: Sequence[int], places: jax.typing.ArrayLike, *, fine: bool = False
) -> jax.Array:
    """Returns the mask of the first ``places`` steps of the growth from DC.

    Args:
      grid: points on the circle of each axis.
      places: how many; it may be traced. 1 keeps DC alone.
      fine: count elements instead of whole steps, see :func:`growth_places`.

    Returns:
      bool, ``(1, *frequencies, 1)``.

    Raises:
      ValueError: ``places`` is below 1 or beyond the last.

    Example:
      >>> growth_mask((5, 5), 2)[0, ..., 0].astype(int).tolist()
      [[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]]
    """
    order = growth_places(grid, fine=fine)
    _check_count("places", places, 1, int(order.max()) + 1)
    return jnp.asarray(order < places)[None, ..., None]


def energy_mask(
    energies: Float[Array, "*half"],
    grid: Sequence[int],
    share: jax.typing.ArrayLike,
    *,
    fine: bool = False,
) -> jax.Array:
    """Returns the mask of the least growth from DC that holds a share of the energy.

    Coarse growth gives the box of ``bandjax.Energy(share)``. Fine growth stops within the last
    step, whose rest is zeroed.

    Args:
      energies: real, ``(*frequencies)`` of the whole half spectrum, see :func:`energy`.
      grid: points on the circle of each axis.
      share: of the energy to keep, ``0 < share <= 1``; it may be traced. 1 drops nothing but zeros
        at the end.
      fine: element by element, instead of whole steps, see :func:`growth_places`.

    Returns:
      bool, ``(1, *frequencies, 1)``. NaN anywhere keeps everything.

    Raises:
      ValueError: a share outside ``(0, 1]``, or energies of another shape.

    Example:
      >>> x = jnp.zeros((1, 5, 5, 1)).at[0, 1:3, 1:4].set(1.0)
      >>> energies = energy(spectral.analysis(x), (5, 5))
      >>> [int(energy_mask(energies, (5, 5), 0.9, fine=fine).sum()) for fine in (False, True)]
      [15, 8]

    Source: Dziedzic et al., supplement 2.6, "Compression based on Preserved Energy".
    """
    grid = tuple(grid)
    if energies.shape != half_shape(grid):
        raise ValueError(
            f"energies must be those of all {half_shape(grid)} frequencies on a grid of {grid}, "
            f"got shape {energies.shape}"
        )
    if isinstance(share, numbers.Real) and not 0 < share <= 1:
        raise ValueError(f"share must satisfy 0 < share <= 1, got {share}")
    order = growth_places(grid, fine=fine)
    of_place = jax.ops.segment_sum(energies.ravel(), order.ravel(), int(order.max()) + 1)
    return jnp.asarray(order)[None, ..., None] <= smallest_level(of_place, share)


def lead_mask(grid: Sequence[int], dropped: jax.typing.ArrayLike) -> jax.Array:
    """Returns the mask that drops rows and columns from the high end of every axis.

    Args:
      grid: points on the circle of each axis.
      dropped: how many of the frequencies ``|u|`` to drop from each axis, down to DC at most; it
        may be traced.

    Returns:
      bool, ``(1, *frequencies, 1)``.

    Raises:
      ValueError: ``dropped`` is negative, or drops more than the longest axis has above DC.

    Example:
      >>> mask = lead_mask((59, 59), 1)
      >>> mask.size - int(mask.sum()), mask.size
      (117, 1770)

    Source: Dziedzic et al., supplement 2.10.
    """
    grid = tuple(grid)
    _check_count("dropped", dropped, 0, max(g // 2 for g in grid))
    mask = jnp.ones((1,) * (len(grid) + 2), bool)
    for axis, g in enumerate(grid):
        u = np.abs(frequencies(g, g // 2, half=axis == len(grid) - 1))
        kept = jnp.asarray(u) <= jnp.maximum(g // 2 - jnp.asarray(dropped), 0)
        mask &= kept.reshape([-1 if i == axis + 1 else 1 for i in range(len(grid) + 2)])
    return mask


def top_mask(spectrum: jax.Array, zeroed: jax.typing.ArrayLike) -> jax.Array:
    """Returns the mask that drops the coefficients of smallest magnitude.

    The smallest ones are looked for in all stored frequencies and channels together, apart for each
    index of the first axis: for each example of an input, for each filter. Of equal ones the first
    in memory go first. Of two conjugate partners one may stay alone; :func:`irfftn` then takes the
    real part, half of both.

    Args:
      spectrum: complex, ``(batch, *frequencies, channels)``.
      zeroed: how many coefficients of each example to drop; it may be traced.

    Returns:
      bool, the shape of ``spectrum``.

    Raises:
      ValueError: ``zeroed`` is negative, or more than an example has.

    Example:
      >>> top_mask(jnp.array([[[4 + 3j], [0j], [1j]]]), 2).tolist()
      [[[True], [False], [False]]]

    Source: Dziedzic et al., supplement 2.10, figure 16.
    """
    spectrum = jnp.asarray(spectrum)
    squares = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    squares = squares.reshape(len(spectrum), -1)
    _check_count("zeroed", zeroed, 0, squares.shape[1])
    rank = jnp.argsort(jnp.argsort(squares, axis=1, stable=True), axis=1)
    return (rank >= jnp.asarray(zeroed)).reshape(spectrum.shape)


def compression(mask: jax.Array) -> jax.Array:
    """Returns the share of coefficients that a mask drops, a float32 scalar."""
    return 1 - jnp.mean(mask, dtype=jnp.float32)


def _check_count(name: str, count: jax.typing.ArrayLike, least: int, most: int) -> None:
    """Raises ValueError for a count out of range; a traced one is not known."""
    if isinstance(count, numbers.Integral) and not least <= count <= most:
        raise ValueError(f"{name} must satisfy {least} <= {name} <= {most}, got {count}")
