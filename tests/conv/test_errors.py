"""Wrong arguments raise before anything is computed, and say what was wrong."""

from __future__ import annotations

import re
from fractions import Fraction

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bandjax

X = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 4, 6)).astype(np.float32)


def raises(kind, *parts):
    """Expects an error of ``kind`` whose message has all ``parts``, in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, parts)))


def traced(x, kernel, band=None, **arguments):
    """Calls ``band_conv`` on abstract values: whatever raises does so without computing."""
    return jax.eval_shape(lambda *a: bandjax.band_conv(*a, band, **arguments), x, kernel)


# ------------------------------------------------------------------------------------------ bands


@pytest.mark.parametrize("rate", [1.2, 1, -0.1, float("inf"), float("nan")])
def test_rate_out_of_range(rate):
    with raises(ValueError, "rate must satisfy 0 <= rate < 1, got ", str(rate)):
        bandjax.Compression(rate)


@pytest.mark.parametrize("rate", ["a", None, True, 1j, (0.5,), np.array([0.5])])
def test_rate_of_the_wrong_type(rate):
    with raises(TypeError, "rate must be a real number, got ", repr(rate)):
        bandjax.Compression(rate)


@pytest.mark.parametrize("limits", [(-1,), (3, -2)])
def test_negative_modes(limits):
    with raises(ValueError, "Modes", ">= 0, got", str(min(limits))):
        bandjax.Modes(*limits)


@pytest.mark.parametrize("limit", [1.5, "3", None, True, (1, 2)])
def test_modes_of_the_wrong_type(limit):
    with raises(TypeError, "Modes", "integer", "got", repr(limit)):
        bandjax.Modes(limit)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("inf"), float("nan")])
def test_share_out_of_range(share):
    with raises(ValueError, "share must satisfy 0 < share <= 1, got ", str(share)):
        bandjax.Energy(share)


@pytest.mark.parametrize("share", ["a", None, True, 1j, (0.5,)])
def test_share_of_the_wrong_type(share):
    with raises(TypeError, "share must be a real number, got ", repr(share)):
        bandjax.Energy(share)


@pytest.mark.parametrize("bound", [0.5, "0.5", (3, 3), bandjax.Energy(0.5)])
def test_bound_of_the_wrong_type(bound):
    with raises(TypeError, "at_most must be bandjax.Compression", "got ", repr(bound)):
        bandjax.Energy(0.9, at_most=bound)


def test_no_modes():
    with raises(ValueError, "Modes", "one limit for each spatial axis", "none"):
        bandjax.Modes()


@pytest.mark.parametrize("limits", [(3,), (3, 3, 3)])
def test_modes_of_the_wrong_length(limits):
    with raises(ValueError, repr(bandjax.Modes(*limits)), str(len(limits)), "2 spatial axes"):
        traced(X, KERNEL, bandjax.Modes(*limits))


def test_modes_beyond_the_grid():
    # The grid of nine samples with SAME padding has ten points, that of eight has nine.
    with raises(ValueError, "Modes(3, 5)", "5", "axis 1", "9", "4"):
        traced(X, KERNEL, bandjax.Modes(3, 5))
    assert traced(X, KERNEL, bandjax.Modes(5, 4)).shape == (2, 9, 8, 6)


@pytest.mark.parametrize("band", [0.5, "compression=0.5", (3, 3), bandjax.Modes])
def test_what_is_no_band(band):
    with raises(TypeError, "band must be", "Compression", "Modes", "None, got", repr(band)):
        traced(X, KERNEL, band)


# ----------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_types_that_are_not_floating_point(dtype):
    name = np.dtype(dtype).name
    with raises(TypeError, "x must be of a floating-point or complex type, got", name):
        traced(X.astype(dtype), KERNEL)
    with raises(TypeError, "kernel must be of a floating-point or complex type, got", name):
        traced(X, KERNEL.astype(dtype))


def test_a_complex_and_a_real_array():
    with raises(TypeError, "must have the same type, got complex64 and float32", "cast"):
        traced(X + 1j, KERNEL)
    with raises(TypeError, "must have the same type, got float32 and complex64", "cast"):
        traced(X, KERNEL + 1j)


def test_types_that_differ():
    with raises(TypeError, "x and kernel must have the same type", "float32", "bfloat16"):
        traced(X, jnp.asarray(KERNEL, jnp.bfloat16))


def test_what_is_no_array():
    with raises(TypeError, "x must be an array, got", "list"):
        bandjax.band_conv(X.tolist(), KERNEL)
    with raises(TypeError, "kernel must be an array, got", "NoneType"):
        bandjax.band_conv(X, None)


@pytest.mark.parametrize("shape", [(4, 6), (2, 2, 2, 2, 4, 6)])
def test_rank_of_the_kernel(shape):
    with raises(ValueError, "kernel must have 1, 2 or 3 spatial axes", str(shape)):
        traced(X, np.zeros(shape, np.float32))


def test_rank_of_the_input():
    with raises(ValueError, "x must have", "2 spatial axes", str((8, 4))):
        traced(X[0, 0], KERNEL)


@pytest.mark.parametrize("shape", [(2, 0, 8, 4), (2, 9, 0, 4)])
def test_empty_spatial_axes(shape):
    with raises(ValueError, "spatial axes of x must not be empty", str(shape)):
        traced(np.zeros(shape, np.float32), KERNEL)


def test_empty_kernels():
    with raises(ValueError, "kernel must not be empty", "(3, 0, 4, 6)"):
        traced(X, KERNEL[:, :0])


@pytest.mark.parametrize(("x", "kernel"), [(X[..., :0], KERNEL[:, :, :0]), (X, KERNEL[..., :0])])
def test_empty_channel_axes(x, kernel):
    with raises(ValueError, "channel axes must not be empty", str(x.shape), str(kernel.shape)):
        traced(x, kernel)


def test_channels_that_do_not_match():
    with raises(ValueError, "kernel must have in / feature_group_count", "4", "1", "got 3"):
        traced(X, KERNEL[:, :, :3])
    with raises(ValueError, "kernel must have in / feature_group_count", "4", "2", "got 4"):
        traced(X, KERNEL, feature_group_count=2)


@pytest.mark.parametrize("groups", [3, 4, 8])
def test_groups_that_do_not_divide_the_channels(groups):
    # Four input channels and six features: two is the only number of groups but one.
    with raises(ValueError, "feature_group_count must divide", f"got {groups}", "4", "6"):
        traced(X, KERNEL[:, :, :1], feature_group_count=groups)


@pytest.mark.parametrize("groups", [0, -2])
def test_groups_that_are_not_positive(groups):
    with raises(ValueError, "feature_group_count must be >= 1, got", str(groups)):
        traced(X, KERNEL, feature_group_count=groups)


# -------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", ["strides", "input_dilation", "kernel_dilation"])
@pytest.mark.parametrize(
    ("value", "kind", "rule"),
    [
        (0, ValueError, ">= 1"),
        ((1, -1), ValueError, ">= 1"),
        ((1, 1, 1), ValueError, "2 spatial axes"),
        ((2,), ValueError, "2 spatial axes"),
        (1.0, TypeError, "integer"),
        ((1, "2"), TypeError, "integer"),
        (True, TypeError, "integer"),
    ],
)
def test_strides_and_dilations(name, value, kind, rule):
    with raises(kind, name, rule, "got", repr(value)):
        traced(X, KERNEL, padding="VALID", **{name: value})


def test_type_of_groups():
    with raises(TypeError, "feature_group_count must be an integer, got 2.0"):
        traced(X, KERNEL, feature_group_count=2.0)


@pytest.mark.parametrize(
    ("padding", "kind", "rule"),
    [
        ("equal", ValueError, "'equal'"),
        ("FULL", ValueError, "'FULL'"),
        (((1, 1),), ValueError, "2 spatial axes"),
        ((1, 1, 1), ValueError, "2 spatial axes"),
        (((1, 1), (1, 1, 1)), ValueError, "(low, high)"),
        (((1, 1), (1, 0.5)), TypeError, "integers"),
        (1.5, TypeError, "integers"),
        (None, TypeError, "integers"),
    ],
)
def test_padding(padding, kind, rule):
    with raises(kind, "padding", " must ") as caught:
        traced(X, KERNEL, padding=padding)
    assert repr(padding) in str(caught.value)
    assert rule.strip("'") in str(caught.value)


def test_causal_padding_is_for_one_axis():
    with raises(ValueError, "CAUSAL", "one spatial axis", "2"):
        traced(X, KERNEL, padding="CAUSAL")


@pytest.mark.parametrize(("name", "value"), [("method", "winograd"), ("implementation", "cudnn")])
def test_unknown_names(name, value):
    with raises(ValueError, f"{name} must be", f"got {value!r}"):
        traced(X, KERNEL, **{name: value})


def test_unknown_methods_are_told_the_known_ones():
    with raises(ValueError, "auto") as caught:
        traced(X, KERNEL, method=None)
    for method in ("fft", "dft", "direct"):
        assert method in str(caught.value)


@pytest.mark.parametrize("grid", [9, (10, 8), (9, 16)])
def test_a_grid_below_the_minimum(grid):
    with raises(ValueError, "grid must be at least (10, 9)", "got", repr(grid)):
        traced(X, KERNEL, grid=grid)


@pytest.mark.parametrize(
    ("grid", "kind"), [((16,), ValueError), (0, ValueError), (16.0, TypeError), ("16", TypeError)]
)
def test_grids_that_are_none(grid, kind):
    with raises(kind, "grid", "got", repr(grid)):
        traced(X, KERNEL, grid=grid)


@pytest.mark.parametrize("grid", [16, (9, 9), (18, 16)])
def test_a_circular_convolution_has_one_grid(grid):
    with raises(ValueError, "grid", "CIRCULAR", "(9, 8)", "got", repr(grid)):
        traced(X, KERNEL, padding="CIRCULAR", grid=grid)
    assert traced(X, KERNEL, padding="CIRCULAR", grid=(9, 8)).shape == (2, 9, 8, 6)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_residual_types_that_hold_no_spectrum(dtype):
    with raises(ValueError, "residual_dtype must be", "got", np.dtype(dtype).name):
        traced(X, KERNEL, residual_dtype=dtype)


def test_residual_types_that_are_none():
    with raises(TypeError, "residual_dtype must be", "'spectrum'"):
        traced(X, KERNEL, residual_dtype="spectrum")


def test_geometry_checks_as_the_convolution_does():
    with raises(ValueError, "strides must be >= 1, got 0"):
        bandjax.conv_geometry(X.shape, KERNEL.shape, strides=0)
    with raises(ValueError, "x", "negative", "-1"):
        bandjax.conv_geometry((2, -1, 8, 4), KERNEL.shape)
    with raises(TypeError, "band must be", "got 0.5"):
        bandjax.conv_geometry(X.shape, KERNEL.shape, 0.5)


# ----------------------------------------------------------------------------------------- layers

OPTIONS = [
    ({"band": 0.5}, TypeError, ("band must be", "0.5")),
    ({"method": "winograd"}, ValueError, ("method must be one of", "winograd")),
    ({"implementation": "cudnn"}, ValueError, ("implementation must be", "cudnn")),
    ({"residual_dtype": jnp.int32}, ValueError, ("residual_dtype must be", "int32")),
    ({"residual_dtype": "spectrum"}, TypeError, ("residual_dtype must be", "spectrum")),
    ({"recompute_filter": 0}, TypeError, ("recompute_filter must be True or False", "got 0")),
    (
        {"recompute_filter": False, "implementation": "native"},
        ValueError,
        ("recompute_filter=False", "implementation None or 'xla'", "got", "'native'"),
    ),
]


@pytest.mark.parametrize(("options", "kind", "parts"), OPTIONS)
def test_layers_raise_when_they_are_made(options, kind, parts):
    with raises(kind, *parts):
        bandjax.nnx.BandConv(4, 6, (3, 3), **options, rngs=nnx.Rngs(0))
    with raises(kind, *parts):
        bandjax.linen.BandConv(6, (3, 3), **options)
    with raises(kind, *parts):
        bandjax.conv_general_dilated(**{"band": None} | options)


def test_layers_choose_their_convolution():
    hook = bandjax.conv_general_dilated(None)
    with raises(TypeError, "conv_general_dilated"):
        bandjax.nnx.BandConv(4, 6, (3, 3), conv_general_dilated=hook, rngs=nnx.Rngs(0))
    with raises(TypeError, "conv_general_dilated"):
        bandjax.linen.BandConv(6, (3, 3), conv_general_dilated=hook)
    with raises(TypeError, "conv_general_dilated"):
        bandjax.linen.BandConv(6, (3, 3), conv_general_dilated_cls=lambda: hook)
    assert "conv_general_dilated" in flax.linen.Conv.__dataclass_fields__


def test_the_hook_has_no_batch_groups():
    hook = bandjax.conv_general_dilated(bandjax.Modes(3, 3))
    with raises(ValueError, "batch_group_count must be 1", "got 2"):
        hook(X, KERNEL, (1, 1), "SAME", dimension_numbers=None, batch_group_count=2)


# --------------------------------------------------------------------------------- no error at all


def test_an_output_without_samples_is_empty():
    # As in lax: a kernel longer than the padded input has nowhere to lie.
    y = bandjax.band_conv(X, np.ones((10, 3, 4, 6), np.float32), padding="VALID")
    assert y.shape == (2, 0, 6, 6)


def test_numbers_of_numpy_are_numbers():
    band = bandjax.Modes(np.int64(3), np.int32(2))
    assert band == bandjax.Modes(3, 2)
    assert hash(band) == hash(bandjax.Modes(3, 2))
    third = bandjax.Compression(Fraction(1, 3))
    assert bandjax.conv_geometry((1, 4, 1), (1, 1, 1), third).modes == (1,)
    rate = bandjax.Compression(np.float64(0.5))
    assert rate == bandjax.Compression(0.5)
    assert hash(rate) == hash(bandjax.Compression(0.5))
    shape = traced(X, KERNEL, band, strides=np.int64(2), grid=(np.int64(16), 16)).shape
    assert shape == (2, 5, 4, 6)
    assert bandjax.schedule.ramp(0, 0.5, np.int64(10), levels=np.int32(3)).max_bands == 3
    assert bandjax.codecs.Dct(np.int64(4)).nbytes((64, 64)) == bandjax.codecs.Dct(4).nbytes(
        (64, 64)
    )
    assert bandjax.Budget(np.float32(0.5)) == bandjax.Budget(0.5)
    assert bandjax.Nyquist().modes((33, 33), np.int64(2)) == (8, 8)
    with pytest.raises(ValueError, match="strides must be >= 1, got 0"):
        bandjax.Nyquist().modes((33, 33), 0)


@pytest.mark.parametrize(
    "grid", [np.array([16, 16]), jnp.array([16, 16]), [16, 16], np.array(16)], ids=repr
)
def test_a_grid_may_be_an_array(grid):
    """It has one form, in layers too, where an array would be a state or have no hash."""
    expected = 16 if np.ndim(grid) == 0 else (16, 16)
    hook = bandjax.conv_general_dilated(grid=grid)
    assert hook == bandjax.conv_general_dilated(grid=expected)
    assert hash(hook) == hash(bandjax.conv_general_dilated(grid=expected))
    x = jnp.ones((1, 9, 8, 2))
    layer = bandjax.nnx.BandConv(2, 3, (3, 3), grid=grid, rngs=nnx.Rngs(0))
    assert layer.grid == expected
    assert set(nnx.to_flat_state(nnx.state(layer)).paths) == {("kernel",), ("bias",)}
    assert nnx.jit(lambda m, x: m(x))(layer, x).shape == (1, 9, 8, 3)
    module = bandjax.linen.BandConv(3, (3, 3), grid=grid)
    assert hash(module) == hash(bandjax.linen.BandConv(3, (3, 3), grid=expected))
    assert module.init_with_output(jax.random.key(0), x)[0].shape == (1, 9, 8, 3)
