"""The derivative of max pooling from the places of the maxima."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._saved.graph import Node

POOL = "select_and_scatter_add"
_MOST_PLACES = 256


def is_pooling(node: Node) -> bool:
    """Whether a node is the derivative of a max pooling whose windows are small."""
    if node.primitive != POOL or getattr(node.equation.params["select_prim"], "name", "") != "ge":
        return False
    window = node.equation.params["window_dimensions"]
    return 1 < math.prod(window) <= _MOST_PLACES


def places_of(x: jax.Array, parameters: dict[str, Any]) -> jax.Array:
    """Where in its window each maximum is, uint8: the first of several.

    Args:
      x: what is pooled.
      parameters: of ``select_and_scatter_add``.
    """
    lowest = np.array(-np.inf, x.dtype)
    padded = jax.lax.pad(x, lowest, [(low, high, 0) for low, high in parameters["padding"]])
    best, place = None, None
    for number, offset in enumerate(_offsets(parameters)):
        part = _window(padded, offset, parameters)
        if best is None or place is None:
            best, place = part, jnp.zeros(part.shape, jnp.uint8)
            continue
        greater = part > best
        best = jnp.where(greater, part, best)
        place = jnp.where(greater, np.uint8(number), place)
    assert place is not None
    return place


def scatter(
    source: jax.Array, places: jax.Array, shape: tuple[int, ...], parameters: dict[str, Any]
) -> jax.Array:
    """``select_and_scatter_add``: sends each number of ``source`` to its maximum's place."""
    strides = parameters["window_strides"]
    padded = [n + low + high for n, (low, high) in zip(shape, parameters["padding"], strict=True)]
    zero = np.zeros((), source.dtype)
    total = jnp.zeros(padded, source.dtype)
    for number, offset in enumerate(_offsets(parameters)):
        edges = [
            (o, n - o - (count - 1) * stride - 1, stride - 1)
            for o, n, count, stride in zip(offset, padded, source.shape, strides, strict=True)
        ]
        chosen = jnp.where(places == np.uint8(number), source, zero)
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
