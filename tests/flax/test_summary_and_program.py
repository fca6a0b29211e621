"""``bandjax.summary`` names the method that the program of the layer has."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from calls import STATUS
from flax import nnx

import bandjax

HALF = bandjax.Compression(0.5)
LAYERS = {
    "small map": ((2, 8, 8, 4), {"kernel_size": (3, 3), "band": HALF}),
    "without native kernels": (
        (2, 8, 8, 4),
        {"kernel_size": (3, 3), "band": HALF, "implementation": "xla"},
    ),
    "a spectrum for a filter": (
        (2, 8, 8, 4),
        {"kernel_size": (3, 3), "band": HALF, "spectral": True},
    ),
    "long series, 512 taps": ((4, 4096, 4), {"kernel_size": (512,), "band": HALF}),
    "long series, 512 taps, spectral": (
        (4, 4096, 4),
        {"kernel_size": (512,), "band": HALF, "spectral": True},
    ),
    "a filter that is kept": (
        (2, 8, 8, 4),
        {"kernel_size": (3, 3), "band": HALF, "recompute_filter": False},
    ),
    "every frequency": ((2, 8, 8, 4), {"kernel_size": (3, 3)}),
    "every frequency, 16-bit": ((2, 8, 8, 4), {"kernel_size": (3, 3), "dtype": jnp.bfloat16}),
    "volume": ((1, 6, 6, 6, 4), {"kernel_size": (3, 3, 3), "band": HALF}),
    "depthwise": (
        (2, 16, 16, 4),
        {"kernel_size": (3, 3), "band": HALF, "feature_group_count": 4},
    ),
    **{
        f"method {name}": ((2, 8, 8, 4), {"kernel_size": (3, 3), "band": HALF, "method": name})
        for name in ("fft", "dft", "direct")
    },
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", LAYERS)
def test_method_and_native_are_those_of_the_lowered_program(name):
    shape, options = LAYERS[name]
    options = dict(options)
    spectral = options.pop("spectral", False)
    layer = bandjax.BandConv(4, 4, rngs=nnx.Rngs(0), **options)
    if spectral:
        bandjax.nnx.to_spectral(layer, shape)
    (told,) = bandjax.summary(layer, jnp.ones(shape)).layers
    gradient = nnx.jit(nnx.grad(lambda layer, x: jnp.sin(layer(x)).sum()))  # as in training
    lowered = gradient.lower(layer, jnp.ones(shape)).as_text()
    assert told.native == ("custom_call @bandjax_" in lowered)
    if not STATUS.startswith("native: available"):
        assert not told.native
    found = {
        "fft": "stablehlo.fft" in lowered,
        "direct": "stablehlo.convolution" in lowered or "@bandjax_direct" in lowered,
    }
    assert found == {method: told.method == method for method in found}
    assert told.method in ("fft", "direct", "dft")
