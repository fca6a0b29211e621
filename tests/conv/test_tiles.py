"""Exact convolution by overlapping windows, against ``lax`` in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import native, value_and_gradients
from choices import crossed
from jax.test_util import check_grads

import bandjax
from bandjax._conv.tiles import Tiles, _outputs

pytestmark = native


def drawn(*shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def tiles(**options):
    return lambda x, w: bandjax.band_conv(x, w, None, method="tiles", **options)


def lax(padding="SAME", kernel_dilation=None, feature_group_count=1):
    def call(x, w):
        axes = "HWD"[: x.ndim - 2]
        return jax.lax.conv_general_dilated(
            x,
            w,
            (1,) * len(axes),
            padding,
            rhs_dilation=kernel_dilation,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=feature_group_count,
        )

    return call


def shapes(sizes, taps, options, channels=(3, 6)):
    """Of an input, of a filter and of the result."""
    c, o = channels
    x, w = (2, *sizes, c), (*taps, c // options.get("feature_group_count", 1), o)
    like = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, w))
    return x, w, jax.eval_shape(lax(**options), *like).shape


def agrees(options, shapes):
    x, w, cotangent = (drawn(*shape) for shape in shapes)
    found = value_and_gradients(tiles(**options), x, w, cotangent)
    for value, wanted in zip(
        found, value_and_gradients(lax(**options), x, w, cotangent), strict=True
    ):
        assert oracle.gap(value, wanted) <= 1e-12 * max(1.0, float(jnp.abs(wanted).max()))


MAPS = [
    case
    for case in crossed(
        [(2, 3), (5, 9), (30, 31), (61, 33), (90, 17)],
        [(3, 3), (1, 1), (2, 5), (13, 3)],
        [
            {},
            {"padding": "VALID"},
            {"padding": [(3, 0), (1, 4)]},
            {"padding": [(-1, 2), (0, -2)]},
            {"kernel_dilation": (2, 3)},
            {"feature_group_count": 3},
        ],
        strength=1,
    )
    if 0 not in shapes(*case.values)[-1]
]


@pytest.mark.usefixtures("x64", "form_of_tiles")
@pytest.mark.parametrize(("sizes", "taps", "options"), MAPS)
def test_values_and_gradients(sizes, taps, options):
    agrees(options, shapes(sizes, taps, options))


@pytest.mark.thin(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("sizes", "taps", "options", "channels"),
    [
        ((100,), (3,), {}, (3, 6)),
        ((70,), (31,), {"kernel_dilation": (2,), "padding": [(40, 30)]}, (2, 3)),
        ((6000,), (24,), {}, (3, 20)),  # more taps than are read of each part of the windows
        ((120, 90), (2, 17), {"kernel_dilation": (1, 2)}, (3, 4)),
        ((9,), (4,), {"padding": [(-2, 7)]}, (1, 40)),
        ((64,), (5,), {"feature_group_count": 20}, (20, 20)),
        ((13, 9, 15), (3, 3, 3), {}, (3, 4)),
        ((20, 3, 8), (2, 1, 5), {"padding": "VALID"}, (2, 18)),
        ((6, 30, 11), (3, 2, 3), {"kernel_dilation": (1, 3, 2)}, (4, 3)),
        ((8, 8, 8), (1, 3, 2), {"feature_group_count": 2}, (4, 6)),
        ((40, 37), (3, 3), {}, (33, 35)),
        ((40, 37), (3, 3), {"feature_group_count": 2}, (34, 66)),
        ((40, 37), (3, 3), {"feature_group_count": 40}, (40, 40)),
    ],
    ids=str,
)
def test_one_kernel_from_inputs_to_outputs(sizes, taps, options, channels, monkeypatch):
    monkeypatch.setattr(Tiles, "cost", classmethod(lambda *_: 1e9))
    agrees(options, shapes(sizes, taps, options, channels))


@pytest.mark.usefixtures("form_of_tiles")
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_types(dtype, bound):
    x, w = drawn(2, 70, 45, 20, dtype=dtype), drawn(3, 3, 20, 18, dtype=dtype)
    with jax.enable_x64(True):
        wide = (np.asarray(a).astype(np.float64) for a in (x, w))
        cotangent = drawn(2, 70, 45, 18)
        expected = value_and_gradients(lax(), *wide, cotangent.astype(dtype).astype(jnp.float64))
    found = value_and_gradients(tiles(), x, w, jnp.asarray(cotangent, dtype))
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert oracle.relative_gap(value.astype(jnp.float32), wanted) <= bound


@pytest.mark.usefixtures("x64", "form_of_tiles")
def test_derivatives_of_second_order():
    check_grads(jax.jit(tiles()), (drawn(1, 9, 34, 2), drawn(3, 2, 2, 2)), order=2, modes=["rev"])


@pytest.mark.usefixtures("x64", "form_of_tiles")
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=["input", "kernel", "both"])
def test_vmap(axes):
    x, w = drawn(3, 2, 33, 40, 4), drawn(3, 3, 2, 4, 6)
    arguments = [a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True)]
    cotangent = drawn(3, 2, 33, 40, 6)

    def both(f):
        return jax.vmap(lambda x, w, ct: value_and_gradients(f, x, w, ct), (*axes, 0))

    found = both(tiles())(*arguments, cotangent)
    for value, wanted in zip(found, both(lax())(*arguments, cotangent), strict=True):
        assert oracle.relative_gap(value, wanted) <= 1e-12


def test_a_window_does_not_grow_with_the_map():
    def lengths(size, taps=3):
        geometry = bandjax.conv_geometry((1, size, size, 4), (taps, taps, 4, 4), None)
        sides = Tiles(geometry, np.dtype(np.float32))._side(_outputs)
        return tuple(map(len, sides.points))

    assert lengths(12) == (12, 12)
    assert lengths(256) == (29, 29)
    assert lengths(2048) == (30, 30)
    assert lengths(256, 31) == (52, 52)  # as many outputs as a kernel that reaches far needs


def test_what_it_does_not_take():
    x, w = drawn(1, 40, 40, 2, dtype=jnp.float32), drawn(3, 3, 2, 2, dtype=jnp.float32)
    for band, options in (
        (bandjax.Compression(0.5), {}),
        (None, {"strides": 2}),
        (None, {"input_dilation": 2, "padding": 1}),
        (None, {"padding": "CIRCULAR"}),
        (None, {"implementation": "xla"}),
    ):
        with pytest.raises(ValueError, match=r"got 'tiles', which takes maps with every frequency"):
            bandjax.band_conv(x, w, band, method="tiles", **options)


@pytest.mark.parametrize(
    ("sizes", "channels", "target"),
    [((256, 256), 32, "bandjax_windows"), ((64, 64), 128, "tiles = dense<")],
)
def test_the_rule_takes_it_for_large_maps(sizes, channels, target):
    run = jax.jit(lambda x, w: bandjax.band_conv(x, w, None))
    x = jax.ShapeDtypeStruct((8, *sizes, channels), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
    assert target in run.lower(x, w).as_text()
