"""Seeded random configurations of a convolution, small enough to sweep by the hundred.

A configuration is a pure function of ``(sweep, index)``. Rank and kind of padding go round in a
fixed order, so that every sweep meets each of them often; everything else is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import oracle

PADDINGS = ("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "CAUSAL", "int", "pairs", "crop")
LARGEST = {1: 19, 2: 9, 3: 5}
LONGEST = {1: 9, 2: 5, 3: 3}


@dataclass(frozen=True)
class Config:
    """One convolution: shapes, arguments, and what to keep."""

    seed: tuple[int, int]
    batch: tuple[int, ...]
    sizes: tuple[int, ...]
    taps: tuple[int, ...]
    channels: int
    features: int
    strides: tuple[int, ...]
    padding: str | int | tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int
    grid: tuple[int, ...] | None = None
    rate: float | None = None
    modes: tuple[int, ...] | None = None

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.batch, *self.sizes, self.channels)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (*self.taps, self.channels // self.groups, self.features)

    @property
    def geometry(self) -> tuple[oracle.Axis, ...]:
        return oracle.axes(
            self.sizes,
            self.taps,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            grid=self.grid,
            rate=None if self.rate is None else Fraction(str(self.rate)),
            modes=self.modes,
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Input and kernel, float64, without any symmetry."""
        rng = np.random.default_rng((*self.seed, 1))
        return rng.normal(size=self.x_shape), rng.normal(size=self.kernel_shape)

    def cotangent(self) -> np.ndarray:
        """A random array with the shape of the output."""
        rng = np.random.default_rng((*self.seed, 2))
        return rng.normal(size=(*self.batch, *(a.out for a in self.geometry), self.features))

    def arguments(self) -> dict[str, object]:
        """What ``band_conv`` takes by name, but for the band and the method."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "input_dilation": self.input_dilation,
            "kernel_dilation": self.kernel_dilation,
            "feature_group_count": self.groups,
            "grid": self.grid,
        }


def _draw(
    rng: np.random.Generator, seed: tuple[int, int], rank: int, kind: str, banded: bool
) -> Config | None:
    """One attempt; ``None`` where the kernel does not fit."""
    sizes = [int(n) for n in rng.integers(1, LARGEST[rank] + 1, rank)]
    taps = [int(k) for k in rng.integers(1, LONGEST[rank] + 1, rank)]
    if rank == 1 and rng.random() < 0.1:
        sizes = [int(rng.integers(60, 90))]
    if rng.random() < 0.15:
        # A kernel that reaches beyond the input on both sides.
        n = int(rng.integers(rank))
        taps[n] = sizes[n] = min(sizes[n], 3)
        taps[n] += int(rng.integers(1, 4))
    strides = [int(s) for s in rng.choice([1, 1, 2, 3], rank)]
    input_dilation = [int(a) for a in rng.choice([1, 1, 1, 2, 3], rank)]
    kernel_dilation = [int(d) for d in rng.choice([1, 1, 2, 3], rank)]
    if kind == "CAUSAL":
        # Flax pads before it dilates the input: only without dilation is the name unambiguous.
        input_dilation = [1] * rank
    padding: str | int | tuple[tuple[int, int], ...]
    if kind == "int":
        padding = int(rng.integers(0, 4))
    elif kind == "pairs":
        padding = tuple((int(p), int(q)) for p, q in rng.integers(0, 5, (rank, 2)))
    elif kind == "crop":
        padding = tuple((int(p), int(q)) for p, q in rng.integers(-3, 4, (rank, 2)))
        if min(min(pair) for pair in padding) >= 0:
            return None
    else:
        padding = kind

    style = rng.choice(["dense", "dense", "grouped", "depthwise"])
    if style == "dense":
        groups, channels, features = 1, int(rng.integers(1, 5)), int(rng.integers(1, 5))
    elif style == "grouped":
        groups = int(rng.integers(2, 4))
        channels, features = (groups * int(n) for n in rng.integers(1, 3, 2))
    else:
        groups = channels = int(rng.integers(2, 5))
        features = groups * int(rng.integers(1, 4))
    batch = ((), (1,), (2,), (3,), (2, 2))[int(rng.integers(5))]

    config = Config(
        seed=seed,
        batch=batch,
        sizes=tuple(sizes),
        taps=tuple(taps),
        channels=channels,
        features=features,
        strides=tuple(strides),
        padding=padding,
        input_dilation=tuple(input_dilation),
        kernel_dilation=tuple(kernel_dilation),
        groups=groups,
    )
    axes = config.geometry
    if any(axis.out < 1 for axis in axes):
        return None
    grid = None
    if kind != "CIRCULAR" and rng.random() < 0.3:
        least = [oracle.least_grid(a.size, a.input_dilation, a.low, a.high) for a in axes]
        grid = tuple(
            n + int(extra) for n, extra in zip(least, rng.integers(0, 6, rank), strict=True)
        )
        if rng.random() < 0.3:
            # The powers of two of the paper.
            grid = tuple(1 << math.ceil(math.log2(n)) for n in grid)
    fields = {**config.__dict__, "grid": grid}
    if banded and rng.random() < 0.5:
        fields["rate"] = round(float(rng.uniform(0, 0.99)), 3)
    elif banded:
        circles = [a.grid for a in Config(**fields).geometry]
        fields["modes"] = tuple(int(rng.integers(0, g // 2 + 1)) for g in circles)
    return Config(**fields)


def random_config(sweep: int, index: int, *, banded: bool) -> Config:
    """Configuration ``index`` of a sweep."""
    rng = np.random.default_rng((sweep, index, 0))
    rank = index % 3 + 1
    kind = PADDINGS[index // 3 % len(PADDINGS)]
    if kind == "CAUSAL" and rank > 1:
        kind = "pairs"
    while True:
        config = _draw(rng, (sweep, index), rank, kind, banded)
        if config is not None:
            return config


def chunk(sweep: int, first: int, count: int, *, banded: bool) -> list[Config]:
    """Configurations ``first`` to ``first + count - 1``."""
    return [random_config(sweep, n, banded=banded) for n in range(first, first + count)]
