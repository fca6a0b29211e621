"""Settings for the tests of the experiments."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import pytest
from calls import compiler_options


@pytest.fixture(autouse=True)
def _standard_promotion() -> Iterator[None]:
    """Optax's Adam multiplies a float by an integer count: strict promotion would refuse it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation steps that take less time to compile, and more to run."""
    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    monkeypatch.setattr("experiments.training.network._jit", jit)
