"""Bytes and multiply-adds of one convolution, counted from shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bandjax._conv.cost import transform_multiply_adds, transform_of_projection
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.methods import FilterDomain, Method, XlaMethod
from bandjax._conv.options import ConvSpec
from bandjax._spectra.types import compute_dtype

_LEVEL = 4  # bytes of the integer that tells the box of an Energy band


def residual_bytes(
    method: type[Method],
    geometry: ConvGeometry,
    spec: ConvSpec,
    dtype: np.dtype[Any],
    domain: FilterDomain,
) -> int:
    """Returns the bytes that one call keeps for the backward pass, the kernel left out."""
    batch, channels = math.prod(geometry.batch), geometry.in_features
    kept_dtype = jnp.dtype(dtype if spec.residual_dtype is None else spec.residual_dtype)
    scale = compute_dtype(dtype).itemsize
    if spec.implementation == "jax":  # What the taps read, and for an Energy band no more.
        return math.prod(_window(geometry)) * batch * channels * scale
    if geometry.keeps_input:
        numbers = math.prod(axis.size for axis in geometry.axes)
    else:
        numbers = 2 * geometry.kept
    size = numbers * batch * channels * kept_dtype.itemsize
    if kept_dtype == jnp.int8:
        # Of each example a byte for each channel, and a scale for each frequency.
        scales = 1 if geometry.keeps_input else geometry.kept
        size += batch * (channels + scales * scale // 2)
    if geometry.energy is not None:
        size += _LEVEL
    bare = method(geometry, kept_dtype, spec.recompute_filter, filter_domain=domain)
    if bare.keeps_filter and domain == "spatial":
        size += 2 * geometry.kept * channels // geometry.groups * geometry.out_features * scale
    return size


def multiply_adds(
    method: type[Method], geometry: ConvGeometry, domain: FilterDomain
) -> tuple[int, int]:
    """Returns those of the transforms and of the products of one forward call."""
    axes = geometry.axes
    batch = math.prod(geometry.batch)
    inputs, outputs = batch * geometry.in_features, batch * geometry.out_features
    pairs = geometry.in_features // geometry.groups * geometry.out_features
    filters = pairs if domain == "spatial" else 0
    fast = math.prod(geometry.grid)
    fast = round(1.25 * fast * math.log2(fast))

    def transform(samples: Sequence[int]) -> int:
        return transform_multiply_adds(samples, geometry)

    size = [axis.size for axis in axes]
    if method.by_taps:
        taps = math.prod(axis.out * axis.taps for axis in axes)
        if geometry.exact:
            projection = 0
        elif transform_of_projection(geometry) == "fft":
            projection = 2 * fast * inputs
        else:
            projection = inputs * (transform(size) + transform(_window(geometry)))
        return projection, batch * taps * pairs
    bare = method(geometry, np.dtype(np.float32), filter_domain=domain)
    if isinstance(bare, XlaMethod) and bare.transform.method == "fft":
        transforms = fast * (inputs + filters + outputs)
    else:
        transforms = (
            inputs * transform(size)
            + filters * transform([axis.taps for axis in axes])
            + outputs * transform([axis.out for axis in axes])
        )
    return transforms, 4 * geometry.kept * batch * pairs


def _window(geometry: ConvGeometry) -> list[int]:
    """Points of each axis that taps read."""
    return [(a.out - 1) * a.stride + a.kernel_points[-1] + 1 for a in geometry.axes]
