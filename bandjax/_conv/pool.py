"""Spectral pooling: an ideal low-pass filter, and fewer samples of what is left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.band import Compression, Modes, Nyquist
from bandjax._conv.geometry import PaddingLike, conv_geometry
from bandjax._spectra.partial_dft import PartialDFT
from bandjax._spectra.transform import TransformSpec, from_spectrum, to_spectrum
from bandjax._spectra.types import Precision, compute_dtype


def spectral_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: PaddingLike = "VALID",
    *,
    band: Compression | Modes | None = None,
    precision: Precision = None,
) -> jax.Array:
    """Pools by the low frequencies: what fewer samples can carry, and nothing that would alias.

    Each channel loses its frequencies above ``g / (2 s)``, with ``s`` the stride and ``g`` the
    points of its circle (those of the input, in most cases), and is sampled where the centres of
    the windows lie (of an even window the point before its centre). The arguments are those of
    ``flax.linen.max_pool`` and ``avg_pool``, and so is the shape of the result: the window tells
    positions, and smooths nothing. Where a stride is the length of the axis the result is the mean.

    It is linear, and keeps nothing for the backward pass.

    Args:
      inputs: ``(batch..., *spatial, channels)``, floating point, 1 to 3 spatial axes.
      window_shape: of the pool that it stands for, an integer for each spatial axis.
      strides: points between windows, by default 1.
      padding: "VALID", "SAME" or ``(low, high)`` pairs, as Flax's pools take them.
      band: a further bound, :class:`bandjax.Compression` or :class:`bandjax.Modes`.
      precision: of the matrix products, as in ``jax.lax``.

    Returns:
      ``(batch..., *spatial_out, channels)`` of the type of ``inputs``.

    Raises:
      TypeError, ValueError: an argument of the wrong type, or shapes that do not fit.

    Example:
      >>> x = jnp.cos(2 * jnp.pi * jnp.arange(16) / 16)[None, :, None]
      >>> y = spectral_pool(x, (2,), (2,))
      >>> y.shape, bool(jnp.allclose(y, x[:, ::2], atol=1e-5))
      ((1, 8, 1), True)

    Source: Rippel, Snoek and Adams, "Spectral representations for convolutional neural networks",
    NeurIPS 2015, section 3.2.
    """
    for name, value in (("window_shape", window_shape), ("strides", strides)):
        if not isinstance(value, Iterable | None):
            raise TypeError(f"{name} must be a sequence of integers, one an axis, got {value!r}")
    window = tuple(window_shape)
    if not isinstance(inputs, jax.Array | np.ndarray):
        raise TypeError(f"inputs must be an array, got {type(inputs).__name__}")
    if isinstance(padding, str) and padding.upper() not in ("VALID", "SAME"):
        raise ValueError(f"padding must be 'VALID', 'SAME' or (low, high) pairs, got {padding!r}")
    inputs = jnp.asarray(inputs)  # NumPy's float64 becomes JAX's default type.
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"inputs must be of a floating-point type, got {inputs.dtype}")
    rank, channels = len(window), inputs.shape[-1]
    steps = (1,) * rank if strides is None else tuple(strides)
    arguments: dict[str, Any] = {"strides": steps, "feature_group_count": channels}
    pooled = conv_geometry(inputs.shape, (*window, 1, channels), padding=padding, **arguments)
    # The same outputs by a window of one point: at the place of the centre.
    pads = []
    for axis in pooled.axes:
        low = axis.padding[0] - (axis.taps - 1) // 2
        pads.append((low, axis.stride * (axis.out - 1) + 1 - axis.size - low))
    geometry = conv_geometry(
        inputs.shape, (*(1,) * rank, 1, channels), Nyquist(band), padding=pads, **arguments
    )
    spec = TransformSpec("dft", precision)
    before, after = (
        PartialDFT(geometry.grid, geometry.modes, tuple(points), inverse)
        for points, inverse in (
            ([axis.input_points for axis in geometry.axes], False),
            ([axis.output_points for axis in geometry.axes], True),
        )
    )
    x = inputs.reshape(math.prod(geometry.batch), *inputs.shape[-rank - 1 :])
    x = jnp.moveaxis(x.astype(compute_dtype(x.dtype)), 0, -2)
    y = jnp.moveaxis(from_spectrum(spec, after, to_spectrum(spec, before, x)), -2, 0)
    return y.reshape(geometry.output_shape).astype(inputs.dtype)
