"""What users of Flax do with layers: patch, subclass, pickle, name, spell, summarise."""

from __future__ import annotations

import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import bandjax
from bandjax import Compression, Energy

HALF = Compression(0.5)
X = jnp.asarray(np.random.default_rng(23).normal(size=(2, 8, 8, 2)), jnp.float32)


class OwnConv(nnx.Conv):
    pass


class Parent(linen.Module):
    kind: type

    @linen.compact
    def __call__(self, x):
        x = self.kind(3, (3, 3))(linen.relu(self.kind(4, (3, 3))(x)))
        return linen.Dense(2)(x)


def dense_pair():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(OwnConv(2, 4, (3, 3), rngs=rngs), nnx.Conv(4, 3, (3, 3), rngs=rngs))


@pytest.mark.parametrize("package", [pickle, cloudpickle])
def test_a_limited_subclass_is_pickled(package):
    model = dense_pair()
    bandjax.nnx.band_limit(model, HALF)
    again = package.loads(package.dumps(model))
    assert type(again.layers[0]) is type(model.layers[0])
    assert isinstance(again.layers[0], OwnConv)
    assert again.layers[0].band == HALF
    assert np.array_equal(again(X), model(X))


def test_layers_in_compact_parents_have_the_names_and_values_of_dense_ones():
    dense, limited = (
        Parent(kind).init(jax.random.key(0), X) for kind in (linen.Conv, bandjax.linen.BandConv)
    )
    assert jax.tree.structure(dense) == jax.tree.structure(limited)
    assert jax.tree.all(jax.tree.map(np.array_equal, dense, limited))
    y = Parent(bandjax.linen.BandConv).apply(dense, X)
    assert np.allclose(y, Parent(linen.Conv).apply(dense, X), rtol=1e-4, atol=1e-5)
    told = bandjax.summary(Parent(bandjax.linen.BandConv), X).layers
    assert {(layer.path, layer.kind) for layer in told} == {
        ("Conv_0", "BandConv"),
        ("Conv_1", "BandConv"),
    }


@pytest.fixture
def patched(monkeypatch):
    monkeypatch.setattr(nnx, "Conv", bandjax.nnx.BandConv)
    monkeypatch.setattr(linen, "Conv", bandjax.linen.BandConv)


def test_flaxs_classes_replaced(patched):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(2, 4, (3, 3), band=HALF, rngs=rngs), nnx.Conv(4, 3, (3, 3), rngs=rngs)
    )
    assert model(X).shape == (2, 8, 8, 3)
    assert [layer.band for layer in bandjax.summary(model, X).layers] == [HALF, None]
    report = bandjax.nnx.band_limit(model, HALF)
    assert list(report.limited) == ["layers.0", "layers.1"]
    plan = bandjax.calibrate(model, [X], Energy(0.9))
    assert list(plan.layers) == ["layers.0", "layers.1"]


def test_linens_classes_replaced(patched):
    model = linen.Sequential([linen.Conv(4, (3, 3), band=HALF), linen.Conv(3, (3, 3))])
    variables = model.init(jax.random.key(0), X)
    assert model.apply(variables, X).shape == (2, 8, 8, 3)
    assert [layer.band for layer in bandjax.summary(model, X).layers] == [HALF, None]
    with bandjax.linen.band_limited(HALF) as report:
        model.apply(variables, X)
    assert list(report.limited) == ["layers_0", "layers_1"]


@pytest.mark.parametrize("order", ["context first", "summary of a limited layer"])
def test_a_summary_within_a_context(order):
    kind = bandjax.linen.BandConv if order != "context first" else linen.Conv
    model = linen.Sequential([kind(4, (3, 3)), linen.relu, kind(3, (3, 3))])
    with bandjax.linen.band_limited(HALF, where="layers_0") as report:
        told = bandjax.summary(model, X)
    first, second = told.layers
    assert (first.band, second.band) == (HALF, None)
    assert first.compression > 0.3
    assert first.kind == ("Conv" if order == "context first" else "BandConv")
    assert list(report.limited) == ["layers_0"]
    alone = bandjax.linen.BandConv(4, (3, 3), band=HALF)
    assert first.kept_bytes == bandjax.summary(alone, X).layers[0].kept_bytes


@pytest.mark.parametrize("padding", ["same", "valid", "Same_Lower", "circular", "reflect"])
def test_padding_in_lower_case_by_every_route(padding):
    band, name = HALF, padding.upper()
    rngs = nnx.Rngs(0)
    wanted = bandjax.BandConv(2, 4, (3, 3), padding=name, band=band, rngs=nnx.Rngs(0))(X)
    layer = bandjax.BandConv(2, 4, (3, 3), padding=padding, band=band, rngs=nnx.Rngs(0))
    assert np.array_equal(layer(X), wanted)
    model = nnx.Sequential(nnx.Conv(2, 4, (3, 3), padding=padding, rngs=rngs))
    bandjax.nnx.band_limit(model, band)
    assert np.array_equal(model(X), wanted)
    geometries = [bandjax.summary(m, X).layers[0].geometry for m in (model, layer)]
    named = bandjax.conv_geometry(X.shape, (3, 3, 2, 4), band, padding=name)
    assert geometries == [named, named]
    plans = [
        bandjax.calibrate(
            nnx.Sequential(bandjax.BandConv(2, 4, (3, 3), padding=p, rngs=nnx.Rngs(0))),
            [X],
            Energy(0.9),
        ).layers
        for p in (padding, name)
    ]
    assert plans[0] == plans[1]
    if padding in ("same", "valid", "Same_Lower"):
        hook = bandjax.conv_general_dilated(band)
        hooked = nnx.Conv(
            2, 4, (3, 3), padding=padding, conv_general_dilated=hook, rngs=nnx.Rngs(0)
        )
        assert np.array_equal(hooked(X), wanted)
    linen_layer = linen.Conv(4, (3, 3), padding=padding)
    variables = {"params": {"kernel": layer.kernel[...], "bias": layer.bias[...]}}
    with bandjax.linen.band_limited(band):
        assert np.array_equal(linen_layer.apply(variables, X), wanted)


def test_models_that_flax_wraps_are_told_how():
    wrapped = nnx.bridge.ToNNX(linen.Conv(4, (3, 3)), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(wrapped, X)
    with pytest.raises(ValueError, match=r"bandjax\.linen\.band_limited around the call"):
        bandjax.nnx.band_limit(wrapped, HALF)

    class Wrapping(linen.Module):
        @linen.compact
        def __call__(self, x):
            return nnx.bridge.to_linen(nnx.Conv, 2, 4, (3, 3))(x)

    model = Wrapping()
    variables = model.init(jax.random.key(0), X)
    with bandjax.linen.band_limited(HALF) as report:
        model.apply(variables, X)
    assert str(report).startswith("convolutions: none was met; those of flax.nnx within")
