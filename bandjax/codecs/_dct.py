"""Blocks of the discrete cosine transform, with bits by frequency."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._native import packing
from bandjax._tables import tables
from bandjax.codecs._blocks import Blocks, as_blocks, blocks_of, in_type
from bandjax.codecs._codec import Codec, check_bits
from bandjax.codecs._dither import dither, keys_of
from bandjax.codecs._words import WORD, Layout, allocate, fit, pack_words, unpack_words

HEADER = 12  # bits of a block's step: the exponent of a float32 and four bits of its mantissa
_DROP = 19  # bits that are left out
_NAN = 0xFFF
_SMALLEST = np.float32(2.0**-100)
LOADING = 3.0  # standard deviations that a coefficient may reach before it widens the step
CORNER = 1.0  # half-waves a block at which the energy has fallen to one half


@dataclasses.dataclass(frozen=True)
class Dct(Codec):
    """Keeps the cosine transform of small blocks, many bits for low frequencies, few for high.

    Axes are cut into blocks of up to 64, 8×8 or 4×4×4 points, each transformed by the orthonormal
    DCT-II. A block and channel has one step, ``s = max |X[k]| / r[k]`` rounded up to five bits
    of mantissa, where ``r = 2**(b - 1) - 1/2`` for a coefficient of ``b`` bits: none overflows. A
    coefficient is rounded with subtractive dither, ``s (floor(X / s + u) - u + 1/2)`` for a ``u``
    that is uniform in [-1/2, 1/2) and drawn from the data themselves: what is stored is right on
    average, but for coefficients without bits, which come back as zero.

    Args:
      bits: average bits a value, scale included, from 0.5 to 12: whole words of 32 bits a block,
        hence to the nearest 0.5 for blocks of 64. They are shared out by reverse water-filling for
        energies that fall as ``1 / (1 + f²)``, f in half-waves a block: 5 bits for the lowest of 64
        coefficients at 2.5 bits, 4 to 2 for the others, none for the four highest. With ``share``,
        the bits, from 2 to 12, of each coefficient that is kept.
      share: keep so many of the coefficients, 0 < share <= 1, those of lowest frequency.

    Rows of matrices, which have no spatial axes, are cut into groups of up to 64 channels that
    share a step; maps of few points have blocks of several channels.

    More bits lose less on maps whose energy falls with frequency; where it rises, coefficients of
    few bits widen the step of all.

    Round trip: with every coefficient kept (``bits`` from 4 on, or ``share=1``) no value of a block
    of K points is off by more than ``s sqrt(K) / 2``, and ``s <= 1.0625 max |X| / r`` of the fewest
    bits there are. Less the error is the energy of what is dropped. A block with NaN or infinity
    comes back as NaN. One of zeros comes back as zeros.

    Raises:
      TypeError, ValueError: an argument of another type, or out of range.

    Example:
      >>> x = jnp.cos(jnp.arange(64.0)).reshape(1, 8, 8, 1)
      >>> codec = Dct(bits=8)
      >>> packed = codec.pack(x)
      >>> packed.nbytes, bool(jnp.abs(codec.unpack(packed) - x).max() < 0.1)
      (68, True)

    Source: Wallace, "The JPEG still picture compression standard", 1991, for blocks and the
    transform; Gray and Stockham, "Dithered quantizers", 1993, for the dither.
    """

    bits: float = 4
    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is None:
            check_bits("bits", self.bits, 0.5, 12)
            return
        check_bits("bits", self.bits, 2, 12, whole=True)
        check_bits("share", self.share, 0, 1, above=True)

    def __repr__(self) -> str:
        share = "" if self.share is None else f", share={self.share:g}"
        return f"Dct(bits={self.bits:g}{share})"

    def layout(self, blocks: Blocks) -> Layout:
        """Where the codes of a block lie."""
        return _layout(self.bits, self.share, blocks.sizes, blocks.merged)

    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        blocks = blocks_of(tuple(x.shape))
        return pack_blocks(self.layout(blocks), blocks, x)

    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        blocks = blocks_of(shape)
        return unpack_blocks(self.layout(blocks), blocks, arrays, shape, dtype)


@functools.lru_cache(maxsize=1024)
def _layout(bits: float, share: float | None, sizes: tuple[int, ...], merged: int) -> Layout:
    distance = frequencies(sizes, merged)
    if share is not None:
        kept = max(1, round(share * len(distance)))
        lowest = set(sorted(range(len(distance)), key=lambda k: (distance[k], k))[:kept])
        layout = fit(HEADER, [int(bits) if k in lowest else 0 for k in range(len(distance))], None)
        assert layout is not None
        return layout
    return allocated(bits, tuple((1 + (f / CORNER) ** 2) ** -0.5 for f in distance))


def allocated(bits: float, strengths: tuple[float, ...]) -> Layout:
    """Bits for coefficients of given strengths, ``bits`` a value on average."""
    words = max(1, round(bits * len(strengths) / WORD))
    return allocate(strengths, words, HEADER, LOADING)


@functools.lru_cache(maxsize=1024)
def frequencies(sizes: tuple[int, ...], merged: int) -> tuple[float, ...]:
    """Of each coefficient of a block its distance from frequency 0, in half-waves a block of 8."""
    axes = [[8 * k / n for k in range(n)] for n in sizes]
    each = [math.hypot(*f) if f else 0.0 for f in itertools.product(*axes)]
    return tuple(f for f in each for _ in range(merged))


@tables
def cosines(size: int) -> np.ndarray:
    """The orthonormal DCT-II of a number of points, ``(frequencies, points)``, float32."""
    k, i = np.arange(size)[:, None], np.arange(size)
    matrix = np.cos(np.pi * k * (2 * i + 1) / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def pack_blocks(layout: Layout, blocks: Blocks, x: jax.Array) -> tuple[jax.Array, ...]:
    """Transforms, rounds and packs: words ``(N, places, words, lanes)`` and keys ``(N,)``."""
    x = x.astype(jnp.float32).reshape(blocks.examples, *blocks.spatial, blocks.channels)
    return packing.pack(_spec(layout, _of_any(blocks)), x)


def unpack_blocks(
    layout: Layout,
    blocks: Blocks,
    arrays: tuple[jax.Array, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> jax.Array:
    """Undoes :func:`pack_blocks`."""
    x = packing.unpack(_spec(layout, _of_any(blocks)), *arrays)
    return in_type(x.reshape(shape), dtype)


def _of_any(blocks: Blocks) -> Blocks:
    """The blocks of an example: of so many examples as there are, on a device."""
    return dataclasses.replace(blocks, examples=1)


@functools.lru_cache(maxsize=1024)
def _spec(layout: Layout, blocks: Blocks) -> packing.PackSpec:
    """What the kernels are told, with their equals in XLA."""
    return packing.PackSpec(
        spatial=blocks.spatial,
        channels=blocks.channels,
        sizes=blocks.sizes,
        lanes=blocks.lanes,
        places=blocks.places,
        words=layout.words,
        layout=tuple(zip(layout.word, layout.shift, layout.width, strict=True)),
        cosines=cosines,
        pack=functools.partial(_pack_in_xla, blocks, layout),
        unpack=functools.partial(_unpack_in_xla, blocks),
    )


def _pack_in_xla(
    blocks: Blocks, layout: Layout, x: jax.Array, matrices: Sequence[jax.Array], table: jax.Array
) -> tuple[jax.Array, ...]:
    """What the kernel does, of ``(N, *spatial, C)``; the matrices are those of the axes."""
    blocks = dataclasses.replace(blocks, examples=x.shape[0])
    keys = keys_of(x, blocks)
    coefficients = _transformed(matrices, blocks.split(x), blocks)
    half = _halves(table)
    limit = jnp.where(half > 0, 1 / (half - np.float32(0.5)), 0)
    step = jnp.max(jnp.abs(coefficients) * limit, 2)
    # What is dropped has no part in the step, unless it is no number.
    step = jnp.where(jnp.isfinite(jnp.sum(coefficients, 2)), step, np.float32(np.nan))
    header, step = _rounded_up(step)
    scaled = coefficients / jnp.where(step > 0, step, 1)[:, :, None]
    noise = dither(keys, blocks) - np.float32(0.5)
    codes = jnp.clip(jnp.floor(scaled + noise), -half, jnp.maximum(half - 1, 0)) + half
    codes = jnp.where(jnp.isnan(codes), 0, codes).astype(jnp.uint32)
    return pack_words(header, codes, table, layout.words, layout.fullest), keys


def _unpack_in_xla(
    blocks: Blocks,
    words: jax.Array,
    keys: jax.Array,
    matrices: Sequence[jax.Array],
    table: jax.Array,
) -> jax.Array:
    """Undoes :func:`_pack_in_xla`."""
    blocks = dataclasses.replace(blocks, examples=words.shape[0])
    header = words[:, :, 0] & np.uint32(_NAN)
    step = jax.lax.bitcast_convert_type(header << np.uint32(_DROP), jnp.float32)
    half = _halves(table)
    noise = dither(keys, blocks) - np.float32(0.5)
    codes = unpack_words(words, table).astype(jnp.float32)
    coefficients = jnp.where(half > 0, codes - half - noise + np.float32(0.5), 0)
    matrices = [matrix.T for matrix in matrices]
    return blocks.join(_transformed(matrices, coefficients * step[:, :, None], blocks))


def _halves(table: jax.Array) -> jax.Array:
    """Of each value the number of its codes below zero, ``(1, 1, values, 1)``; 0 without bits."""
    width = table[:, 2][None, None, :, None]
    return ((jnp.ones_like(width) << width) >> 1).astype(jnp.float32)


def energies(x: jax.Array) -> jax.Array:
    """Of each coefficient of a block its mean share in the block's energy, ``(values,)``."""
    blocks = blocks_of(tuple(x.shape))
    matrices = [jnp.asarray(cosines(n)) for n in blocks.sizes]
    power = _transformed(matrices, as_blocks(x, blocks), blocks) ** 2
    total = jnp.sum(power, 2, keepdims=True)
    return jnp.mean(jnp.where(total > 0, power / jnp.where(total > 0, total, 1), 0), (0, 1, 3))


def _transformed(matrices: Sequence[jax.Array], values: jax.Array, blocks: Blocks) -> jax.Array:
    """A matrix times each axis of every block ``(N, places, points * merged, lanes)``."""
    n, places, count, lanes = values.shape
    before = 1
    for matrix, size in zip(matrices, blocks.sizes, strict=True):
        if size == 1:
            continue
        split = values.reshape(n * places * before, size, -1)
        out = jnp.einsum("kp,npc->nkc", matrix, split, precision=jax.lax.Precision.HIGHEST)
        values, before = out, before * size
    return values.reshape(n, places, count, lanes)


def _rounded_up(step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The header of a step, and the step that it stands for, which is no smaller."""
    step = jnp.where(step > 0, jnp.maximum(step, _SMALLEST), step)
    bits = jax.lax.bitcast_convert_type(step, jnp.uint32)
    header = (bits + np.uint32((1 << _DROP) - 1)) >> np.uint32(_DROP)
    header = jnp.where(jnp.isfinite(step), header, np.uint32(_NAN))
    header = jnp.where(header >= 0xFF0, np.uint32(_NAN), header)
    return header, jax.lax.bitcast_convert_type(header << np.uint32(_DROP), jnp.float32)
