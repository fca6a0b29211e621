"""Spectral pooling, alone and in the place of the pools of existing models."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bandjax
from bandjax import Compression, Energy, Modes, Nyquist
from bandjax.nnx import spectral_pool

pytestmark = pytest.mark.thin(4)


def pooled(x, window, strides, pads, limits=None):
    """Filters every channel of ``(batch, *spatial, channels)`` on its circle; then chooses points.

    Sums of waves in float64.
    """
    for n, (k, s, (low, high)) in enumerate(zip(window, strides, pads, strict=True), start=1):
        size = x.shape[n]
        out = (size + low + high - k) // s + 1
        places = np.arange(out) * s - low + (k - 1) // 2
        below = low - (k - 1) // 2
        above = max(s * (out - 1) + 1 - size - below, 0)
        g = size + max(below, above, 0)
        top = g // (2 * s) if limits is None else min(g // (2 * s), limits[n - 1])
        u = np.array(sorted({f % g for f in range(-top, top + 1)}))
        waves = np.exp(2j * np.pi * np.outer(places, u) / g) / g
        matrix = (waves @ np.exp(-2j * np.pi * np.outer(u, np.arange(size)) / g)).real
        x = np.moveaxis(np.tensordot(matrix, x, (1, n)), 0, n)
    return x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("sizes", "window", "strides", "padding", "pads"),
    [
        ((15,), (3,), (2,), [(1, 1)], [(1, 1)]),
        ((16, 9), (2, 3), (2, 3), "VALID", [(0, 0), (0, 0)]),
        ((8, 7), (3, 3), (2, 2), "SAME", [(0, 1), (1, 1)]),
        ((6, 5, 4), (2, 1, 2), (2, 1, 2), "VALID", [(0, 0)] * 3),
        ((9,), (4,), (3,), [(3, 2)], [(3, 2)]),
    ],
)
def test_values_shapes_and_derivatives(sizes, window, strides, padding, pads):
    x = np.random.default_rng(0).normal(size=(2, *sizes, 3))
    y = spectral_pool(jnp.asarray(x), window, strides, padding)
    assert y.shape == nn.max_pool(jnp.asarray(x), window, strides, padding).shape
    np.testing.assert_allclose(y, pooled(x, window, strides, pads), atol=1e-12)
    limits = (1,) * len(sizes)
    bounded = spectral_pool(jnp.asarray(x), window, strides, padding, band=Modes(*limits))
    np.testing.assert_allclose(bounded, pooled(x, window, strides, pads, limits), atol=1e-12)
    # Linear, and its own derivative: nothing is kept.
    call = lambda x: spectral_pool(x, window, strides, padding)  # noqa: E731
    _, pull = jax.vjp(call, jnp.asarray(x))
    ct = np.random.default_rng(1).normal(size=y.shape)
    assert np.vdot(pull(jnp.asarray(ct))[0], x) == pytest.approx(np.vdot(ct, y))
    assert bandjax.memory.saved_bytes(lambda x: call(x).sum(), jnp.asarray(x)).total == 0


def test_what_it_takes_and_refuses():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 4), jnp.bfloat16)
    y = spectral_pool(x, (2, 2), (2, 2))
    assert (y.shape, y.dtype) == ((2, 3, 4, 4, 4), jnp.bfloat16)
    mean = spectral_pool(x.astype("float32"), (8, 8), (8, 8))
    np.testing.assert_allclose(mean, x.astype("float32").mean((2, 3), keepdims=True), atol=1e-6)
    with pytest.raises(TypeError, match="inputs must be of a floating-point type, got int32"):
        spectral_pool(jnp.ones((1, 8, 1), int), (2,), (2,))
    with pytest.raises(TypeError, match=r"window_shape must be a sequence of integers, .* got 2"):
        spectral_pool(x, 2)
    with pytest.raises(TypeError, match=r"strides must be a sequence of integers, .* got 2"):
        spectral_pool(x, (2, 2), 2)
    for padding in ("EVEN", "REFLECT", "reflect", "CIRCULAR"):
        with pytest.raises(ValueError, match=rf"padding must be .* got '{padding}'"):
            spectral_pool(x, (2, 2), (2, 2), padding)
    with pytest.raises(TypeError, match="inputs must be an array, got list"):
        spectral_pool([[1.0]], (2,), (2,))
    doubles = np.random.default_rng(0).normal(size=(1, 8, 1))
    assert spectral_pool(doubles, (2,), (2,)).dtype == jnp.asarray(doubles).dtype


@pytest.fixture
def as_flax_divides():
    """Flax's ``avg_pool`` divides by an integer of NumPy."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Net(nnx.Module):
    """Every kind of pool, one of them without strides."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.conv(x)
        same = nnx.max_pool(x, (3, 3), padding="SAME")
        parts = [
            nnx.max_pool(x, (2, 2), (2, 2)),
            nnx.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1))),
            nnx.avg_pool(x, (2, 2), (2, 2), count_include_pad=False),
            nnx.min_pool(x, (2, 2), (2, 2)),
        ]
        return same, parts


class LinenNet(nn.Module):
    """A pool behind a convolution."""

    @nn.compact
    def __call__(self, x):
        return nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2), (2, 2))


@pytest.mark.full
@pytest.mark.usefixtures("as_flax_divides")
def test_pools_of_models_become_spectral():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    model = Net(nnx.Rngs(0))
    before = model(x)
    inner = np.asarray(model.conv(x), np.float64)
    bandjax.nnx.band_limit(model, None, pools=True)
    same, (largest, average, counted, smallest) = nnx.jit(lambda m, x: m(x))(model, x)
    np.testing.assert_allclose(same, before[0], atol=1e-5)  # without strides
    expected = pooled(inner, (2, 2), (2, 2), [(0, 0), (0, 0)])
    for y in (largest, counted, smallest):
        np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(average, pooled(inner, (3, 3), (2, 2), [(1, 1)] * 2), atol=1e-5)
    # Elsewhere Flax's pools are what they were.
    plain = Net(nnx.Rngs(0))(x)
    np.testing.assert_array_equal(plain[1][0], before[1][0])
    # It is still the model's class, for those who ask, and survives copies.
    assert isinstance(model, Net)
    for copy in (nnx.clone(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(copy(x)[1][0], largest, atol=1e-6)
    bandjax.nnx.band_limit(model, Nyquist(Modes(1, 1)), pools=True)
    bounded = model(x)[1][0]
    inner = np.asarray(model.conv(x), np.float64)
    limits = (1, 1)
    expected = pooled(inner, (2, 2), (2, 2), [(0, 0)] * 2, limits)
    np.testing.assert_allclose(bounded, expected, atol=1e-5)


@pytest.mark.usefixtures("as_flax_divides")
def test_a_model_has_its_own_pools_again():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    model = Net(nnx.Rngs(0))
    before = model(x)
    attributes = set(vars(model))
    both = nnx.Sequential(model, lambda y: y[1][0])
    for whole, kept in ((model, None), (both, None), (model, Compression(0.5))):
        bandjax.nnx.band_limit(model, None, pools=True)
        assert not np.allclose(model(x)[1][0], before[1][0], atol=1e-2)
        bandjax.nnx.band_limit(whole, kept)
        assert type(model) is Net
        assert set(vars(model)) == attributes
        if kept is None:
            same = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), model(x), before)
            assert jax.tree.all(same)


def test_pools_of_linen_models():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    model = LinenNet()
    variables = model.init(jax.random.key(1), x)
    before = model.apply(variables, x)
    with bandjax.linen.band_limited(None):
        np.testing.assert_allclose(model.apply(variables, x), before, atol=1e-5)
    with bandjax.linen.band_limited(Compression(0), pools=True):
        y = model.apply(variables, x)
    inner = nn.Conv(4, (3, 3)).apply({"params": variables["params"]["Conv_0"]}, x)
    expected = pooled(np.asarray(inner, np.float64), (2, 2), (2, 2), [(0, 0)] * 2)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_array_equal(model.apply(variables, x), before)


def test_pools_are_refused():
    with pytest.raises(TypeError, match=r"pools=True needs .* got Energy"):
        bandjax.nnx.band_limit(Net(nnx.Rngs(0)), Energy(0.9), pools=True)
    with pytest.raises(TypeError, match="pools must be True or False, got 1"):
        bandjax.linen.band_limited(None, pools=1)
    layers = nnx.List([nnx.Conv(3, 4, (3,), rngs=nnx.Rngs(0))])
    with pytest.raises(TypeError, match="needs a model with a __call__ method, got List"):
        bandjax.nnx.band_limit(layers, None, pools=True)
    assert type(layers[0]) is nnx.Conv
