"""Half spectra: analysis, synthesis, the box in the corners, DC in the centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float

from bandjax._bands.band import Modes
from bandjax._bands.boxes import kept_per_axis

if TYPE_CHECKING:
    pass


def analysis(
    x: Float[Array, "N *spatial C"],
    grid: Sequence[int] | None = None,
    modes: Sequence[int] | None = None,
) -> Complex[Array, "N *box C"]:
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


def synthesis(
    spectrum: Complex[Array, "N *box C"], grid: Sequence[int]
) -> Float[Array, "N *grid C"]:
    """Returns the real signal on the whole grid whose spectrum is ``spectrum``, zero elsewhere.

    Args:
      spectrum: complex, ``(batch, *box, channels)``, a box that :func:`analysis` returns.
      grid: points on the circle of each spatial axis.

    Returns:
      real, ``(batch, *grid, channels)``.
    """
    grid = tuple(grid)
    return irfftn(fill_box(spectrum, grid), grid)


def irfftn(spectrum: Complex[Array, "N *half C"], grid: Sequence[int]) -> Float[Array, "N *grid C"]:
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


def keep_box(
    spectrum: Complex[Array, "N *half C"], grid: Sequence[int], modes: Sequence[int]
) -> Complex[Array, "N *box C"]:
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


def fill_box(box: Complex[Array, "N *box C"], grid: Sequence[int]) -> Complex[Array, "N *half C"]:
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
    spectrum: Complex[Array, "N *half C"], grid: Sequence[int], modes: Sequence[int]
) -> tuple[Complex[Array, "N s1 u2 C"], Complex[Array, "N s2 u2 C"]]:
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


def from_corners(
    top: Complex[Array, "N s1 u2 C"], bottom: Complex[Array, "N s2 u2 C"], grid: Sequence[int]
) -> Complex[Array, "N *half C"]:
    """Pads S1 and S2 with zeros to the half spectrum; undoes :func:`corners`."""
    return fill_box(jnp.concatenate([top, bottom], axis=1), grid)


def shift_dc(spectrum: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Moves DC from the corner to the centre of ``axes``.

    In two dimensions the quadrants change places, I with III and II with IV. In the shifted order a
    band is one contiguous slice. Every axis must hold both signs of the frequency: leave the last
    axis of a half spectrum out.

    Source: Dziedzic et al., supplement 1.1.
    """
    return jnp.fft.fftshift(spectrum, tuple(axes))


def unshift_dc(spectrum: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Moves DC from the centre of ``axes`` back to the corner; undoes :func:`shift_dc`."""
    return jnp.fft.ifftshift(spectrum, tuple(axes))


def _drop_imaginary_edges(spectrum: jax.Array, g: int) -> jax.Array:
    """Makes DC and Nyquist of the half axis real, as a real signal has them."""
    # No array of constants: a function with one cannot be partitioned by rule.
    u = jax.lax.broadcasted_iota(jnp.int32, spectrum.shape, spectrum.ndim - 2)
    real_only = (u == 0) | (2 * u == g)
    return jnp.where(real_only, jnp.real(spectrum).astype(spectrum.dtype), spectrum)


def _check_rank(values: tuple[int, ...], rank: int, name: str) -> None:
    if len(values) != rank:
        raise ValueError(f"{name} must have one entry for each of the {rank} axes, got {values}")
