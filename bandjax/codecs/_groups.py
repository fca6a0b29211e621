"""Groups of values between their least and their greatest: the rules of ActNN and of DIVISION."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax.codecs._blocks import Blocks, as_blocks, blocks_of, from_blocks
from bandjax.codecs._codec import Codec, check_bits
from bandjax.codecs._dither import dither, keys_of
from bandjax.codecs._words import WORD

_HALF_WORD = 16


@dataclasses.dataclass(frozen=True)
class Uniform(Codec):
    """Rounds the values of a group to ``2**bits`` even steps from its least to its greatest.

    A group is a run of points of one channel, or of channels of one row of a matrix. Least value
    and range are kept in bfloat16, rounded so that they hold every value. Rounding is stochastic,
    up or down by chance drawn from the data, and so unbiased.

    Args:
      bits: of a value, 1 to 8.
      group: the most values of a group.

    Round trip: no value is off by more than a step, ``1.05 (greatest - least) / (2**bits - 1)`` and
    1/64 of the least. A group with NaN or infinity comes back as NaN.

    Raises:
      TypeError, ValueError: an argument of another type, or out of range.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 8, 1)
      >>> Uniform(bits=8).pack(x).nbytes
      16

    Source: Chen et al., "ActNN: Reducing training memory footprint via 2-bit activation compressed
    training", ICML 2021; its groups are of 256 values.
    """

    bits: int = 2
    group: int = 256

    def __post_init__(self) -> None:
        check_bits("bits", self.bits, 1, 8, whole=True)
        check_bits("group", self.group, 1, 65536, whole=True)

    def _blocks(self, shape: tuple[int, ...]) -> Blocks:
        return blocks_of(shape, size=self.group, values=self.group, flat=True)

    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        blocks = self._blocks(tuple(x.shape))
        keys = keys_of(x, blocks)
        return pack_groups(as_blocks(x, blocks), keys, blocks, self.bits), keys

    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        words, _ = arrays
        blocks = self._blocks(shape)
        return from_blocks(unpack_groups(words, blocks, self.bits), blocks, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Average(Codec):
    """Keeps the mean of every block, and what is left of the values in few bits.

    Args:
      block: points of a block along each axis.
      bits: of each remainder, 1 to 8, see :class:`Uniform`, with the block for a group.

    The mean is kept in bfloat16, and the remainder is that from the rounded mean.

    Round trip: no value is off by more than ``1.05 (greatest - least) / (2**bits - 1)`` and 1/64 of
    the least remainder. A block with NaN or infinity comes back as NaN.

    Raises:
      TypeError, ValueError: an argument of another type, or out of range.

    Example:
      >>> Average().pack(jnp.ones((1, 8, 8, 4))).nbytes
      92

    Source: Wang et al., "DIVISION: Memory efficient training via dual activation precision", ICML
    2023.
    """

    block: int = 8
    bits: int = 2

    def __post_init__(self) -> None:
        check_bits("bits", self.bits, 1, 8, whole=True)
        check_bits("block", self.block, 1, 1024, whole=True)

    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        blocks = blocks_of(tuple(x.shape), size=self.block)
        keys = keys_of(x, blocks)
        values = as_blocks(x, blocks)
        means = jnp.mean(values, 2).astype(jnp.bfloat16)
        rest = values - means.astype(jnp.float32)[:, :, None]
        return means, pack_groups(rest, keys, blocks, self.bits), keys

    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        means, words, _ = arrays
        blocks = blocks_of(shape, size=self.block)
        values = unpack_groups(words, blocks, self.bits) + means.astype(jnp.float32)[:, :, None]
        return from_blocks(values, blocks, shape, dtype)


def pack_groups(values: jax.Array, keys: jax.Array, blocks: Blocks, bits: int) -> jax.Array:
    """Packs blocks ``(N, places, values, lanes)``: least value and range, then the codes.

    Codes lie one after another, in each word as many as have room.
    """
    most = np.float32(2**bits - 1)
    least = _half(jnp.min(values, 2), up=False)
    spread = _half(jnp.max(values, 2) - least, up=True)
    spread = jnp.where(jnp.isfinite(jnp.sum(values, 2)), spread, np.float32(np.nan))
    scaled = (values - least[:, :, None]) * (most / jnp.where(spread > 0, spread, 1))[:, :, None]
    codes = jnp.clip(jnp.floor(scaled + dither(keys, blocks)), 0, most)
    codes = jnp.where(jnp.isnan(codes), 0, codes).astype(jnp.uint32)
    low, high = (jax.lax.bitcast_convert_type(a, jnp.uint32) for a in (least, spread))
    header = (high & np.uint32(0xFFFF0000)) | (low >> np.uint32(_HALF_WORD))
    each = WORD // bits
    codes = jnp.pad(codes, [(0, 0), (0, 0), (0, -blocks.values % each), (0, 0)])
    rows = codes.reshape(*codes.shape[:2], -1, each, blocks.lanes) << _shifts(bits)
    return jnp.concatenate([header[:, :, None], jnp.sum(rows, 3, dtype=jnp.uint32)], 2)


def unpack_groups(words: jax.Array, blocks: Blocks, bits: int) -> jax.Array:
    """Undoes :func:`pack_groups`."""
    rows = (words[:, :, 1:, None] >> _shifts(bits)) & np.uint32(2**bits - 1)
    codes = rows.reshape(*words.shape[:2], -1, blocks.lanes)[:, :, : blocks.values]
    header = words[:, :, 0]
    least, spread = (
        jax.lax.bitcast_convert_type(a, jnp.float32)[:, :, None]
        for a in (header << np.uint32(_HALF_WORD), header & np.uint32(0xFFFF0000))
    )
    return least + codes.astype(jnp.float32) * (spread / np.float32(2**bits - 1))


def _shifts(bits: int) -> jax.Array:
    """The lowest bit of each code in a word."""
    each = WORD // bits
    return jax.lax.broadcasted_iota(jnp.uint32, (1, 1, 1, each, 1), 3) * np.uint32(bits)


def _half(x: jax.Array, *, up: bool) -> jax.Array:
    """The nearest number of bfloat16 that is no smaller, or no larger, in float32."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    away = (x > 0) if up else (x < 0)  # from zero
    bits = bits + jnp.where(away, np.uint32(0xFFFF), np.uint32(0))
    return jax.lax.bitcast_convert_type(bits & np.uint32(0xFFFF0000), jnp.float32)
