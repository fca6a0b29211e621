"""The native kernel of the method "direct", against ``lax`` in float64 and the XLA form of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import native, value_and_gradients
from jax.test_util import check_grads

import bandjax

pytestmark = native


def drawn(*shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def direct(band=None, implementation="native", **options):
    return lambda x, w: bandjax.band_conv(
        x, w, band, method="direct", implementation=implementation, **options
    )


def lax(strides=1, padding="SAME", kernel_dilation=1, feature_group_count=1):
    def call(x, w):
        axes = "HWD"[: x.ndim - 2]
        every = [(n,) * len(axes) if isinstance(n, int) else n for n in (strides, kernel_dilation)]
        return jax.lax.conv_general_dilated(
            x,
            w,
            every[0],
            padding,
            rhs_dilation=every[1],
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=feature_group_count,
        )

    return call


def arrays(sizes, taps, options, channels, n=2):
    c, o = channels
    x = drawn(n, *sizes, c)
    w = drawn(*taps, c // options.get("feature_group_count", 1), o)
    return x, w, drawn(*jax.eval_shape(direct(**options), x, w).shape)


def agree(found, expected, bound=1e-12):
    for value, wanted in zip(found, expected, strict=True):
        assert oracle.gap(value, wanted) <= bound * max(1.0, float(jnp.abs(wanted).max()))


# Few outputs and many, so that a panel has one vector or more; few points, whose taps are read
# where they are, and more; whole tiles of points and rests.
CASES = [
    ((2, 3), (3, 3), {}, (3, 6)),
    ((30, 31), (3, 3), {}, (3, 6)),
    ((9, 7), (3, 3), {}, (16, 16)),
    ((8, 8), (3, 3), {}, (5, 32)),
    ((8, 9), (3, 3), {}, (20, 64)),
    ((4, 4), (3, 3), {}, (70, 128)),
    ((3, 3), (1, 1), {}, (64, 64)),
    ((12, 11), (3, 2), {}, (4, 100)),
    ((12, 11), (2, 5), {"padding": "VALID", "strides": 2}, (6, 24)),
    ((13, 10), (3, 3), {"strides": (1, 3), "padding": [(3, 0), (1, 4)]}, (3, 40)),
    ((8, 8), (1, 1), {"strides": 2}, (16, 64)),
    ((13, 10), (3, 3), {"padding": [(-1, 2), (0, -2)]}, (3, 5)),
    ((13, 10), (3, 2), {"padding": [(-1, 2), (4, -3)], "strides": (2, 3)}, (3, 5)),
    ((13, 12), (1, 3), {"padding": [(1, 2), (0, 1)], "strides": 3}, (3, 5)),
    ((13, 12), (3, 1), {"padding": [(0, -2), (-3, 0)], "strides": 2}, (4, 20)),
    ((13, 12), (3, 2), {"strides": (2, 1), "kernel_dilation": (1, 2)}, (3, 20)),
    ((13, 12), (3, 2), {"strides": 2, "kernel_dilation": (2, 1)}, (3, 20)),
    ((4, 4), (3, 3), {"strides": 2}, (70, 128)),
    ((20, 19), (3, 3), {"kernel_dilation": (2, 3)}, (6, 10)),
    ((20, 19), (3, 3), {"feature_group_count": 3}, (6, 9)),
    ((20, 19), (3, 3), {"feature_group_count": 2, "strides": 2}, (40, 34)),
    ((9, 8), (3, 3), {"feature_group_count": 12}, (12, 12)),
    ((50,), (5,), {}, (8, 16)),
    ((70,), (31,), {"kernel_dilation": 2, "padding": [(40, 30)]}, (2, 3)),
    ((40,), (8,), {"strides": 4}, (1, 80)),
    ((6, 5, 9), (3, 3, 3), {}, (16, 16)),
    ((7, 6, 5), (2, 1, 3), {"strides": (1, 2, 2), "padding": "VALID"}, (3, 18)),
    ((6, 6, 6), (3, 3, 3), {"feature_group_count": 2}, (4, 6)),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("sizes", "taps", "options", "channels"), CASES, ids=str)
def test_values_and_gradients(sizes, taps, options, channels):
    given = arrays(sizes, taps, options, channels)
    assert "bandjax_direct" in jax.jit(direct(**options)).lower(*given[:2]).as_text()
    agree(
        value_and_gradients(direct(**options), *given), value_and_gradients(lax(**options), *given)
    )


@pytest.mark.parametrize(("dilation", "by_kernel"), [(1, True), (2, False)])
def test_the_gradient_of_a_strided_input_is_a_convolution_by_the_kernel(dilation, by_kernel):
    f = direct(strides=2, kernel_dilation=dilation)
    x, w = drawn(1, 8, 8, 4, dtype=jnp.float32), drawn(3, 3, 4, 6, dtype=jnp.float32)
    ct = jnp.ones(jax.eval_shape(f, x, w).shape)
    program = jax.jit(lambda w, ct: jax.vjp(lambda x: f(x, w), x)[1](ct)).lower(w, ct)
    assert ("bandjax_direct" in program.compile().as_text()) == by_kernel


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "band", [bandjax.Compression(0.5), bandjax.Energy(0.9), bandjax.Nyquist()], ids=str
)
@pytest.mark.parametrize(
    ("sizes", "taps", "options"),
    [
        ((30, 31), (3, 3), {}),
        ((12, 11), (4, 3), {"padding": [(2, 0), (5, 1)]}),
        ((16, 13), (3, 2), {"strides": 2, "padding": "VALID", "feature_group_count": 2}),
        ((12, 12), (4, 3), {"strides": (2, 1), "padding": "CIRCULAR"}),
        ((60,), (7,), {"kernel_dilation": 3}),
        ((6, 7, 9), (3, 2, 3), {"strides": (1, 2, 1)}),
    ],
    ids=str,
)
def test_behind_the_projection_on_a_band(sizes, taps, options, band):
    given = arrays(sizes, taps, options, (4, 6))
    agree(
        value_and_gradients(direct(band, **options), *given),
        value_and_gradients(direct(band, "xla", **options), *given),
    )


@pytest.mark.usefixtures("x64")
def test_a_circular_map():
    given = arrays((9, 12), (4, 3), {"padding": "CIRCULAR"}, (3, 20))
    agree(
        value_and_gradients(direct(padding="CIRCULAR"), *given),
        value_and_gradients(direct(None, "xla", padding="CIRCULAR"), *given),
    )


@pytest.mark.parametrize(
    ("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2), (jnp.float16, 1e-3)]
)
@pytest.mark.parametrize("strides", [1, 2])
def test_types(strides, dtype, bound):
    x, w = drawn(2, 20, 15, 20, dtype=dtype), drawn(3, 3, 20, 18, dtype=dtype)
    with jax.enable_x64(True):
        wide = (np.asarray(a).astype(np.float64) for a in (x, w))
        cotangent = drawn(2, -(-20 // strides), -(-15 // strides), 18)
        rounded = cotangent.astype(dtype).astype(jnp.float64)
        expected = value_and_gradients(lax(strides), *wide, rounded)
    found = value_and_gradients(direct(strides=strides), x, w, jnp.asarray(cotangent, dtype))
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert oracle.relative_gap(value.astype(jnp.float32), wanted) <= bound


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strides", [1, 2])
def test_derivatives_of_second_order(strides):
    f = jax.jit(direct(strides=strides))
    check_grads(f, (drawn(1, 9, 8, 2), drawn(3, 2, 2, 2)), order=2, modes=["rev"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=["input", "kernel", "both"])
def test_vmap(axes, strides):
    x, w = drawn(3, 2, 13, 10, 4), drawn(3, 3, 2, 4, 6)
    arguments = [a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True)]
    shape = jax.eval_shape(lax(strides), x[0], w[0]).shape
    cotangent = drawn(3, *shape)

    def both(f):
        return jax.vmap(lambda x, w, ct: value_and_gradients(f, x, w, ct), (*axes, 0))

    found = both(direct(strides=strides))(*arguments, cotangent)
    agree(found, both(lax(strides))(*arguments, cotangent))


def test_results_do_not_depend_on_the_number_of_examples_beside():
    """Where sums are split depends on the shapes; a point's own sum does not on its neighbours."""
    x, w = drawn(4, 20, 20, 16, dtype=jnp.float32), drawn(3, 3, 16, 24, dtype=jnp.float32)
    both = direct()(x, w)
    np.testing.assert_array_equal(direct()(x[:3], w), both[:3])


def test_a_transposed_convolution_is_not_taken():
    x, w = drawn(1, 8, 8, 2, dtype=jnp.float32), drawn(3, 3, 2, 2, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"got 'direct', which takes .*, and input_dilation 1, by"):
        direct(input_dilation=2, padding=1)(x, w)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "options"),
    [
        ((32, 32, 32, 64), (3, 3, 64, 128), {"strides": 2}),
        ((1, 8, 8, 256), (3, 3, 256, 256), {}),
        ((8, 14, 14, 256), (1, 1, 256, 1024), {}),
    ],
    ids=str,
)
def test_the_rule_takes_it_where_windows_are_slower(x_shape, kernel_shape, options):
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape)]
    assert (
        "bandjax_direct"
        in jax.jit(jax.grad(lambda x, w: bandjax.band_conv(x, w, None, **options).sum(), (0, 1)))
        .lower(*like)
        .as_text()
    )
