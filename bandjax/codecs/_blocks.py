"""Arrays cut into blocks: the values that share a transform and a scale."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST_AXES = 3
VALUES = 64  # of a block, about


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How an array ``(N, *spatial, C)`` is cut.

    Each spatial axis is cut into pieces of equal length, the last one filled up by repeating the
    edge. Of maps so small that a piece of each axis holds few values, several channels share a
    block: channel ``j * lanes + i`` is the j-th of lane i; lanes that lack a channel hold zeros.

    Attributes:
      examples: N.
      spatial: sizes of the axes.
      channels: C.
      counts: pieces of each axis.
      sizes: values of each piece.
      merged: channels of a block.
      lanes: blocks side by side at each place.
    """

    examples: int
    spatial: tuple[int, ...]
    channels: int
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    merged: int
    lanes: int

    @property
    def places(self) -> int:
        """Blocks of an example in one lane."""
        return math.prod(self.counts)

    @property
    def points(self) -> int:
        """Points of the spatial axes in a block."""
        return math.prod(self.sizes)

    @property
    def values(self) -> int:
        """Values of a block: points times merged channels, in this order."""
        return self.points * self.merged

    def split(self, x: jax.Array) -> jax.Array:
        """Cuts ``(N, *spatial, C)`` into ``(N, places, values, lanes)``."""
        rank = len(self.spatial)
        pairs = zip(self.counts, self.sizes, self.spatial, strict=True)
        edges = [(0, 0), *((0, n * b - s) for n, b, s in pairs), (0, 0)]
        if any(high for _, high in edges):
            x = jnp.pad(x, edges, mode="edge")
        missing = self.merged * self.lanes - self.channels
        if missing:
            x = jnp.pad(x, [(0, 0)] * (rank + 1) + [(0, missing)])
        pieces = itertools.chain.from_iterable(zip(self.counts, self.sizes, strict=True))
        x = x.reshape(self.examples, *pieces, self.merged, self.lanes)
        order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1, 2 * rank + 2]
        return x.transpose(order).reshape(self.examples, self.places, self.values, self.lanes)

    def join(self, blocks: jax.Array) -> jax.Array:
        """Puts ``(N, places, values, lanes)`` together again."""
        rank = len(self.spatial)
        x = blocks.reshape(self.examples, *self.counts, *self.sizes, self.merged, self.lanes)
        pairs = itertools.chain.from_iterable((1 + i, 1 + rank + i) for i in range(rank))
        x = x.transpose([0, *pairs, 2 * rank + 1, 2 * rank + 2])
        padded = [n * b for n, b in zip(self.counts, self.sizes, strict=True)]
        x = x.reshape(self.examples, *padded, self.merged * self.lanes)
        cut = (slice(None), *(slice(s) for s in self.spatial), slice(self.channels))
        return x[cut]


@functools.lru_cache(maxsize=1024)
def blocks_of(
    shape: tuple[int, ...], *, size: int | None = None, values: int = VALUES, flat: bool = False
) -> Blocks:
    """How an array of a shape is cut.

    Arrays ``(N, *spatial, C)`` have one to three spatial axes; further leading axes belong to N.
    Matrices ``(rows, C)`` have none: a block is part of a row.

    Args:
      shape: of the array.
      size: the longest piece of an axis; None for 64, 8 and 4 points with one, two and three axes.
      values: merge channels up to so many values.
      flat: take all spatial axes for one.
    """
    *leading, channels = (1,) * (2 - len(shape)) + shape
    rank = min(max(len(leading) - 1, 0), MOST_AXES)
    examples = math.prod(leading[: len(leading) - rank])
    spatial = tuple(leading[len(leading) - rank :])
    if flat and rank:
        spatial = (math.prod(spatial),)
    longest = size or {0: 1, 1: 64, 2: 8, 3: 4}[len(spatial)]
    counts = tuple(-(-n // longest) for n in spatial)
    sizes = tuple(-(-n // k) if k else 1 for n, k in zip(spatial, counts, strict=True))
    merged = max(1, min(values // max(math.prod(sizes), 1), channels))
    lanes = -(-channels // merged)
    merged = -(-channels // max(lanes, 1)) or 1
    return Blocks(examples, spatial, channels, counts, sizes, merged, lanes)


def as_blocks(x: jax.Array, blocks: Blocks) -> jax.Array:
    """Cuts an array of any shape, in float32."""
    x = x.astype(jnp.float32).reshape(blocks.examples, *blocks.spatial, blocks.channels)
    return blocks.split(x)


def from_blocks(values: jax.Array, blocks: Blocks, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The array that :func:`as_blocks` cut, in its own type."""
    return in_type(blocks.join(values).reshape(shape), dtype)


def in_type(x: jax.Array, dtype: Any) -> jax.Array:
    """Numbers of float32 in a narrower or wider type; what is too large for float16 is cut off."""
    if dtype == jnp.float16:
        limit = np.float32(np.finfo(np.float16).max)
        x = jnp.clip(x, -limit, limit)
    return x.astype(dtype)
