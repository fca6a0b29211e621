"""Models written for Flax's linen layers, run band-limited as they are."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from choices import thinned
from flax import linen as nn
from flax import nnx
from oracle import relative_gap as gap
from signals import draw

import bandjax
from bandjax import Compression, Modes

band_limit, band_limited = bandjax.nnx.band_limit, bandjax.linen.band_limited


class Block(nn.Module):
    """A residual block that is given its layers ready to be made, as in many linen models."""

    conv: object
    norm: object
    width: int
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        y = self.conv(self.width, (3, 3), self.strides)(x)
        y = self.conv(self.width, (3, 3))(nn.relu(self.norm()(y)))
        if y.shape != x.shape:
            x = self.conv(self.width, (1, 1), self.strides, name="project")(x)
        return nn.relu(x + self.norm(scale_init=nn.initializers.ones)(y))


class ResNet(nn.Module):
    layer: type = nn.Conv

    @nn.compact
    def __call__(self, x, train=False):
        conv = functools.partial(self.layer, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = conv(4, (3, 3), padding="CIRCULAR", name="stem")(x)
        for i, width in enumerate((4, 6)):
            x = nn.remat(Block)(conv, norm, width, 1 + i, name=f"block_{i}")(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Parts(nn.Module):
    """Layers made in ``setup``, used in a loop, lifted and shared."""

    layer: type = nn.Conv

    def setup(self):
        self.first = self.layer(4, (3,), padding="REFLECT")
        self.list = [self.layer(4, (3,), padding="CAUSAL"), self.layer(4, 4, mask=None)]
        self.scanned = nn.scan(
            Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )(self.layer)
        self.mapped = nn.vmap(
            self.layer, variable_axes={"params": None}, split_rngs={"params": False}
        )(4, (3,))
        self.jitted = nn.jit(self.layer)(4, (3,))

    def __call__(self, x):
        x = self.first(x)
        for layer in self.list:
            x = layer(layer(x))
        x, _ = self.scanned(x)
        return self.jitted(self.mapped(x[None])[0])


class Step(nn.Module):
    layer: type

    @nn.compact
    def __call__(self, x):
        return self.layer(4, (3,), name="conv")(x), None


@pytest.mark.parametrize(
    ("kind", "shape", "layers", "limit"),
    [
        (Parts, (2, 12, 4), 6, Modes(2)),
        pytest.param(ResNet, (2, 9, 8, 3), 6, Modes(2, 1), marks=pytest.mark.full),
    ],
)
def test_linen_models_are_those_of_band_convs(kind, shape, layers, limit):
    x = draw(*shape)
    model = kind()

    class Conv(bandjax.linen.BandConv):  # Flax names layers after their class.
        band: object = limit

    limited = kind(Conv)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    reports = []

    @jax.jit
    def outputs(variables, x):
        with band_limited(Compression(0)) as report:
            exact = model.apply(variables, x)
            initial = model.init(jax.random.key(0), x)
        reports.append(report)
        narrow = band_limited(limit)(model.apply)(variables, x)
        return initial, exact, model.apply(variables, x), narrow

    initial, exact, dense, narrow = outputs(variables, x)
    assert jax.tree.structure(initial) == jax.tree.structure(variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, initial, variables))
    assert gap(exact, dense) < 2e-6
    assert gap(narrow, jax.jit(limited.apply)(variables, x)) < 2e-6
    assert gap(narrow, dense) > 1e-2
    assert len(reports[0].limited) == layers
    assert not reports[0].refused
    assert "block_1/project" in reports[0].limited or "scanned/conv" in reports[0].limited


@pytest.mark.full
def test_band_limited_and_transformations():
    model, x = nn.Sequential([nn.Conv(3, (3,)), nn.Conv(2, (3,))]), draw(2, 9, 2)
    variables = model.init(jax.random.key(0), x)
    expected = nn.Sequential([bandjax.linen.BandConv(n, (3,), band=Modes(1)) for n in (3, 2)])

    def loss(model, variables):
        return (model.apply(variables, x) ** 2).sum()

    limited = band_limited(Modes(1))(functools.partial(loss, model))
    actual = jax.jit(jax.grad(limited))(variables)
    wanted = jax.grad(functools.partial(loss, expected))(variables)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert gap(one, other) < 1e-5

    # The documented limit: what was compiled outside is not band-limited inside.
    outside = jax.jit(model.apply)
    dense = outside(variables, x)
    with band_limited(Modes(1)) as report:
        assert np.array_equal(outside(variables, x), dense)
        assert not report.limited
        inside = jax.jit(functools.partial(model.apply, variables))(x)
    assert gap(inside, expected.apply(variables, x)) < 1e-6

    # The innermost context counts, for Flax's layers and for ours, and it ends.
    for net in (model, expected):
        with band_limited(None) as outer, band_limited(Modes(2), where="layers_0"):
            mixed = net.apply(variables, x)
        y = bandjax.linen.BandConv(3, (3,), band=Modes(2)).apply(
            {"params": variables["params"]["layers_0"]}, x
        )
        y = nn.Conv(2, (3,)).apply({"params": variables["params"]["layers_1"]}, y)
        assert gap(mixed, y) < 1e-6
        assert list(outer.limited) == ["layers_1"]
    assert np.array_equal(model.apply(variables, x), dense)


@pytest.mark.full
def test_what_energy_finds_is_sown():
    band = bandjax.Energy(0.9)
    x = draw(2, 12, 2) + 2
    model = nn.Conv(3, (3,), padding="CIRCULAR", use_bias=False)
    variables = model.init(jax.random.key(0), x)
    y, sown = band_limited(band)(functools.partial(model.apply, mutable="intermediates"))(
        variables, x
    )
    geometry = bandjax.conv_geometry(
        x.shape, (3, 2, 3), Modes(*map(int, modes_in(sown))), padding="CIRCULAR"
    )
    assert 0 < geometry.modes[0] < 6
    assert float(sown["intermediates"]["compression"][0]) == pytest.approx(geometry.compression)
    kernel = variables["params"]["kernel"]
    expected = bandjax.band_conv(x, kernel, Modes(*geometry.modes), padding="CIRCULAR")
    assert gap(y, expected) < 1e-6

    layer = nnx.Conv(2, 3, (3,), padding="CIRCULAR", use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = kernel
    band_limit(layer, band)
    y, captured = nnx.capture(layer, nnx.Intermediate)(x)
    assert gap(y, expected) < 1e-6
    assert [int(m) for m in jax.tree.leaves(captured["modes"])[0]] == list(geometry.modes)


def modes_in(sown):
    return sown["intermediates"]["modes"][0]


class Standard(nn.Conv):
    """Convolves as Flax does, on another input."""

    def __call__(self, inputs):
        return 3 * super().__call__(inputs - 1)


class Sum(nn.Conv):
    """Does not."""

    @nn.compact
    def __call__(self, inputs):
        return inputs + self.param("bias", nn.initializers.ones, (1, 1, 2))


def test_linen_subclasses():
    x = draw(2, 9, 2)
    layer = Standard(3, (3,))
    variables = layer.init(jax.random.key(0), x)
    plain = bandjax.linen.BandConv(3, (3,), band=Modes(1))
    assert (
        gap(band_limited(Modes(1))(layer.apply)(variables, x), 3 * plain.apply(variables, x - 1))
        < 1e-6
    )
    with pytest.raises(TypeError, match=r"Sum.__call__, of layer \(the model itself\), does not"):
        band_limited(Modes(1))(Sum(2, (3,)).init)(jax.random.key(0), x)


class Refused(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(2, (3,), name="up")(nn.Conv(2, (3,), name="good")(x))
        x = nn.ConvLocal(2, (3,), name="local")(x)
        x = nn.Conv(2, (3,), conv_general_dilated=lambda x, *a, **k: x, name="custom")(x)
        x = nn.Conv(2, 1, conv_general_dilated_cls=lambda: lambda x, *a, **k: x, name="cls")(x)
        hook = bandjax.conv_general_dilated(Modes(3))
        return nn.Conv(2, (3,), conv_general_dilated=hook, name="hook")(x)


def test_what_cannot_be_limited_in_linen_is_told():
    model, x = Refused(), draw(1, 8, 2)
    variables = model.init(jax.random.key(0), x)

    def twice():
        with band_limited(Compression(0.5)) as report:
            model.apply(variables, x)
            model.apply(variables, x)
        return report

    with pytest.warns(UserWarning, match="cannot be band-limited") as told:
        report = twice()
    assert len(told) == 4  # Each layer once.
    assert list(report.limited) == ["good", "hook"]
    assert report.refused["local"] == "its kernel differs from place to place"
    assert report.refused.keys() == {"up", "local", "custom", "cls"}
    with pytest.raises(ValueError, match=r"cannot be band-limited: up .*leave them out"):
        band_limited(None, strict=True)(model.apply)(variables, x)
    with band_limited(None, where=["good", "hook"], strict=True) as report:
        model.apply(variables, x)
    assert report.excluded == ["up", "local", "custom", "cls"]


@pytest.mark.parametrize("blocks", thinned([(1, 1), (2, 2, 2, 2)]))
def test_a_third_party_model(blocks):
    jax_resnet = pytest.importorskip("jax_resnet")
    model = jax_resnet.ResNet18(n_classes=5, stage_sizes=blocks)
    # Fewer numbers, and batch norm leaves nothing of the last map.
    x = draw(2, 16 * len(blocks), 16 * len(blocks), 3)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    exact, dense = jax.jit(
        lambda variables, x: (
            band_limited(Compression(0), method="dft")(
                functools.partial(model.apply, mutable=["batch_stats"])
            )(variables, x)[0],
            model.apply(variables, x, mutable=["batch_stats"])[0],
        )
    )(variables, x)
    assert 0 < gap(exact, dense) < 1e-5
