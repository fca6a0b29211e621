"""The networks' shapes and parameters."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import bandjax
from experiments.bands import parse_band
from experiments.errors import UserError
from experiments.models import build

SHAPES = {"cnn": (8, 8, 1), "fcn": (70, 1), "lenet": (32, 32, 3)}
# Counted by hand: kernels, biases, batch-norm scales and offsets, the dense head.
PARAMETERS = {
    "cnn": 9 * (1 * 32 + 32 * 64 + 64 * 64) + 2 * (32 + 64 + 64) + 65 * 10,
    "fcn": 8 * 128 + 5 * 128 * 256 + 3 * 256 * 128 + 2 * (128 + 256 + 128) + 129 * 10,
    "lenet": (25 * 3 + 1) * 6 + (25 * 6 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10,
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_logits(name):
    model = build(name, SHAPES[name], 10, band=None)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == PARAMETERS[name]
    x = jax.random.normal(jax.random.key(0), (3, *SHAPES[name]))
    dense = model(x)
    assert dense.shape == (3, 10)
    limited = build(name, SHAPES[name], 10, band=bandjax.Compression(0.5))(x)
    assert limited.shape == (3, 10)
    assert np.abs(dense - limited).max() > 1e-3  # the band is in use


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnext", (8, 8, 1), "unknown model 'resnext'; known: cnn, fcn, lenet"),
        ("cnn", (70, 1), "needs images"),
        ("fcn", (8, 8, 1), "needs series"),
        ("lenet", (8, 8, 1), "at least 16x16"),
    ],
)
def test_model_that_does_not_fit(name, shape, message):
    with pytest.raises(UserError, match=message):
        build(name, shape, 10, band=None)


@pytest.mark.parametrize(
    ("text", "label", "band"),
    [
        ("none", "none", None),
        ("compression=.50", "compression=0.5", bandjax.Compression(0.5)),
        ("Compression=0", "compression=0", bandjax.Compression(0.0)),
        ("modes=8, 3", "modes=8,3", bandjax.Modes(8, 3)),
    ],
)
def test_parse_band(text, label, band):
    assert parse_band(text) == (label, band)


@pytest.mark.parametrize(
    "text", ["", "none=1", "compression", "compression=1", "compression=x", "modes=", "modes=1.5"]
)
def test_parse_band_refuses(text):
    with pytest.raises(UserError, match="band"):
        parse_band(text)
