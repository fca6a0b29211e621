"""Convolution with filters that live in the frequency domain."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bandjax._bands.band import Modes
from bandjax._conv.band_conv import as_arrays, run
from bandjax._conv.geometry import PaddingLike, canonical_padding, conv_geometry
from bandjax._conv.options import ConvSpec
from bandjax._spectra.kernels import modes_of_box
from bandjax._spectra.types import Precision


def spectral_conv(
    x: Float[Array, "*batch_spatial C"],
    kernel_spectrum: Float[Array, "2 *box c O"],
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
    implementation: str | None = None,
    residual_dtype: jax.typing.DTypeLike | None = None,
    precision: Precision = None,
    out_sharding: Any = None,
) -> Float[Array, "*batch_spatial_out O"]:
    """Convolves ``x`` with a filter that is given by its spectrum on the band.

    Per frequency ``u`` and output channel ``o``, with the spectrum ``X`` of the input on a circle
    of ``g`` points an axis,

        Y[n, u, o] = sum_c X[n, u, c] conj(W[u, c, o])
        y[n, i, o] = Re sum_u c_u / g Y[n, u, o] exp(2 pi i u s i / g)

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
      strides, padding, input_dilation, kernel_dilation, feature_group_count, grid: see
        :func:`bandjax.band_conv`. ``"REFLECT"`` is not there.
      residual_dtype, precision, out_sharding: see :func:`bandjax.band_conv`.
      method: ``"fft"``, ``"dft"``, or ``"auto"`` for the cheaper of the two.
      implementation: ``"native"`` computes "dft" by the native kernels of the CPU, ``"xla"`` in
        plain JAX; None picks.

    Returns:
      ``(batch..., *spatial_out, out)`` of the type of ``x``.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: a value out of range, or shapes that do not fit together.
      RuntimeError: ``implementation="native"`` without native kernels.

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
    x, kernel_spectrum = as_arrays(x, kernel_spectrum, "kernel_spectrum")
    spec = ConvSpec(method=method, implementation=implementation, residual_dtype=residual_dtype)
    if implementation == "jax":
        raise ValueError("implementation 'jax' does not go with a spectral filter")
    padding = canonical_padding(padding)
    if padding == "REFLECT":
        raise ValueError("padding 'REFLECT' does not go with a spectral filter")
    if not isinstance(kernel_size, Iterable):
        raise TypeError(
            f"kernel_size must be a sequence of integers, one an axis, got {kernel_size!r}"
        )
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
    kernel = cropped(kernel_spectrum, limits, there)
    y, _ = run(spec, geometry, x, kernel, precision, out_sharding, domain="spectral")
    return y


def modes_at(
    limits: tuple[int, ...], own: tuple[int, ...], circle: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the limits of what of a box of grid ``own`` there is on ``circle``."""
    return tuple(
        u if g == h else min(u, (g - 1) // 2, (h - 1) // 2)
        for u, g, h in zip(limits, own, circle, strict=True)
    )


def cropped(
    spectrum: Float[Array, "2 *box c O"], limits: tuple[int, ...], there: tuple[int, ...]
) -> Float[Array, "2 *box c O"]:
    """Cuts the box of ``there`` out of a filter's spectrum with that of ``limits``."""
    # One array, for what spreads arrays over devices knows two.
    return jnp.stack([_crop(part, limits, there) for part in spectrum])


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
