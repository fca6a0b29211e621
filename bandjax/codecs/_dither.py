"""Random numbers that pack and unpack both know: of the array itself, not of a state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bandjax.codecs._blocks import Blocks

_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: multiples of it fill the circle evenly


def keys_of(x: jax.Array, blocks: Blocks) -> jax.Array:
    """A key for each example, uint32 ``(N,)``: the sum of the bits of its first point's channels.

    A run that is resumed draws the same numbers, and so does an example in another batch or on
    another device.
    """
    points = x.astype(jnp.float32).reshape(blocks.examples, -1, blocks.channels)[:, 0]
    bits = jax.lax.bitcast_convert_type(points, jnp.uint32)
    return _mixed(jnp.sum(bits, -1, dtype=jnp.uint32))


def dither(keys: jax.Array, blocks: Blocks) -> jax.Array:
    """Numbers in [0, 1), ``(N, places, values, lanes)``, each value's uniform over the keys."""
    grid = (1, blocks.places, blocks.lanes)
    place, lane = (jax.lax.broadcasted_iota(jnp.uint32, grid, axis) for axis in (1, 2))
    first = _mixed(keys[:, None, None] + place * np.uint32(blocks.lanes) + lane)
    value = jax.lax.broadcasted_iota(jnp.uint32, (1, 1, blocks.values, 1), 2)
    turns = (value + np.uint32(1)) * np.uint32(_GOLDEN)
    bits = first[:, :, None] + turns
    return (bits >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits (the finaliser of MurmurHash3, of A. Appleby, in the public domain)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
