"""Settings for the tests of the experiments."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

from experiments.settings.compiler import quick_jit


@pytest.fixture(autouse=True)
def _standard_promotion() -> Iterator[None]:
    """Optax's Adam multiplies a float by an integer count: strict promotion would refuse it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation steps that take less time to compile, and more to run."""
    monkeypatch.setattr("experiments.training.network._jit", quick_jit)
