"""Element types: each is returned as it came, and half types are summed in single precision."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, chosen
from choices import crossed

import bandjax

pytestmark = pytest.mark.thin(3)

# An example with stride, odd sizes and groups; in 2-D so that every method has two axes to pass.
GEOMETRY = oracle.axes(
    (7, 6),
    (3, 4),
    strides=(1, 2),
    padding="SAME",
    input_dilation=(1, 1),
    kernel_dilation=(1, 1),
    modes=(3, 2),
)


def call(x, kernel, method):
    return bandjax.band_conv(
        x, kernel, bandjax.Modes(3, 2), strides=(1, 2), feature_group_count=2, **chosen(method)
    )


def data(dtype):
    rng = np.random.default_rng(11)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 12)), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 4, 6, 4)), dtype)
    return x, kernel


def run(x, kernel, method):
    def both(x, kernel):
        y, back = jax.vjp(lambda *args: call(*args, method), x, kernel)
        return y, *back(y)

    return jax.jit(both)(x, kernel)


def expected(x, kernel, y):
    """Output and gradients by the oracle, from the rounded arrays that the library was given."""
    x, kernel, y = (np.asarray(array).astype(np.float64) for array in (x, kernel, y))
    by_x = oracle.input_jacobian(kernel, GEOMETRY, 12, groups=2)
    by_kernel = oracle.kernel_jacobian(x, kernel.shape, GEOMETRY, groups=2)
    return (
        oracle.convolve(x, kernel, GEOMETRY, groups=2),
        np.tensordot(y, by_x, ((1, 2, 3), (0, 1, 2))),
        np.tensordot(y, by_kernel, ((0, 1, 2, 3),) * 2),
    )


@pytest.mark.parametrize("method", METHODS)
def test_float32(method):
    x, kernel = data(jnp.float32)
    actual = run(x, kernel, method)
    for value, reference in zip(actual, expected(x, kernel, actual[0]), strict=True):
        assert value.dtype == jnp.float32
        # Sums of some hundred products, each rounded to 6e-8.
        assert oracle.relative_gap(value, reference) <= 2e-6


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_float64(method):
    x, kernel = data(jnp.float64)
    actual = run(x, kernel, method)
    for value, reference in zip(actual, expected(x, kernel, actual[0]), strict=True):
        assert value.dtype == jnp.float64
        assert oracle.gap(value, reference) <= 1e-12


@pytest.mark.parametrize(
    ("dtype", "method"), crossed([jnp.bfloat16, jnp.float16], METHODS, strength=1)
)
def test_half_types(dtype, method):
    x, kernel = data(dtype)
    actual = run(x, kernel, method)
    reference = expected(x, kernel, actual[0])
    for value, wanted in zip(actual, reference, strict=True):
        assert value.dtype == dtype
        # The result and the kept spectrum are rounded to the half type, by half an eps each. A sum
        # of several hundred terms in the half type would lose many times that.
        gap = oracle.relative_gap(value.astype(jnp.float32), wanted)
        assert gap <= float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("method", METHODS)
def test_half_sums_do_not_saturate(method):
    # 4096 equal terms: added one by one in bfloat16 they stop growing at 256.
    rng = np.random.default_rng(2)
    x = jnp.asarray(1 + 0.01 * rng.normal(size=(1, 4, 4096)), jnp.bfloat16)
    kernel = jnp.asarray(1 + 0.01 * rng.normal(size=(1, 4096, 1)), jnp.bfloat16)
    f = functools.partial(bandjax.band_conv, band=bandjax.Modes(1), **chosen(method))
    y = jax.jit(f)(x, kernel)
    geometry = oracle.axes(
        (4,),
        (1,),
        strides=(1,),
        padding="SAME",
        input_dilation=(1,),
        kernel_dilation=(1,),
        modes=(1,),
    )
    wide = (np.asarray(array).astype(np.float64) for array in (x, kernel))
    gap = oracle.relative_gap(y.astype(jnp.float32), oracle.convolve(*wide, geometry))
    assert gap <= float(jnp.finfo(jnp.bfloat16).eps)
