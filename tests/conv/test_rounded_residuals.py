"""Residuals that are rounded: to half types, and to eight bits with scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, chosen
from choices import crossed
from residuals import data, residuals

import bandjax

pytestmark = pytest.mark.thin(4)

HALVES = [None, bandjax.Compression(0.5)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("band", "kept", "rounding", "method"),
    crossed(
        [None, bandjax.Modes(3, 2)],
        # bfloat16 has eight significant bits, int8 steps of 1/127 of the largest number nearby.
        [pytest.param(jnp.bfloat16, 2.0**-7), pytest.param(jnp.int8, 2.0**-5)],
        METHODS,
    ),
)
def test_forward_goes_on_from_the_rounded_spectrum(band, kept, rounding, method):
    x, kernel = data((2, 8, 7, 3), 4, dtype=np.float64)

    def f(x, kernel, dtype=kept):
        return bandjax.band_conv(x, kernel, band, **chosen(method), residual_dtype=dtype)

    @jax.jit
    def run(x, kernel):
        y, back = jax.vjp(f, x, kernel)
        return f(x, kernel, None), f(x, kernel), y, back(y)[1]

    exact, alone, y, dkernel = run(x, kernel)
    # The rounding shows, and is no more than rounding.
    assert 1e-4 < oracle.relative_gap(alone, exact) < rounding
    assert oracle.gap(alone, y) <= 1e-12
    # y is linear in the kernel: with the same spectrum in both directions <w, dw> is <y, y>.
    assert np.vdot(kernel, dkernel) == pytest.approx(np.vdot(y, y), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_spectrum_beyond_the_range_of_float16_does_not_overflow(method):
    # The coefficient at DC is the sum over the map, here a million; float16 ends at 65504.
    x, kernel = data((2, 32, 32, 3), 4)
    x = x + 1000

    def f(x, kernel, dtype=jnp.float16):
        return bandjax.band_conv(
            x, kernel, bandjax.Compression(0.5), **chosen(method), residual_dtype=dtype
        )

    @jax.jit
    def run(x, kernel):
        leaves = jax.tree.leaves(jax.vjp(f, x, kernel)[1])
        grads = [jax.vjp(f, x, kernel)[1](y)[1] for y in (f(x, kernel),)]
        return leaves, f(x, kernel, None), f(x, kernel), grads

    leaves, exact, y, grads = run(x, kernel)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float16), jnp.dtype(jnp.float32)}
    # Eleven significant bits.
    assert oracle.relative_gap(y, exact) <= 2.0**-10
    assert np.all(np.isfinite(grads[0]))


# ------------------------------------------------------------------------------------- eight bits


def images(shape=(8, 16, 16, 5)):
    """Smooth maps of unlike channels: strong low frequencies, and one channel a hundredth."""
    rng = np.random.default_rng(9)
    x = np.cumsum(np.cumsum(rng.normal(size=shape), 1), 2)
    x = np.maximum(x / x.std(), 0) * 10.0 ** -np.arange(shape[-1] % 3 + 1).repeat(3)[: shape[-1]]
    return x.astype(np.float32), rng.normal(size=(3, 3, shape[-1], 4)).astype(np.float32)


@pytest.mark.parametrize(("example", "band", "method"), crossed([data, images], HALVES, METHODS))
def test_error_of_eight_bits(example, band, method):
    x, kernel = example((8, 16, 16, 5))
    g = np.random.default_rng(2).normal(size=(8, 16, 16, kernel.shape[-1])).astype(np.float32)

    def run(x, kernel, dtype):
        y, back = jax.vjp(
            lambda *args: bandjax.band_conv(*args, band, **chosen(method), residual_dtype=dtype),
            x,
            kernel,
        )
        return y, *back(g)

    exact, rounded = jax.jit(lambda *args: (run(*args, None), run(*args, jnp.int8)))(x, kernel)
    for wanted, actual in zip(exact, rounded, strict=True):
        assert np.linalg.norm(actual - wanted) <= 0.03 * np.linalg.norm(wanted)
    # The gradient of the input needs nothing that was rounded.
    assert oracle.relative_gap(rounded[1], exact[1]) <= 1e-5
    # No channel is lost: each kernel's gradient by itself.
    for channel in range(x.shape[-1]):
        wanted, actual = (dkernel[:, :, channel] for (_, _, dkernel) in (exact, rounded))
        assert np.linalg.norm(actual - wanted) <= 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("band", "method"), crossed(HALVES, METHODS, strength=1))
def test_eight_bits_are_used_to_the_full(band, method):
    x, kernel = images()

    def f(x, kernel):
        return bandjax.band_conv(x, kernel, band, **chosen(method), residual_dtype=jnp.int8)

    values = [leaf for leaf in residuals(f, x, kernel) if leaf.dtype == jnp.int8]
    largest = np.max([np.abs(np.asarray(v, np.int32)) for v in values], axis=0)
    if band is not None:  # each frequency of each example has a scale of its own
        largest = largest.max(-1)
    assert np.max(largest) == 127
    assert band is None or np.min(largest) == 127


@pytest.mark.parametrize(("band", "method"), crossed(HALVES, METHODS, strength=1))
def test_eight_bits_of_zeros_and_of_what_is_no_number(band, method):
    x, kernel = data((2, 8, 8, 3))

    @jax.jit
    def f(x):
        return bandjax.band_conv(x, kernel, band, **chosen(method), residual_dtype=jnp.int8)

    assert np.array_equal(f(np.zeros_like(x)), np.zeros((2, 8, 8, 8)))
    for value in (np.nan, np.inf):
        broken = x.copy()
        broken[0, 3, 4, 1] = value
        assert not np.any(np.isfinite(f(broken)[0, 3, 4]))


@pytest.mark.parametrize("method", METHODS)
def test_eight_bits_have_no_second_derivative(method):
    x, kernel = data((1, 6, 6, 2), 2)

    def loss(x, kernel):
        y = bandjax.band_conv(
            x, kernel, bandjax.Modes(2, 2), **chosen(method), residual_dtype=jnp.int8
        )
        return jnp.sum(y**2)

    def slope(x, kernel):
        return jnp.sum(jax.grad(loss, 1)(x, kernel) ** 2)

    with pytest.raises(NotImplementedError, match="int8 has first derivatives alone"):
        jax.grad(slope)(x, kernel)
