"""Spectra on the half plane, the band's box in them, and the pieces of the paper's algorithm.

Conventions, for a signal on a grid of ``g`` points an axis:

* The forward transform is unnormalised, ``X[u] = sum_j x[j] exp(-2 pi i u j / g)``; the inverse
  divides by ``g``. These are the conventions of ``jnp.fft``.
* A spectrum is a complex array that has ``(batch..., *frequencies, channels)`` axes. The input is
  real, so the last frequency axis holds ``u >= 0`` alone (``g // 2 + 1`` values); the others hold
  both signs in FFT order (0, 1, ..., -2, -1), so the low frequencies lie in the corners.
* The *box* of ``modes = (U_1, ..., U_r)`` is every ``|u_i| <= U_i``, in the same order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._approximate import (
    Approximation,
    Growth,
    Lead,
    Top,
    Variant,
    approximate,
    relative_error,
)
from bandjax._band import Modes, kept_per_axis
from bandjax._variants import (
    compression,
    energy,
    energy_mask,
    growth_mask,
    growth_places,
    lead_mask,
    top_mask,
)

if TYPE_CHECKING:
    from bandjax._spectral_conv import kernel_to_spectrum, spectrum_to_kernel

__all__ = [
    "Approximation",
    "Growth",
    "Lead",
    "Top",
    "Variant",
    "analysis",
    "approximate",
    "compression",
    "corners",
    "energy",
    "energy_mask",
    "fill_box",
    "fourier_matrix",
    "frequencies",
    "from_corners",
    "growth_mask",
    "growth_places",
    "hermitian_weights",
    "irfftn",
    "keep_box",
    "kernel_to_spectrum",
    "lead_mask",
    "relative_error",
    "shift_dc",
    "spectrum_to_kernel",
    "synthesis",
    "top_mask",
    "unshift_dc",
]


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


@functools.lru_cache(maxsize=1024)
def fourier_matrix(
    grid: int,
    limit: int,
    points: range,
    *,
    shift: int = 0,
    half: bool = False,
    inverse: bool = False,
) -> np.ndarray:
    """Returns ``M[u, j] = exp(-2 pi i u p_j / grid)``, the kept rows of a sampled DFT.

    Args:
      grid: points on the circle.
      limit: the largest kept frequency.
      points: positions ``p_j`` on the circle, taken modulo ``grid``.
      shift: half points to add to every position.
      half: keep ``u >= 0`` alone.
      inverse: weight row ``u`` by ``c_u / grid``, with ``c_u`` the :func:`hermitian_weights` of a
        half axis and 1 of a full one. Then ``Re M^H`` of the inverse undoes ``M``.

    Returns:
      complex128, shape ``(kept, len(points))``. It is shared between calls: do not write to it.
    """
    u = frequencies(grid, limit, half=half)
    # The exact integer 2 u p mod 2 grid keeps the angle small, and so correct to the last bit.
    phase = np.outer(u, 2 * np.asarray(points, dtype=np.int64) + shift) % (2 * grid)
    matrix = np.exp(-1j * np.pi / grid * phase)
    if inverse:
        weights = hermitian_weights(grid, limit) if half else np.ones(len(u))
        matrix *= weights[:, None] / grid
    matrix.flags.writeable = False
    return matrix


def analysis(
    x: jax.Array, grid: Sequence[int] | None = None, modes: Sequence[int] | None = None
) -> jax.Array:
    """Returns the spectrum of ``x`` in the box of ``modes``.

    Args:
      x: real, ``(batch, *spatial, channels)``.
      grid: points on the circle of each spatial axis, at least its size; the sizes by default.
      modes: largest kept frequency of each axis; all of them by default.

    Returns:
      complex, ``(batch, *box, channels)``.

    Source: Dziedzic et al. (ICML 2019), section 3 and supplement 1.1.
    """
    rank = x.ndim - 2
    grid = tuple(x.shape[1:-1] if grid is None else grid)
    axes = tuple(range(1, rank + 1))
    _check_rank(grid, rank, "grid")
    if any(g < h for g, h in zip(grid, x.shape[1:-1], strict=True)):
        raise ValueError(f"grid must be at least the spatial shape {x.shape[1:-1]}, got {grid}")
    full = jnp.fft.rfftn(x, s=grid, axes=axes)
    return full if modes is None else keep_box(full, grid, modes)


def synthesis(spectrum: jax.Array, grid: Sequence[int]) -> jax.Array:
    """Returns the real signal on the whole grid whose spectrum is ``spectrum``, zero elsewhere.

    Args:
      spectrum: complex, ``(batch, *box, channels)``, a box that :func:`analysis` returns.
      grid: points on the circle of each spatial axis.

    Returns:
      real, ``(batch, *grid, channels)``.
    """
    grid = tuple(grid)
    return irfftn(fill_box(spectrum, grid), grid)


def irfftn(spectrum: jax.Array, grid: Sequence[int]) -> jax.Array:
    """Returns the real part of the inverse transform of a half spectrum, for any half spectrum.

    A half spectrum that no real signal has (its values at DC and Nyquist of the last axis without
    conjugate symmetry) is where FFT libraries differ; here it is the real part of the sum over the
    whole spectrum that its Hermitian weights stand for.

    Args:
      spectrum: complex, ``(batch, g_1, ..., g_last // 2 + 1, channels)``.
      grid: points on the circle of each axis.

    Returns:
      real, ``(batch, *grid, channels)``.
    """
    grid = tuple(grid)
    axes = tuple(range(1, len(grid) + 1))
    if len(grid) > 1:
        spectrum = jnp.fft.ifftn(spectrum, axes=axes[:-1])
    spectrum = _drop_imaginary_edges(spectrum, grid[-1])
    return jnp.fft.irfft(spectrum, n=grid[-1], axis=axes[-1])


def keep_box(spectrum: jax.Array, grid: Sequence[int], modes: Sequence[int]) -> jax.Array:
    """Cuts the box of ``modes`` out of a half spectrum, by slices from its corners.

    Args:
      spectrum: ``(batch, g_1, ..., g_last // 2 + 1, channels)``.
      grid: points on the circle of each axis.
      modes: largest kept frequency of each axis.

    Returns:
      ``(batch, *box, channels)``.

    Raises:
      ValueError: a limit beyond the grid, or not one for each axis.
    """
    grid = tuple(grid)
    _check_rank(grid, spectrum.ndim - 2, "grid")
    modes = Modes(*modes).modes(grid)
    for axis, (g, limit, kept) in enumerate(
        zip(grid[:-1], modes[:-1], kept_per_axis(grid, modes)[:-1], strict=True), start=1
    ):
        low = jax.lax.slice_in_dim(spectrum, 0, limit + 1, axis=axis)
        high = jax.lax.slice_in_dim(spectrum, g - (kept - limit - 1), g, axis=axis)
        spectrum = jnp.concatenate([low, high], axis=axis)
    return jax.lax.slice_in_dim(spectrum, 0, modes[-1] + 1, axis=spectrum.ndim - 2)


def fill_box(box: jax.Array, grid: Sequence[int]) -> jax.Array:
    """Puts a box back into a half spectrum that is zero elsewhere; undoes :func:`keep_box`."""
    grid = tuple(grid)
    _check_rank(grid, box.ndim - 2, "grid")
    for axis, g in enumerate(grid[:-1], start=1):
        low = box.shape[axis] // 2 + 1
        upper = jax.lax.slice_in_dim(box, low, None, axis=axis)
        lower = jax.lax.slice_in_dim(box, 0, low, axis=axis)
        gap = list(box.shape)
        gap[axis] = g - box.shape[axis]
        box = jnp.concatenate([lower, jnp.zeros_like(box, shape=gap), upper], axis=axis)
    widths = [(0, 0)] * box.ndim
    widths[-2] = (0, grid[-1] // 2 + 1 - box.shape[-2])
    return jnp.pad(box, widths)


def corners(
    spectrum: jax.Array, grid: Sequence[int], modes: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Returns the paper's two corners of a two-dimensional half spectrum.

    Args:
      spectrum: ``(batch, g_1, g_2 // 2 + 1, channels)``.
      grid: ``(g_1, g_2)``.
      modes: ``(U_1, U_2)``.

    Returns:
      S1, the top left corner, ``0 <= u_1 <= U_1``, and S2, the bottom left corner, ``u_1 < 0``.
      Stacked along the first frequency axis they are the box.

    Source: Dziedzic et al., supplement 1.1, "Map Reuse".
    """
    if len(grid) != 2:
        raise ValueError(f"corners are those of two spatial axes, got a grid of {tuple(grid)}")
    box = keep_box(spectrum, grid, modes)
    return box[:, : modes[0] + 1], box[:, modes[0] + 1 :]


def from_corners(top: jax.Array, bottom: jax.Array, grid: Sequence[int]) -> jax.Array:
    """Pads S1 and S2 with zeros to the half spectrum; undoes :func:`corners`."""
    return fill_box(jnp.concatenate([top, bottom], axis=1), grid)


def shift_dc(spectrum: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Moves DC from the corner to the centre of ``axes``, by two slices an axis.

    In two dimensions the quadrants change places, I with III and II with IV. In the shifted order a
    band is one contiguous slice. Every axis must hold both signs of the frequency: leave the last
    axis of a half spectrum out.

    Source: Dziedzic et al., supplement 1.1.
    """
    for axis in axes:
        spectrum = _rotate(spectrum, (spectrum.shape[axis] + 1) // 2, axis)
    return spectrum


def unshift_dc(spectrum: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Moves DC from the centre of ``axes`` back to the corner; undoes :func:`shift_dc`."""
    for axis in axes:
        spectrum = _rotate(spectrum, spectrum.shape[axis] // 2, axis)
    return spectrum


def _rotate(x: jax.Array, first: int, axis: int) -> jax.Array:
    """Starts ``axis`` at index ``first``."""
    axis %= x.ndim
    head = jax.lax.slice_in_dim(x, 0, first, axis=axis)
    return jnp.concatenate([jax.lax.slice_in_dim(x, first, None, axis=axis), head], axis=axis)


def _drop_imaginary_edges(spectrum: jax.Array, g: int) -> jax.Array:
    """Makes DC and Nyquist of the half axis real, as a real signal has them."""
    # No array of constants: a function with one cannot be partitioned by rule.
    u = jax.lax.broadcasted_iota(jnp.int32, spectrum.shape, spectrum.ndim - 2)
    real_only = (u == 0) | (2 * u == g)
    return jnp.where(real_only, jnp.real(spectrum).astype(spectrum.dtype), spectrum)


def _check_rank(values: tuple[int, ...], rank: int, name: str) -> None:
    if len(values) != rank:
        raise ValueError(f"{name} must have one entry for each of the {rank} axes, got {values}")


def __getattr__(name: str) -> Any:
    """What is built on the operator, which is built on this module."""
    if name in ("kernel_to_spectrum", "spectrum_to_kernel"):
        from bandjax import _spectral_conv

        return getattr(_spectral_conv, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
