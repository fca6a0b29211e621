"""Timing of calls that do the same work, in turn; and what several processes have timed, as one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# After a call PyTorch's threads spin for some milliseconds before they sleep; what runs next would
# share the cores with them.
PAUSE = 0.01
# Calls that are not counted, of each function in its process: the first ones meet cold caches,
# fresh pages and a processor that has not yet reached its clock.
WARM_SECONDS, WARM_CALLS = 0.3, 10
# A call shorter than this is counted right after calls that are not, for about so long: the other
# functions of its process have filled the caches meanwhile, while a process of one function finds
# its own data there.
SHORT = 0.03


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over the timed calls of one function.

    Attributes:
        median: what to quote.
        low: the lower quartile.
        high: the upper quartile.
        runs: number of timed calls. Fewer than were asked for where calls are slow.
        first: the first call, after compilation. Where it alone takes up the function's time it is
            the one that counts; else it and some more only warm up.
        best: the least.
        processes: the median of each process.
    """

    median: float
    low: float
    high: float
    runs: int
    first: float
    best: float
    processes: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The figures as they are written into JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Samples:
    """Seconds of the calls of one function in one process.

    Attributes:
        first: the first call.
        counted: those that count, in their order; at least one.
    """

    first: float
    counted: tuple[float, ...]


def summary(parts: Sequence[Samples]) -> Timing:
    """The calls of one function in one or several processes; every call counts alike."""
    values = [seconds for part in parts for seconds in part.counted]
    medians = tuple(statistics.median(part.counted) for part in parts)
    return Timing(
        statistics.median(values),
        *_quartiles(values),
        len(values),
        parts[0].first,
        min(values),
        medians,
    )


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    runs: int,
    seconds: float,
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Timing]:
    """What :func:`sampled` finds, summed up."""
    return {
        name: summary([samples]) for name, samples in sampled(calls, runs, seconds, advance).items()
    }


def sampled(
    calls: Mapping[str, Callable[[], Any]],
    runs: int,
    seconds: float,
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Samples]:
    """Time every call once in each round, so that a slow moment of the machine meets all.

    A slow call takes part in fewer rounds, evenly spread. Every round begins with another call, so
    that none always follows the same neighbour.

    Args:
        calls: each computes its result and waits for it.
        runs: rounds, after a first call of each, and as many more as warm it up. Of a call shorter
            than SHORT those of about that time go before it in each, and are not counted.
        seconds: what all timed calls of one function may take; at least one is made.
        advance: told the share of the work that is done, after each call.
    """
    if not calls:
        return {}
    first = {}
    for number, (name, call) in enumerate(calls.items(), start=1):
        first[name] = _timed(call)
        advance(number / len(calls) / (runs + 1))
    planned = {name: min(runs, int(seconds / max(s, 1e-9))) for name, s in first.items()}
    before = {}  # calls in a round that are not counted
    for name, s in first.items():
        warm = min(WARM_CALLS, int(WARM_SECONDS / max(s, 1e-9))) if planned[name] else 0
        spent = [_timed(calls[name], 0) for _ in range(warm)]
        least = min(spent, default=s)
        before[name] = min(WARM_CALLS, math.ceil(SHORT / least)) if least < SHORT else 0
    taken: dict[str, list[float]] = {name: [] if planned[name] else [first[name]] for name in calls}
    names = list(calls)
    for number in range(runs):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            n = planned[name]
            if (number + 1) * n // runs > number * n // runs:
                for _ in range(before[name]):
                    calls[name]()
                taken[name].append(_timed(calls[name]))
        advance((number + 2) / (runs + 1))
    return {name: Samples(first[name], tuple(counted)) for name, counted in taken.items()}


def _timed(call: Callable[[], Any], pause: float = PAUSE) -> float:
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    time.sleep(pause)
    return seconds


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
