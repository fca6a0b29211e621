"""The band-limited convolution as literal sums in float64 NumPy.

Everything here follows from one sentence: an axis of the input is laid on a circle of ``g``
points, the coefficients outside a box of frequencies are dropped, and the result is
cross-correlated with the kernel. There is no FFT, no JAX and no library code in this module, so
that it can stand behind every value test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Pair = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """One spatial axis: where its samples lie on the circle, and which frequencies are kept."""

    size: int
    taps: int
    stride: int
    input_dilation: int
    kernel_dilation: int
    low: int
    high: int
    out: int
    grid: int
    modes: int

    def position(self, i: int, t: int) -> int:
        """The point of the circle that output ``i`` reads with tap ``t``."""
        return (self.stride * i - self.low + self.kernel_dilation * t) % self.grid


# ---------------------------------------------------------------------------------------- geometry


def pads(
    padding: str | int | Sequence[int | Pair],
    size: int,
    taps: int,
    stride: int,
    input_dilation: int,
    kernel_dilation: int,
    axis: int,
) -> Pair:
    """The low and high padding of one axis; strings apply to the dilated extent."""
    extent = (size - 1) * input_dilation + 1
    window = (taps - 1) * kernel_dilation + 1
    if padding == "VALID":
        return 0, 0
    if padding in ("SAME", "SAME_LOWER"):
        total = max((-(-extent // stride) - 1) * stride + window - extent, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if padding == "SAME" else (large, small)
    if padding == "CAUSAL":
        return window - 1, 0
    if padding == "CIRCULAR":
        return (window - 1) // 2, window - 1 - (window - 1) // 2
    if isinstance(padding, str):
        raise AssertionError(padding)
    if isinstance(padding, int):
        return padding, padding
    entry = padding[axis]
    return (entry, entry) if isinstance(entry, int) else (int(entry[0]), int(entry[1]))


def smooth(n: int) -> bool:
    """Whether 2, 3 and 5 are the only primes in ``n``."""
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


def least_grid(size: int, input_dilation: int, low: int, high: int) -> int:
    """The smallest circle on which what wraps around falls into padding."""
    return (size - 1) * input_dilation + 1 + max(low, high, 0)


def default_grid(size: int, input_dilation: int, low: int, high: int) -> int:
    """The least grid, and beyond 64 points the next length made of 2, 3 and 5 alone."""
    grid = least_grid(size, input_dilation, low, high)
    if grid > 64:
        while not smooth(grid):
            grid += 1
    return grid


def kept(grid: Sequence[int], modes: Sequence[int]) -> int:
    """How many coefficients of the half spectrum a box keeps, by counting them one by one.

    Frequencies are residues modulo the grid, hence Nyquist of an even grid is counted once.
    """
    count = 1
    for g, limit in zip(grid[:-1], modes[:-1], strict=True):
        count *= len({u % g for u in range(-limit, limit + 1)})
    return count * len({u % grid[-1] for u in range(modes[-1] + 1)})


def compression_box(grid: Sequence[int], rate: Fraction) -> tuple[int, ...]:
    """The candidate box whose discarded share is nearest to ``rate``; on a tie the larger one."""
    half = [g // 2 for g in grid]
    # A list: where two boxes keep equally many the first one stands.
    candidates = []
    for reference in filter(None, half):
        for m in range(reference + 1):
            candidates.append(tuple(m * n // reference for n in half))
    total = kept(grid, half)

    def badness(box: tuple[int, ...]) -> tuple[Fraction, int]:
        share = kept(grid, box)
        return abs(1 - Fraction(share, total) - rate), -share

    return min(candidates, key=badness, default=tuple(half))


def axes(
    sizes: Sequence[int],
    taps: Sequence[int],
    *,
    strides: Sequence[int],
    padding: str | int | Sequence[int | Pair],
    input_dilation: Sequence[int],
    kernel_dilation: Sequence[int],
    grid: Sequence[int] | None = None,
    rate: Fraction | None = None,
    modes: Sequence[int] | None = None,
) -> tuple[Axis, ...]:
    """Every axis of a convolution; with neither ``rate`` nor ``modes`` all frequencies are kept."""
    lows, highs, outs, grids = [], [], [], []
    columns = zip(sizes, taps, strides, input_dilation, kernel_dilation, strict=True)
    for n, (h, k, s, a, d) in enumerate(columns):
        low, high = pads(padding, h, k, s, a, d, n)
        if padding == "CIRCULAR":
            out, circle = -(-h * a // s), h * a
        else:
            out = ((h - 1) * a + 1 + low + high - (k - 1) * d - 1) // s + 1
            circle = default_grid(h, a, low, high) if grid is None else grid[n]
        lows.append(low)
        highs.append(high)
        outs.append(out)
        grids.append(circle)
    if modes is not None:
        box = tuple(modes)
    elif rate is not None:
        box = compression_box(grids, rate)
    else:
        box = tuple(g // 2 for g in grids)
    return tuple(
        Axis(*entry)
        for entry in zip(
            sizes,
            taps,
            strides,
            input_dilation,
            kernel_dilation,
            lows,
            highs,
            outs,
            grids,
            box,
            strict=True,
        )
    )


# -------------------------------------------------------------------------------------- the values


def projection(grid: int, modes: int) -> np.ndarray:
    """The real symmetric circulant that keeps ``|u| <= modes`` on a circle of ``grid`` points."""
    residues = sorted({u % grid for u in range(-modes, modes + 1)})
    row = [
        math.fsum(math.cos(2 * math.pi * (u * m % grid) / grid) for u in residues) / grid
        for m in range(grid)
    ]
    index = (np.arange(grid)[:, None] - np.arange(grid)[None, :]) % grid
    return np.array(row)[index]


def lay_out(x: np.ndarray, geometry: Sequence[Axis]) -> np.ndarray:
    """``P x`` on the circles: ``(batch, *sizes, channels)`` to ``(batch, *grids, channels)``."""
    x = np.asarray(x, np.float64)
    for n, axis in enumerate(geometry, start=1):
        places = [axis.input_dilation * j for j in range(axis.size)]
        columns = projection(axis.grid, axis.modes)[:, places]
        x = np.moveaxis(np.tensordot(columns, x, axes=(1, n)), 0, n)
    return x


def convolve(
    x: np.ndarray, kernel: np.ndarray, geometry: Sequence[Axis], groups: int = 1
) -> np.ndarray:
    """``conv(P x, kernel)``: for every tap the points it reads, times its weights.

    Args:
      x: ``(batch..., *sizes, in)``.
      kernel: ``(*taps, in / groups, out)``.
    """
    rank = len(geometry)
    batch = x.shape[: x.ndim - rank - 1]
    circle = lay_out(np.reshape(x, (math.prod(batch), *x.shape[len(batch) :])), geometry)
    kernel = np.asarray(kernel, np.float64)
    width, features = kernel.shape[-2:]
    outs = [axis.out for axis in geometry]
    y = np.zeros((circle.shape[0], *outs, features))
    for taps in itertools.product(*(range(axis.taps) for axis in geometry)):
        read = circle
        for n, (axis, t) in enumerate(zip(geometry, taps, strict=True), start=1):
            read = np.take(read, [axis.position(i, t) for i in range(axis.out)], axis=n)
        for group in range(groups):
            ins = slice(group * width, (group + 1) * width)
            members = slice(group * (features // groups), (group + 1) * (features // groups))
            y[..., members] += read[..., ins] @ kernel[taps][:, members]
    return y.reshape(*batch, *outs, features)


def input_jacobian(
    kernel: np.ndarray, geometry: Sequence[Axis], channels: int, groups: int = 1
) -> np.ndarray:
    """``∂y/∂x`` for one example, ``(*outs, out, *sizes, in)``: the response to every unit input."""
    shape = (*(axis.size for axis in geometry), channels)
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    responses = convolve(units, kernel, geometry, groups)
    return np.moveaxis(responses, 0, -1).reshape(*responses.shape[1:], *shape)


def kernel_jacobian(
    x: np.ndarray, shape: Sequence[int], geometry: Sequence[Axis], groups: int = 1
) -> np.ndarray:
    """``∂y/∂w``, ``(batch..., *outs, out, *taps, in / groups, out)``, by unit kernels."""
    responses = [
        convolve(x, unit.reshape(shape), geometry, groups) for unit in np.eye(math.prod(shape))
    ]
    stacked = np.stack(responses, axis=-1)
    return stacked.reshape(*stacked.shape[:-1], *shape)


# ---------------------------------------------------------------------------------------- bounds


def gap(actual: np.ndarray, reference: np.ndarray) -> float:
    """``max|Δ|`` over ``max(1, max|reference|)``; where the shapes differ it is infinite."""
    actual = np.asarray(actual)
    reference = np.asarray(reference)
    if actual.shape != reference.shape:
        return math.inf
    if reference.size == 0:
        return 0.0
    difference = np.abs(actual.astype(np.float64) - reference.astype(np.float64)).max()
    return float(difference / max(1.0, np.abs(reference).max()))


def relative_gap(actual: np.ndarray, reference: np.ndarray) -> float:
    """``max|Δ| / max|reference|``."""
    actual = np.asarray(actual)
    reference = np.asarray(reference)
    if actual.shape != reference.shape:
        return math.inf
    difference = np.abs(actual.astype(np.float64) - reference.astype(np.float64)).max()
    return float(difference / np.abs(reference).max())
