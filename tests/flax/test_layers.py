"""The Flax layers: Flax's own ``Conv`` with a band."""

from __future__ import annotations

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, chosen
from choices import crossed
from flax import nnx
from flax_layers import (
    ARGUMENTS,
    BATCHES,
    ROUNDING,
    assert_same_outputs,
    assert_same_trees,
    bound,
    data,
    linen_layers,
    nnx_layers,
    outputs,
)

import bandjax

pytestmark = pytest.mark.thin(6)

BATCHED = crossed(ARGUMENTS, BATCHES, strength=1)


def test_the_short_name_is_the_nnx_layer():
    assert bandjax.BandConv is bandjax.nnx.BandConv
    assert issubclass(bandjax.BandConv, nnx.Conv)
    assert issubclass(bandjax.linen.BandConv, flax.linen.Module)


# ------------------------------------------------------------------------------- the dense layer


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes", "batch"), BATCHED)
def test_nnx_with_every_frequency_is_conv(rank, changes, batch):
    dense, banded = nnx_layers(rank, changes)
    assert_same_trees(nnx.state(banded), nnx.state(dense))
    assert_same_outputs((banded, dense), data(rank, batch))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes", "batch"), BATCHED)
def test_linen_with_every_frequency_is_conv(rank, changes, batch):
    layers = linen_layers(rank, changes)
    x, key = data(rank, batch), jax.random.key(3)
    variables, ours = jax.jit(lambda: [layer.init(key, x) for layer in layers])()
    assert_same_trees(ours, variables)
    assert_same_outputs([bound(layer, variables) for layer in reversed(layers)], x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("padding", "method"), crossed(["SAME", "CIRCULAR", "REFLECT", "VALID"], METHODS, strength=1)
)
def test_every_method_in_a_layer(padding, method):
    changes = {"padding": padding, "strides": (2, 1)}
    x = data(2)
    dense, banded = nnx_layers(2, changes, **chosen(method))
    variables = {"params": {"kernel": dense.kernel[...], "bias": dense.bias[...]}}
    _, linen_banded = linen_layers(2, changes, **chosen(method))
    assert_same_outputs((banded, bound(linen_banded, variables), dense), x)


@pytest.mark.usefixtures("x64")
def test_masks():
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 3, 4, 6)), jnp.float64)
    x = data(2)
    dense, banded = nnx_layers(2, {"mask": mask})
    unmasked, _ = nnx_layers(2, {})
    _, linen_banded = linen_layers(2, {"mask": mask})
    variables = {"params": {"kernel": dense.kernel[...], "bias": dense.bias[...]}}
    assert_same_outputs((banded, bound(linen_banded, variables), dense), x)
    assert oracle.gap(banded(x), unmasked(x)) > 0.1
    _, wrong = nnx_layers(2, {"mask": mask[..., :5]})
    with pytest.raises(ValueError, match="Mask"):
        wrong(x)


@pytest.mark.parametrize(
    ("param_dtype", "dtype"),
    crossed([jnp.float32, jnp.bfloat16], [jnp.float32, jnp.bfloat16, jnp.float16], strength=1),
)
def test_dtype_and_param_dtype(dtype, param_dtype):
    changes = {"dtype": dtype, "param_dtype": param_dtype}
    x = data(2).astype(jnp.float32)
    # Two roundings to the computing type, of the convolution and of the sum with the bias; Flax
    # itself may round once more on the way.
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    dense, banded = nnx_layers(2, changes)
    assert_same_trees(nnx.state(banded), nnx.state(dense))
    variables = {"params": {"kernel": dense.kernel[...], "bias": dense.bias[...]}}
    linen_dense, linen_banded = linen_layers(2, changes)
    layers = dense, banded, bound(linen_banded, variables), bound(linen_dense, variables)
    expected, *others = (y for (y,) in outputs(layers, x))
    for actual in others:
        assert actual.dtype == expected.dtype == dtype
        wide = actual.astype(jnp.float32), expected.astype(jnp.float32)
        assert oracle.relative_gap(*wide) <= tolerance


