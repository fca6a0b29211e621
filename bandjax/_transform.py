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
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bandjax import _fft, spectral
from bandjax._band import kept_per_axis

Precision: TypeAlias = jax.lax.Precision | str | None
Spectrum: TypeAlias = tuple[jax.Array, jax.Array]

# A transform of few samples is fastest as one matrix product over all axes at once.
_ONE_PRODUCT_SAMPLES = 64
_ONE_PRODUCT_ENTRIES = 1 << 19


@dataclasses.dataclass(frozen=True)
class Samples:
    """Where the samples of every axis lie on the circles, and which frequencies are kept.

    Attributes:
      grid: points on the circle of each axis.
      modes: largest kept frequency of each axis.
      points: position of each sample, for each axis.
      inverse: whether the frequencies carry the weights ``c_u / g`` of an inverse transform.
      shift: half points to add to all positions of an axis, for each axis ("dft" alone).
    """

    grid: tuple[int, ...]
    modes: tuple[int, ...]
    points: tuple[range, ...]
    inverse: bool = False
    shift: tuple[int, ...] = ()

    @property
    def centred(self) -> Samples:
        """The same samples, each axis shifted so that its middle lies at position zero."""
        return dataclasses.replace(self, shift=tuple(-(p[0] + p[-1]) for p in self.points))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of samples of each axis."""
        return tuple(len(points) for points in self.points)

    @property
    def box(self) -> tuple[int, ...]:
        """Number of kept frequencies of each axis."""
        return kept_per_axis(self.grid, self.modes)

    def matrix(self, axis: int) -> np.ndarray:
        """The sampled DFT matrix of one axis, complex128 ``(kept, samples)``."""
        return spectral.fourier_matrix(
            self.grid[axis],
            self.modes[axis],
            self.points[axis],
            shift=self.shift[axis] if self.shift else 0,
            half=axis == len(self.grid) - 1,
            inverse=self.inverse,
        )

    @property
    def one_product(self) -> bool:
        """Whether all axes are transformed by one matrix product."""
        samples = math.prod(self.shape)
        entries = 2 * math.prod(self.box) * samples
        return len(self.grid) == 1 or (
            samples <= _ONE_PRODUCT_SAMPLES and entries <= _ONE_PRODUCT_ENTRIES
        )


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a transform is computed: by matrix products ("dft") or by ``jnp.fft`` ("fft")."""

    method: Literal["dft", "fft"]
    precision: Precision = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def to_spectrum(how: Transform, samples: Samples, x: jax.Array) -> Spectrum:
    """Maps samples ``(*spatial, N, C)`` to their spectrum, two times ``(*box, N, C)``."""
    return (_dft_to if how.method == "dft" else _fft_to)(how, samples, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def from_spectrum(how: Transform, samples: Samples, spectrum: Spectrum) -> jax.Array:
    """Maps a spectrum, two times ``(*box, N, C)``, to samples ``(*spatial, N, C)``: the adjoint."""
    return (_dft_from if how.method == "dft" else _fft_from)(how, samples, spectrum)


to_spectrum.defvjp(
    lambda how, samples, x: (to_spectrum(how, samples, x), None),
    lambda how, samples, _, ct: (from_spectrum(how, samples, ct),),
)
from_spectrum.defvjp(
    lambda how, samples, spectrum: (from_spectrum(how, samples, spectrum), None),
    lambda how, samples, _, ct: (to_spectrum(how, samples, ct),),
)


# Matrix products. An axis at a time, the axis in hand in front: then every product is one plain
# matrix times everything else, which is what BLAS libraries are fastest at.


def _dft_to(how: Transform, samples: Samples, x: jax.Array) -> Spectrum:
    rank = len(samples.grid)
    if samples.one_product:
        matrix = _kronecker(samples)
        return _product(matrix.real, x, rank, how), _product(matrix.imag, x, rank, how)
    x = jnp.moveaxis(x, rank - 1, 0)
    x = _product(_planes(samples.matrix(rank - 1)), x, 1, how)  # (2, k_r, h_1, ..., h_{r-1}, N, C)
    for axis in range(rank - 2, 0, -1):
        # The axis to transform is the last of those still to do, rank positions from the front.
        x = jnp.moveaxis(x, rank, 1)
        x = _product(_complex_planes(samples.matrix(axis)), x, 2, how)
    x = jnp.moveaxis(x, rank, 1)
    real, imaginary = _complex_planes(samples.matrix(0))
    # Two products: to cut one array in two would be a copy.
    return _product(real, x, 2, how), _product(imaginary, x, 2, how)


def _dft_from(how: Transform, samples: Samples, spectrum: Spectrum) -> jax.Array:
    rank = len(samples.grid)
    x = jnp.stack(spectrum)  # (2, *box, N, C), written together with whatever made the two parts
    if samples.one_product:
        planes = _planes(_kronecker(samples))
        return _product(_transposed(planes, rank), x, rank + 1, how)
    for axis in range(rank - 1):
        x = _product(_transposed(_complex_planes(samples.matrix(axis)), 2), x, 2, how)
        x = jnp.moveaxis(x, 1, rank)
    x = _product(_transposed(_planes(samples.matrix(rank - 1)), 1), x, 2, how)
    return jnp.moveaxis(x, 0, rank - 1)


def _product(matrix: np.ndarray, x: jax.Array, contracted: int, how: Transform) -> jax.Array:
    """Contracts the last ``contracted`` axes of ``matrix`` with the first ones of ``x``."""
    return jnp.tensordot(jnp.asarray(matrix, x.dtype), x, axes=contracted, precision=how.precision)


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


@functools.lru_cache(maxsize=256)
def _kronecker(samples: Samples) -> np.ndarray:
    """The matrix of all axes together, complex128 ``(*box, *spatial)``."""
    rank = len(samples.grid)
    matrix = functools.reduce(np.multiply.outer, (samples.matrix(axis) for axis in range(rank)))
    return matrix.transpose([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])


# Fast Fourier transforms. The samples are laid on the circles, transformed whole, and the corners
# kept; on the way back the corners are padded with zeros.


def _fft_to(how: Transform, samples: Samples, x: jax.Array) -> Spectrum:
    x = jnp.moveaxis(x, -2, 0)  # (N, *spatial, C)
    for axis, (g, points) in enumerate(zip(samples.grid, samples.points, strict=True), start=1):
        x = lay_on_circle(x, g, points, axis)
    box = spectral.keep_box(_fft.rfftn(x, samples.grid), samples.grid, samples.modes)
    if samples.inverse:
        box = box * _weights(samples, box.dtype)
    return jnp.moveaxis(box.real, 0, -2), jnp.moveaxis(box.imag, 0, -2)


def _fft_from(how: Transform, samples: Samples, spectrum: Spectrum) -> jax.Array:
    box = jnp.moveaxis(jax.lax.complex(*spectrum), -2, 0)  # (N, *box, C)
    # The synthesis has the weights of an inverse; the adjoint of an analysis has none.
    if not samples.inverse:
        box = box / _weights(dataclasses.replace(samples, inverse=True), box.dtype)
    x = _fft.irfftn(spectral.fill_box(box, samples.grid), samples.grid)
    for axis, points in enumerate(samples.points, start=1):
        x = take_from_circle(x, points, axis)
    return jnp.moveaxis(x, 0, -2)


def _weights(samples: Samples, dtype: jax.typing.DTypeLike) -> jax.Array:
    """``c_u / g`` over the box, shaped to multiply ``(N, *box, C)``."""
    weights = spectral.hermitian_weights(samples.grid[-1], samples.modes[-1])
    weights = weights / math.prod(samples.grid)
    return jnp.asarray(weights.reshape((1,) * len(samples.grid) + (-1, 1)), dtype)


def lay_on_circle(x: jax.Array, g: int, points: range, axis: int) -> jax.Array:
    """Adds sample ``j`` of an axis to point ``points[j]`` (modulo g) of a circle of zeros."""
    used = (len(points) - 1) * points.step + 1
    turns = -(-used // g)
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (0, turns * g - used, points.step - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
    if turns > 1:
        x = x.reshape(*x.shape[:axis], turns, g, *x.shape[axis + 1 :]).sum(axis)
    return jnp.roll(x, points.start, axis)


def take_from_circle(x: jax.Array, points: range, axis: int) -> jax.Array:
    """Reads point ``points[i]`` (modulo g) of an axis as sample ``i``."""
    used = (len(points) - 1) * points.step + 1
    x = jnp.roll(x, -points.start, axis)
    turns = -(-used // x.shape[axis])
    if turns > 1:
        x = jnp.concatenate([x] * turns, axis)
    return jax.lax.slice_in_dim(x, 0, used, points.step, axis)
