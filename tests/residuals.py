"""The arrays that a derivative keeps."""

from __future__ import annotations

import contextlib
import io

import jax
import numpy as np
from jax.ad_checkpoint import print_saved_residuals


def data(shape=(2, 32, 32, 6), features=8, taps=(3, 3), dtype=np.float32):
    rng = np.random.default_rng((1, *shape))
    x = rng.normal(size=shape).astype(dtype)
    return x, rng.normal(size=(*taps, shape[-1], features)).astype(dtype)


def residuals(f, *args) -> list[jax.Array]:
    """The arrays inside the function that ``jax.vjp`` returns."""
    return jax.jit(lambda *args: jax.tree.leaves(jax.vjp(f, *args)[1]))(*args)


def printed(f, *args) -> list[str]:
    """The lines of ``print_saved_residuals``."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_saved_residuals(f, *args)
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    # The matrices of the transform are constants of the program, the same for every call.
    return [line for line in lines if not line.endswith("from a constant")]


def without_kernel(leaves, kernel) -> list[jax.Array]:
    """The residuals but for the kernel, which must be there exactly once."""
    is_kernel = [
        leaf.shape == kernel.shape and bool(np.array_equal(leaf, kernel)) for leaf in leaves
    ]
    assert sum(is_kernel) == 1
    return [leaf for leaf, found in zip(leaves, is_kernel, strict=True) if not found]
