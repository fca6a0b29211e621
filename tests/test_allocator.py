"""Freed memory that stays in the process."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import types

import pytest

import bandjax
from bandjax import _allocator

# In a process of its own, for the setting stays. Each block is as large as ResNet-18's maps; a
# thread fills one in each round as well, as XLA's threads do.
PROGRAM = """
import resource, sys, threading
import numpy as np
if sys.argv[1] == "tuned":
    from bandjax import tune_allocator
    assert tune_allocator() and tune_allocator()

def fill():
    np.empty(36 << 20, np.uint8).fill(1)

for round in range(9):
    if round == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    fill()
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc: nothing can be set"
)


def faults(how, **environment):
    """Pages that the system had to supply for 16 blocks of 36 MiB."""
    command = [sys.executable, "-c", PROGRAM, how]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return int(ended.stdout)


@glibc
def test_blocks_are_used_again():
    system, tuned = faults("system"), faults("tuned")
    assert system > 16 * 9  # of 2 MiB at most each, a block takes 18 pages
    assert tuned < system / 8


@glibc
def test_the_environment_in_the_documentation_does_the_same():
    text = re.sub(r"\s", "", bandjax.tune_allocator.__doc__)
    value = re.search(r"GLIBC_TUNABLES=([\w.:=]+)\(oneline\)", text)[1]
    assert faults("system", GLIBC_TUNABLES=value) < faults("system") / 8


@pytest.mark.parametrize(
    ("refused", "effective"), [([], True), ([-3], True), ([-3, -4], False), ([-8], False)]
)
def test_what_an_older_glibc_refuses(monkeypatch, refused, effective):
    """Before 2.35 a threshold above 32 MiB (-3): then no block is mapped (-4) at all."""
    told = {}

    def mallopt(parameter, value):
        told[parameter] = value
        return 0 if parameter in refused else 1

    monkeypatch.setattr(_allocator, "_glibc", lambda: types.SimpleNamespace(mallopt=mallopt))
    assert bandjax.tune_allocator() is effective
    assert told.keys() >= {-1, -2, -3, -8}
    assert told.get(-4) == (0 if -3 in refused else None)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_system_is_left_alone(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(_allocator.ctypes, "CDLL", None)  # it would not be called
    assert bandjax.tune_allocator() is False


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(_allocator.ctypes, "CDLL", lambda name: types.SimpleNamespace())
    assert bandjax.tune_allocator() is False
