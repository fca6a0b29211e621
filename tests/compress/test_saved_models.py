"""Whole models, in Flax's own layers and unchanged, trained a step with compressed residuals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from saved_cases import cosine, normal

import bandjax
from bandjax.codecs import Dct
from experiments.models.resnet import ResNet
from experiments.models.unet import UNet3D
from experiments.models.vit import ViT

pytestmark = pytest.mark.thin(5)


class Mnist(nnx.Module):
    """As in Flax's first example: batch norm, dropout, average pooling."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.conv2 = nnx.Conv(16, 16, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(7 * 7 * 16, 10, rngs=rngs)

    def __call__(self, x):
        pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        x = pool(nnx.relu(self.norm(self.conv1(x))))
        x = self.dropout(pool(nnx.relu(self.conv2(x))))
        return self.head(x.reshape(x.shape[0], -1))


class Norms(linen.Module):
    """Residual blocks of linen's layers, with the other norms and activations."""

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(16, (3, 3))(x)
        for act in (linen.gelu, linen.swish):
            y = linen.Conv(16, (3, 3))(act(linen.GroupNorm(4)(x)))
            x = x + linen.Conv(16, (3, 3))(act(linen.LayerNorm()(y)))
        return linen.Dense(10)(linen.max_pool(x, (2, 2), (2, 2)).mean((1, 2)))


def nnx_loss(make, shape, labels):
    model = make(nnx.Rngs(0, dropout=1))
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x, y):
        model = nnx.merge(graph, params, rest, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
        return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

    return loss, params, rest, shape, labels


def linen_loss(module, shape):
    params = module.init(jax.random.key(0), jnp.ones(shape))

    def loss(params, rest, x, y):
        logits = module.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    return loss, params, None, shape, ()


def resnet(rngs):
    return ResNet(
        (16, 16, 3), 10, convolution=nnx.Conv, band=None, widths=(8, 16), blocks=(1, 1), rngs=rngs
    )


def unet(rngs):
    return UNet3D((8, 8, 8, 1), 10, convolution=nnx.Conv, band=None, rngs=rngs)


def vit(rngs):
    return ViT((16, 16, 3), 10, width=32, depth=2, heads=2, rngs=rngs)


MODELS = {
    "mnist": lambda: nnx_loss(Mnist, (8, 28, 28, 1), ()),
    "resnet": lambda: nnx_loss(resnet, (8, 16, 16, 3), ()),
    "unet": lambda: nnx_loss(unet, (2, 8, 8, 8, 1), (8, 8, 8)),
    "vit": lambda: nnx_loss(vit, (8, 16, 16, 3), ()),
    "linen": lambda: linen_loss(Norms(), (4, 16, 16, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_a_step_unchanged(name):
    loss, params, rest, shape, labels = MODELS[name]()
    x = normal(0, *shape)
    y = jnp.asarray(np.random.default_rng(1).integers(0, 10, (shape[0], *labels)))
    packed = bandjax.compress_saved(loss, Dct(bits=8))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (value, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, rest, x, y)
        (same, other), near = jax.jit(jax.value_and_grad(packed, has_aux=True))(params, rest, x, y)
        before, after = (
            bandjax.memory.saved_bytes(f, params, rest, x, y, argnums=0, has_aux=True)
            for f in (loss, packed)
        )
        moved = optax.apply_updates(params, jax.tree.map(lambda g: -0.01 * g, near))
        assert packed(moved, rest, x, y)[0] < value
    assert same == value
    for one, two in zip(jax.tree.leaves(other), jax.tree.leaves(aux), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(one, two)
    assert 0.998 < cosine(near, gradient) < 1
    assert after.by_codec()["Dct(bits=8)"] > 0
    assert after.total < before.total / 2
