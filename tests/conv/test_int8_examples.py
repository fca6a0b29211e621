"""Residuals of 8 bits do not mix the examples of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bandjax
from bandjax import Compression, Energy

RNG = np.random.default_rng(24)
X = jnp.asarray(RNG.normal(size=(4, 12, 12, 8)), jnp.float32)
KERNEL = jnp.asarray(RNG.normal(size=(3, 3, 8, 6)), jnp.float32)


@pytest.mark.thin(8)
@pytest.mark.parametrize("band", [None, Compression(0.5), Energy(0.9, Compression(0.5))])
@pytest.mark.parametrize("method", ["dft", "fft", "direct"])
def test_an_example_does_not_depend_on_its_neighbours(method, band):
    @jax.jit
    def f(x):
        return bandjax.band_conv(x, KERNEL, band, method=method, residual_dtype=jnp.int8)

    y = f(X)
    if not isinstance(band, Energy):  # whose box is that of the whole batch
        louder = f(X.at[1].mul(128).at[2].set(jnp.nan))
        assert np.array_equal(louder[0], y[0])
        assert np.array_equal(louder[3], y[3])
        assert np.isfinite(louder[1]).all()
        assert np.allclose(louder[1], 128 * y[1], rtol=1e-4, atol=1e-2)
    exact = bandjax.band_conv(X, KERNEL, band, method=method)
    assert np.abs(y - exact).max() <= 0.01 * np.abs(exact).max()


def test_an_example_alone_is_what_it_is_in_a_batch():
    @jax.jit
    def layer(x):
        return bandjax.band_conv(x, KERNEL, Compression(0.5), residual_dtype=jnp.int8)

    together = layer(X)
    for i in range(len(X)):
        alone = layer(X[i : i + 1])
        assert np.allclose(alone[0], together[i], rtol=1e-5, atol=1e-5)
