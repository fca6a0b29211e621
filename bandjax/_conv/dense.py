"""The backend's own convolution, in three contractions that are closed under differentiation.

    convolve:        y  = lax.conv_general_dilated(x, kernel)
    input_gradient:  dx = its transpose in x
    filter_gradient: dk = its transpose in the kernel

The rules are those of ``lax``, but for the filter's gradient under ``vmap``: there ``lax`` makes
one convolution with a group for each example, and XLA (up to jax 0.12) partitions it wrongly,
without an error, where the examples lie on several devices.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bandjax._spectra.bilinear import contractions
from bandjax._spectra.types import Precision


@dataclasses.dataclass(frozen=True)
class DenseConvSpec:
    """The static arguments of one convolution of ``(N, *size, C)`` with ``(*taps, C / groups, O)``.

    Attributes: one entry for each spatial axis, as in ``lax.conv_general_dilated``.
    """

    size: tuple[int, ...]
    taps: tuple[int, ...]
    out: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int
    precision: Precision


def _convolve(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    return _lax(spec, x, kernel)


def _input_gradient(
    spec: DenseConvSpec, y: Float[Array, "N *spatial_out O"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial C"]:
    shape = (y.shape[0], *spec.size, kernel.shape[-2] * spec.groups)
    x = jnp.zeros_like(y, shape=shape)  # Only its shape counts: the map is linear.
    return jax.vjp(lambda x: _lax(spec, x, kernel), x)[1](y)[0]


def _filter_gradient(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], y: Float[Array, "N *spatial_out O"]
) -> Float[Array, "*taps c O"]:
    return _filter_gradient_of(spec)(x, y)


convolve, input_gradient, filter_gradient = contractions(
    _convolve, _input_gradient, _filter_gradient
)


def _lax(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    spatial = "".join(map(str, range(len(spec.size))))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=spec.strides,
        padding=spec.padding,
        lhs_dilation=spec.input_dilation,
        rhs_dilation=spec.kernel_dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=spec.groups,
        precision=spec.precision,
    )


@functools.lru_cache(maxsize=1024)
def _filter_gradient_of(spec: DenseConvSpec) -> Any:
    """The filter's gradient by ``lax``; under ``vmap`` by one product for each tap."""

    @jax.custom_batching.custom_vmap
    def by_lax(x: jax.Array, y: jax.Array) -> jax.Array:
        shape = (*spec.taps, x.shape[-1] // spec.groups, y.shape[-1])
        kernel = jnp.zeros_like(x, shape=shape)  # Only its shape counts: the map is linear.
        return jax.vjp(lambda kernel: _lax(spec, x, kernel), kernel)[1](y)[0]

    @by_lax.def_vmap
    def _(
        axis_size: int, in_batched: list[bool], x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, bool]:
        in_axes = tuple(0 if batched else None for batched in in_batched)
        return jax.vmap(functools.partial(_by_taps, spec), in_axes)(x, y), True

    return by_lax


def _by_taps(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], y: Float[Array, "N *spatial_out O"]
) -> Float[Array, "*taps c O"]:
    """The filter's gradient as one matrix product for each tap."""
    padding = [(0, 0, 0)]
    padding += [(*p, d - 1) for p, d in zip(spec.padding, spec.input_dilation, strict=True)]
    padding += [(0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
    # (N, *out, groups, channels of a group), the spatial axes as part of the sum
    y = y.reshape(-1, spec.groups, y.shape[-1] // spec.groups)
    products = []
    for tap in itertools.product(*map(range, spec.taps)):
        start = [t * d for t, d in zip(tap, spec.kernel_dilation, strict=True)]
        stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, spec.out, spec.strides, strict=True)]
        read = jax.lax.slice(
            x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *spec.strides, 1)
        )
        read = read.reshape(-1, spec.groups, x.shape[-1] // spec.groups)
        products.append(jnp.einsum("sgc,sgo->cgo", read, y, precision=spec.precision))
    stacked = jnp.stack(products)
    return stacked.reshape(*spec.taps, stacked.shape[1], math.prod(stacked.shape[2:]))
