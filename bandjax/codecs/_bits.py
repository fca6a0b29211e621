"""Booleans and small integers, exactly, in bits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._native import packing

_WORD = 32


def pack_bits(flags: jax.Array) -> jax.Array:
    """Packs booleans ``(N, ...)``, 32 a word: uint32 ``(N, words)``.

    The flags of an example are 32 rows, one under the other; a word is a column. Numbers count as
    true that are above zero.
    """
    if flags.dtype not in (jnp.bool_, jnp.float32):
        flags = flags > 0
    return packing.pack_bits(flags.reshape(flags.shape[0], -1), _pack)


def unpack_bits(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undoes :func:`pack_bits`."""
    return packing.unpack_bits(words, math.prod(shape[1:]), _unpack).reshape(shape)


def _pack(flags: jax.Array) -> jax.Array:
    """Of ``(N, m)``, in XLA."""
    width = -(-flags.shape[1] // _WORD)
    rows = jnp.pad(flags, [(0, 0), (0, width * _WORD - flags.shape[1])])
    rows = rows.reshape(-1, _WORD, width).astype(jnp.uint32)
    return jnp.sum(rows << _places(), 1, dtype=jnp.uint32)


def _unpack(words: jax.Array, count: int) -> jax.Array:
    rows = (words[:, None] >> _places()) & np.uint32(1)
    return rows.reshape(words.shape[0], -1)[:, :count].astype(jnp.bool_)


def _places() -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.uint32, (1, _WORD, 1), 1)
