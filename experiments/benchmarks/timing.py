"""Interleaved timing of functions that do the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over the runs of one function.

    Attributes:
        median: what to quote.
        low: the lower quartile.
        high: the upper quartile.
        runs: number of timed calls.
        compile: seconds of tracing and compiling, once.
    """

    median: float
    low: float
    high: float
    runs: int
    compile: float

    def as_dict(self) -> dict[str, Any]:
        """The figures as they are written into JSON."""
        return asdict(self)


def interleaved(
    functions: Mapping[str, Callable[..., Any]], args: tuple[jax.Array, ...], runs: int
) -> dict[str, Timing]:
    """Time every function once in each round, so that a slow moment of the machine meets all.

    Args:
        functions: to be jitted and called with ``args``. Whatever they return counts: XLA drops
            the computation of what is not returned.
        args: arrays.
        runs: rounds, after one that is not counted.
    """
    compiled = {}
    compile_seconds = {}
    for name, function in functions.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*args).compile()
        compile_seconds[name] = time.perf_counter() - start
        jax.block_until_ready(compiled[name](*args))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(statistics.median(s), *_quartiles(s), len(s), compile_seconds[name])
        for name, s in seconds.items()
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
