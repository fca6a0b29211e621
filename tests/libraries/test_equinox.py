"""The layer for Equinox, and models of it made band-limited."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import bandjax
from bandjax import Compression, Energy, Modes

if importlib.util.find_spec("equinox") is None:
    pytest.skip("equinox is not installed", allow_module_level=True)

import equinox as eqx

import bandjax.equinox as layers

KEY = jax.random.key(0)
SIZES = {1: (17,), 2: (12, 9), 3: (6, 5, 7)}
ARGUMENTS = [
    pytest.param(rank, changes, id=f"{rank}-D {name}")
    for rank, name, changes in [
        (1, "defaults", {}),
        (2, "defaults", {}),
        (3, "defaults", {}),
        (2, "kernel_size", {"kernel_size": (2, 4)}),
        (2, "stride", {"stride": (1, 3)}),
        (2, "VALID", {"padding": "VALID"}),
        (2, "SAME", {"padding": "SAME", "stride": 2}),
        (2, "same_lower", {"padding": "same_lower", "kernel_size": (4, 3)}),
        (2, "padding int", {"padding": 2}),
        (2, "padding ints", {"padding": (2, 1)}),
        (2, "padding pairs", {"padding": ((0, 2), (3, 1))}),
        (2, "dilation", {"dilation": (2, 3)}),
        (2, "groups", {"groups": 2}),
        (1, "depthwise", {"groups": 4, "out_channels": 12}),
        (2, "no bias", {"use_bias": False}),
        (1, "REFLECT", {"padding_mode": "reflect", "padding": 3}),
        (2, "REPLICATE", {"padding_mode": "REPLICATE", "padding": ((0, 2), (3, 1))}),
        (2, "CIRCULAR SAME", {"padding_mode": "CIRCULAR", "padding": "SAME"}),
        (2, "CIRCULAR strided", {"padding_mode": "CIRCULAR", "padding": "SAME", "stride": (2, 3)}),
        (2, "CIRCULAR turned", {"padding_mode": "CIRCULAR", "padding": ((0, 1), (3, 0))}),
        (1, "CIRCULAR once more", {"padding_mode": "CIRCULAR", "padding": 9, "stride": 2}),
        (3, "CIRCULAR dilated", {"padding_mode": "CIRCULAR", "padding": 2, "dilation": (1, 2, 1)}),
    ]
]


def made(kind, rank, changes, **more):
    """A layer in float64."""
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, **changes, **more}
    return kind(rank, **arguments, dtype=jnp.float64, key=KEY)


def given(rank, channels=4):
    rng = np.random.default_rng(rank)
    return jnp.asarray(rng.normal(size=(channels, *SIZES[rank])))


def with_gradients(layer, x):
    """Output and gradients, of the arrays in the layer and of ``x``."""

    def loss(arrays, x):
        y = eqx.combine(arrays, static)(x)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    arrays, static = eqx.partition(layer, eqx.is_array)
    gradients, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(arrays, x)
    return y, *jax.tree.leaves(gradients)


@pytest.mark.thin(6)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rank", "changes"), ARGUMENTS)
def test_without_a_band_it_is_the_dense_layer(rank, changes):
    dense, layer = (made(kind, rank, changes) for kind in (eqx.nn.Conv, layers.BandConv))
    x = given(rank)
    for actual, wanted in zip(with_gradients(layer, x), with_gradients(dense, x), strict=True):
        assert actual.dtype == wanted.dtype == jnp.float64
        assert oracle.gap(actual, wanted) < 1e-12


def flax_layer(layer, rank, padding, **options):
    """The layer of flax.nnx with the parameters of one of Equinox."""
    twin = bandjax.nnx.BandConv(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        padding=padding,
        kernel_dilation=layer.dilation,
        feature_group_count=layer.groups,
        band=layer.band,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
        **options,
    )
    twin.kernel[...] = jnp.moveaxis(layer.weight, (0, 1), (-1, -2))
    twin.bias[...] = layer.bias.reshape(-1)
    return twin


@pytest.mark.thin(12)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("band", [Compression(0.5), Energy(0.2)], ids=str)
@pytest.mark.parametrize(
    ("rank", "changes", "padding"),
    [
        (1, {"padding": 2, "stride": 2}, 2),
        (2, {"padding": "SAME"}, "SAME"),
        (3, {"padding": ((0, 1), (2, 0), (1, 1)), "groups": 2}, ((0, 1), (2, 0), (1, 1))),
        (2, {"padding": "VALID", "dilation": 2}, "VALID"),
        (2, {"padding": "SAME", "padding_mode": "CIRCULAR"}, "CIRCULAR"),
        (1, {"padding": "SAME", "padding_mode": "REFLECT"}, "REFLECT"),
    ],
)
def test_with_a_band_it_is_the_layer_for_flax(rank, changes, padding, band):
    layer = made(layers.BandConv, rank, changes, band=band)
    twin = flax_layer(layer, rank, padding)
    x = given(rank)
    y = twin(jnp.moveaxis(x, 0, -1))
    assert oracle.gap(layer(x), np.moveaxis(np.asarray(y), -1, 0)) < 1e-12
    dense = made(eqx.nn.Conv, rank, changes)
    assert oracle.gap(layer(x), dense(x)) > 1e-3
    if band == Compression(0.5):
        geometry = layer.geometry(x.shape)
        assert geometry.modes == twin.geometry((*x.shape[1:], 4)).modes
        assert geometry.output_shape[-1] == 6


@pytest.mark.usefixtures("x64")
def test_periodic_layers_read_their_circle_from_where_padding_begins():
    """By the oracle, of the input turned and repeated."""
    layer = made(
        layers.BandConv, 1, {"padding": ((5, 2),), "padding_mode": "CIRCULAR"}, band=Modes(4)
    )
    x = given(1)
    size = x.shape[1]
    circle = np.asarray(x).T.copy()
    circle = oracle.projection(size, 4) @ circle
    read = circle[np.arange(-5, size + 2) % size]
    kernel = np.moveaxis(np.asarray(layer.weight), (0, 1), (-1, -2))
    wanted = sum(read[t : t + size + 5] @ kernel[t] for t in range(3)) + np.asarray(layer.bias).T
    assert oracle.gap(np.asarray(layer(x)).T, wanted) < 1e-12


class Residual(eqx.Module):
    """A block in the manner of Equinox's users: layers in lists, and of several kinds."""

    first: eqx.nn.Conv2d
    rest: list
    up: eqx.nn.ConvTranspose2d
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.first = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
        self.rest = [
            eqx.nn.Conv2d(8, 8, 3, padding=1, key=keys[1]),
            eqx.nn.Conv2d(8, 8, 1, key=keys[2]),
        ]
        self.up = eqx.nn.ConvTranspose2d(8, 4, 2, 2, key=keys[3])
        self.head = eqx.nn.Linear(4, 5, key=keys[4])

    def __call__(self, x):
        x = jax.nn.relu(self.first(x))
        x = x + self.rest[1](jax.nn.relu(self.rest[0](x)))
        return self.head(self.up(x).mean((1, 2)))


