"""Complex convolutions as real ones, with the parts of a number as channels of its group.

The projection on a band has real weights on the samples: it treats both parts of a complex signal
alike, and keeps both signs of every frequency. Hence

    re y = re x * re w - im x * im w        im y = re x * im w + im x * re w

(``*`` the band-limited correlation) is one real convolution of twice the channels. Each method,
the kernels, and what the backward pass keeps are those of real numbers: the half spectra of the two
parts hold as many numbers as the whole spectrum of the complex signal.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Float

from bandjax._conv.geometry import ConvGeometry


def is_complex(dtype: Any) -> bool:
    """Whether numbers of a type are complex."""
    return bool(jnp.issubdtype(dtype, jnp.complexfloating))


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """The type of the parts of numbers of a type."""
    return np.zeros(0, dtype).real.dtype if is_complex(dtype) else np.dtype(dtype)


def real_geometry(geometry: ConvGeometry, dtype: Any) -> ConvGeometry:
    """The geometry of the real convolution that computes one of numbers of a type."""
    if not is_complex(dtype):
        return geometry
    channels, features = 2 * geometry.in_features, 2 * geometry.out_features
    return dataclasses.replace(geometry, in_features=channels, out_features=features)


def parts_of_input(
    x: Complex[Array, "*batch_spatial C"], groups: int
) -> Float[Array, "*batch_spatial C2"]:
    """Returns of each group its real, then its imaginary parts."""
    if groups == 1:
        return jnp.concatenate([x.real, x.imag], -1)
    grouped = x.reshape(*x.shape[:-1], groups, 1, -1)
    return jnp.concatenate([grouped.real, grouped.imag], -2).reshape(*x.shape[:-1], -1)


def parts_of_kernel(
    kernel: Complex[Array, "*taps c O"], groups: int
) -> Float[Array, "*taps c2 O2"]:
    """Returns the real kernel: from real and imaginary parts, to those of each group."""
    re, im = kernel.real, kernel.imag
    if groups == 1:
        to_re, to_im = jnp.concatenate([re, -im], -2), jnp.concatenate([im, re], -2)
        return jnp.concatenate([to_re, to_im], -1)
    re, im = (a.reshape(*a.shape[:-1], groups, 1, -1) for a in (re, im))
    from_re, from_im = jnp.concatenate([re, im], -2), jnp.concatenate([-im, re], -2)
    both = jnp.concatenate([from_re, from_im], -4)
    return both.reshape(*both.shape[:-3], -1)


def from_parts(
    y: Float[Array, "*batch_spatial O2"], groups: int
) -> Complex[Array, "*batch_spatial O"]:
    """Returns the complex numbers of the parts, which each group has one after the other."""
    if groups == 1:
        return jax.lax.complex(*jnp.split(y, 2, -1))
    re, im = jnp.split(y.reshape(*y.shape[:-1], groups, 2, -1), 2, -2)
    shape = (*y.shape[:-1], y.shape[-1] // 2)
    return jax.lax.complex(re.reshape(shape), im.reshape(shape))
