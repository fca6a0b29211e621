"""Gradients of first and second order, in reverse mode, against the oracle's Jacobians."""

from __future__ import annotations

import configs
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import HERE, METHODS, band_of, chosen, convolution
from choices import crossed, thinned
from jax.test_util import check_grads

import bandjax

pytestmark = [pytest.mark.thin(8), pytest.mark.usefixtures("x64")]

SWEEP = 4
EXAMPLES = [
    pytest.param((6,), (2,), {"strides": (3,), "padding": ((2, 1),)}, id="1-D-strided"),
    pytest.param((4, 3), (2, 3), {"groups": 2}, id="2-D-grouped"),
    pytest.param((4, 3), (3, 2), {"padding": "CIRCULAR", "strides": (1, 2)}, id="2-D-circular"),
    pytest.param((3, 2, 3), (2, 2, 1), {}, id="3-D"),
    pytest.param((5,), (3,), {}, id="1-D"),
    pytest.param((4, 5), (3, 2), {}, id="2-D"),
    pytest.param((5, 4), (2, 3), {"strides": (2, 1)}, id="2-D-strided"),
    pytest.param((3, 4), (2, 2), {"input_dilation": (2, 1)}, id="2-D-input-dilated"),
    pytest.param((5, 4), (2, 2), {"kernel_dilation": (2, 1)}, id="2-D-kernel-dilated"),
    pytest.param((5, 4), (2, 3), {"padding": ((-1, 2), (1, 0))}, id="2-D-cropped"),
]


def example(sizes, taps, changes, *, banded) -> configs.Config:
    """A small configuration with every axis at its default but for ``changes``."""
    ones = (1,) * len(sizes)
    fields = {
        "seed": (SWEEP, sum(sizes)),
        "batch": (2,),
        "sizes": sizes,
        "taps": taps,
        "channels": 2,
        "features": 2,
        "strides": ones,
        "padding": "SAME",
        "input_dilation": ones,
        "kernel_dilation": ones,
        "groups": 1,
        "modes": (1,) * len(sizes) if banded else None,
    }
    return configs.Config(**fields | changes)


def jacobians(config: configs.Config, x, kernel):
    """The oracle's ``∂y/∂x`` (of one example) and ``∂y/∂w`` (of all)."""
    geometry, groups = config.geometry, config.groups
    return (
        oracle.input_jacobian(kernel, geometry, config.channels, groups),
        oracle.kernel_jacobian(x, kernel.shape, geometry, groups),
    )


@pytest.mark.no_cover
@pytest.mark.parametrize("first", thinned(range(0, 72, 2)))
def test_vector_jacobian_products_of_random_configurations(first):
    for config in configs.chunk(SWEEP, first, 2, banded=True):
        x, kernel = config.arrays()
        g = config.cotangent()
        by_x, by_kernel = jacobians(config, x, kernel)
        rank = len(config.sizes) + 1
        last = tuple(range(-rank, 0))
        expected_x = np.tensordot(g, by_x, (last, tuple(range(rank))))
        every = tuple(range(g.ndim))
        expected_kernel = np.tensordot(g, by_kernel, (every, every))
        calls = {m: convolution(config, band_of(config), m) for m in HERE}

        @jax.jit
        def run(x, kernel, g, calls=calls):
            return {m: jax.vjp(call, x, kernel)[1](g) for m, call in calls.items()}

        for method, (dx, dkernel) in run(x, kernel, g).items():
            assert oracle.gap(dx, expected_x) <= 1e-12, (method, config)
            assert oracle.gap(dkernel, expected_kernel) <= 1e-12, (method, config)


