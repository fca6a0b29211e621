"""Settings for the tests of the experiments."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _standard_promotion() -> Iterator[None]:
    """Optax's Adam multiplies a float by an integer count: strict promotion would refuse it."""
    with jax.numpy_dtype_promotion("standard"):
        yield
