"""The convolution that Flax's own layers take, and transposed convolutions."""

from __future__ import annotations

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import HERE, METHODS, chosen
from choices import crossed
from flax import nnx
from flax_layers import (
    ARGUMENTS,
    BATCHES,
    ROUNDING,
    assert_same_outputs,
    bound,
    conv_arguments,
    data,
    nnx_layers,
)

import bandjax

pytestmark = pytest.mark.thin(4)

# --------------------------------------------------------------------------------------- the hook

HOOKED = crossed(
    [p for p in ARGUMENTS if p.values[1].get("padding") != "CIRCULAR"], BATCHES, strength=1
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes", "batch"), HOOKED)
def test_the_hook_in_the_layers_of_flax(rank, changes, batch):
    band = bandjax.Compression(0.5)
    hooked = changes | {"conv_general_dilated": bandjax.conv_general_dilated(band)}
    arguments = conv_arguments(rank, hooked)
    features = arguments.pop("features")
    layer = nnx.Conv(4, features, **arguments, rngs=nnx.Rngs(7))
    _, banded = nnx_layers(rank, changes, band=band)
    params = {"kernel": layer.kernel[...]}
    if layer.bias is not None:
        params["bias"] = layer.bias[...]
    linen_layer = flax.linen.Conv(features, **arguments)
    assert_same_outputs((layer, bound(linen_layer, {"params": params}), banded), data(rank, batch))


@pytest.mark.usefixtures("x64")
def test_the_dense_hook_is_lax():
    x = data(2)
    arguments = {"param_dtype": jnp.float64, "strides": (1, 2)}
    plain = nnx.Conv(4, 6, (3, 3), **arguments, rngs=nnx.Rngs(7))
    hooks = [bandjax.conv_general_dilated(None, **chosen(method)) for method in HERE]
    layers = [
        nnx.Conv(4, 6, (3, 3), **arguments, conv_general_dilated=hook, rngs=nnx.Rngs(7))
        for hook in hooks
    ]
    assert_same_outputs((*layers, plain), x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("layout", [("NCXY", "OIXY", "NCXY"), ("NXYC", "XYIO", "NCXY"), None])
def test_the_hook_reads_every_layout(layout):
    rng = np.random.default_rng(4)
    x, kernel = (
        jnp.asarray(rng.normal(size=(2, 4, 5, 6))),
        jnp.asarray(rng.normal(size=(3, 2, 4, 5))),
    )
    if layout is None or layout[0] == "NCXY":
        kernel = jnp.moveaxis(kernel, (2, 3), (1, 0))
    else:
        x = jnp.moveaxis(x, 1, 3)
    arguments = ((2, 1), [(1, 0), (2, -1)])
    options = {"dimension_numbers": layout, "rhs_dilation": (1, 2), "lhs_dilation": (1, 2)}
    hook = bandjax.conv_general_dilated(None)
    expected = jax.lax.conv_general_dilated(x, kernel, *arguments, **options)
    assert oracle.gap(hook(x, kernel, *arguments, **options), expected) <= ROUNDING


def test_the_hook_takes_preferred_element_type():
    x = data(2).astype(jnp.bfloat16)
    arguments = {"param_dtype": jnp.bfloat16, "use_bias": False}
    outputs = {}
    for preferred in (None, jnp.float32):
        layer = nnx.Conv(
            4,
            6,
            (3, 3),
            **arguments,
            preferred_element_type=preferred,
            conv_general_dilated=bandjax.conv_general_dilated(bandjax.Modes(2, 2)),
            rngs=nnx.Rngs(7),
        )
        outputs[preferred] = layer(x)
    hook = bandjax.conv_general_dilated(bandjax.Modes(2, 2))
    kernel = layer.kernel[...].astype(jnp.float32)
    spec = ("NXYC", "XYIO", "NXYC")
    narrow = hook(
        x.astype(jnp.float32),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=spec,
        preferred_element_type=jnp.bfloat16,
    )
    assert narrow.dtype == jnp.bfloat16
    assert oracle.relative_gap(narrow.astype(jnp.float32), outputs[jnp.float32]) <= 2.0**-7
    assert outputs[None].dtype == jnp.bfloat16
    assert outputs[jnp.float32].dtype == jnp.float32
    assert np.array_equal(outputs[jnp.float32].astype(jnp.bfloat16), outputs[None])
    assert not np.array_equal(outputs[jnp.float32], outputs[None].astype(jnp.float32))


# -------------------------------------------------------------------------- transposed convolutions


def transposed_padding(taps: int, stride: int, padding: str) -> tuple[int, int]:
    """The pads of the dilated input for which a convolution is ``lax.conv_transpose``.

    ``VALID`` is the full overlap; ``SAME`` has ``stride`` outputs for every input. Either puts
    ``taps + stride - 2`` zeros or more around the input, the larger half first.
    """
    if padding == "SAME":
        total = taps + stride - 2
        low = taps - 1 if stride > taps - 1 else -(-total // 2)
    else:
        total = taps + stride - 2 + max(taps - stride, 0)
        low = taps - 1
    return low, total - low


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("taps", "strides", "padding", "method"),
    crossed(
        [
            pytest.param((3, 4), (2, 3)),
            pytest.param((2, 3), (3, 1)),
            pytest.param((5, 1), (2, 2)),
        ],
        ["SAME", "VALID"],
        METHODS,
        strength=1,
    ),
)
def test_a_transposed_convolution_is_one_with_input_dilation(taps, strides, padding, method):
    x = data(2)
    pairs = [transposed_padding(k, s, padding) for k, s in zip(taps, strides, strict=True)]

    def banded(x, kernel):
        return bandjax.band_conv(x, kernel, padding=pairs, input_dilation=strides, **chosen(method))

    layer = nnx.ConvTranspose(
        4, 6, taps, strides, padding=padding, param_dtype=jnp.float64, rngs=nnx.Rngs(7)
    )
    bias = np.random.default_rng(1).normal(size=6)
    kernel = layer.kernel[...]
    layer.bias.set_value(jnp.asarray(bias))
    linen = flax.linen.ConvTranspose(6, taps, strides, padding=padding, param_dtype=jnp.float64)
    variables = {"params": {"kernel": kernel, "bias": jnp.asarray(bias)}}

    def with_bias(x):
        return banded(x, kernel) + bias[None, None, None]

    assert_same_outputs((with_bias, layer, bound(linen, variables)), x)

    # With transpose_kernel it is the gradient of a convolution: taps reversed, channels swapped.
    transposed = nnx.ConvTranspose(
        4,
        6,
        taps,
        strides,
        padding=padding,
        transpose_kernel=True,
        use_bias=False,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(8),
    )
    flipped = jnp.swapaxes(transposed.kernel[...][::-1, ::-1], 2, 3)
    assert_same_outputs((lambda x: banded(x, flipped), transposed), x)
