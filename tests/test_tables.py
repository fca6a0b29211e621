"""Tables are cached up to a number of bytes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import bandjax
from bandjax._tables import MOST_BYTES, TableCache, tables


def test_the_tables_used_last_are_kept():
    cache, made = TableCache(most_bytes=100), []

    @cache
    def table(n, *, twice=False):
        made.append(n)
        return (np.zeros(n, np.uint8),) * (2 if twice else 1)

    for n in (40, 50, 40, 60, 40, 50):  # 60 drops 50, used longest ago; 50 then drops 60
        table(n)
        assert cache.nbytes <= 100
    assert made == [40, 50, 60, 50]
    table(200)
    assert cache.nbytes <= 100
    table(45, twice=True)
    assert (made[-1], cache.nbytes) == (45, 90)
    cache.clear()
    table(40)
    assert (made[-1], cache.nbytes) == (40, 40)


def test_long_series_of_many_lengths_do_not_pile_up():
    for length in range(16000, 16800, 160):
        x, kernel = jnp.ones((1, length, 4)), jnp.ones((9, 4, 4))
        jax.eval_shape(
            lambda x, kernel: bandjax.band_conv(x, kernel, bandjax.Modes(64), method="dft"),
            x,
            kernel,
        )
    assert 0 < tables.nbytes <= MOST_BYTES
