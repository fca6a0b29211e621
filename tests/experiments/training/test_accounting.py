"""True compression, against counts by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import bandjax
from experiments.models import build
from experiments.models.fcn import FCN
from experiments.training.accounting import compression_report


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
    report = compression_report(model, (32, 32, 3))
    layers = report["layers"]
    assert layers["conv1"]["grid"] == [32, 32]
    assert layers["conv2"]["grid"] == [14, 14]
    for layer in layers.values():
        assert layer["modes"] == [5, 5]
        assert layer["kept"] == 11 * 6
    assert layers["conv1"]["total"] == 32 * 17
    after = nnx.to_pure_dict(nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert compression_report(model, (32, 32, 3)) == report


def test_dense_network_drops_nothing():
    assert compression_report(build("cnn", (8, 8, 1), 10, band=None), (8, 8, 1))["total"] == 0


@pytest.mark.parametrize("remat", [nnx.remat, bandjax.nnx.remat])
def test_networks_that_recompute(remat):
    """Their blocks are called on copies of themselves, in a trace within the trace."""
    band = bandjax.Compression(0.5)
    report = compression_report(FCN((64, 1), 5, band=band, rngs=nnx.Rngs(0)), (64, 1))
    again = FCN((64, 1), 5, band=band, remat=remat, rngs=nnx.Rngs(0))
    assert compression_report(again, (64, 1)) == report
