"""Bytes kept for the backward pass and true compression, against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bandjax
from experiments.accounting import compression_report, conv_geometries, saved_bytes
from experiments.models import build


def test_saved_bytes_of_a_product():
    """d(sin(p) * x)/dp = cos(p) * x: only cos(p) is new, 40 bytes; x is an input."""
    p, x = jnp.arange(10.0), jnp.arange(10.0) + 1
    assert saved_bytes(lambda p, x: jnp.sum(jnp.sin(p) * x), p, x) == 40


def test_saved_bytes_of_linear_steps_is_nothing():
    """The backward pass of a sum of products with the input reads the input alone."""
    p, x = jnp.ones((3, 4)), jnp.ones((5, 3))
    assert saved_bytes(lambda p, x: jnp.sum(x @ p), p, x) == 0


def test_saved_bytes_of_two_dense_layers():
    """tanh keeps its output h (5 x 4 floats), which the second product's gradient reads too; the
    chain rule of the square keeps 2 * (h @ b), 5 x 2 floats. x, a and b are inputs."""
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    x = jnp.ones((5, 3))

    def loss(params, x):
        h = jnp.tanh(x @ params["a"])
        return jnp.sum((h @ params["b"]) ** 2)

    # tanh's rule keeps h for the product, and 1 - h * h or h for itself.
    assert saved_bytes(loss, params, x) in (4 * (20 + 10), 4 * (40 + 10))


def test_saved_bytes_counts_an_array_once_and_by_its_type():
    p = jnp.ones(6, jnp.bfloat16)

    def loss(p):
        h = jnp.exp(p)  # exp's derivative is its value: one array for both products
        return jnp.sum(h * h)

    assert saved_bytes(loss, p) == 6 * 2


def test_saved_bytes_of_one_band_limited_layer():
    """The layer keeps the compressed spectrum instead of the hidden input: kept complex numbers
    of 8 bytes per image and channel."""
    layer = bandjax.BandConv(
        4, 4, (3, 3), band=bandjax.Compression(0.75), use_bias=False, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))

    def loss(pair):
        weight, params = pair  # x * weight is neither a parameter nor an input
        return jnp.sum(nnx.merge(graph, params)(x * weight))

    kept = layer.geometry((2, 16, 16, 4)).kept
    assert saved_bytes(loss, (jnp.float32(2), params)) == 2 * 4 * kept * 8


@pytest.mark.parametrize("name", ["cnn", "fcn", "lenet"])
def test_compression_report(name):
    shape = {"cnn": (8, 8, 1), "fcn": (64, 1), "lenet": (32, 32, 3)}[name]
    model = build(name, shape, 5, band=bandjax.Compression(0.5))
    report = compression_report(model, shape)
    expected = {
        "cnn": {"convs.0": 1, "convs.1": 32, "convs.2": 64},
        "fcn": {"convs.0": 1, "convs.1": 128, "convs.2": 256},
        "lenet": {"conv1": 3, "conv2": 6},
    }[name]
    assert report["layers"].keys() == expected.keys()
    kept = sum(report["layers"][path]["kept"] * c for path, c in expected.items())
    total = sum(report["layers"][path]["total"] * c for path, c in expected.items())
    assert report["total"] == pytest.approx(1 - kept / total)
    assert 0.3 < report["total"] < 0.7
    for layer in report["layers"].values():
        assert layer["compression"] == pytest.approx(1 - layer["kept"] / layer["total"])


def test_geometries_follow_the_layers_inputs():
    """LeNet: 32x32 in front of the first layer, 14x14 (28 pooled) in front of the second; with
    VALID padding the grid is the input itself."""
    model = build("lenet", (32, 32, 3), 10, band=bandjax.Modes(5, 5))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    geometries = conv_geometries(model, (1, 32, 32, 3))
    assert geometries["conv1"].grid == (32, 32)
    assert geometries["conv2"].grid == (14, 14)
    for geometry in geometries.values():
        assert geometry.modes == (5, 5)
        assert geometry.kept == 11 * 6
    assert geometries["conv1"].total == 32 * 17
    after = nnx.to_pure_dict(nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert conv_geometries(model, (1, 32, 32, 3)) == geometries


def test_dense_network_drops_nothing():
    assert compression_report(build("cnn", (8, 8, 1), 10, band=None), (8, 8, 1))["total"] == 0
