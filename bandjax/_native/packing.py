"""Blocks of the cosine transform and booleans, packed and unpacked by the native kernels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._native.call import by_platform, repeat
from bandjax._parallel.partition import Arrays, Operation, partitioned


@dataclasses.dataclass(frozen=True)
class PackSpec:
    """All that is static about the packing of an array ``(N, *spatial, C)``.

    Attributes:
      spatial: sizes of one to three axes, or of none.
      channels: C.
      sizes: points of a block on each axis.
      lanes: blocks side by side at each place.
      places: blocks of an example in a lane.
      words: of a block.
      layout: of each value its word, lowest bit and width.
      cosines: makes the matrix of the cosine transform of so many points.
      pack: the same in XLA, of the array, the matrices of its axes and the layout as an array;
        returns words ``(N, places, words, lanes)`` and keys ``(N,)``.
      unpack: its inverse, of words, keys, matrices and layout.
    """

    spatial: tuple[int, ...]
    channels: int
    sizes: tuple[int, ...]
    lanes: int
    places: int
    words: int
    layout: tuple[tuple[int, int, int], ...]
    cosines: Callable[[int], np.ndarray]
    pack: Callable[..., Arrays]
    unpack: Callable[..., jax.Array]

    @property
    def tables(self) -> tuple[jax.Array, ...]:
        """The matrices of three axes, and the layout."""
        ones = (1,) * (3 - len(self.spatial))
        layout = np.array(self.layout, np.int32)
        return tuple(map(jnp.asarray, (*map(self.cosines, (*ones, *self.sizes)), layout)))

    def own(self, tables: Sequence[jax.Array]) -> tuple[Sequence[jax.Array], jax.Array]:
        """Of the tables the matrices of its own axes, and the layout."""
        *matrices, layout = tables
        return matrices[3 - len(self.spatial) :], layout

    def solid(self, x: jax.Array) -> jax.Array:
        """``(N, *spatial, C)`` with three spatial axes."""
        ones = (1,) * (3 - len(self.spatial))
        return x.reshape(x.shape[0], *ones, *self.spatial, self.channels)

    def flat(self, x: jax.Array) -> jax.Array:
        """With its own spatial axes again."""
        return x.reshape(x.shape[0], *self.spatial, self.channels)


def pack(spec: PackSpec, x: jax.Array) -> Arrays:
    """Packs float32 ``(N, *spatial, C)``: words ``(N, places, words, lanes)``, keys ``(N,)``."""
    return _pack(spec)(spec.solid(x), *spec.tables)


def unpack(spec: PackSpec, words: jax.Array, keys: jax.Array) -> jax.Array:
    """Undoes :func:`pack`."""
    (x,) = _unpack(spec)(words, keys, *spec.tables)
    return spec.flat(x)


@functools.lru_cache(maxsize=1024)
def _pack(spec: PackSpec) -> Operation:
    def fallback(x: jax.Array, *tables: jax.Array) -> Arrays:
        return spec.pack(spec.flat(x), *spec.own(tables))

    def out_types(platform: str, x: jax.Array, *tables: jax.Array) -> Any:
        words = (x.shape[0], spec.places, spec.words, spec.lanes)
        return tuple(jax.ShapeDtypeStruct(s, np.uint32) for s in (words, words[:1])), ()

    return partitioned(
        by_platform("pack", out_types, fallback, platforms=("cpu",)),
        "n a b d c, p q, r s, t u, m e -> n g w l, n",
        shared="n",
        batching=_pack_batch,
    )


@functools.lru_cache(maxsize=1024)
def _unpack(spec: PackSpec) -> Operation:
    def fallback(words: jax.Array, keys: jax.Array, *tables: jax.Array) -> Arrays:
        return (spec.solid(spec.unpack(words, keys, *spec.own(tables))),)

    def out_types(platform: str, words: jax.Array, *others: jax.Array) -> Any:
        shape = (*(1,) * (3 - len(spec.spatial)), *spec.spatial, spec.channels)
        return (jax.ShapeDtypeStruct((words.shape[0], *shape), np.float32),), ()

    return partitioned(
        by_platform("unpack", out_types, fallback, platforms=("cpu",)),
        "n g w l, n, p q, r s, t u, m e -> n a b d c",
        shared="n",
        batching=_unpack_batch,
    )


def _pack_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    x, *tables = args
    words, keys = f(x.reshape(-1, *x.shape[2:]), *tables)
    return words.reshape(size, -1, *words.shape[1:]), keys.reshape(size, -1)


def _unpack_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    words, keys = (a if b else repeat(a, size) for a, b in zip(args, batched[:2], strict=False))
    (x,) = f(words.reshape(-1, *words.shape[2:]), keys.reshape(-1), *args[2:])
    return (x.reshape(size, -1, *x.shape[1:]),)


# Booleans.


def pack_bits(flags: jax.Array, fallback: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Packs booleans ``(N, m)`` into words ``(N, ceil(m / 32))``; ``fallback`` does so in XLA.

    In place of booleans there may be float32 numbers: whether they are above zero.
    """
    return _pack_bits(fallback)(flags)[0]


def unpack_bits(
    words: jax.Array, count: int, fallback: Callable[[jax.Array, int], jax.Array]
) -> jax.Array:
    """Unpacks the first ``count`` booleans of each row."""
    return _unpack_bits(count, fallback)(words)[0]


@functools.lru_cache(maxsize=1024)
def _pack_bits(fallback: Callable[[jax.Array], jax.Array]) -> Operation:
    def in_xla(flags: jax.Array) -> Arrays:
        return (fallback(flags if flags.dtype == jnp.bool_ else flags > 0),)

    def out_types(platform: str, flags: jax.Array) -> Any:
        shape = (flags.shape[0], -(-flags.shape[1] // 32))
        return (jax.ShapeDtypeStruct(shape, np.uint32),), ()

    return partitioned(
        by_platform("pack_bits", out_types, in_xla, platforms=("cpu",)),
        "n m -> n w",
        shared="n",
        batching=_rows_batch,
    )


@functools.lru_cache(maxsize=1024)
def _unpack_bits(count: int, fallback: Callable[[jax.Array, int], jax.Array]) -> Operation:
    def out_types(platform: str, words: jax.Array) -> Any:
        return (jax.ShapeDtypeStruct((words.shape[0], count), np.bool_),), ()

    return partitioned(
        by_platform("unpack_bits", out_types, lambda w: (fallback(w, count),), platforms=("cpu",)),
        "n w -> n m",
        shared="n",
        batching=_rows_batch,
    )


def _rows_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    (rows,) = args
    (out,) = f(rows.reshape(-1, rows.shape[-1]))
    return (out.reshape(size, -1, out.shape[-1]),)
