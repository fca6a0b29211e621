"""Interleaved timing of calls that do the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# After a call PyTorch's threads spin for some milliseconds before they sleep; what runs next would
# share the cores with them.
PAUSE = 0.01


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over the timed calls of one function.

    Attributes:
        median: what to quote.
        low: the lower quartile.
        high: the upper quartile.
        runs: number of timed calls. Fewer than were asked for where calls are slow.
        first: the first call, after compilation. Where it alone takes up the function's time it is
            the one that counts; else it only warms up.
    """

    median: float
    low: float
    high: float
    runs: int
    first: float

    def as_dict(self) -> dict[str, Any]:
        """The figures as they are written into JSON."""
        return asdict(self)


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    runs: int,
    seconds: float,
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Timing]:
    """Time every call once in each round, so that a slow moment of the machine meets all.

    A slow call takes part in fewer rounds, evenly spread. Every round begins with another call, so
    that none always follows the same neighbour.

    Args:
        calls: each computes its result and waits for it.
        runs: rounds, after one first call of each.
        seconds: what all timed calls of one function may take; at least one is made.
        advance: told the share of the work that is done, after each call.
    """
    first = {}
    for number, (name, call) in enumerate(calls.items(), start=1):
        first[name] = _timed(call)
        advance(number / len(calls) / (runs + 1))
    planned = {name: min(runs, int(seconds / max(s, 1e-9))) for name, s in first.items()}
    taken: dict[str, list[float]] = {name: [] if planned[name] else [first[name]] for name in calls}
    names = list(calls)
    for number in range(runs):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            n = planned[name]
            if (number + 1) * n // runs > number * n // runs:
                taken[name].append(_timed(calls[name]))
        advance((number + 2) / (runs + 1))
    return {
        name: Timing(statistics.median(s), *_quartiles(s), len(s), first[name])
        for name, s in taken.items()
    }


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    time.sleep(PAUSE)
    return seconds


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
