"""Inputs of the tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def draw(*shape: int, seed: int = 0) -> jax.Array:
    """Normal numbers in single precision."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise whose low frequencies are the stronger ones, with a mean."""
    x = rng.normal(size=shape) + 0.3
    for axis in range(1, len(shape) - 1):
        x = x + np.roll(x, 1, axis) + 0.5 * np.roll(x, 2, axis)
    return x.astype(np.float32)
