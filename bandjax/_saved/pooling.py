"""The derivative of max and min pooling from the places of the maxima, or minima."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._saved.graph import Node

POOL = "select_and_scatter_add"
_FEW = 256  # places of a window that are looked at one after another; of more, in one operation


def is_pooling(node: Node) -> bool:
    """Whether a node is the derivative of a max or min pooling."""
    parameters = node.equation.params
    if node.primitive != POOL or _comparison(parameters) not in ("ge", "le"):
        return False
    return 1 < math.prod(parameters["window_dimensions"]) <= np.iinfo(np.int32).max


def _comparison(parameters: dict[str, Any]) -> str:
    return getattr(parameters["select_prim"], "name", "")


def places_of(x: jax.Array, parameters: dict[str, Any]) -> jax.Array:
    """Where in its window each maximum (minimum) is: the first of several.

    Args:
      x: what is pooled.
      parameters: of ``select_and_scatter_add``.

    Returns:
      Indices of points of a window in row-major order, of the smallest unsigned type that has all.
    """
    if _comparison(parameters) == "le":
        x = -x
    count = math.prod(parameters["window_dimensions"])
    kind = np.min_scalar_type(count - 1).type
    lowest = np.array(-np.inf, x.dtype)
    padded = jax.lax.pad(x, lowest, [(low, high, 0) for low, high in parameters["padding"]])
    if count > _FEW:
        return _places_of_many(padded, parameters).astype(kind)
    best, place = None, None
    for number, offset in enumerate(_offsets(parameters)):
        part = _window(padded, offset, parameters)
        if best is None or place is None:
            best, place = part, jnp.zeros(part.shape, kind)
            continue
        greater = part > best
        best = jnp.where(greater, part, best)
        place = jnp.where(greater, kind(number), place)
    assert place is not None
    return place


def _places_of_many(padded: jax.Array, parameters: dict[str, Any]) -> jax.Array:
    """The same in one reduction over windows: of values, and of the points where they are."""
    window, strides = parameters["window_dimensions"], parameters["window_strides"]
    points = jnp.arange(padded.size, dtype=jnp.uint32).reshape(padded.shape)
    none = np.uint32(np.iinfo(np.uint32).max)

    def better(a: Any, b: Any) -> Any:
        second = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
        return tuple(jnp.where(second, y, x) for x, y in zip(a, b, strict=True))

    _, found = jax.lax.reduce_window(
        (padded, points),
        (np.array(-np.inf, padded.dtype), none),
        better,
        window,
        strides,
        [(0, 0)] * padded.ndim,
    )
    # Rows and columns of the point, less those of the window's first; of no numbers, that one.
    place, step = jnp.zeros_like(found), found
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True)):
        each = np.uint32(math.prod(padded.shape[axis + 1 :]))
        shape = [-1 if i == axis else 1 for i in range(found.ndim)]
        first = (jnp.arange(found.shape[axis], dtype=jnp.uint32) * stride).reshape(shape)
        place = place * np.uint32(size) + (step // each - first)
        step = step % each
    return jnp.where(found == none, 0, place)


def scatter(
    source: jax.Array, places: jax.Array, shape: tuple[int, ...], parameters: dict[str, Any]
) -> jax.Array:
    """``select_and_scatter_add``: sends each number of ``source`` to its maximum's place."""
    strides, window = parameters["window_strides"], parameters["window_dimensions"]
    padded = [n + low + high for n, (low, high) in zip(shape, parameters["padding"], strict=True)]
    zero = np.zeros((), source.dtype)
    total = jnp.zeros(padded, source.dtype)
    if math.prod(window) > _FEW:
        pairs = zip(source.shape, strides, strict=True)
        starts = (range(0, count * stride, stride) for count, stride in pairs)
        firsts = np.meshgrid(*starts, indexing="ij", sparse=True)
        offsets = jnp.unravel_index(places.astype(jnp.int32), window)
        at = tuple(np.int32(first) + o for first, o in zip(firsts, offsets, strict=True))
        total = total.at[at].add(source)
    else:
        kind = np.dtype(places.dtype).type
        for number, offset in enumerate(_offsets(parameters)):
            edges = [
                (o, n - o - (count - 1) * stride - 1, stride - 1)
                for o, n, count, stride in zip(offset, padded, source.shape, strides, strict=True)
            ]
            chosen = jnp.where(places == kind(number), source, zero)
            total = total + jax.lax.pad(chosen, zero, edges)
    low = [low for low, _ in parameters["padding"]]
    return jax.lax.slice(total, low, [lo + n for lo, n in zip(low, shape, strict=True)])


def _offsets(parameters: dict[str, Any]) -> Any:
    return itertools.product(*map(range, parameters["window_dimensions"]))


def _window(padded: jax.Array, offset: tuple[int, ...], parameters: dict[str, Any]) -> jax.Array:
    """The numbers at one place of every window."""
    window, strides = parameters["window_dimensions"], parameters["window_strides"]
    last = [
        o + (n - size) // stride * stride + 1
        for o, n, size, stride in zip(offset, padded.shape, window, strides, strict=True)
    ]
    return jax.lax.slice(padded, offset, last, strides)
