"""The native fast Fourier transforms, against literal sums in float64 NumPy.

A transform gets a table for every axis, and may do without. The tables of those axes that are to be
transformed fast are full of NaNs here, so that a result without one tells how it was computed.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import chosen, native

import bandjax
from bandjax._native.transform import (
    NativeTransformSpec,
    analysis,
    folded_table,
    synthesis,
    two_axes,
)
from bandjax._spectra.partial_dft import PartialDFT

pytestmark = [pytest.mark.thin(6), native]


@dataclasses.dataclass(frozen=True)
class Axis:
    grid: int
    size: int
    limit: int
    step: int = 1
    fast: bool = True

    def angles(self, u):
        """Of frequencies and samples: those of whole half turns are left out, exactly."""
        halves = self.step * (2 * np.arange(self.size) - (self.size - 1))
        return np.pi / self.grid * (u[:, None] * halves % (2 * self.grid))

    def kept(self, *, half):
        return self.limit + 1 if half else min(2 * self.limit + 1, self.grid)

    def weights(self, *, half, inverse):
        u = np.arange(self.limit + 1)
        twice = half & (u > 0) & (2 * u != self.grid)
        return (1.0 + twice) / self.grid if inverse else np.ones(self.limit + 1)

    def matrix(self, *, half, inverse):
        """``(kept, size)``, every entry for itself."""
        kept = self.kept(half=half)
        u = np.array([k if k <= self.limit else k - kept for k in range(kept)])
        waves = np.exp(-1j * self.angles(u))
        return self.weights(half=half, inverse=inverse)[abs(u), None] * waves

    def table(self, *, half, inverse):
        left = -(-self.size // 2)
        if self.fast:
            return np.full((2 * self.limit + 1, left), np.nan)
        angles = self.angles(np.arange(self.limit + 1))[:, :left]
        weights = self.weights(half=half, inverse=inverse)[:, None]
        return np.concatenate([weights * np.cos(angles), (weights * np.sin(angles))[1:]])


NONE = Axis(1, 1, 0, fast=False)
SHAPES = {
    "powers of two, all frequencies": (2, 3, Axis(64, 64, 32), Axis(64, 64, 32)),
    "powers of two, half": (1, 17, Axis(128, 128, 45), Axis(64, 64, 20)),
    "padded": (3, 5, Axis(72, 64, 25), Axis(80, 71, 30)),
    "odd numbers": (1, 33, Axis(75, 75, 37), Axis(81, 77, 40)),
    "Nyquist of one axis": (2, 2, Axis(48, 47, 24), Axis(75, 75, 30)),
    "sevens": (1, 8, Axis(49, 49, 20), Axis(56, 56, 28)),
    "elevens and thirteens": (1, 4, Axis(66, 60, 30), Axis(65, 65, 30)),
    "three passes": (1, 1, Axis(270, 256, 90), Axis(300, 290, 100)),
    "a prime first": (2, 3, Axis(61, 61, 20, fast=False), Axis(96, 90, 40)),
    "a prime last": (2, 3, Axis(96, 90, 40), Axis(61, 60, 20, fast=False)),
    "short first": (2, 3, Axis(6, 5, 2, fast=False), Axis(270, 256, 90)),
    "short last": (2, 15, Axis(270, 256, 90), Axis(5, 5, 2, fast=False)),
    "stride two": (1, 3, Axis(96, 48, 40, step=2), Axis(90, 45, 44, step=2)),
    "stride three, coprime": (1, 3, Axis(200, 67, 90, step=3), Axis(160, 54, 70, step=3)),
    "stride four, of a grid of twos": (1, 3, Axis(90, 23, 45, step=4), Axis(270, 68, 100, step=4)),
    "more samples than points": (2, 2, Axis(54, 70, 27), Axis(60, 64, 25)),
    "strides around the circle": (1, 2, Axis(64, 70, 30, step=3), Axis(60, 64, 25, step=7)),
    "the mean of the first axis": (2, 3, Axis(6, 5, 0, fast=False), Axis(96, 90, 40)),
    "the mean of one sample": (2, 3, Axis(2, 1, 0, fast=False), Axis(96, 90, 40)),
    "no examples": (0, 3, Axis(64, 64, 20), Axis(64, 64, 20)),
    "sixteen channels": (5, 16, Axis(64, 50, 20), Axis(64, 64, 20)),
    "one axis": (3, 5, NONE, Axis(1000, 990, 300)),
    "one axis, one line": (1, 3, NONE, Axis(540, 512, 270)),
    "one axis, many channels": (2, 70, NONE, Axis(128, 128, 30)),
    "a column": (3, 9, Axis(135, 128, 60), Axis(1, 1, 0, fast=False)),
    "three axes": (2, 3, Axis(40, 40, 14), Axis(36, 33, 12), Axis(45, 45, 16)),
    "three axes, Nyquist": (1, 17, Axis(32, 32, 16), Axis(36, 36, 18), Axis(40, 40, 20)),
    "three axes, short": (2, 5, Axis(6, 6, 2, fast=False), Axis(48, 41, 20), Axis(32, 30, 14)),
    "three axes, tables": (
        1,
        33,
        Axis(7, 7, 2, fast=False),
        Axis(5, 4, 2, fast=False),
        Axis(9, 9, 3, fast=False),
    ),
    "a plane between": (2, 3, Axis(64, 60, 20), NONE, Axis(48, 48, 20)),
    "a plane in front": (2, 3, NONE, Axis(64, 60, 20), Axis(48, 48, 20)),
}
# Samples, spectrum, tables and relative error.
TYPES = [
    pytest.param(jnp.float32, jnp.float32, jnp.float32, 2e-6, id="float32"),
    pytest.param(jnp.float64, jnp.float64, jnp.float64, 1e-14, id="float64"),
    pytest.param(jnp.bfloat16, jnp.bfloat16, jnp.float32, 2.0**-8, id="bfloat16"),
    pytest.param(jnp.bfloat16, jnp.float32, jnp.float32, 2.0**-8, id="bfloat16 samples"),
    pytest.param(jnp.float32, jnp.bfloat16, jnp.float32, 2.0**-8, id="bfloat16 spectrum"),
]


def all_axes(matrices, x, *, back):
    """Each matrix, or its conjugate transpose, times its axis of ``(n, *axes, c)``."""
    for axis, matrix in enumerate(matrices, start=1):
        m = matrix.conj().T if back else matrix
        x = np.moveaxis(np.tensordot(m, x, (1, axis)), 0, axis)
    return x


def draw(rng, dtype, *sizes):
    array = jnp.asarray(rng.normal(size=sizes), dtype)
    return array, np.asarray(array).astype(np.float64)


def check(actual, wanted, bound):
    actual = np.asarray(actual).astype(np.float64)
    assert actual.shape == wanted.shape
    gap = np.abs(actual - wanted).max(initial=0)
    assert gap <= bound * np.abs(wanted).max(initial=0), gap


@pytest.mark.thin(18)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("stored", "kept_as", "summed", "bound"), TYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_handlers(name, stored, kept_as, summed, bound, inverse):
    n, c, *axes = SHAPES[name]
    half = [axis is axes[-1] for axis in axes]
    flags = [{"half": h, "inverse": inverse} for h in half]
    matrices = [axis.matrix(**f) for axis, f in zip(axes, flags, strict=True)]
    tables = [jnp.asarray(axis.table(**f), summed) for axis, f in zip(axes, flags, strict=True)]
    box = [axis.kept(half=h) for axis, h in zip(axes, half, strict=True)]
    sizes = [axis.size for axis in axes]
    attributes = {
        "grid": np.array([axis.grid for axis in axes], np.int64),
        "steps": np.array([axis.step for axis in axes], np.int64),
        "inverse": inverse,
    }
    rng = np.random.default_rng(len(name))
    samples, x = draw(rng, stored, n, *sizes, c)
    (re_in, y_re), (im_in, y_im) = (draw(rng, kept_as, *box, n, c) for _ in range(2))

    part = jax.ShapeDtypeStruct((*box, n, c), kept_as)
    analysis = jax.ffi.ffi_call("bandjax_analysis", (part, part))
    re, im = analysis(samples, *tables, **attributes)
    spectrum = np.moveaxis(all_axes(matrices, x, back=False), 0, -2)
    check(re, spectrum.real, bound)
    check(im, spectrum.imag, bound)

    result = jax.ShapeDtypeStruct((n, *sizes, c), stored)
    synthesis = jax.ffi.ffi_call("bandjax_synthesis", result)
    y = synthesis(re_in, im_in, *tables, **attributes)
    back = all_axes(matrices, np.moveaxis(y_re + 1j * y_im, -2, 0), back=True)
    check(y, back.real, bound)


@pytest.mark.parametrize(
    ("attributes", "what"),
    [
        ({"grid": [64, 64], "steps": [1, 1]}, "inverse be a bool"),
        ({"grid": [64], "steps": [1], "inverse": False}, "an integer for each axis"),
        ({"grid": [64, 64], "steps": [1, 0], "inverse": False}, "do not fit the kept"),
        ({"grid": [64, 8], "steps": [1, 1], "inverse": False}, "do not fit the kept"),
        ({"grid": [-1, 64], "steps": [1, 1], "inverse": False}, "do not fit the kept"),
        ({"grid": [64, 0], "steps": [1, 1], "inverse": False}, "do not fit the kept"),
    ],
)
def test_wrong_attributes(attributes, what):
    attributes = {k: np.array(v, np.int64) if k != "inverse" else v for k, v in attributes.items()}
    part = jax.ShapeDtypeStruct((17, 9, 1, 1), jnp.float32)
    call = jax.ffi.ffi_call("bandjax_analysis", (part, part))
    with pytest.raises(Exception, match=what):
        jax.block_until_ready(
            call(jnp.ones((1, 64, 64, 1)), *[jnp.ones((17, 32))] * 2, **attributes)
        )


@pytest.mark.parametrize(
    ("size", "more", "what"),
    [
        (64, {}, "without grid and steps"),
        (62, {"grid": [1, 62], "steps": [1, 1], "inverse": False}, "there is no fast transform"),
    ],
)
def test_a_table_that_is_missed(size, more, what):
    more = {k: np.array(v, np.int64) if k != "inverse" else v for k, v in more.items()}
    part = jax.ShapeDtypeStruct((1, 9, 1, 1), jnp.float32)
    call = jax.ffi.ffi_call("bandjax_analysis", (part, part))
    x = jnp.ones((1, 1, size, 1))
    with pytest.raises(Exception, match=what):
        jax.block_until_ready(call(x, jnp.ones((1, 1)), jnp.ones((17, 0)), **more))


LONG = {  # circles, limits and positions
    "line": ((4096,), (1500,), (range(-3, 4001),)),
    "dilated": ((4320,), (2160,), (range(5, 4100, 3),)),
    "plane": ((1080, 1024), (540, 500), (range(1080), range(2, 1022))),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", LONG)
def test_long_axes_have_no_table(name, inverse):
    dft = PartialDFT(*LONG[name], inverse=inverse)
    spec = NativeTransformSpec(dft.centred, np.dtype("float64"), np.dtype("float64"))
    inner = spec if len(dft.grid) == 2 else dataclasses.replace(spec, dft=two_axes(spec.dft))
    assert [t.shape[1] for t in inner.tables].count(0) == len(dft.grid)
    for axis, made in enumerate(inner.whole_tables(list(map(jnp.asarray, inner.tables)))):
        assert np.abs(made - folded_table(inner.dft, axis, np.dtype("float64"))).max() <= 1e-13
    x = np.random.default_rng(0).normal(size=(1, *dft.shape, 2))
    re, im = analysis(spec, jnp.asarray(x))
    matrices = [spec.dft.matrix(axis) for axis in range(len(dft.grid))]
    wanted = np.moveaxis(all_axes(matrices, x, back=False), 0, -2)
    check(re, wanted.real, 1e-12)
    check(im, wanted.imag, 1e-12)
    back = all_axes(matrices, np.moveaxis(wanted, -2, 0), back=True).real
    check(synthesis(spec, (re, im)), back, 1e-12)


def test_a_long_series_is_compiled_without_a_large_constant():
    x, kernel = jnp.ones((1, 16000, 1)), jnp.ones((1001, 1, 3))

    def loss(x, kernel):
        y = bandjax.band_conv(x, kernel, method="dft", implementation="native")
        return jnp.sum(y * y)

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    assert len(text) < 2**20


LAYERS = {
    "plane": ((2, 96, 80, 5), (3, 3), {}),
    "odd batch": ((3, 65, 90, 17), (5, 3), {}),
    "strides": ((1, 96, 80, 4), (3, 3), {"strides": 2}),
    "dilated kernel": ((1, 70, 70, 4), (3, 3), {"kernel_dilation": 3}),
    "dilated input": ((1, 40, 40, 4), (3, 3), {"input_dilation": 2, "padding": ((2, 2), (2, 3))}),
    "circular": ((1, 56, 112, 4), (3, 3), {"padding": "CIRCULAR"}),
    "line": ((3, 500, 5), (9,), {}),
    "solid": ((1, 24, 30, 28, 3), (3, 3, 3), {}),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("band", [None, bandjax.Compression(0.5)], ids=["exact", "half"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_and_gradients_are_those_of_another_method(name, band):
    shape, taps, options = LAYERS[name]
    rng = np.random.default_rng(len(name))
    x = jnp.asarray(rng.normal(size=shape))
    w = jnp.asarray(rng.normal(size=(*taps, shape[-1], 6)))

    def layer(how):
        def run(x, w, ct):
            def f(x, w):
                return bandjax.band_conv(x, w, band, **options, **how)

            y, vjp = jax.vjp(f, x, w)
            return y, *vjp(jnp.cos(jnp.arange(y.size).reshape(y.shape)) * ct)

        return jax.jit(run)(x, w, 1.0)

    for actual, wanted in zip(layer(chosen("native")), layer({"method": "fft"}), strict=True):
        check(actual, np.asarray(wanted), 1e-12)


def test_one_after_another_and_together():
    """``vmap`` of the operator on solids, whose kernel has three axes."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 2, 20, 24, 30, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 3, 4, 2)), jnp.float32)

    def f(x):
        return bandjax.band_conv(x, w, bandjax.Compression(0.5), **chosen("native"))

    together = jax.jit(jax.vmap(f))(x)
    for one, many in zip(x, together, strict=True):
        check(many, np.asarray(jax.jit(f)(one)).astype(np.float64), 1e-6)


def test_results_do_not_depend_on_other_examples():
    """Two lines share a complex transform: no more than rounding may pass between them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    x[1] *= 1e6
    w = jnp.ones((3, 3, 3, 3), jnp.float32)

    def f(x):
        return bandjax.band_conv(x, w, bandjax.Compression(0.5), **chosen("native"))

    alone = np.asarray(jax.jit(f)(x[:1]))
    assert np.array_equal(np.asarray(jax.jit(f)(x))[:1], alone)
    assert math.isfinite(float(np.abs(alone).max()))


def test_nan_stays_in_its_example():
    """Lines that share a complex transform are of one example and channel."""
    x = np.ones((3, 400, 20), np.float32)
    x[1, 7] = np.nan
    w = jnp.ones((3, 20, 4), jnp.float32)

    def f(x):
        return bandjax.band_conv(x, w, bandjax.Compression(0.5), **chosen("native"))

    y = np.asarray(jax.jit(f)(x))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
