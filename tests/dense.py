"""The dense convolution by ``lax``, for any configuration."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from configs import Config


def lax_convolution(config: Config, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``lax.conv_general_dilated`` with every padding written as explicit pairs.

    (``lax`` refuses strings together with input dilation, and knows no ``CIRCULAR``.)
    """
    rank = len(config.sizes)
    pairs = [(axis.low, axis.high) for axis in config.geometry]
    dilation = config.input_dilation
    x = x.reshape(-1, *config.sizes, config.channels)
    if config.padding == "CIRCULAR":
        # Zeros between the samples, then the period once more on either side.
        for n, a in enumerate(dilation, start=1):
            wide = jnp.zeros((*x.shape[:n], x.shape[n] * a, *x.shape[n + 1 :]), x.dtype)
            x = wide.at[(slice(None),) * n + (slice(None, None, a),)].set(x)
        x = jnp.pad(x, [(0, 0), *pairs, (0, 0)], mode="wrap")
        pairs, dilation = [(0, 0)] * rank, (1,) * rank
    space = "XYZ"[:rank]
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        config.strides,
        pairs,
        lhs_dilation=dilation,
        rhs_dilation=config.kernel_dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=config.groups,
    )
    return y.reshape(*config.batch, *y.shape[1:])