def test_preferred_element_type():
    changes = {
        "dtype": jnp.bfloat16,
        "param_dtype": jnp.bfloat16,
        "preferred_element_type": jnp.float32,
        "use_bias": False,
    }
    dense, banded = nnx_layers(2, changes)
    x = data(2).astype(jnp.bfloat16)
    expected = dense(x)
    actual = banded(x)
    assert actual.dtype == expected.dtype == jnp.float32
    # No rounding to bfloat16 (4e-3) at the end.
    assert oracle.relative_gap(actual, expected) <= 2e-6


@pytest.mark.usefixtures("x64")
def test_promote_dtype_is_called():
    seen = []

    def promote(arrays, *, dtype):
        seen.append([array is not None for array in arrays])
        return tuple(2 * array for array in arrays)

    def promote_linen(*arrays, dtype):
        seen.append([array is not None for array in arrays])
        return tuple(2 * array for array in arrays)

    x = data(2)
    dense, banded = nnx_layers(2, {"promote_dtype": promote})
    variables = {"params": {"kernel": dense.kernel[...], "bias": dense.bias[...]}}
    _, linen_banded = linen_layers(2, {"promote_dtype": promote_linen})
    assert_same_outputs((banded, bound(linen_banded, variables), dense), x)
    assert len(seen) == 3
    assert all(entry == [True] * 3 for entry in seen)


@pytest.mark.usefixtures("x64")
def test_metadata_of_parameters():
    changes = {"kernel_metadata": {"note": "k"}, "bias_metadata": {"note": "b"}}
    dense, banded = nnx_layers(2, changes)
    for layer in (dense, banded):
        assert layer.kernel.get_metadata("note") == "k"
        assert layer.bias.get_metadata("note") == "b"


@pytest.mark.usefixtures("x64")
def test_arguments_by_position():
    layer = bandjax.BandConv(4, 6, (3, 3), 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert layer(data(2)).shape == (2, 5, 4, 6)
    assert bandjax.linen.BandConv(6, (3, 3), 2).strides == 2


# ------------------------------------------------------------------------------------ checkpoints


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("band", [None, bandjax.Compression(0.5)], ids=str)
def test_state_moves_between_dense_and_banded_nnx_models(band):
    def model(layer, seed, **more):
        rngs = nnx.Rngs(seed)
        common = {"param_dtype": jnp.float64, "rngs": rngs}
        return nnx.Sequential(
            layer(4, 5, (3, 3), **common, **more), jnp.tanh, layer(5, 6, (3, 3), **common, **more)
        )

    x = data(2)
    dense, banded = model(nnx.Conv, 0), model(bandjax.BandConv, 1, band=band)
    nnx.update(banded, nnx.state(dense))
    assert_same_trees(nnx.state(banded), nnx.state(dense))
    back = model(nnx.Conv, 2)
    nnx.update(back, nnx.state(banded))
    (ours,), (theirs,), (again,) = outputs((banded, dense, back), x)
    assert (oracle.gap(ours, theirs) <= ROUNDING) == (band is None)
    assert np.array_equal(again, theirs)


@pytest.mark.usefixtures("x64")
def test_names_of_linen_parameters():
    _, banded = linen_layers(2, {}, band=bandjax.Compression(0.5))
    variables = banded.init(jax.random.key(0), data(2))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 4, 6), "bias": (6,)}}


# -------------------------------------------------------------------------------- the banded layer


