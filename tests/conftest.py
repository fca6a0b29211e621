"""JAX settings that hold for every test, and the choice of tests."""

from __future__ import annotations

import os

import effort

DEVICES = 8

# XLA reads its flags once, when the backend starts, hence before anything imports JAX. What the
# environment gave comes last, and counts.
os.environ["XLA_FLAGS"] = " ".join(
    [
        f"--xla_force_host_platform_device_count={DEVICES}",
        *effort.flags(),
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
