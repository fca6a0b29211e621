"""The multiply-sum: for each kept frequency a complex product over channels.

Spectra are planar: the input's ``X`` is ``(2, *box, N, C)``, the filter's ``W`` is
``(2, *box, C / groups, O)``, the output's ``Y`` is ``(2, *box, N, O)``. Three contractions,

    multiply_sum:   Y[n, o] = sum_c X[n, c] conj(W[c, o])
    input_product:  X[n, c] = sum_o Y[n, o] W[c, o]
    filter_product: W[c, o] = sum_n X[n, c] conj(Y[n, o])

are closed under differentiation: the derivative of each is the two others.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bandjax._transform import Precision


@dataclasses.dataclass(frozen=True)
class Product:
    """How the products are computed.

    Attributes:
      groups: feature groups, each with its own share of the input and output channels.
      precision: of the real matrix products.
    """

    groups: int
    precision: Precision = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def multiply_sum(how: Product, x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns ``sum_c x[n, c] conj(w[c, o])`` for each frequency."""
    x, w = _split_groups(how, x), _split_groups(how, w)
    return _merge_groups(_complex_product("{}ngc,{}cgo->{}ngo", x, _conjugate(w), how.precision))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def input_product(how: Product, y: jax.Array, w: jax.Array) -> jax.Array:
    """Returns ``sum_o y[n, o] w[c, o]`` for each frequency: the input's gradient."""
    y, w = _split_groups(how, y), _split_groups(how, w)
    return _merge_groups(_complex_product("{}ngo,{}cgo->{}ngc", y, w, how.precision))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def filter_product(how: Product, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns ``sum_n x[n, c] conj(y[n, o])`` for each frequency: the filter's gradient."""
    x, y = _split_groups(how, x), _split_groups(how, y)
    return _merge_groups(_complex_product("{}ngc,{}ngo->{}cgo", x, _conjugate(y), how.precision))


def _multiply_sum_bwd(how: Product, res: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = res
    return input_product(how, ct, w), filter_product(how, x, ct)


def _input_product_bwd(how: Product, res: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, w = res
    return multiply_sum(how, ct, w), filter_product(how, ct, y)


def _filter_product_bwd(how: Product, res: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = res
    return input_product(how, y, ct), multiply_sum(how, x, ct)


multiply_sum.defvjp(lambda how, x, w: (multiply_sum(how, x, w), (x, w)), _multiply_sum_bwd)
input_product.defvjp(lambda how, y, w: (input_product(how, y, w), (y, w)), _input_product_bwd)
filter_product.defvjp(lambda how, x, y: (filter_product(how, x, y), (x, y)), _filter_product_bwd)


def _split_groups(how: Product, a: jax.Array) -> jax.Array:
    """``(..., G * c)`` to ``(..., G, c)``."""
    return a.reshape(*a.shape[:-1], how.groups, a.shape[-1] // how.groups)


def _merge_groups(a: jax.Array) -> jax.Array:
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def _conjugate(a: jax.Array) -> jax.Array:
    return jnp.stack([a[0], -a[1]])


def _complex_product(pattern: str, a: jax.Array, b: jax.Array, precision: Precision) -> jax.Array:
    """Multiplies planar complex arrays with three real products (Gauss, Karatsuba)."""
    frequency_axes = "uvw"[: a.ndim - 4]
    pattern = pattern.format(frequency_axes, frequency_axes, frequency_axes)
    product = functools.partial(jnp.einsum, pattern, precision=precision)
    real, imaginary = product(a[0], b[0]), product(a[1], b[1])
    both = product(a[0] + a[1], b[0] + b[1])
    return jnp.stack([real - imaginary, both - real - imaginary])
