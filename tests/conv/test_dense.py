"""The backend's own convolution as the library calls it, against sums over taps in NumPy.

Padding may be negative or reach further than the kernel, and the input may be dilated: where
``lax`` is wrong (jax 0.10 on CPUs computes gradients there of memory beyond the map) or slow.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import bandjax
from bandjax._conv import dense

pytestmark = pytest.mark.thin(8)

CASES = 60


def draw(seed: int) -> dense.DenseConvSpec:
    """A small convolution with at least one output and one point of the padded input."""
    rng = np.random.default_rng((41, seed))
    while True:
        rank = int(rng.integers(1, 3))

        def each(values, rank=rank):
            return tuple(int(v) for v in rng.choice(values, rank))

        size, taps = each(range(1, 6)), each(range(1, 6))
        dilation, stride, spread = each((1, 2, 3)), each((1, 1, 1, 2)), each((1, 1, 1, 2))
        padding = tuple((int(p), int(q)) for p, q in rng.integers(-4, 6, (rank, 2)))
        extents = [
            (h - 1) * a + 1 + low + high
            for h, a, (low, high) in zip(size, dilation, padding, strict=True)
        ]
        out = tuple(
            (e - (k - 1) * d - 1) // s + 1
            for e, k, d, s in zip(extents, taps, spread, stride, strict=True)
        )
        if min(extents) >= 1 and min(out) >= 1:
            groups = int(rng.choice((1, 1, 2)))
            return dense.DenseConvSpec(
                size, taps, out, stride, padding, dilation, spread, groups, None
            )


def literal(spec: dense.DenseConvSpec, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Tap by tap, over the input laid out with its zeros."""
    last = zip(spec.size, spec.input_dilation, spec.padding, strict=True)
    laid = np.zeros((len(x), *((h - 1) * a + 1 + sum(p) for h, a, p in last), x.shape[-1]))
    for index in np.ndindex(*spec.size):
        where = [
            i * a + low
            for i, a, (low, _) in zip(index, spec.input_dilation, spec.padding, strict=True)
        ]
        if all(0 <= i < n for i, n in zip(where, laid.shape[1:-1], strict=True)):
            laid[(slice(None), *where)] += x[(slice(None), *index)]
    y = np.zeros((len(x), *spec.out, w.shape[-1]))
    each, made = w.shape[-2], w.shape[-1] // spec.groups
    for tap in np.ndindex(*spec.taps):
        read = laid
        for axis, (t, d, n, s) in enumerate(
            zip(tap, spec.kernel_dilation, spec.out, spec.strides, strict=True), start=1
        ):
            read = read.take(range(t * d, t * d + (n - 1) * s + 1, s), axis)
        for g in range(spec.groups):
            ins, outs = slice(g * each, (g + 1) * each), slice(g * made, (g + 1) * made)
            y[..., outs] += read[..., ins] @ w[tap][:, outs]
    return y


@pytest.mark.parametrize("seed", range(CASES))
def test_values_and_gradients_are_those_of_the_sums(seed):
    spec = draw(seed)
    rng = np.random.default_rng((42, seed))
    x = rng.normal(size=(2, *spec.size, 2 * spec.groups))
    w = rng.normal(size=(*spec.taps, 2, 9 * spec.groups))
    y = literal(spec, x, w)
    ct = rng.normal(size=y.shape)
    dw = [np.vdot(literal(spec, x, unit.reshape(w.shape)), ct) for unit in np.eye(w.size)]
    units = np.eye(x[0].size).reshape(-1, *x.shape[1:])
    responses = literal(spec, units, w)
    dx = [np.tensordot(responses, each, each.ndim) for each in ct]

    @jax.jit
    def run(x, w, ct):
        y, back = jax.vjp(lambda x, w: dense.convolve(spec, x, w), x, w)
        return y, *back(ct)

    got = run(*(jnp.asarray(a, jnp.float32) for a in (x, w, ct)))
    for value, expected in zip(got, (y, dx, dw), strict=True):
        assert oracle.gap(value, np.reshape(expected, value.shape)) < 1e-5


def test_what_is_wrong_in_lax_is_right_through_the_public_function():
    """One of the shapes that showed it: padding beyond the kernel's reach, and negative."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 2, 9))
    for padding in ([(-1, 1)], [(4, 1)]):
        x = rng.normal(size=(2, 5, 2))
        out = 5 + sum(padding[0]) - 1
        spec = dense.DenseConvSpec((5,), (2,), (out,), (1,), tuple(padding), (1,), (1,), 1, None)
        ct = rng.normal(size=(2, out, 9))
        expected = [np.vdot(literal(spec, x, u.reshape(w.shape)), ct) for u in np.eye(w.size)]

        def layer(w, x=x, padding=padding):
            return bandjax.band_conv(
                jnp.asarray(x, jnp.float32), w, method="direct", padding=padding
            )

        (got,) = jax.vjp(layer, jnp.asarray(w, jnp.float32))[1](jnp.asarray(ct, jnp.float32))
        assert oracle.gap(got, np.reshape(expected, w.shape)) < 1e-5


def test_a_transposed_convolution_computes_without_zeros():
    """Of an input dilated by 2 the program has no dilated convolution, forward or backward."""

    def call(x, w):
        return bandjax.band_conv(x, w, method="direct", input_dilation=2, padding=[(2, 2), (2, 2)])

    shapes = (
        jax.ShapeDtypeStruct((1, 6, 6, 4), "float32"),
        jax.ShapeDtypeStruct((4, 4, 4, 5), "float32"),
    )

    def train(x, w):
        y, back = jax.vjp(call, x, w)
        return y, back(y)

    text = jax.jit(train).lower(*shapes).as_text()
    assert text.count("stablehlo.convolution") >= 3
    assert "lhs_dilate" not in text.replace("lhs_dilate = [1, 1]", "")


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("sizes", [(64,), (4, 4)])
def test_a_filter_gradient_from_beyond_both_ends_is_no_convolution(sizes, channels):
    """XLA on CPUs takes up to 50 times as long for one as the products over each tap."""
    rank = len(sizes)
    x, w = jnp.ones((2, *sizes, channels)), jnp.ones((*(3,) * rank, channels, 8))

    def program(padding):
        def loss(w):
            options = {"method": "direct", "implementation": "xla", "padding": [padding] * rank}
            y = bandjax.band_conv(x, w, None, **options)
            return jnp.vdot(y, jax.lax.stop_gradient(y))

        return jax.jit(jax.grad(loss)).lower(w).as_text()

    within, beyond = (
        program(padding).count("stablehlo.convolution") for padding in ((1, 1), (2, 2))
    )
    assert within > beyond > 0  # The forward pass is one.
