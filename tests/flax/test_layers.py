"""The Flax layers: Flax's own ``Conv`` with a band."""

from __future__ import annotations

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import HERE, METHODS, chosen, quick_jit
from flax import nnx
from jax.nn import initializers

import bandjax

ROUNDING = 1e-12  # of float64
BATCHES = ((2,), (), (2, 3))

# (rank, changes); input and output have four and six channels.
ARGUMENTS = [
    pytest.param(rank, changes, id=f"{rank}-D {name}")
    for rank, name, changes in [
        (1, "defaults", {}),
        (2, "defaults", {}),
        (3, "defaults", {}),
        (1, "kernel_size as an int", {"kernel_size": 4}),
        (2, "even kernel", {"kernel_size": (2, 4)}),
        (2, "strides int", {"strides": 2}),
        (2, "strides pair", {"strides": (1, 3)}),
        (2, "strides None", {"strides": None}),
        (2, "VALID", {"padding": "VALID"}),
        (2, "SAME_LOWER", {"padding": "SAME_LOWER", "kernel_size": (4, 3)}),
        (2, "padding int", {"padding": 2}),
        (2, "padding ints", {"padding": (2, 1)}),
        (2, "padding pairs", {"padding": ((0, 2), (3, 1))}),
        (2, "padding mixed", {"padding": [1, (0, 2)]}),
        (2, "padding negative", {"padding": ((-1, 2), (1, -2))}),
        (1, "CIRCULAR", {"padding": "CIRCULAR"}),
        (2, "CIRCULAR", {"padding": "CIRCULAR", "kernel_size": (2, 4)}),
        (2, "CIRCULAR strided", {"padding": "CIRCULAR", "strides": (2, 3)}),
        (3, "CIRCULAR dilated", {"padding": "CIRCULAR", "kernel_dilation": (1, 2, 1)}),
        (1, "REFLECT", {"padding": "REFLECT"}),
        (2, "REFLECT", {"padding": "REFLECT", "kernel_size": (2, 4), "strides": (1, 2)}),
        (2, "REFLECT dilated", {"padding": "REFLECT", "kernel_dilation": 2}),
        (1, "CAUSAL", {"padding": "CAUSAL"}),
        (1, "CAUSAL strided", {"padding": "CAUSAL", "strides": 2, "kernel_dilation": 2}),
        (2, "input_dilation", {"input_dilation": (2, 3), "padding": ((1, 2), (0, 1))}),
        (2, "input_dilation int", {"input_dilation": 2, "padding": 1, "strides": 3}),
        (2, "input_dilation None", {"input_dilation": None}),
        (2, "kernel_dilation", {"kernel_dilation": (2, 3)}),
        (2, "kernel_dilation None", {"kernel_dilation": None}),
        (2, "groups", {"feature_group_count": 2}),
        (1, "depthwise", {"feature_group_count": 4, "features": 12}),
        (2, "no bias", {"use_bias": False}),
        (2, "precision", {"precision": "highest"}),
        (2, "initializers", {"kernel_init": initializers.normal(0.3)}),
    ]
]


def conv_arguments(rank: int, changes: dict) -> dict:
    """Constructor arguments in float64, with a bias that shows when it is lost."""
    return {
        "kernel_size": (3,) * rank,
        "param_dtype": jnp.float64,
        "bias_init": initializers.normal(1.0),
        "features": 6,
        **changes,
    }


def data(rank: int, batch=(2,)):
    rng = np.random.default_rng((rank, *batch))
    return jnp.asarray(rng.normal(size=(*batch, *(9, 8, 7)[:rank], 4)))


def nnx_layers(rank: int, changes: dict, **more):
    """Flax's layer and ours, drawn with the same key."""
    arguments = conv_arguments(rank, changes)
    features = arguments.pop("features")
    return (
        nnx.Conv(4, features, **arguments, rngs=nnx.Rngs(7)),
        bandjax.nnx.BandConv(4, features, **arguments, **more, rngs=nnx.Rngs(7)),
    )


def linen_layers(rank: int, changes: dict, **more):
    arguments = conv_arguments(rank, changes)
    return flax.linen.Conv(**arguments), bandjax.linen.BandConv(**arguments, **more)


def outputs(calls, *inputs):
    """The output of every function for every input, in one compilation."""
    run = quick_jit(lambda inputs: [[call(x) for x in inputs] for call in calls])
    return run(inputs)


def assert_same_outputs(calls, *inputs, tolerance=ROUNDING):
    """All functions give what the last one gives."""
    *rows, expected = outputs(calls, *inputs)
    for row in rows:
        for actual, wanted in zip(row, expected, strict=True):
            assert actual.dtype == wanted.dtype
            assert oracle.gap(actual, wanted) <= tolerance


def bound(layer, variables):
    """A linen layer with its variables, as a function of the input."""
    return functools.partial(layer.apply, variables)


def assert_same_trees(actual, expected):
    """The same structure, shapes, types and values."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for value, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert value.dtype == wanted.dtype
        assert np.array_equal(value, wanted)


def test_the_short_name_is_the_nnx_layer():
    assert bandjax.BandConv is bandjax.nnx.BandConv
    assert issubclass(bandjax.BandConv, nnx.Conv)
    assert issubclass(bandjax.linen.BandConv, flax.linen.Module)


# ------------------------------------------------------------------------------- the dense layer


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes"), ARGUMENTS)
def test_nnx_with_every_frequency_is_conv(rank, changes):
    dense, banded = nnx_layers(rank, changes)
    assert_same_trees(nnx.state(banded), nnx.state(dense))
    assert_same_outputs((banded, dense), *(data(rank, batch) for batch in BATCHES))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes"), ARGUMENTS)
def test_linen_with_every_frequency_is_conv(rank, changes):
    dense, banded = linen_layers(rank, changes)
    inputs = [data(rank, batch) for batch in BATCHES]
    variables = quick_jit(dense.init)(jax.random.key(3), inputs[0])
    assert_same_trees(quick_jit(banded.init)(jax.random.key(3), inputs[0]), variables)
    assert_same_outputs((bound(banded, variables), bound(dense, variables)), *inputs)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", "REFLECT", "VALID"])
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
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
    expected = dense(x)
    for actual in (
        banded(x),
        linen_banded.apply(variables, x),
        linen_dense.apply(variables, x),
    ):
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
    assert (oracle.gap(banded(x), dense(x)) <= ROUNDING) == (band is None)
    back = model(nnx.Conv, 2)
    nnx.update(back, nnx.state(banded))
    assert np.array_equal(back(x), dense(x))


@pytest.mark.usefixtures("x64")
def test_names_of_linen_parameters():
    _, banded = linen_layers(2, {}, band=bandjax.Compression(0.5))
    variables = banded.init(jax.random.key(0), data(2))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 4, 6), "bias": (6,)}}


# -------------------------------------------------------------------------------- the banded layer


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


# --------------------------------------------------------------------------------------- the hook

HOOKED = [p for p in ARGUMENTS if p.values[1].get("padding") != "CIRCULAR"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes"), HOOKED)
def test_the_hook_in_the_layers_of_flax(rank, changes):
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
    inputs = [data(rank, batch) for batch in BATCHES]
    assert_same_outputs((layer, bound(linen_layer, {"params": params}), banded), *inputs)


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
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("taps", "strides"), [((3, 4), (2, 3)), ((2, 3), (3, 1)), ((5, 1), (2, 2))]
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