def test_a_model_is_limited_and_trained_a_step():
    optax = pytest.importorskip("optax")
    model = Residual(KEY)
    with pytest.warns(UserWarning, match=r"up \(a transposed convolution"):
        limited, report = layers.band_limit(model, Compression(0.5))
    assert list(report.limited) == ["first", "rest.0", "rest.1"]
    assert list(report.refused) == ["up"]
    assert isinstance(limited.rest[0], layers.BandConv)
    assert type(model.first) is eqx.nn.Conv2d  # The given model is as it was.
    assert limited.first.weight is model.first.weight

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 3, 10, 10)), jnp.float32)
    labels = jnp.asarray([0, 1, 2, 3])

    @eqx.filter_value_and_grad
    def loss_of(model, x, labels):
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    compiled = eqx.filter_jit(loss_of)
    optimizer = optax.sgd(0.1)
    state = optimizer.init(eqx.filter(limited, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        loss, gradients = loss_of(model, x, labels)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state, loss

    trained, state, before = step(limited, state)
    _, _, after = step(trained, state)
    assert after < before
    dense = compiled(model, x, labels)[0]
    assert abs(before - dense) > 1e-4
    exact, _ = layers.band_limit(limited, None, where=lambda layer: layer.path != "up")
    assert jnp.allclose(compiled(exact, x, labels)[0], dense, rtol=1e-5)


def test_layers_are_chosen_and_options_set():
    model = Residual(KEY)
    limited, report = layers.band_limit(
        model, Modes(2, 2), where=["first", (1, 1)], residual_dtype=jnp.bfloat16, method="fft"
    )
    assert list(report.limited) == ["first", "rest.1"]
    assert report.excluded == ["rest.0", "up"]
    assert limited.first.residual_dtype == jnp.bfloat16
    assert limited.first.method == "fft"
    again, _ = layers.band_limit(limited, Compression(0.5), where=layers.BandConv)
    assert again.rest[1].band == Compression(0.5)
    assert again.rest[1].method == "auto"


def test_a_shared_layer_within_a_limited_tree_stays_one_tree():
    layer = eqx.nn.Conv1d(2, 2, 3, padding=1, key=KEY)
    limited, report = layers.band_limit({"a": layer, "b": (layer,)}, Modes(3))
    assert list(report.limited) == ["a", "b.0"]
    assert jax.tree.structure(limited) != jax.tree.structure({"a": layer, "b": (layer,)})
    flat, restore = ravel_pytree(eqx.filter(limited, eqx.is_array))
    assert restore(flat)["a"].band == Modes(3)


class Doubled(eqx.nn.Conv2d):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x)


class Named(eqx.nn.Conv2d):
    note: str = "a field more"


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: Doubled(2, 2, 3, key=KEY), "Doubled has a __call__ of its own"),
        (lambda: Named(2, 2, 3, key=KEY), "Named has note of its own"),
        (lambda: eqx.nn.Conv(4, 1, 1, 1, key=KEY), "4 spatial axes, at most 3"),
        (lambda: eqx.nn.ConvTranspose1d(1, 1, 1, key=KEY), "a transposed convolution"),
    ],
)
def test_what_cannot_be_limited_is_told(layer, reason):
    model = [layer()]
    with pytest.warns(UserWarning, match=reason):
        same, report = layers.band_limit(model, None)
    assert type(same[0]) is type(model[0])
    assert list(report.refused) == ["0"]
    with pytest.raises(ValueError, match=reason):
        layers.band_limit(model, None, strict=True)


def test_wrong_arguments_raise_at_once():
    with pytest.raises(ValueError, match="no convolution layer is selected"):
        layers.band_limit(Residual(KEY), None, where="nowhere")
    with pytest.raises(ValueError, match="is for 1 spatial axes, but layer first has 2"):
        layers.band_limit(Residual(KEY), Modes(1), where="first")
    with pytest.raises(ValueError, match="method must be one of"):
        layers.BandConv(1, 1, 1, 1, method="no", key=KEY)
    layer = layers.BandConv(2, 3, 4, 3, key=KEY)
    with pytest.raises(ValueError, match=r"x must have 3 axes.*jax\.vmap"):
        layer(jnp.ones((2, 3, 8, 8)))
