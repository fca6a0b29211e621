"""Which cases run: all of them in full, every value by default, and what is too late is told."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from choices import FULL, crossed, thinned

AXES = [range(5), "abc", [None, 1.5], [True, False]]


def by_default(cases):
    return [case.values for case in cases if FULL not in case.marks]


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_crossed_cases_hold_every_combination_of_few_axes(strength):
    cases = crossed(*AXES, strength=strength)
    every = list(itertools.product(*AXES))
    assert [case.values for case in cases] == every
    assert len({case.id for case in cases}) == len(cases)
    chosen = by_default(cases)
    for axes in itertools.combinations(range(len(AXES)), strength):
        wanted = set(itertools.product(*(AXES[axis] for axis in axes)))
        assert {tuple(case[axis] for axis in axes) for case in chosen} == wanted
    assert len(chosen) < {1: 6, 2: 20, 3: 40}[strength]


def test_values_take_turns():
    chosen = by_default(crossed(range(12), "abc", strength=1))
    assert [letter for _, letter in chosen] == [*"abc"] * 4


def test_cases_of_several_values_keep_their_marks_and_names():
    skipped = pytest.param("x", 1, marks=pytest.mark.skip, id="named")
    first, second = crossed([skipped], [2, 3], strength=1)
    assert (first.values, first.id) == (("x", 1, 2), "named-2")
    assert second.values == ("x", 1, 3)
    for case in (first, second):
        assert pytest.mark.skip in case.marks


def test_thinned_cases():
    cases = thinned([1, pytest.param(2, id="two"), 3], 2)
    assert [case.values for case in cases] == [(1,), (2,), (3,)]
    assert by_default(cases) == [(1,), (2,)]
    assert cases[1].id == "two"


@pytest.mark.parametrize(
    ("seconds", "told"), thinned([pytest.param(0, True), pytest.param(600, False)])
)
def test_what_is_too_late_is_told(seconds, told):
    here = f"{Path(__file__)}::test_thinned_cases"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--seconds={seconds}"]
    done = subprocess.run([*command, here], capture_output=True, text=True, check=True)
    assert ("OUT OF TIME: 1 cases did not run" in done.stdout) == told
    assert ("1 passed" in done.stdout) != told
