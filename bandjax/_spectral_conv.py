"""Convolution with filters that live in the frequency domain."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax import _cost, _sharding, spectral
from bandjax._band import Modes, kept_per_axis
from bandjax._conv import check_arrays, check_options
from bandjax._geometry import PaddingLike, conv_geometry
from bandjax._operator import (
    SPECTRUM_NAME,
    How,
    compute_dtype,
    conv_spectra,
    keep,
    keep_transposed,
    named,
    restore,
)
from bandjax._transform import Precision, Samples, Spectrum, Transform, to_spectrum


def spectral_conv(
    x: jax.Array,
    kernel_spectrum: jax.Array,
    kernel_size: Sequence[int],
    *,
    kernel_grid: Sequence[int] | None = None,
    strides: int | Sequence[int] = 1,
    padding: PaddingLike = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    grid: int | Sequence[int] | None = None,
    method: str = "auto",
    residual_dtype: jax.typing.DTypeLike | None = None,
    precision: Precision = None,
    out_sharding: Any = None,
) -> jax.Array:
    """Convolves ``x`` with a filter that is given by its spectrum on the band.

    Per frequency ``u`` and output channel ``o``, with the spectrum ``X`` of the input on a circle
    of ``g`` points an axis,

        Y[n, u, o] = sum_c X[n, u, c] conj(W[u, c, o])      y[n, i, o] = Re sum_u c_u / g
        Y[n, u, o] exp(2 pi i u s i / g)

    The filter is measured from its centre: output ``i`` lies at point ``s i`` of the circle. With
    the spectrum of a kernel, :func:`bandjax.spectral.kernel_to_spectrum`, this is
    :func:`bandjax.band_conv`; but the values are free, and such a filter reaches over the whole
    circle.

    A frequency ``u`` means ``u`` periods on the circle, at every resolution, as in Fourier neural
    operators. Where circles are in proportion to the inputs (``"CIRCULAR"``, or ``grid`` given so,
    as the layers do), the filter acts on the same waves of a signal that is sampled finer or
    coarser, and the result is the same function. Frequencies which a circle does not have are left
    out; so is the Nyquist frequency of another resolution, which has no partner there. (On a circle
    of the same ``grid`` at every size ``u / grid`` periods a point stay what they are, as with a
    spatial kernel.)

    Args:
      x: ``(batch..., *spatial, in)``, as in :func:`bandjax.band_conv`.
      kernel_spectrum: real and imaginary part of ``W``, ``(2, *box, in / feature_group_count,
        out)``, frequencies in FFT order, ``u >= 0`` alone on the last axis; of the type of ``x``.
        Where both of a pair of conjugate frequencies are there (``u = 0`` of the last axis, and
        Nyquist), ``(W[u] + conj(W[-u])) / 2`` counts: what no real filter has, such as an imaginary
        part at DC, is without effect and its gradient zero.
      kernel_size: taps of the spatial kernel that it stands for: they set padding and grid.
      kernel_grid: points of the circle that ``kernel_spectrum`` belongs to; that of ``x`` if None.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, grid, residual_dtype,
        precision, out_sharding: see :func:`bandjax.band_conv`. ``"REFLECT"`` is not there.
      method: ``"fft"``, ``"dft"``, or ``"auto"`` for the cheaper of the two.

    Returns:
      ``(batch..., *spatial_out, out)`` of the type of ``x``.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: a value out of range, or shapes that do not fit together.

    Reverse-mode derivatives of any order are exact; forward mode is not there. The backward pass
    keeps the input's compressed spectrum, named ``"bandjax_spectrum"``, and ``kernel_spectrum``.

    Example:
      >>> kernel = jnp.ones((3, 3, 4, 8))
      >>> w = spectral.kernel_to_spectrum(kernel, (9, 9), (4, 4))
      >>> w.shape, spectral_conv(jnp.ones((2, 8, 8, 4)), w, (3, 3)).shape
      ((2, 9, 5, 4, 8), (2, 8, 8, 8))

    Source: Dziedzic et al., ICML 2019, supplement 2.12, which leaves it for later; with frequencies
    as of Li et al., "Fourier neural operator for parametric partial differential equations", 2021.
    """
    check_arrays(x, kernel_spectrum, "kernel_spectrum")
    x, kernel_spectrum = jnp.asarray(x), jnp.asarray(kernel_spectrum)
    check_options(None, method, None, residual_dtype, True)
    if method == "direct":
        raise ValueError(
            "method must be one of auto, fft, dft with a spectral filter, got 'direct'"
        )
    if padding == "REFLECT":
        raise ValueError("padding 'REFLECT' does not go with a spectral filter")
    taps = tuple(kernel_size)
    rank = len(taps)
    if kernel_spectrum.ndim != rank + 3 or kernel_spectrum.shape[0] != 2:
        raise ValueError(
            f"kernel_spectrum must be (2, *box, in / groups, out) with {rank} axes of frequencies "
            f"for a kernel_size of {taps}, got shape {kernel_spectrum.shape}"
        )
    same = functools.partial(
        conv_geometry,
        x.shape,
        (*taps, *kernel_spectrum.shape[-2:]),
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        grid=grid,
    )
    circle = same().grid
    own = circle if kernel_grid is None else tuple(kernel_grid)
    limits = modes_of_box(kernel_spectrum.shape[1:-2], own)
    there = modes_at(limits, own, circle)
    geometry = same(Modes(*there))
    spectrum = tuple(_crop(part, limits, there) for part in kernel_spectrum)
    if method == "auto":
        costs = _cost.estimated_costs(geometry, jax.default_backend())
        method = min(("dft", "fft"), key=lambda name: costs[name])
    kept_dtype = x.dtype if residual_dtype is None else jnp.dtype(residual_dtype)
    how = CentredHow(geometry, method, False, kept_dtype, True, precision)
    operator = functools.partial(_batched, how, rank)
    # One array, for what spreads arrays over devices knows two.
    y, _ = _sharding.call(operator, x, jnp.stack(spectrum), rank, out_sharding)
    return y


def modes_of_box(box: Sequence[int], grid: Sequence[int]) -> tuple[int, ...]:
    """Returns the limits ``U`` of a box with as many coefficients on each axis.

    Raises:
      ValueError: no box of the grid has this shape.
    """
    if len(box) != len(grid):
        raise ValueError(f"kernel_grid must have {len(box)} axes, got {tuple(grid)}")
    limits = (*(n // 2 for n in box[:-1]), box[-1] - 1)
    for axis, (g, limit) in enumerate(zip(grid, limits, strict=True)):
        if limit > g // 2:
            raise ValueError(
                f"kernel_spectrum has frequencies up to {limit} on axis {axis}, but its grid of "
                f"{g} has none above {g // 2}"
            )
    if kept_per_axis(tuple(grid), limits) != tuple(box):
        raise ValueError(
            f"kernel_spectrum must hold both signs of each frequency, and u >= 0 on the last axis: "
            f"no box of a grid of {tuple(grid)} has {tuple(box)} coefficients"
        )
    return limits


def modes_at(
    limits: tuple[int, ...], own: tuple[int, ...], circle: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the limits of what of a box of grid ``own`` there is on ``circle``."""
    return tuple(
        u if g == h else min(u, (g - 1) // 2, (h - 1) // 2)
        for u, g, h in zip(limits, own, circle, strict=True)
    )


def kernel_to_spectrum(
    kernel: jax.Array,
    grid: Sequence[int],
    modes: Sequence[int],
    *,
    centre: Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> jax.Array:
    """Returns the spectrum of a kernel, measured from its centre.

        W[u] = sum_t w[t] exp(-2 pi i u (d t - centre) / g)

    Args:
      kernel: ``(*taps, in / groups, out)``.
      grid: points on the circle of each axis.
      modes: largest kept frequency of each axis.
      centre: of each axis, in points from the first tap; by default that of SAME padding,
        ``(d (k - 1)) // 2``. That of a convolution is its lower padding.
      dilation: points between taps.

    Returns:
      ``(2, *box, in / groups, out)`` of the type of ``kernel``: real and imaginary part.

    Raises:
      ValueError: not one value for each axis, or a limit beyond the grid.
    """
    samples = _samples(kernel.shape[:-2], grid, modes, centre, dilation)
    compute = compute_dtype(kernel.dtype)
    exactly = Transform("dft", jax.lax.Precision.HIGHEST)
    return jnp.stack(to_spectrum(exactly, samples, kernel.astype(compute))).astype(kernel.dtype)


def spectrum_to_kernel(
    kernel_spectrum: jax.Array,
    kernel_size: Sequence[int],
    grid: Sequence[int],
    *,
    centre: Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> jax.Array:
    """Returns the kernel of a size whose spectrum is nearest; undoes :func:`kernel_to_spectrum`.

    Nearest by least squares over the box, with the half of it that is not stored. A spectrum that
    :func:`kernel_to_spectrum` made comes back as the kernel it was made of if on each axis the box
    has at least as many frequencies, both signs counted, as the kernel has taps; of kernels that
    the box cannot tell apart it is the one of least norm. With every frequency kept, the taps that
    a filter has elsewhere are cut off. ``kernel_to_spectrum`` of the result tells what is lost. The
    fewer frequencies for the taps, the more is rounding amplified.

    Args:
      kernel_spectrum: ``(2, *box, in / groups, out)``.
      kernel_size: taps of each axis.
      grid, centre, dilation: see :func:`kernel_to_spectrum`.

    Returns:
      ``(*taps, in / groups, out)`` of the type of ``kernel_spectrum``.

    Raises:
      ValueError: not one value for each axis, or no box of ``grid`` has the spectrum's shape.
    """
    taps, grid = tuple(kernel_size), tuple(grid)
    modes = modes_of_box(kernel_spectrum.shape[1:-2], grid)
    samples = _samples(taps, grid, modes, centre, dilation)
    rank = len(taps)
    matrix = functools.reduce(np.multiply.outer, (samples.matrix(axis) for axis in range(rank)))
    matrix = matrix.transpose([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])
    matrix = matrix.reshape(-1, math.prod(taps))
    # A coefficient counts as often as it stands in the whole spectrum.
    weights = np.sqrt(spectral.hermitian_weights(grid[-1], modes[-1]))
    weights = np.broadcast_to(weights, samples.box).reshape(-1, 1)
    rows = np.concatenate([matrix.real * weights, matrix.imag * weights])
    inverse = np.linalg.pinv(rows, rcond=len(rows) * np.finfo(rows.dtype).eps)
    inverse = inverse.reshape(*taps, 2, -1) * weights[:, 0]
    inverse = inverse.reshape(*taps, 2, *samples.box)
    compute = compute_dtype(kernel_spectrum.dtype)
    kernel = jnp.tensordot(
        jnp.asarray(inverse, compute),
        kernel_spectrum.astype(compute),
        axes=rank + 1,
        precision=jax.lax.Precision.HIGHEST,
    )
    return kernel.astype(kernel_spectrum.dtype)


def _samples(
    taps: Sequence[int],
    grid: Sequence[int],
    modes: Sequence[int],
    centre: Sequence[int] | None,
    dilation: int | Sequence[int],
) -> Samples:
    """Where the taps of a kernel lie, measured from its centre."""
    rank, grid = len(taps), tuple(grid)
    steps = (dilation,) * rank if isinstance(dilation, int) else tuple(dilation)
    if centre is None:
        centre = [(d * (k - 1)) // 2 for k, d in zip(taps, steps, strict=True)]
    for name, values in (("grid", grid), ("centre", centre)):
        if len(values) != rank:
            raise ValueError(f"{name} must have one value for each of the {rank} axes of taps")
    points = (range(-c, k * d - c, d) for k, d, c in zip(taps, steps, centre, strict=True))
    return Samples(grid, Modes(*modes).modes(grid), tuple(points))


@dataclasses.dataclass(frozen=True)
class CentredHow(How):
    """How to convolve with a filter that is measured from its centre."""

    @property
    def output_samples(self) -> Samples:
        points = tuple(range(0, axis.out * axis.stride, axis.stride) for axis in self.geometry.axes)
        return self.samples(points, inverse=True)


def _batched(
    how: CentredHow, rank: int, x: jax.Array, spectrum: jax.Array
) -> tuple[jax.Array, jax.Array]:
    nothing = jnp.zeros((), jnp.int32)
    if math.prod(how.geometry.output_shape) == 0:
        return jnp.zeros(how.geometry.output_shape, x.dtype), nothing
    dtype, compute = x.dtype, compute_dtype(x.dtype)
    x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :]) if x.ndim != rank + 2 else x
    y = _conv(how, x.astype(compute), spectrum.astype(compute))
    return y.astype(dtype).reshape(how.geometry.output_shape), nothing


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(how: CentredHow, x: jax.Array, spectrum: jax.Array) -> jax.Array:
    return conv_spectra(how, restore(how, keep(how, x), x.dtype), _planes(spectrum))


def _fwd(how: CentredHow, x: jax.Array, spectrum: jax.Array) -> tuple[jax.Array, Any]:
    kept = named(keep(how, x), SPECTRUM_NAME)
    return conv_spectra(how, restore(how, kept, x.dtype), _planes(spectrum)), (kept, spectrum)


def _bwd(how: CentredHow, residuals: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    kept, spectrum = residuals
    restored = restore(how, kept, spectrum.dtype)
    # Bilinear: its vjp needs no value but the residuals.
    _, pull_back = jax.vjp(
        lambda kept, spectrum: conv_spectra(how, kept, _planes(spectrum)), restored, spectrum
    )
    ct_kept, ct_spectrum = pull_back(ct)
    return keep_transposed(how, ct_kept), ct_spectrum


_conv.defvjp(_fwd, _bwd)


def _planes(spectrum: jax.Array) -> Spectrum:
    return spectrum[0], spectrum[1]


def _crop(
    part: jax.Array,
    limits: tuple[int, ...],
    there: tuple[int, ...],
) -> jax.Array:
    """Cuts the box of ``there`` out of that of ``limits``, which has both signs in FFT order."""
    if there == limits:
        return part
    for axis, limit in enumerate(there[:-1]):
        low = jax.lax.slice_in_dim(part, 0, limit + 1, axis=axis)
        size = part.shape[axis]
        high = jax.lax.slice_in_dim(part, size - limit, size, axis=axis)
        part = jnp.concatenate([low, high], axis=axis)
    return jax.lax.slice_in_dim(part, 0, there[-1] + 1, axis=len(there) - 1)
