"""With every frequency kept, ``band_conv`` is ``lax.conv_general_dilated``."""

from __future__ import annotations

import configs
import jax
import jax.numpy as jnp
import oracle
import pytest
from calls import by_every_method
from choices import thinned
from dense import lax_convolution

import bandjax

SWEEP, COUNT, CHUNK = 2, 504, 3


def all_kept(config: configs.Config, index: int):
    """The three ways to say that nothing is dropped, in turn."""
    full = bandjax.Modes(*(axis.grid // 2 for axis in config.geometry))
    return (None, bandjax.Compression(0), full)[index // 3 % 3]


@pytest.mark.no_cover
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("first", thinned(range(0, COUNT, CHUNK)))
def test_random_configurations(first):
    for index, config in enumerate(configs.chunk(SWEEP, first, CHUNK, banded=False), start=first):
        x, kernel = map(jnp.asarray, config.arrays())
        expected = jax.jit(lax_convolution, static_argnums=0)(config, x, kernel)
        for method, actual in by_every_method(config, all_kept(config, index)).items():
            assert actual.dtype == jnp.float64
            assert oracle.gap(actual, expected) <= 1e-12, (method, config)
