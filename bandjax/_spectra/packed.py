"""Transform and multiply-sum as few large matrix products, for processors with matrix units.

A *packed* spectrum is one real array ``(*box, N, 2 C)``: of each example and frequency the real
parts of all channels, then the imaginary ones. In this form everything is a batched product of real
matrices, with nothing to transpose or to add between two of them:

    analysis    for each example    (2 kept, samples) x (samples, C)
    product     for each frequency  (N, 2 C) x (2 C, 2 O)
    synthesis   for each example    (samples, 2 kept) x (2 kept, O)

The maps are those of :mod:`bandjax._spectra.transform` and :mod:`bandjax._spectra.product`; a
complex number is written as the matrix ``[[re, -im], [im, re]]`` instead of three products, for on
matrix units products cost less than passes over memory.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._spectra.bilinear import contractions
from bandjax._spectra.partial_dft import PartialDFT, _kronecker
from bandjax._spectra.product import ProductSpec
from bandjax._spectra.types import FilterSpectrum, PackedSpectrum, Precision
from bandjax._tables import tables

# Entries of a matrix over all axes, up to which one product with it is faster than an axis at a
# time: it makes more multiply-adds, and fewer passes. On an H200 with 128 examples of 32, 16 and 8
# squared, at half of the frequencies: 172, 128, 126 us against 126, 95, 164 in float32, and 110,
# 131, 112 against 169, 182, 140 in bfloat16.
_ONE_PRODUCT_ENTRIES = {2: 1 << 20, 4: 1 << 14, 8: 1 << 14}


def _steps(dft: PartialDFT, dtype: np.dtype[Any]) -> tuple[np.ndarray, ...]:
    """The real matrices of :func:`to_packed`, ``(2 kept, parts * samples)`` each, in order.

    ``parts`` is 1 where samples are real, and 2, their real and imaginary part, after the first.
    """
    entries = 2 * math.prod(dft.box) * math.prod(dft.shape)
    if len(dft.grid) == 1 or entries <= _ONE_PRODUCT_ENTRIES[dtype.itemsize]:
        return (_whole(dft),)
    return tuple(_of_axis(dft, axis) for axis in range(len(dft.grid)))


@tables
def _whole(dft: PartialDFT) -> np.ndarray:
    """Of all axes at once."""
    matrix = _kronecker(dft).reshape(math.prod(dft.box), -1)
    return np.stack([matrix.real, matrix.imag], 1).reshape(2 * len(matrix), -1)


@tables
def _of_axis(dft: PartialDFT, axis: int) -> np.ndarray:
    """Of one axis; all but the first start from complex numbers."""
    matrix = dft.matrix(axis)
    real = np.stack([matrix.real, matrix.imag], 1)  # (kept, 2, samples)
    if axis > 0:
        imaginary = np.stack([-matrix.imag, matrix.real], 1)
        real = np.stack([real, imaginary], 2)  # (kept, 2, 2, samples)
    return real.reshape(2 * len(matrix), -1)


def _product(matrix: np.ndarray, x: jax.Array, precision: Precision) -> jax.Array:
    """Of ``matrix`` ``(k, s)`` with each of ``x`` ``(n, s, rest)``: ``(n, k, rest)``."""
    # Backends take the repeated operand for a stride of zero.
    repeated = jnp.broadcast_to(jnp.asarray(matrix, x.dtype), (len(x), *matrix.shape))
    return jax.lax.dot_general(repeated, x, (((2,), (1,)), ((0,), (0,))), precision=precision)


def to_packed(
    dft: PartialDFT, x: Float[Array, "N *spatial C"], precision: Precision = None
) -> Float[Array, "*box N C2"]:
    """Maps samples ``(N, *spatial, C)`` to their packed spectrum ``(*box, N, 2 C)``."""
    n, c = x.shape[0], x.shape[-1]
    rest, done = math.prod(dft.shape), 1
    for i, matrix in enumerate(_steps(dft, x.dtype)):
        rest //= matrix.shape[1] // (2 if i else 1)
        x = _product(matrix, x.reshape(n * done, matrix.shape[1], rest * c), precision)
        done *= len(matrix) // 2
    return jnp.moveaxis(x.reshape(n, *dft.box, 2 * c), 0, -2)


def from_packed(
    dft: PartialDFT, spectrum: Float[Array, "*box N C2"], precision: Precision = None
) -> Float[Array, "N *spatial C"]:
    """Maps a packed spectrum ``(*box, N, 2 C)`` to samples ``(N, *spatial, C)``: the adjoint."""
    n, c = spectrum.shape[-2], spectrum.shape[-1] // 2
    x = jnp.moveaxis(spectrum, -2, 0)
    rest, left = 1, math.prod(dft.box)
    steps = _steps(dft, x.dtype)
    for i, matrix in reversed(list(enumerate(steps))):
        left //= len(matrix) // 2
        x = _product(matrix.T, x.reshape(n * left, len(matrix), rest * c), precision)
        rest *= matrix.shape[1] // (2 if i else 1)
    return x.reshape(n, *dft.shape, c)


def multiply_adds(dft: PartialDFT, dtype: np.dtype[Any]) -> int:
    """Returns the real multiply-adds of one channel's transform."""
    total, rest, done = 0, math.prod(dft.shape), 1
    for i, matrix in enumerate(_steps(dft, dtype)):
        rest //= matrix.shape[1] // (2 if i else 1)
        total += done * matrix.size * rest
        done *= len(matrix) // 2
    return total


