"""What models keep, layer by layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from memory_cases import SAVE_SPECTRA, array

import bandjax
from bandjax import memory
from experiments.models.resnet import ResNet


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3))(x)
        x = linen.relu(linen.BatchNorm(use_running_average=False)(x))
        return linen.Conv(5, (3, 3))(x)


class Nnx(nnx.Module):
    def __init__(self, convolution, rngs):
        self.first = convolution(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = convolution(4, 5, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        x = nnx.relu(self.norm(x))
        return self.second(x)


def check_dense(saved):
    """Convolution, batch norm, ReLU, convolution."""
    size = 2 * 8 * 8 * 4
    large = sorted((t.nbytes, t.kind) for t in saved.tensors if np.prod(t.shape) >= size)
    # Of batch norm the input less its mean, and the double of the input for the square's
    # derivative; of ReLU the mask; of the second convolution the input.
    assert large == [
        (size, "other"),
        (4 * size, "convolution input"),
        (4 * size, "other"),
        (4 * size, "other"),
    ]
    assert saved.total - 13 * size <= 8 * 4 * 4  # vectors of the four channels


def test_linen_model_by_layer():
    model, x = Linen(), jnp.ones((2, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    apply = lambda v, x: model.apply(v, x, mutable=["batch_stats"])[0]  # noqa: E731
    saved = memory.saved_bytes(apply, variables, x)
    check_dense(saved)
    assert set(saved.by_layer()) == {"Linen/BatchNorm_0", "Linen"}
    assert saved.arguments >= 4 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 4 + 3 * 3 * 4 * 5)
    again = memory.saved_bytes(jax.jit(apply), variables, x)
    assert again.by_layer() == saved.by_layer()


def test_nnx_module_and_state():
    x = array(2, 8, 8, 3)
    model = Nnx(nnx.Conv, nnx.Rngs(0))
    whole = memory.saved_bytes(lambda m, x: m(x), model, x)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    parts = memory.saved_bytes(
        lambda p, s, x: nnx.merge(graph, p, s, copy=True)(x), params, rest, x, argnums=0
    )
    batch = memory.saved_bytes(lambda m, x: m(x), model, x, argnums=1)
    for saved in (whole, parts):
        check_dense(saved)
    assert 0 < batch.total <= whole.total
    layers = list(whole.by_layer())
    assert any(layer.startswith("Nnx:") and layer.endswith("/BatchNorm") for layer in layers)
    assert any(t.source.endswith("(Nnx.__call__)") for t in whole.tensors)


def test_layers_of_a_function_that_was_traced_before_by_another():
    model = Nnx(nnx.Conv, nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def apply(p, s, x):
        return nnx.merge(graph, p, s, copy=True)(x)

    args = params, rest, jnp.ones((2, 8, 8, 3))
    jax.block_until_ready(apply(*args))
    layers = memory.saved_bytes(lambda *args: 1 * apply(*args), *args).by_layer()
    assert set(layers) == set(memory.saved_bytes(apply.__wrapped__, *args).by_layer())


def test_layers_of_band_limited_convolutions():
    model = Nnx(
        lambda *a, **k: bandjax.BandConv(*a, band=bandjax.Compression(0.5), **k), nnx.Rngs(0)
    )
    saved = memory.saved_bytes(lambda m, x: m(x), model, array(2, 8, 8, 3))
    spectra = [t for t in saved.tensors if t.name == "bandjax_spectrum"]
    assert len({t.layer for t in spectra}) == 2
    assert all(t.layer.endswith("/BandConv") for t in spectra)


def resnet_loss(**options):
    model = nnx.eval_shape(lambda: ResNet((32, 32, 3), 10, rngs=nnx.Rngs(0), **options))
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x, y):
        logits = nnx.merge(graph, params, rest, copy=True)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return loss, (params, rest, array(32, 32, 32, 3), array(32, dtype=jnp.int32))


@pytest.mark.full
def test_resnet():
    loss, args = resnet_loss(band=None, convolution=nnx.Conv)
    saved = memory.saved_bytes(loss, *args)
    # 18.75 M numbers leave the 20 convolutions and 17 M of them go through ReLU: batch norm keeps
    # the former twice, ReLU a mask, and each convolution but the first reads ReLU's result, of
    # which the last goes to the mean instead. ReLU's zeros are constants.
    conv, relu, last = 18.75 * 2**20, 17 * 2**20, 32 * 4 * 4 * 512
    by_hand = 2 * 4 * conv + relu + 4 * (relu - last)
    assert saved.total == pytest.approx(by_hand, rel=0.01)
    assert saved.by_kind()["convolution input"] == 4 * (relu - last)
    assert saved.constants == pytest.approx(4 * relu, rel=0.01)
    assert saved.total + saved.constants == pytest.approx(302 * 2**20, rel=0.01)
    loss, args = resnet_loss(band=bandjax.Compression(0.5))
    again = memory.saved_bytes(jax.checkpoint(loss, policy=SAVE_SPECTRA), *args)
    assert again.total == pytest.approx(46.6 * 2**20, rel=0.01)
    assert set(again.by_name()) == {"bandjax_spectrum"}
