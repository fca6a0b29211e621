"""True compression, against counts by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import bandjax
from experiments.accounting import compression_report, conv_geometries
from experiments.models import build


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
