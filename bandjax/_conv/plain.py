"""The operator in operations of JAX alone, none of which has a derivative of its own.

Functions with a rule for reverse mode (``jax.custom_vjp``) have neither forward mode nor a
transpose. Here the input's projection on the band is one real matrix an axis,

    P[m, j] = sum_u c_u cos(2 pi u (m - a j) / g) / g          0 <= u <= U

with ``c_u`` 1 at DC and Nyquist, else 2, ``m`` a point that a tap reads and ``a j`` that of an
input sample; then comes the backend's convolution. What the backward pass keeps is JAX's choice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._bands.frequencies import hermitian_weights
from bandjax._conv import energy
from bandjax._conv.methods import Direct


def convolve(
    method: Direct, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> tuple[Float[Array, "N *spatial_out O"], Any]:
    """Returns what :func:`bandjax._conv.operator.convolve` does."""
    geometry = method.geometry
    limits: Any = geometry.modes
    level = None
    if geometry.energy is not None:
        still = jax.lax.stop_gradient(x)  # The derivative takes the box for given.
        level = energy.find_level(geometry, method.analyse(still), still)
        limits = energy.modes_of(geometry, level)
    window = x
    points = zip(method.window_dft.points, method.input_dft.points, strict=True)
    for n, (read, sampled) in enumerate(points):
        matrix = projection(geometry.grid[n], limits[n], read, sampled, x.dtype)
        product = jnp.tensordot(matrix, window, (1, n + 1), precision=method.precision)
        window = jnp.moveaxis(product, 0, n + 1)
    spatial = "".join(map(str, range(len(geometry.axes))))
    y = jax.lax.conv_general_dilated(
        window,
        kernel,
        window_strides=[axis.stride for axis in geometry.axes],
        padding="VALID",
        rhs_dilation=[axis.kernel_dilation for axis in geometry.axes],
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.groups,
        precision=method.precision,
    )
    return y, level


def projection(g: int, limit: Any, read: range, sampled: range, dtype: Any) -> jax.Array:
    """Returns ``P`` ``(read, sampled)``; ``limit`` is an integer, or an array of one."""
    known = isinstance(limit, int)
    if known and limit == g // 2:  # Every frequency: the samples themselves.
        apart = np.asarray(read)[:, None] - np.asarray(sampled)
        return jnp.asarray(apart % g == 0, dtype)
    u = np.arange((limit if known else g // 2) + 1)
    weights = np.asarray(hermitian_weights(g, int(u[-1]))) / g
    there, here = (2 * np.pi / g * (np.outer(points, u) % g) for points in (read, sampled))
    # The cosine of a difference, so that a limit that is found in the call can cut the sum.
    rows = np.concatenate([np.cos(there) * weights, np.sin(there) * weights], 1)
    columns = np.concatenate([np.cos(here), np.sin(here)], 1)
    if known:
        return jnp.asarray(rows @ columns.T, dtype)
    kept = jnp.tile(jnp.asarray(u, jnp.int32) <= limit, 2).astype(dtype)
    return jnp.matmul(jnp.asarray(rows, dtype) * kept[None], jnp.asarray(columns.T, dtype))
