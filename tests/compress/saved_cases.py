"""A residual block, and what the tests of compressed residuals do with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import bandjax
from bandjax.codecs import Cast

EXACT = Cast(jnp.float32)  # Loses nothing: gradients are those of the function itself.


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def convolve(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normalised(x, scale):
    mean, var = (f(x, axis=(0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale[None, None, None]), (mean, var)


def block(parameters, x):
    """A residual block with pooling: its result, and the statistics."""
    first, second, scale = parameters
    y, one = normalised(convolve(x, first), scale)
    y, two = normalised(convolve(jax.nn.relu(y), second), scale)
    y = jax.nn.relu(y + x)
    pooled = jax.lax.reduce_window(
        y, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
    )
    return pooled, (one, two, jnp.argmax(pooled, -1))


PARAMETERS = 0.3 * normal(0, 3, 3, 8, 8), 0.3 * normal(1, 3, 3, 8, 8), 1 + 0.1 * normal(2, 8)
X = normal(3, 4, 16, 16, 8)


def loss(parameters, x, f=block):
    y, aux = f(parameters, x)
    return (y * jnp.cos(jnp.arange(8.0))[None, None, None]).sum(), aux


def gradient(f, argnums=0):
    return jax.grad(lambda p, x: loss(p, x, f)[0], argnums)


def cosine(a, b):
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)
        for tree in (a, b)
    ]
    return np.dot(*flat) / np.prod([np.linalg.norm(v) for v in flat])


def assert_near(a, b, rtol=2e-4):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.abs(other).max()) + 1e-6
        np.testing.assert_allclose(one, other, atol=rtol * scale)


def saved(f, *args, **options):
    return bandjax.memory.saved_bytes(f, *args, **options)
