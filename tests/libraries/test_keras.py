"""The layers for Keras on its JAX backend, and models of it made band-limited."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx

import bandjax
from bandjax import Compression, Energy, Modes

if importlib.util.find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)
os.environ["KERAS_BACKEND"] = "jax"

import keras

import bandjax.keras as layers

# Keras reads its variables in a way that NumPy 2 will not have for ever.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = {1: (17,), 2: (12, 9), 3: (6, 5, 7)}
ARGUMENTS = [
    pytest.param(kind, changes, id=f"{kind} {name}")
    for kind, name, changes in [
        ("Conv1D", "defaults", {}),
        ("Conv2D", "defaults", {}),
        ("Conv3D", "defaults", {}),
        ("Conv2D", "kernel_size", {"kernel_size": (2, 4)}),
        ("Conv2D", "strides", {"strides": (1, 3), "padding": "same"}),
        ("Conv1D", "causal", {"padding": "causal", "strides": 2}),
        ("Conv1D", "causal dilated", {"padding": "causal", "dilation_rate": 3}),
        ("Conv2D", "dilation", {"dilation_rate": (2, 3), "padding": "same"}),
        ("Conv2D", "groups", {"groups": 2}),
        ("Conv2D", "no bias", {"use_bias": False}),
        ("Conv2D", "activation", {"activation": "relu"}),
        ("Conv2D", "channels first", {"data_format": "channels_first", "padding": "same"}),
        ("DepthwiseConv1D", "defaults", {}),
        ("DepthwiseConv2D", "multiplier", {"depth_multiplier": 3, "padding": "same"}),
        ("DepthwiseConv2D", "strides", {"strides": 2, "padding": "same", "use_bias": False}),
        (
            "DepthwiseConv2D",
            "channels first",
            {"data_format": "channels_first", "depth_multiplier": 2},
        ),
    ]
]


@pytest.fixture(autouse=True)
def promotion():
    """Keras promotes types in its own ways."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        keras.utils.set_random_seed(0)
        yield


def made(kind, changes, **more):
    arguments = {"kernel_size": 3, "dtype": "float64", **changes, **more}
    if kind.__name__.find("Depthwise") < 0:
        arguments["filters"] = 6
    return kind(**arguments)


def given(layer):
    rank = len(layer.kernel_size)
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(2, *SIZES[rank], 4))
    return jnp.asarray(np.moveaxis(x, -1, 1) if layer.data_format == "channels_first" else x)


def alike(kind, changes, **more):
    """A layer of Keras, ours with its weights, and an input."""
    dense = made(getattr(keras.layers, kind), changes, bias_initializer="random_normal")
    layer = made(getattr(layers, f"Band{kind}"), changes, **more)
    x = given(dense)
    dense.build(x.shape)
    layer.build(x.shape)
    layer.set_weights(dense.get_weights())
    return dense, layer, x


def with_gradients(layer, x):
    """Output and gradients, of the weights and of ``x``."""

    def loss(weights, x):
        y, _ = layer.stateless_call(weights, [], x)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    weights = [w.value for w in layer.trainable_variables]
    gradients, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(weights, x)
    return y, *jax.tree.leaves(gradients)


@pytest.mark.thin(6)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("kind", "changes"), ARGUMENTS)
def test_without_a_band_it_is_the_dense_layer(kind, changes):
    dense, layer, x = alike(kind, changes)
    for actual, wanted in zip(with_gradients(layer, x), with_gradients(dense, x), strict=True):
        assert actual.dtype == wanted.dtype == jnp.float64
        assert oracle.gap(actual, wanted) < 1e-12
    assert layer.compute_output_shape(x.shape) == tuple(layer(x).shape)
    assert layer.geometry(x.shape).exact


