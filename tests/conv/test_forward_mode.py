"""``implementation="jax"``: forward mode, and all that needs no rule of the library's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import band_of
from choices import thinned
from configs import random_config
from flax import nnx

import bandjax
from bandjax import Compression, Energy, Modes


def plainly(x, kernel, band=None, **options):
    return bandjax.band_conv(x, kernel, band, implementation="jax", **options)


@pytest.mark.usefixtures("x64")
@pytest.mark.no_cover
@pytest.mark.parametrize("index", thinned(range(100), 4))
def test_jvp_and_jacfwd_of_random_configurations(index):
    """Against the responses of the oracle to unit inputs and unit kernels."""
    config = random_config(41, index, banded=index % 4 > 0)
    x, kernel = config.arrays()
    axes, groups = config.geometry, config.groups

    def f(x, kernel):
        return plainly(x, kernel, band_of(config), **config.arguments())

    rng = np.random.default_rng(index)
    along_x, along_kernel = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
    y, tangent = jax.jit(lambda *args: jax.jvp(f, args[:2], args[2:]))(
        x, kernel, along_x, along_kernel
    )
    wanted = oracle.convolve(along_x, kernel, axes, groups)
    wanted += oracle.convolve(x, along_kernel, axes, groups)
    assert oracle.gap(y, oracle.convolve(x, kernel, axes, groups)) < 1e-11
    assert oracle.gap(tangent, wanted) < 1e-11
    if index % 5 == 0:
        of_kernel = jax.jit(jax.jacfwd(f, 1))(x, kernel)
        assert oracle.gap(of_kernel, oracle.kernel_jacobian(x, kernel.shape, axes, groups)) < 1e-11
        one = x.reshape(-1, *x.shape[len(config.batch) :])[0]
        of_x = jax.jit(jax.jacfwd(f))(one, kernel)
        wanted = oracle.input_jacobian(kernel, axes, config.channels, groups)
        assert oracle.gap(of_x, wanted) < 1e-11


X = np.random.default_rng(0).normal(size=(2, 9, 8, 3))
KERNEL = np.random.default_rng(1).normal(size=(3, 2, 3, 4))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("band", [None, Compression(0.5), Energy(0.5), Energy(0.9, Modes(3, 2))])
@pytest.mark.parametrize("padding", ["CIRCULAR", "REFLECT"])
def test_values_and_gradients_are_those_of_the_other_ways(band, padding):
    def loss(implementation):
        def f(x, kernel):
            y, modes = bandjax.band_conv(
                x,
                kernel,
                band,
                padding=padding,
                strides=2,
                implementation=implementation,
                return_modes=True,
            )
            return (y**3).sum(), (y, modes)

        return jax.jit(jax.grad(f, (0, 1), has_aux=True))(jnp.asarray(X), jnp.asarray(KERNEL))

    for actual, wanted in zip(*map(jax.tree.leaves, (loss("jax"), loss("xla"))), strict=True):
        assert oracle.gap(actual, wanted) < 1e-12


@pytest.mark.full
@pytest.mark.usefixtures("x64")
def test_the_derivative_takes_the_box_of_a_band_of_energy_for_given():
    along = jnp.asarray(np.random.default_rng(2).normal(size=X.shape))
    band = Energy(0.5)
    _, modes = plainly(jnp.asarray(X), jnp.asarray(KERNEL), band, return_modes=True)
    fixed = Modes(*map(int, modes))
    for call in (band, fixed):
        _, tangent = jax.jvp(
            lambda x, call=call: plainly(x, jnp.asarray(KERNEL), call), (jnp.asarray(X),), (along,)
        )
        assert oracle.gap(tangent, plainly(along, jnp.asarray(KERNEL), fixed)) < 1e-12


@pytest.mark.usefixtures("x64")
def test_linearize_and_linear_transpose():
    x, kernel = map(jnp.asarray, (X, KERNEL))

    def f(x):
        return plainly(x, kernel, Compression(0.5), strides=2)

    y, pushed = jax.linearize(f, x)
    assert oracle.gap(pushed(2 * x), np.asarray(2 * y)) < 1e-12
    (pulled,) = jax.linear_transpose(f, x)(y)
    assert abs(jnp.vdot(pulled, x) - jnp.vdot(y, y)) < 1e-9 * jnp.vdot(y, y)


@pytest.mark.usefixtures("x64")
@pytest.mark.full
def test_hessian_of_a_small_network():
    """Forward over reverse mode, of a whole model, against reverse over reverse."""
    model = nnx.Sequential(
        nnx.Conv(1, 2, (3,), param_dtype=jnp.float64, rngs=nnx.Rngs(0)),
        nnx.tanh,
        nnx.Conv(2, 1, (3,), padding="CIRCULAR", param_dtype=jnp.float64, rngs=nnx.Rngs(1)),
    )
    x = jnp.asarray(X[:, :, 0, :1])

    def second(implementation, derivative):
        bandjax.nnx.band_limit(model, Modes(2), implementation=implementation)
        graph, parameters = nnx.split(model)
        return jax.jit(derivative(lambda p: (nnx.merge(graph, p)(x) ** 2).sum()))(parameters)

    forward = second("jax", jax.hessian)
    reverse = second(None, lambda f: jax.jacrev(jax.jacrev(f)))
    pairs = list(zip(*map(jax.tree.leaves, (forward, reverse)), strict=True))
    assert len(pairs) == 16
    for actual, wanted in pairs:
        assert oracle.gap(actual, wanted) < 1e-11


def test_forward_mode_of_complex_numbers_and_under_vmap():
    rng = np.random.default_rng(3)
    x, kernel, along = (
        jnp.asarray(rng.normal(size=s) + 1j * rng.normal(size=s), jnp.complex64)
        for s in ((3, 2, 9, 2), (3, 2, 2), (3, 2, 9, 2))
    )

    def tangent(x, along):
        return jax.jvp(lambda x: plainly(x, kernel, Modes(2)), (x,), (along,))[1]

    actual = np.asarray(jax.vmap(tangent)(x, along))
    wanted = np.asarray(bandjax.band_conv(along, kernel, Modes(2)))
    assert np.abs(actual - wanted).max() < 1e-4


def test_without_it_forward_mode_raises():
    with pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
        jax.jvp(
            lambda k: bandjax.band_conv(jnp.asarray(X), k, Modes(1, 1)),
            (jnp.asarray(KERNEL),),
            (jnp.asarray(KERNEL),),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual_dtype": jnp.int8}, "residual_dtype does not go with implementation='jax'"),
        ({"recompute_filter": False}, "recompute_filter does not go with"),
        ({"method": "fft"}, "method must be 'auto' or 'direct' with implementation='jax'"),
    ],
)
def test_what_does_not_go_with_it(options, message):
    with pytest.raises(ValueError, match=message):
        plainly(jnp.asarray(X), jnp.asarray(KERNEL), **options)


def test_the_summary_counts_what_jax_keeps():
    layer = bandjax.nnx.BandConv(3, 4, (3, 2), band=Modes(2, 2), rngs=nnx.Rngs(0))
    layer.implementation = "jax"
    (record,) = bandjax.summary(layer, X.shape).layers
    assert record.method == "direct"
    assert record.kept_bytes == 4 * 2 * 11 * 9 * 3  # What the taps read, for the kernel's gradient.
