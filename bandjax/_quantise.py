"""Eight bits for each number that is kept for the backward pass."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_LARGEST = 127


class Quantised(NamedTuple):
    """Integers and their scales.

    Attributes:
      values: int8, a spectrum (two times ``(*box, N, C)``) or samples ``(N, *spatial, C)``.
      channel: scales ``(1, ..., 1, C)``.
      frequency: scales ``(*box, 1, 1)``, which multiply the channel's; a single one of samples.
    """

    values: Any
    channel: jax.Array
    frequency: jax.Array

    def restored(self, dtype: Any) -> Any:
        """Returns the numbers that the integers stand for."""
        scale = (self.channel * self.frequency).astype(dtype)
        return jax.tree.map(lambda a: a.astype(dtype) * scale, self.values)


@jax.custom_jvp
def quantise(kept: Any) -> Quantised:
    """Rounds a spectrum, or samples, to 8 bits.

    A channel's scale is its largest magnitude; a frequency's the largest magnitude that any
    channel, so scaled, has there. Low frequencies are much stronger than high ones, and channels
    differ: one scale for all would leave the weak ones no bits. Infinity and NaN come back as NaN.
    """
    spectral = isinstance(kept, tuple)
    parts = kept if spectral else (kept,)
    rank = parts[0].ndim
    magnitude = functools.reduce(jnp.maximum, map(jnp.abs, parts))
    channel = _positive(jnp.max(magnitude, tuple(range(rank - 1)), keepdims=True))
    axes = (rank - 2, rank - 1) if spectral else tuple(range(rank))
    frequency = _positive(jnp.max(magnitude / channel, axes, keepdims=True)) / _LARGEST
    scale = channel * frequency
    values = jax.tree.map(lambda a: jnp.round(a / scale).astype(jnp.int8), kept)
    return Quantised(values, channel, frequency)


@quantise.defjvp
def _quantise_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "residual_dtype int8 has first derivatives alone: an integer has no derivative; "
        "keep a floating type for higher ones"
    )


def _positive(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1, scale)