@pytest.mark.thin(10)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("band", [Compression(0.5), Energy(0.3)], ids=str)
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Conv1D", {"padding": "causal"}),
        ("Conv2D", {"padding": "same", "strides": 2}),
        ("Conv3D", {"padding": "valid", "groups": 2}),
        ("DepthwiseConv2D", {"padding": "same", "depth_multiplier": 2}),
        ("Conv2D", {"padding": "same", "data_format": "channels_first"}),
    ],
)
def test_with_a_band_it_is_the_layer_for_flax(kind, changes, band):
    dense, layer, x = alike(kind, changes, band=band)
    kernel = jnp.asarray(layer.kernel)
    if "Depthwise" in kind:
        kernel = kernel.reshape(*kernel.shape[:-2], 1, -1)
    first = changes.get("data_format") == "channels_first"
    twin = bandjax.nnx.BandConv(
        4,
        kernel.shape[-1],
        layer.kernel_size,
        layer.strides,
        padding=layer.padding.upper(),
        feature_group_count=4 // kernel.shape[-2],
        band=band,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    twin.kernel[...], twin.bias[...] = kernel, jnp.asarray(layer.bias)
    wanted = twin(jnp.moveaxis(x, 1, -1) if first else x)
    wanted = jnp.moveaxis(wanted, -1, 1) if first else wanted
    assert oracle.gap(layer(x), wanted) < 1e-12
    assert oracle.gap(layer(x), dense(x)) > 1e-3
    assert layer.geometry(x.shape).modes == twin.geometry((2, *SIZES[layer.rank], 4)).modes


def network():
    """A small network in the manner of Keras's applications, with a model within the model."""
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.layers.BatchNormalization()(x)
    inner = keras.Sequential(
        [keras.layers.Conv2D(8, 3, padding="same", name="conv"), keras.layers.ReLU()], name="inner"
    )
    x = x + inner(x)
    x = keras.layers.Conv2DTranspose(4, 2, 2, name="up")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


# Keras asks JAX for integers of 64 bits, which later versions of JAX speak of.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")
def test_a_model_is_limited_trained_saved_and_loaded(tmp_path):
    model = network()
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(8, 12, 12, 3)).astype("float32"), np.arange(8) % 4
    before = model.predict(x, verbose=0)
    stem = model.get_layer("stem")
    with pytest.warns(UserWarning, match=r"up \(a transposed convolution"):
        report = layers.band_limit(model, Compression(0.5))
    assert list(report.limited) == ["stem", "depthwise", "inner/conv"]
    assert model.get_layer("stem") is stem
    assert type(stem) is layers.BandConv2D
    limited = model.predict(x, verbose=0)
    assert np.abs(limited - before).max() > 1e-4

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss)
    first = model.evaluate(x, labels, verbose=0)
    model.fit(x, labels, batch_size=8, epochs=3, verbose=0)
    assert model.evaluate(x, labels, verbose=0) < first

    trained = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("inner").get_layer("conv").band == Compression(0.5)
    assert np.abs(loaded.predict(x, verbose=0) - trained).max() < 1e-5

    exact = layers.band_limit(loaded, None, where=lambda layer: layer.path != "up")
    assert set(exact.limited.values()) == {None}
    assert np.abs(loaded.predict(x, verbose=0) - trained).max() > 1e-4


def test_layers_are_chosen_and_options_set():
    model = network()
    report = layers.band_limit(
        model, Modes(2, 2), ["stem", "inner/*"], residual_dtype="bfloat16", method="fft", grid=16
    )
    assert list(report.limited) == ["stem", "inner/conv"]
    assert sorted(report.excluded) == ["depthwise", "up"]
    stem = model.get_layer("stem")
    assert (stem.residual_dtype, stem.method, stem.grid) == (jnp.bfloat16, "fft", 16)
    layers.band_limit(model, Compression(0.5), layers.BandConv2D)
    assert (stem.band, stem.method) == (Compression(0.5), "auto")


@pytest.mark.parametrize("band", [None, Compression(0.25), Modes(3, 4), Energy(0.9)], ids=str)
def test_a_layer_comes_back_from_its_configuration(band):
    layer = layers.BandConv2D(4, 3, band=band, grid=(20, 18), residual_dtype=jnp.int8)
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is layers.BandConv2D
    assert [getattr(again, name) for name in layers._OPTIONS] == [
        getattr(layer, name) for name in layers._OPTIONS
    ]


def test_mixed_precision_computes_in_half_types():
    layer = layers.BandConv2D(4, 3, band=Compression(0.5), dtype="mixed_bfloat16")
    y = layer(jnp.ones((1, 8, 8, 2), jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert layer.kernel.dtype == "float32"


class Own(keras.layers.Conv2D):
    """A subclass, which may compute otherwise."""


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: keras.layers.SeparableConv2D(2, 3), "a separable convolution"),
        (lambda: Own(2, 3), "Own is a subclass"),
    ],
)
def test_what_cannot_be_limited_is_told(layer, reason):
    model = keras.Sequential([layer(), keras.layers.Conv2D(2, 3, name="plain")])
    with pytest.raises(ValueError, match=reason):
        layers.band_limit(model, None, strict=True)
    assert type(model.get_layer("plain")) is keras.layers.Conv2D
    with pytest.warns(UserWarning, match=reason):
        report = layers.band_limit(model, None)
    assert list(report.limited) == ["plain"]


def test_wrong_arguments_raise_at_once():
    with pytest.raises(TypeError, match="model must be a keras"):
        layers.band_limit("model", None)
    with pytest.raises(ValueError, match="no convolution layer is selected"):
        layers.band_limit(network(), None, where="nowhere")
    with pytest.raises(ValueError, match="implementation must be"):
        layers.BandConv1D(1, 1, implementation="none")


@pytest.mark.full
def test_another_backend_is_refused():
    code = (
        "import sys, types; keras = types.ModuleType('keras'); sys.modules['keras'] = keras;"
        "keras.backend = types.SimpleNamespace(backend=lambda: 'torch'); import bandjax.keras"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs the JAX backend of Keras, which runs on 'torch'" in done.stderr
