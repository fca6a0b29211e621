"""Which of many cases run by default; ``make test-full`` runs them all."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

FULL = pytest.mark.full


def _parameters(value: Any) -> Any:
    """A ``pytest.param`` as it is, and any other value as one with a name to be read."""
    if hasattr(value, "marks"):
        if value.id is not None:
            return value
        return pytest.param(*value.values, marks=value.marks, id="-".join(map(str, value.values)))
    return pytest.param(value, id=getattr(value, "__name__", None) or str(value))


def _only_full(case: Any) -> Any:
    return pytest.param(*case.values, marks=[*case.marks, FULL], id=case.id)


def thinned(cases: Iterable[Any], kept: int = 1) -> list[Any]:
    """The cases, of which the first ``kept`` run by default."""
    return [
        case if n < kept else _only_full(case) for n, case in enumerate(map(_parameters, cases))
    ]


def crossed(*axes: Iterable[Any], strength: int = 2) -> list[Any]:
    """Every combination of the axes' values, of which few run by default.

    Those few hold each combination of ``strength`` axes' values at least once: with 2 every pair of
    values, with 1 every value. An entry of an axis is one value, or a ``pytest.param`` of several.
    """
    entries = [[_parameters(value) for value in axis] for axis in axes]
    combinations = list(itertools.product(*(range(len(axis)) for axis in entries)))
    groups = list(itertools.combinations(range(len(entries)), min(strength, len(entries))))

    def covers(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return {tuple((axis, combination[axis]) for axis in group) for group in groups}

    missing = set().union(*map(covers, combinations))
    chosen: set[tuple[int, ...]] = set()
    used: collections.Counter[tuple[int, int]] = collections.Counter()

    def gain(combination: tuple[int, ...]) -> tuple[int, int]:
        """What is covered for the first time, and how rare its values are so far."""
        rare = -sum(used[place] for place in enumerate(combination))
        return len(covers(combination) & missing), rare

    while missing:
        best = max(combinations, key=gain)
        chosen.add(best)
        missing -= covers(best)
        used.update(enumerate(best))
    cases = []
    for combination in combinations:
        parts = [axis[n] for axis, n in zip(entries, combination, strict=True)]
        case = pytest.param(
            *(value for part in parts for value in part.values),
            marks=[mark for part in parts for mark in part.marks],
            id="-".join(str(part.id) for part in parts),
        )
        cases.append(case if combination in chosen else _only_full(case))
    return cases


def covering(*axes: Iterable[Any]) -> list[Any]:
    """Few combinations of the axes' values that hold each pair of values at least once.

    For axes whose every combination would be too many. An entry is as for :func:`crossed`.
    """
    entries = [[_parameters(value) for value in axis] for axis in axes]
    sizes = [len(axis) for axis in entries]
    draw = random.Random(0)
    missing = {
        ((a, i), (b, j))
        for (a, of_a), (b, of_b) in itertools.combinations(enumerate(sizes), 2)
        for i in range(of_a)
        for j in range(of_b)
    }

    def pairs(combination: list[int]) -> set[Any]:
        return set(itertools.combinations(enumerate(combination), 2))

    cases = []
    while missing:
        fixed = dict(min(missing))
        tries = [
            [fixed.get(axis, draw.randrange(size)) for axis, size in enumerate(sizes)]
            for _ in range(40)
        ]
        best = max(tries, key=lambda combination: len(pairs(combination) & missing))
        missing -= pairs(best)
        parts = [axis[n] for axis, n in zip(entries, best, strict=True)]
        cases.append(
            pytest.param(
                *(value for part in parts for value in part.values),
                marks=[mark for part in parts for mark in part.marks],
                id="-".join(str(part.id) for part in parts),
            )
        )
    return cases