@pytest.mark.thin(4)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes"), ARGUMENTS)
def test_a_banded_layer_is_the_operator_and_a_bias(rank, changes):
    _, nnx_layer = nnx_layers(rank, changes, band=bandjax.Compression(0.5))
    _, linen_layer = linen_layers(rank, changes, band=bandjax.Compression(0.5))
    kernel = nnx_layer.kernel[...]
    bias = 0.0 if nnx_layer.bias is None else nnx_layer.bias[...]
    params = {"kernel": kernel} | ({} if nnx_layer.bias is None else {"bias": bias})
    names = ("strides", "padding", "input_dilation", "kernel_dilation", "feature_group_count")
    arguments = {name: changes[name] for name in names if changes.get(name) is not None}
    x = data(rank)
    if arguments.get("padding") == "CAUSAL":
        # Flax pads before it dilates the input.
        before = (kernel.shape[0] - 1) * changes.get("kernel_dilation", 1)
        padded = jnp.pad(x, ((0, 0), (before, 0), (0, 0)))
        arguments["padding"] = "VALID"
    elif arguments.get("padding") == "REFLECT":
        dilation = np.broadcast_to(changes.get("kernel_dilation", 1), rank)
        spans = [(k - 1) * d for k, d in zip(kernel.shape[:rank], dilation, strict=True)]
        sides = [(0, 0), *((span // 2, span - span // 2) for span in spans), (0, 0)]
        padded = jnp.pad(x, sides, mode="reflect")
        arguments["padding"] = "VALID"
    else:
        padded = x

    def operator(_):
        y = bandjax.band_conv(padded, kernel, bandjax.Compression(0.5), **arguments)
        return y + np.broadcast_to(bias, (1,) * (rank + 1) + (kernel.shape[-1],))

    assert_same_outputs((nnx_layer, bound(linen_layer, {"params": params}), operator), x)


@pytest.mark.usefixtures("x64")
def test_circular_layers_are_periodic():
    # The band is one of the circle of nine points itself, not of the longer wrapped input.
    x = data(1)
    geometry = oracle.axes(
        (9,),
        (3,),
        strides=(1,),
        padding="CIRCULAR",
        input_dilation=(1,),
        kernel_dilation=(1,),
        modes=(2,),
    )
    changes = {"padding": "CIRCULAR", "use_bias": False}
    _, layer = nnx_layers(1, changes, band=bandjax.Modes(2))
    kernel = layer.kernel[...]
    expected = oracle.convolve(np.asarray(x), np.asarray(kernel), geometry)
    assert oracle.gap(layer(x), expected) <= ROUNDING
    _, layer = linen_layers(1, changes, band=bandjax.Modes(2))
    assert oracle.gap(layer.apply({"params": {"kernel": kernel}}, x), expected) <= ROUNDING


@pytest.mark.usefixtures("x64")
def test_grid_reaches_the_operator():
    x = data(2)
    for make in (nnx_layers, linen_layers):
        _, layer = make(2, {"use_bias": False}, band=bandjax.Modes(2, 3), grid=(16, 12))
        if make is nnx_layers:
            kernel = layer.kernel[...]
            actual = layer(x)
        else:
            variables = layer.init(jax.random.key(0), x)
            kernel = variables["params"]["kernel"]
            actual = layer.apply(variables, x)
        expected = bandjax.band_conv(x, kernel, bandjax.Modes(2, 3), grid=(16, 12))
        default = bandjax.band_conv(x, kernel, bandjax.Modes(2, 3))
        assert oracle.gap(actual, expected) <= ROUNDING
        assert oracle.gap(actual, default) > 1e-3


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", "REFLECT"])
@pytest.mark.parametrize("make", [nnx_layers, linen_layers])
def test_the_geometry_of_a_layer(make, padding):
    changes = {"padding": padding, "strides": None, "param_dtype": jnp.float32}
    _, layer = make(2, changes, band=bandjax.Compression(0.5))
    actual = layer.geometry((2, 9, 8, 4))
    expected = bandjax.conv_geometry(
        (2, 9, 8, 4), (3, 3, 4, 6), bandjax.Compression(0.5), padding=padding
    )
    assert actual == expected
    assert actual.grid == {"SAME": (10, 9), "CIRCULAR": (9, 8), "REFLECT": (11, 10)}[padding]
    assert actual.output_shape == (2, 9, 8, 6)


@pytest.mark.parametrize("make", [nnx_layers, linen_layers])
def test_residual_dtype_reaches_the_operator(make):
    band = bandjax.Compression(0.5)
    changes = {"param_dtype": jnp.float32, "use_bias": False}
    _, layer = make(2, changes, band=band, residual_dtype=jnp.bfloat16)
    x = data(2).astype(jnp.float32)
    if make is nnx_layers:
        back = jax.vjp(layer, x)[1]
    else:
        back = jax.vjp(lambda x: layer.init_with_output(jax.random.key(0), x)[0], x)[1]
    types = {leaf.dtype for leaf in jax.tree.leaves(back)}
    assert jnp.dtype(jnp.bfloat16) in types