@pytest.mark.thin(3)
@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("sizes", "taps", "changes", "banded", "method"),
    crossed(
        EXAMPLES,
        [pytest.param(True, id="banded"), pytest.param(False, id="dense")],
        [method for method in METHODS if method != "auto"],
        strength=1,
    ),
)
def test_first_and_second_derivatives(sizes, taps, changes, banded, method):
    config = example(sizes, taps, changes, banded=banded)
    x, kernel = config.arrays()
    f = convolution(config, band_of(config), method)
    n = config.batch[0]
    by_x, by_kernel = jacobians(config, x, kernel)
    outputs = by_x.size // (x.size // n)
    by_x, by_kernel = by_x.reshape(outputs, -1), by_kernel.reshape(n * outputs, -1)

    # A quadratic loss: its Hessian in x is J J, block by block, and the mixed one is known as well.
    g = config.cotangent()

    def loss(x, kernel):
        return 0.5 * jnp.sum(f(x, kernel) ** 2)

    def linear(x, kernel):
        return jnp.sum(f(x, kernel) * g)

    @jax.jit
    def run(x, kernel):
        return (
            jax.jacrev(f, (0, 1))(x, kernel),
            jax.jacrev(jax.grad(loss, 0), 0)(x, kernel),
            jax.jacrev(jax.grad(loss, 1), 1)(x, kernel),
            jax.jacrev(jax.grad(linear, 0), 1)(x, kernel),
        )

    (jacobian_x, jacobian_kernel), hessian_x, hessian_kernel, mixed = run(x, kernel)

    blocks = np.kron(np.eye(n), by_x)
    assert np.abs(jacobian_x.reshape(n * outputs, -1) - blocks).max() <= 1e-12
    assert np.abs(jacobian_kernel.reshape(n * outputs, -1) - by_kernel).max() <= 1e-12
    assert oracle.gap(hessian_x.reshape(x.size, -1), blocks.T @ blocks) <= 1e-12
    assert oracle.gap(hessian_kernel.reshape(kernel.size, -1), by_kernel.T @ by_kernel) <= 1e-12
    # <g, y> is bilinear: its mixed derivative is the input gradient of every unit kernel.
    units = np.eye(kernel.size).reshape(-1, *kernel.shape)
    expected = [
        g.reshape(n, outputs)
        @ oracle.input_jacobian(unit, config.geometry, config.channels, config.groups).reshape(
            outputs, -1
        )
        for unit in units
    ]
    expected = np.stack(expected, -1).reshape(x.size, kernel.size)
    assert oracle.gap(mixed.reshape(x.size, kernel.size), expected) <= 1e-12


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("sizes", "taps", "changes", "method"),
    crossed(thinned(EXAMPLES, 4), [method for method in METHODS if method != "auto"], strength=1),
)
def test_finite_differences(sizes, taps, changes, method):
    config = example(sizes, taps, changes, banded=True)
    # The central difference of a bilinear function is exact but for rounding: 1e-16 / eps.
    check_grads(
        jax.jit(convolution(config, band_of(config), method)),
        config.arrays(),
        order=2,
        modes=["rev"],
        atol=1e-6,
        rtol=1e-6,
        eps=1e-4,
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_the_kernel_uses_the_band_alone(method):
    # A tone outside the band has no output, hence no gradient either.
    n = np.arange(12)
    tone = np.cos(2 * np.pi * 4 * n / 12 + 0.3)[None, :, None]
    kernel = np.random.default_rng(3).normal(size=(3, 1, 2))
    g = np.random.default_rng(4).normal(size=(1, 12, 2))

    def f(x, kernel):
        return bandjax.band_conv(x, kernel, bandjax.Modes(2), padding="CIRCULAR", **chosen(method))

    dx, dkernel = jax.jit(lambda x, w, g: jax.vjp(f, x, w)[1](g))(tone, kernel, g)
    assert np.abs(dkernel).max() <= 1e-13
    spectrum = np.fft.rfft(np.asarray(dx), axis=1)
    assert np.abs(spectrum[:, 3:]).max() <= 1e-13
    assert np.abs(spectrum[:, :3]).min() > 1e-3
