"""Blocks and models of Flax whose residuals are compressed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bandjax
from bandjax.codecs import Cast, Dct

pytestmark = pytest.mark.thin(2)

EXACT = Cast(jnp.float32)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 12, 3), np.float32))


class Block(nnx.Module):
    def __init__(self, inputs, rngs):
        self.conv = nnx.Conv(inputs, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class Model(nnx.Module):
    def __init__(self, wrap):
        self.blocks = nnx.List([Block(3, nnx.Rngs(0)), Block(8, nnx.Rngs(1))])
        self.call = wrap(Block.__call__)

    def __call__(self, x):
        for block in self.blocks:
            x = self.call(block, x)
        return x


def gradient(model, x=X):
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    def loss(parameters):
        inner = nnx.merge(graph, parameters, rest, copy=True)
        return (inner(x) ** 2).sum(), nnx.to_pure_dict(nnx.state(inner, nnx.BatchStat))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)


def assert_near(a, b, rtol=1e-4):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        atol = rtol * float(jnp.abs(other).max()) + 1e-3 * rtol
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "model"])
def test_nnx_values_statistics_and_gradients(whole):
    exact = gradient(Model(lambda call: call))

    def model(codec):
        def wrap(call):
            return bandjax.nnx.compress_saved(call, codec)

        if not whole:
            return Model(wrap)

        class Whole(Model):
            __call__ = bandjax.nnx.compress_saved(codec=codec)(Model.__call__)

        return Whole(lambda call: call)

    same = gradient(model(EXACT))
    assert_near(same, exact)
    (value, statistics), near = gradient(model(Dct(bits=8)))
    assert_near((value, statistics), exact[0], 1e-6)
    assert_near(near, exact[1], 0.1)
    with pytest.raises(AssertionError):
        assert_near(near, exact[1])


def test_nnx_statistics_change_once_and_arguments_are_checked():
    plain, packed = Block(3, nnx.Rngs(0)), Block(3, nnx.Rngs(0))
    plain(X)
    bandjax.nnx.compress_saved(Block.__call__)(packed, X)
    assert_near(nnx.state(packed, nnx.BatchStat), nnx.state(plain, nnx.BatchStat))
    with pytest.raises(TypeError, match="codec must be one of"):
        bandjax.nnx.compress_saved(Block.__call__, 4)
    with pytest.raises(ValueError, match="must leave out 0, the module"):
        bandjax.nnx.compress_saved(Block.__call__, static_argnums=0)(packed, X)


class LinenBlock(nn.Module):
    features: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=False)(x))


def linen_gradient(kind):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return kind(name="second")(kind(name="first")(x))

    variables = Net().init(jax.random.key(0), X)
    statistics = variables["batch_stats"]

    def loss(params):
        out, changed = Net().apply(
            {"params": params, "batch_stats": statistics}, X, mutable=["batch_stats"]
        )
        return (out**2).sum(), changed

    kept = bandjax.memory.saved_bytes(loss, variables["params"], has_aux=True)
    return kept, jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def test_linen():
    kept, exact = linen_gradient(LinenBlock)
    packed, same = linen_gradient(bandjax.linen.compress_saved(LinenBlock, EXACT))
    assert jax.tree.structure(same) == jax.tree.structure(exact)
    assert_near(same, exact)
    packed, near = linen_gradient(bandjax.linen.compress_saved(LinenBlock, Dct(bits=8)))
    assert_near(near[0], exact[0], 1e-6)
    assert_near(near[1], exact[1], 0.1)
    assert packed.total < kept.total / 3
    with pytest.raises(TypeError, match="codec must be one of"):
        bandjax.linen.compress_saved(LinenBlock, 4)


def test_a_linen_model_with_flags():
    class Flagged(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, kind="sum"):
            y = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
            return getattr(y, kind)()

    variables = Flagged().init(jax.random.key(0), X)
    packed = bandjax.linen.compress_saved(codec=EXACT)(Flagged)

    def gradients(model, *args, **keywords):
        def loss(params):
            given = {**variables, "params": params}
            return model().apply(given, X, *args, mutable=["batch_stats"], **keywords)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    for args, keywords in (((), {"train": True}), ((True, "max"), {}), ((), {})):
        assert_near(gradients(packed, *args, **keywords), gradients(Flagged, *args, **keywords))


@pytest.mark.parametrize("band", [None, bandjax.Compression(0.5)])
def test_a_layer_keeps_its_input_packed(band):
    def of(codec):
        layer = bandjax.BandConv(8, 8, (3, 3), band=band, saved=codec, rngs=nnx.Rngs(0))
        graph, parameters = nnx.split(layer)

        def f(parameters, x):
            return (nnx.merge(graph, parameters)(jnp.tanh(x)) ** 2).sum()

        x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 16, 16, 8), np.float32))
        kept = bandjax.memory.saved_bytes(f, parameters, x)
        return kept, jax.jit(jax.value_and_grad(f, (0, 1)))(parameters, x)

    exact, near, same = of(None)[1], of(Dct(bits=6)), of(EXACT)[1]
    assert_near(same, exact)
    np.testing.assert_array_equal(near[1][0], exact[0])
    assert_near(near[1][1], exact[1], 0.1)
    assert near[0].by_codec() == {"Dct(bits=6)": Dct(bits=6).nbytes((2, 16, 16, 8))}


def test_a_linen_layer_keeps_its_input_packed():
    x = jnp.tanh(X)
    layers = [bandjax.linen.BandConv(8, (3, 3), saved=codec) for codec in (None, Dct(bits=8))]
    variables = layers[0].init(jax.random.key(0), x)
    exact, near = (
        jax.grad(lambda v, layer=layer: (layer.apply(v, x) ** 2).sum())(variables)
        for layer in layers
    )
    assert_near(near, exact, 0.05)


def test_what_saved_takes():
    with pytest.raises(TypeError, match="saved must be one of"):
        bandjax.BandConv(3, 8, (3, 3), saved="dct", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="saved must be one of"):
        bandjax.linen.BandConv(8, (3, 3), saved=4)