# --------------------------------------------------------------------------------- the products
# k: frequencies; a, b: real and imaginary part of input and output; g: groups.


def _split(a: jax.Array, *sizes: int) -> jax.Array:
    """``(*box, rows, columns)`` to ``(kept, rows, *sizes)``."""
    return a.reshape(-1, a.shape[-2], *sizes)


def _matrix(spec: ProductSpec, w: FilterSpectrum, dtype: np.dtype[Any]) -> jax.Array:
    """Each coefficient as the matrix of a product by its conjugate: ``(kept, 2, c, 2, g, o)``."""
    re, im = (_split(a.astype(dtype), spec.groups, a.shape[-1] // spec.groups) for a in w)
    rows = jnp.stack([re, -im], 2), jnp.stack([im, re], 2)
    return jnp.stack(rows, 1)


def _einsum(
    spec: ProductSpec, pattern: str, *operands: jax.Array, dtype: np.dtype[Any]
) -> jax.Array:
    if spec.groups == 1:
        # Without its axis no operand must be transposed.
        axes = (term.index("g") for term in pattern.split("->", maxsplit=1)[0].split(","))
        operands = tuple(jnp.squeeze(a, axis) for a, axis in zip(operands, axes, strict=True))
        pattern = pattern.replace("g", "")
    return jnp.einsum(pattern, *operands, precision=spec.precision, preferred_element_type=dtype)


def _multiply_sum(spec: ProductSpec, x: PackedSpectrum, w: FilterSpectrum) -> PackedSpectrum:
    """Returns ``sum_c x[n, c] conj(w[c, o])`` for each frequency, ``(*box, N, 2 O)``."""
    matrix = _matrix(spec, w, x.dtype)
    split = _split(x, 2, spec.groups, x.shape[-1] // (2 * spec.groups))
    y = _einsum(spec, "knagc,kacbgo->knbgo", split, matrix, dtype=x.dtype)
    return y.reshape(*x.shape[:-1], 2 * w[0].shape[-1])


def _input_product(spec: ProductSpec, y: PackedSpectrum, w: FilterSpectrum) -> PackedSpectrum:
    """Returns ``sum_o y[n, o] w[c, o]`` for each frequency, ``(*box, N, 2 C)``."""
    matrix = _matrix(spec, w, y.dtype)
    split = _split(y, 2, spec.groups, y.shape[-1] // (2 * spec.groups))
    x = _einsum(spec, "knbgo,kacbgo->knagc", split, matrix, dtype=y.dtype)
    return x.reshape(*y.shape[:-1], 2 * spec.groups * w[0].shape[-2])


def _filter_product(spec: ProductSpec, x: PackedSpectrum, y: PackedSpectrum) -> FilterSpectrum:
    """Returns ``sum_n x[n, c] conj(y[n, o])`` for each frequency, two times ``(*box, c, O)``."""
    split = [_split(a, 2, spec.groups, a.shape[-1] // (2 * spec.groups)) for a in (x, y)]
    dtype = np.promote_types(x.dtype, np.float32) if x.dtype != jnp.bfloat16 else np.float32
    m = _einsum(spec, "knagc,knbgo->kacbgo", *split, dtype=np.dtype(dtype))
    m = m.reshape(-1, 2, *(m.shape[i] for i in (2, 3)), y.shape[-1] // 2)
    re, im = m[:, 0, :, 0] + m[:, 1, :, 1], m[:, 1, :, 0] - m[:, 0, :, 1]
    shape = (*x.shape[:-2], *re.shape[1:])
    return re.reshape(shape), im.reshape(shape)


multiply_sum, input_product, filter_product = contractions(
    _multiply_sum, _input_product, _filter_product
)
