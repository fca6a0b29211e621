"""The accelerators' form of the method "dft", computed on the CPU and held against the sums."""

from __future__ import annotations

import configs
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import band_of, value_and_gradients
from choices import thinned
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

import bandjax
from bandjax._conv import band_conv as module
from bandjax._conv.choose import choose
from bandjax._conv.geometry import conv_geometry
from bandjax._conv.methods import Dft
from bandjax._conv.options import ConvSpec
from bandjax._conv.packed_dft import PackedDft

SWEEP, COUNT, CHUNK = 51, 96, 4


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    """Every choice is the one of an accelerator, but computed here."""

    def on_gpu(geometry, spec, dtype, domain="spatial", platform=None, precision=None, **more):
        return choose(geometry, spec, dtype, domain, "gpu", precision, **more)

    monkeypatch.setattr(module, "choose", on_gpu)


def layer(band, **more):
    def call(x, w):
        return bandjax.band_conv(x, w, band, method="dft", **more)

    return call


def arrays(seed=0, shape=(2, 9, 8, 4), kernel=(3, 3, 4, 6), dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), dtype), jnp.asarray(rng.normal(size=kernel), dtype)


HALF = bandjax.Compression(0.5)


def test_it_is_what_a_gpu_gets_and_a_cpu_does_not():
    geometry = conv_geometry((2, 8, 8, 3), (3, 3, 3, 4), HALF, padding="SAME")
    spec, dtype = ConvSpec(HALF, method="dft", implementation="xla"), np.dtype(np.float32)
    assert choose(geometry, spec, dtype, platform="gpu") is PackedDft
    assert choose(geometry, spec, dtype, platform="tpu") is PackedDft
    assert choose(geometry, spec, dtype, platform="cpu") is Dft
    text = jax.jit(layer(HALF)).lower(*arrays()).as_text()
    assert "9x5x2x8" not in text  # nothing planar: a pair of spectra would be two arrays of C
    assert text.count("stablehlo.dot_general") <= 5


@pytest.mark.no_cover
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("first", thinned(range(0, COUNT, CHUNK)))
def test_random_configurations(first):
    for config in configs.chunk(SWEEP, first, CHUNK, banded=True):
        x, w = config.arrays()
        call = layer(band_of(config), **config.arguments())
        ct = config.cotangent()
        y, dx, dw = value_and_gradients(call, x, w, ct)
        geometry, groups = config.geometry, config.groups
        assert oracle.gap(y, oracle.convolve(x, w, geometry, groups)) < 1e-11, config
        # Linear in both: gradients are the transposes, told by one product each.
        rng = np.random.default_rng(first)
        u, v = rng.normal(size=x.shape), rng.normal(size=w.shape)
        for gradient, direction, moved in (
            (dx, u, oracle.convolve(u, w, geometry, groups)),
            (dw, v, oracle.convolve(x, v, geometry, groups)),
        ):
            wanted = np.vdot(ct, moved)
            assert abs(np.vdot(gradient, direction) - wanted) < 1e-9 * max(1, abs(wanted)), config


@pytest.mark.parametrize("residual_dtype", [jnp.int8, jnp.bfloat16, jnp.float16])
def test_a_narrow_residual_rounds_the_kernels_gradient_alone(residual_dtype):
    x, w = arrays()
    ct = jnp.cos(layer(HALF)(x, w))
    exact, dx_exact, dw_exact = value_and_gradients(layer(HALF), x, w, ct)
    y, dx, dw = value_and_gradients(layer(HALF, residual_dtype=residual_dtype), x, w, ct)
    assert oracle.relative_gap(dx, dx_exact) < 1e-6
    assert 1e-6 < oracle.relative_gap(dw, dw_exact) < 2e-2
    assert oracle.relative_gap(y, exact) < 2e-2


@pytest.mark.thin(4)
@pytest.mark.parametrize("more", [{}, {"recompute_filter": False}])
@pytest.mark.parametrize("groups", [1, 2])
def test_bfloat16_goes_through(more, groups):
    x, w = arrays(kernel=(3, 3, 4 // groups, 6))
    more = {**more, "feature_group_count": groups}
    call = layer(HALF, **more)
    shape = jax.eval_shape(call, x, w).shape
    ct = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.bfloat16)
    exact = value_and_gradients(call, x, w, ct.astype(jnp.float32))
    found = value_and_gradients(call, x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), ct)
    for value, expected in zip(found, exact, strict=True):
        assert value.dtype == jnp.bfloat16
        assert oracle.relative_gap(value.astype(jnp.float32), expected) < 2e-2


def test_an_energy_band_and_a_kept_filter():
    x, w = arrays(shape=(2, 12, 12, 4))
    for more in ({}, {"recompute_filter": False}):
        call = layer(bandjax.Energy(0.8), **more)
        found = value_and_gradients(call, x, w)
        geometry = conv_geometry(x.shape, w.shape, bandjax.Energy(0.8), padding="SAME")
        planar = Dft(geometry, np.dtype(np.float32), not more)
        exact = value_and_gradients(lambda x, w, m=planar: module.apply(m, x, w)[0], x, w, found[0])
        for value, wanted in zip(found, exact, strict=True):
            assert oracle.relative_gap(value, wanted) < 1e-5


@pytest.mark.full
def test_transformations_and_higher_derivatives(x64):
    x, w = arrays(dtype=jnp.float64)
    call = layer(HALF)
    xs = jnp.stack([x, 2 * x + 1])
    loop = jnp.stack([call(each, w) for each in xs])
    assert oracle.relative_gap(jax.vmap(call, (0, None))(xs, w), loop) < 1e-12
    assert oracle.relative_gap(jax.lax.map(lambda x: call(x, w), xs), loop) < 1e-12

    def loss(x, w):
        return jnp.sum(call(jnp.tanh(x), 1 * w) ** 3)  # arrays of JAX, not of NumPy

    remat = jax.grad(bandjax.checkpoint(loss), 1)(x, w)
    assert oracle.relative_gap(remat, jax.grad(loss, 1)(x, w)) < 1e-12
    check_grads(loss, (x, w), order=2, modes=["rev"], rtol=1e-4)


def test_a_sharded_batch_stays_sharded():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = arrays(shape=(8, 9, 8, 4))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(lambda x, w: jax.vjp(layer(HALF), x, w)[1](layer(HALF)(x, w)))
    text = step.lower(spread, w).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text  # of the kernel's gradient
    for value, expected in zip(step(spread, w), step(x, w), strict=True):
        assert oracle.relative_gap(value, expected) < 1e-5


def test_a_filter_in_the_frequency_domain():
    x, w = arrays()
    geometry = conv_geometry(x.shape, w.shape, HALF, padding="SAME")
    kernel = bandjax.spectral.kernel_to_spectrum(w, geometry.grid, geometry.modes)
    y = bandjax.spectral_conv(x, kernel, (3, 3), method="dft")
    assert oracle.relative_gap(y, layer(HALF)(x, w)) < 1e-5
