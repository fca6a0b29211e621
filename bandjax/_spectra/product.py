"""The multiply-sum: for each kept frequency a complex product over channels.

Spectra are pairs of real arrays: the input's ``X`` two times ``(*box, N, C)``, the filter's ``W``
``(*box, C / groups, O)``, the output's ``Y`` ``(*box, N, O)``. Three contractions,

    multiply_sum:   Y[n, o] = sum_c X[n, c] conj(W[c, o])
    input_product:  X[n, c] = sum_o Y[n, o] W[c, o]
    filter_product: W[c, o] = sum_n X[n, c] conj(Y[n, o])

are closed under differentiation: the derivative of each is the two others.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from bandjax._spectra.bilinear import contractions
from bandjax._spectra.types import (
    FilterSpectrum,
    InputSpectrum,
    OutputSpectrum,
    Precision,
    Spectrum,
)


@dataclasses.dataclass(frozen=True)
class ProductSpec:
    """How the products are computed.

    Attributes:
      groups: feature groups, each with its own share of the input and output channels.
      precision: of the real matrix products.
    """

    groups: int
    precision: Precision = None


def _multiply_sum(spec: ProductSpec, x: InputSpectrum, w: FilterSpectrum) -> OutputSpectrum:
    """Returns ``sum_c x[n, c] conj(w[c, o])`` for each frequency."""
    return complex_product(spec, "ngc,cgo->ngo", x, w, conjugate=True)


def _input_product(spec: ProductSpec, y: OutputSpectrum, w: FilterSpectrum) -> InputSpectrum:
    """Returns ``sum_o y[n, o] w[c, o]`` for each frequency: the input's gradient."""
    return complex_product(spec, "ngo,cgo->ngc", y, w, conjugate=False)


def _filter_product(spec: ProductSpec, x: InputSpectrum, y: OutputSpectrum) -> FilterSpectrum:
    """Returns ``sum_n x[n, c] conj(y[n, o])`` for each frequency: the filter's gradient."""
    return complex_product(spec, "ngc,ngo->cgo", x, y, conjugate=True)


def complex_product(
    spec: ProductSpec, pattern: str, a: Spectrum, b: Spectrum, *, conjugate: bool
) -> Spectrum:
    """Multiplies ``a`` with ``b``, or its conjugate, by three real products (Gauss, Karatsuba).

    ``pattern`` names the last axes of both operands, ``g`` the groups in the last one.
    """
    if spec.groups == 1:
        # An axis of one group would cost a transposition of every operand.
        pattern = pattern.replace("g", "")
    else:
        a, b = _split_groups(spec.groups, a), _split_groups(spec.groups, b)
    into, out = pattern.split("->")
    left, right = into.split(",")
    frequencies = "uvw"[: a[0].ndim - len(left)]
    pattern = f"{frequencies}{left},{frequencies}{right}->{frequencies}{out}"
    product = functools.partial(jnp.einsum, pattern, precision=spec.precision)
    real, imaginary = product(a[0], b[0]), product(a[1], b[1])
    # Of b always the difference, and of the input's spectrum always the sum: the three contractions
    # of a training step then share what they prepare.
    difference = b[0] - b[1]
    if conjugate:
        both = product(a[0] + a[1], difference)
        result = real + imaginary, both - real + imaginary
    else:
        both = product(a[0] - a[1], difference)
        result = real - imaginary, real + imaginary - both
    return result if spec.groups == 1 else _merge_groups(result)


def _split_groups(groups: int, spectrum: Spectrum) -> Spectrum:
    """``(..., G * c)`` to ``(..., G, c)``."""
    re, im = (a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups) for a in spectrum)
    return re, im


def _merge_groups(spectrum: Spectrum) -> Spectrum:
    re, im = (a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1]) for a in spectrum)
    return re, im


multiply_sum, input_product, filter_product = contractions(
    _multiply_sum, _input_product, _filter_product
)
