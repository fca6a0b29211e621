"""The truncated transform between samples on a circle and its low frequencies.

One linear map and its adjoint serve everything: with ``M`` the Kronecker product of one sampled DFT
matrix per axis (:func:`bandjax.spectral.fourier_matrix`),

    to_spectrum:    X = M x           samples -> frequencies
    from_spectrum:  y = Re M^H Y      frequencies -> samples

Analysis of the input, of the filter and of the output's cotangent are ``to_spectrum``; synthesis
of the output, and the gradients of input and filter, are ``from_spectrum``. Only the positions of
the samples and the weights of the rows differ. Each is the other's derivative.

Arrays are frequency-major and planar: samples ``(*spatial, N, C)``, spectra a pair of real arrays
``(*box, N, C)``, the real and the imaginary part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._bands.frequencies import hermitian_weights
from bandjax._spectra import fft
from bandjax._spectra.half import fill_box, keep_box
from bandjax._spectra.partial_dft import PartialDFT, _kronecker, gather_periodic, scatter_periodic
from bandjax._spectra.types import InputSpectrum, Precision


@dataclasses.dataclass(frozen=True)
class TransformSpec:
    """How a transform is computed: by matrix products ("dft") or by ``jnp.fft`` ("fft")."""

    method: Literal["dft", "fft"]
    precision: Precision = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def to_spectrum(
    spec: TransformSpec, dft: PartialDFT, x: Float[Array, "*spatial N C"]
) -> InputSpectrum:
    """Maps samples ``(*spatial, N, C)`` to their spectrum, two times ``(*box, N, C)``."""
    return (_dft_to if spec.method == "dft" else _fft_to)(spec, dft, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def from_spectrum(
    spec: TransformSpec, dft: PartialDFT, spectrum: InputSpectrum
) -> Float[Array, "*spatial N C"]:
    """Maps a spectrum, two times ``(*box, N, C)``, to samples ``(*spatial, N, C)``: the adjoint."""
    return (_dft_from if spec.method == "dft" else _fft_from)(spec, dft, spectrum)


to_spectrum.defvjp(
    lambda spec, dft, x: (to_spectrum(spec, dft, x), None),
    lambda spec, dft, _, ct: (from_spectrum(spec, dft, ct),),
)
from_spectrum.defvjp(
    lambda spec, dft, spectrum: (from_spectrum(spec, dft, spectrum), None),
    lambda spec, dft, _, ct: (to_spectrum(spec, dft, ct),),
)


# Matrix products. An axis at a time, the axis in hand in front: then every product is one plain
# matrix times everything else, which is what BLAS libraries are fastest at.


def _dft_to(spec: TransformSpec, dft: PartialDFT, x: Float[Array, "*spatial N C"]) -> InputSpectrum:
    rank = len(dft.grid)
    if dft.one_product:
        matrix = _kronecker(dft)
        return _product(matrix.real, x, rank, spec), _product(matrix.imag, x, rank, spec)
    x = jnp.moveaxis(x, rank - 1, 0)
    x = _product(_planes(dft.matrix(rank - 1)), x, 1, spec)  # (2, k_r, h_1, ..., h_{r-1}, N, C)
    for axis in range(rank - 2, 0, -1):
        # The axis to transform is the last of those still to do, rank positions from the front.
        x = jnp.moveaxis(x, rank, 1)
        x = _product(_complex_planes(dft.matrix(axis)), x, 2, spec)
    x = jnp.moveaxis(x, rank, 1)
    real, imaginary = _complex_planes(dft.matrix(0))
    # Two products: to cut one array in two would be a copy.
    return _product(real, x, 2, spec), _product(imaginary, x, 2, spec)


def _dft_from(
    spec: TransformSpec, dft: PartialDFT, spectrum: InputSpectrum
) -> Float[Array, "*spatial N C"]:
    rank = len(dft.grid)
    x = jnp.stack(spectrum)  # (2, *box, N, C), written together with whatever made the two parts
    if dft.one_product:
        planes = _planes(_kronecker(dft))
        return _product(_transposed(planes, rank), x, rank + 1, spec)
    for axis in range(rank - 1):
        x = _product(_transposed(_complex_planes(dft.matrix(axis)), 2), x, 2, spec)
        x = jnp.moveaxis(x, 1, rank)
    x = _product(_transposed(_planes(dft.matrix(rank - 1)), 1), x, 2, spec)
    return jnp.moveaxis(x, 0, rank - 1)


def _product(matrix: np.ndarray, x: jax.Array, contracted: int, spec: TransformSpec) -> jax.Array:
    """Contracts the last ``contracted`` axes of ``matrix`` with the first ones of ``x``."""
    return jnp.tensordot(jnp.asarray(matrix, x.dtype), x, axes=contracted, precision=spec.precision)


def _planes(matrix: np.ndarray) -> np.ndarray:
    """Real input: ``(2, kept..., samples...)`` from complex ``(kept..., samples...)``."""
    return np.stack([matrix.real, matrix.imag])


def _complex_planes(matrix: np.ndarray) -> np.ndarray:
    """Complex input: ``(2, kept, 2, samples)`` from complex ``(kept, samples)``."""
    return np.stack(
        [np.stack([matrix.real, -matrix.imag], 1), np.stack([matrix.imag, matrix.real], 1)]
    )


def _transposed(planes: np.ndarray, contracted: int) -> np.ndarray:
    """Swaps the leading axes with the ``contracted`` last ones."""
    order = list(range(planes.ndim))
    return planes.transpose(order[-contracted:] + order[:-contracted])


# Fast Fourier transforms. The samples are laid on the circles, transformed whole, and the corners
# kept; on the way back the corners are padded with zeros.


def _fft_to(spec: TransformSpec, dft: PartialDFT, x: Float[Array, "*spatial N C"]) -> InputSpectrum:
    x = jnp.moveaxis(x, -2, 0)  # (N, *spatial, C)
    for axis, (g, points) in enumerate(zip(dft.grid, dft.points, strict=True), start=1):
        x = scatter_periodic(x, g, points, axis)
    box = keep_box(fft.rfftn(x, dft.grid), dft.grid, dft.modes)
    if dft.inverse:
        box = box * _weights(dft, box.dtype)
    return jnp.moveaxis(box.real, 0, -2), jnp.moveaxis(box.imag, 0, -2)


def _fft_from(
    spec: TransformSpec, dft: PartialDFT, spectrum: InputSpectrum
) -> Float[Array, "*spatial N C"]:
    box = jnp.moveaxis(jax.lax.complex(*spectrum), -2, 0)  # (N, *box, C)
    # The synthesis has the weights of an inverse; the adjoint of an analysis has none.
    if not dft.inverse:
        box = box / _weights(dataclasses.replace(dft, inverse=True), box.dtype)
    x = fft.irfftn(fill_box(box, dft.grid), dft.grid)
    for axis, points in enumerate(dft.points, start=1):
        x = gather_periodic(x, points, axis)
    return jnp.moveaxis(x, 0, -2)


def _weights(dft: PartialDFT, dtype: jax.typing.DTypeLike) -> jax.Array:
    """``c_u / g`` over the box, shaped to multiply ``(N, *box, C)``."""
    weights = hermitian_weights(dft.grid[-1], dft.modes[-1])
    weights = weights / math.prod(dft.grid)
    return jnp.asarray(weights.reshape((1,) * len(dft.grid) + (-1, 1)), dtype)
