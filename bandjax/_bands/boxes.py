"""Boxes of low frequencies: the candidates on a grid, and the smallest that holds enough energy."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.frequencies import frequencies
from bandjax._tables import tables

Grid: TypeAlias = tuple[int, ...]


def kept_per_axis(grid: Grid, modes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the kept coefficients of each axis: both signs of u, only ``u >= 0`` on the last."""
    both_signs = (min(2 * u + 1, g) for u, g in zip(modes[:-1], grid[:-1], strict=True))
    return (*both_signs, modes[-1] + 1)


@functools.lru_cache(maxsize=4096)
def candidate_boxes(grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Returns the limits of every box that has the proportions of the grid, each within the next.

    They are ``U_i = m * (g_i // 2) // (g_j // 2)`` for every axis ``j`` and ``0 <= m <= g_j // 2``:
    the floors of one share ``m / (g_j // 2)`` of every axis, so that they grow with it.
    """
    halves = [g // 2 for g in grid]
    boxes = {
        tuple(m * half // halves[j] for half in halves)
        for j in range(len(grid))
        if halves[j] > 0  # A grid of ones has no axis j.
        for m in range(halves[j] + 1)
    }
    return tuple(sorted(boxes or {tuple(halves)}))


@functools.lru_cache(maxsize=4096)
def nearest_box(rate: Fraction, grid: Grid) -> tuple[int, ...]:
    total = math.prod(kept_per_axis(grid, tuple(g // 2 for g in grid)))

    def distance(box: tuple[int, ...]) -> tuple[Fraction, int]:
        kept = math.prod(kept_per_axis(grid, box))
        return abs(1 - Fraction(kept, total) - rate), -kept

    return min(candidate_boxes(grid), key=distance)


@tables
def levels(grid: Grid, modes: tuple[int, ...], boxes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Returns the level of every coefficient: the index of the first box that holds it.

    Args:
      grid: points on the circle of each axis.
      modes: limits of the box whose coefficients are meant.
      boxes: limits of boxes, each within the next.

    Returns:
      int32, of the box's shape; ``len(boxes)`` of what lies in none. It is shared between calls.
    """
    rank = len(grid)
    found = np.zeros((1,) * rank, np.int32)
    for axis, (g, limit) in enumerate(zip(grid, modes, strict=True)):
        u = np.abs(frequencies(g, limit, half=axis == rank - 1))
        first = np.searchsorted([box[axis] for box in boxes], u).astype(np.int32)
        found = np.maximum(found, first.reshape([-1 if i == axis else 1 for i in range(rank)]))
    found.flags.writeable = False
    return found


def smallest_level(of_level: Any, share: Any, beyond: Any = 0.0) -> Any:
    """Returns the first level with which a share of the energy is kept.

    What is dropped is compared, rather than what is kept: summed from the last level down it is
    exact to its own size, and with a share of 1 zero only where nothing is dropped. NaN anywhere
    gives the last level, and so does a share that no level reaches.

    Args:
      of_level: energy of each level, ``(levels,)``, NumPy or JAX.
      share: of the energy to keep, ``0 < share <= 1``; it may be traced.
      beyond: energy that no level holds.

    Returns:
      an integer of the array's library.
    """
    numpy: Any = jnp if isinstance(of_level, jax.Array) else np
    beyond_level = numpy.cumsum(of_level[::-1])[::-1] + beyond  # that of the level, too
    enough = beyond_level[1:] <= (1 - share) * beyond_level[0]
    return numpy.sum(~enough, dtype=np.int32)


def smallest_box(
    energy: np.ndarray, grid: Grid, boxes: tuple[tuple[int, ...], ...], share: float
) -> tuple[tuple[int, ...], float]:
    """Finds the smallest box that holds a share of the energy.

    Args:
      energy: on the half spectrum, Hermitian weights included, ``(g_1, ..., g_last // 2 + 1)``.
      grid: points on the circle of each axis.
      boxes: the candidates' limits, each within the next.
      share: of the energy to keep.

    Returns:
      The limits of the box, and the share of the energy in it. The largest box where none holds
      the share, or where there is no energy at all.
    """
    place = levels(grid, tuple(g // 2 for g in grid), boxes)
    of_level = np.bincount(place.ravel(), weights=energy.ravel(), minlength=len(boxes) + 1)
    total = of_level.sum()
    if total == 0:
        return boxes[-1], 1.0
    level = int(smallest_level(of_level[:-1], share, of_level[-1]))
    return boxes[level], float(min(of_level[: level + 1].sum() / total, 1.0))
