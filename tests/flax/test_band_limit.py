"""Models written for Flax's own layers, made band-limited as they are."""

from __future__ import annotations

import functools
import re
import sys
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
from calls import quick_jit
from flax import linen as nn
from flax import nnx

import bandjax
from bandjax import BandConv, Compression, Modes

band_limit, band_limited = bandjax.nnx.band_limit, bandjax.linen.band_limited

# Arguments of 1-D layers with 4 input channels; the first with the widest range.
VARIANTS = {
    "same": {},
    "circular": {"padding": "CIRCULAR", "strides": 2},
    "reflect": {"padding": "REFLECT", "kernel_dilation": 2},
    "causal": {"padding": "CAUSAL"},
    "pads": {"padding": [(2, 0)], "input_dilation": 2, "use_bias": False},
    "groups": {"feature_group_count": 2},
    "masked": {
        "mask": jnp.asarray(np.random.default_rng(3).integers(0, 2, (3, 4, 6)), jnp.float32)
    },
    "half": {"dtype": jnp.bfloat16},
}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def gap(actual, expected):
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    return np.abs(actual - expected).max() / np.abs(expected).max()


class Bundle(nnx.Module):
    """Layers of every kind, in lists, dictionaries and modules within modules."""

    def __init__(self, rngs, conv=nnx.Conv, **more):
        self.lines = nnx.Dict(
            {name: conv(4, 6, 3, rngs=rngs, **args, **more) for name, args in VARIANTS.items()}
        )
        self.nested = nnx.List([nnx.Sequential(conv(4, 5, (3, 2), rngs=rngs, **more), nnx.relu)])
        self.volume = conv(4, 2, (2, 3, 3), rngs=rngs, **more)
        self.alias = self.volume
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        x = self.norm(x)
        lines = {name: line(x) for name, line in self.lines.items()}
        return {**lines, "plane": self.nested[0](x), "volume": self.alias(x)}


SHAPE = (2, 6, 7, 10, 4)  # batch, volume or further batch axes, channels


@pytest.mark.parametrize("band", [Compression(0), Modes(2), None], ids=str)
def test_every_layer_of_a_model_becomes_a_band_conv(band):
    model, x = Bundle(nnx.Rngs(0)), draw(*SHAPE)
    where = None if band is None or isinstance(band, Compression) else "lines.*"
    if where is not None:
        wanted = Bundle(nnx.Rngs(0))
        wanted.lines = Bundle(nnx.Rngs(0), BandConv, band=band).lines
    else:
        wanted = Bundle(nnx.Rngs(0))
    before = [leaf for _, leaf in nnx.graph.iter_graph(model) if isinstance(leaf, nnx.Variable)]
    state = jax.tree.map(np.asarray, nnx.state(model))
    report = band_limit(model, band, where)
    after = [leaf for _, leaf in nnx.graph.iter_graph(model) if isinstance(leaf, nnx.Variable)]
    assert len(before) == len(after) > 10
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert jax.tree.structure(nnx.state(model)) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(model), state))
    assert len(report.limited) == (len(VARIANTS) if where else len(VARIANTS) + 2)
    assert len(report.excluded) == (2 if where else 0)
    assert set(report.limited.values()) == {band}
    assert not report.refused

    ours, theirs = quick_jit(lambda a, b, x: (a(x), b(x)))(model, wanted, x)
    for name, y in theirs.items():
        assert ours[name].dtype == y.dtype
        assert gap(ours[name], y) < (1e-2 if name == "half" else 2e-6), name
    if where is not None:
        dense = Bundle(nnx.Rngs(0)).lines.same(x)
        assert gap(ours["same"], dense) > 0.1


def test_a_limited_model_trains_on_with_its_optimizer():
    model, x = nnx.Sequential(nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0)), nnx.relu), draw(2, 8, 2)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, gradient = nnx.value_and_grad(lambda model: (model(x) ** 2).sum())(model)
        optimizer.update(model, gradient)
        return loss

    dense = float(step(model, optimizer, x))
    reference = nnx.clone(model)
    band_limit(model, Modes(1))
    # The function that was compiled for the dense model is compiled again.
    limited = float(step(model, optimizer, x))
    kernel, bias = reference.layers[0].kernel[...], reference.layers[0].bias[...]
    y = nnx.relu(bandjax.band_conv(x, kernel, Modes(1)) + bias[None, None])
    assert limited == pytest.approx(float((y**2).sum()), rel=1e-5)
    assert limited != pytest.approx(dense, rel=1e-2)
    assert not np.array_equal(model.layers[0].kernel[...], kernel)
    # There and back: a checkpoint of one is that of the other, and None is the dense model.
    nnx.update(reference, nnx.state(model))
    band_limit(model, None)
    assert gap(model(x), reference(x)) < 1e-6
    assert isinstance(model.layers[0], BandConv)


def test_options_reach_the_layers():
    rngs = nnx.Rngs(0)
    model = nnx.List(
        [
            nnx.Conv(2, 3, (3,), rngs=rngs),
            nnx.Conv(2, 3, (3,), padding="CIRCULAR", rngs=rngs),
            BandConv(2, 3, (3,), band=Modes(1), method="fft", rngs=rngs),
            nnx.Conv(
                2, 3, (3,), conv_general_dilated=bandjax.conv_general_dilated(Modes(1)), rngs=rngs
            ),
        ]
    )
    options = {
        "method": "dft",
        "implementation": "xla",
        "residual_dtype": jnp.bfloat16,
        "recompute_filter": False,
    }
    band_limit(model, Compression(0.5), grid=[20], **options)
    for layer, grid in zip(model, ((20,), None, (20,), (20,)), strict=True):
        assert type(layer) is BandConv
        assert (layer.band, layer.grid) == (Compression(0.5), grid)
        assert {name: getattr(layer, name) for name in options} == options
        assert layer.conv_general_dilated is jax.lax.conv_general_dilated
        assert layer.geometry((1, 8, 2)).grid == (grid or (8,))
    expected = bandjax.band_conv(
        draw(1, 8, 2), model[3].kernel[...], Compression(0.5), grid=20, residual_dtype=jnp.bfloat16
    )
    assert gap(model[3](draw(1, 8, 2)), expected) < 1e-6


def zoo():
    rngs = nnx.Rngs(0)
    return nnx.Dict(
        {
            "stem": nnx.Conv(2, 2, (3, 3), rngs=rngs),
            "block": nnx.Dict(conv=nnx.Conv(2, 2, (1, 1), rngs=rngs), up=transposed()),
            "line": nnx.Conv(2, 4, 3, feature_group_count=2, rngs=rngs),
        }
    )


def transposed():
    return nnx.ConvTranspose(2, 2, (3, 3), rngs=nnx.Rngs(1))


@pytest.mark.parametrize(
    ("where", "selected"),
    [
        ("block.*", ["block.conv", "block.up"]),
        ("*conv", ["block.conv"]),
        (re.compile(r"^(stem|line)"), ["line", "stem"]),
        ((3, 3), ["block.up", "stem"]),
        ((3,), ["line"]),
        ([(3,), "stem"], ["line", "stem"]),
        (nnx.Conv, ["block.conv", "line", "stem"]),
        (lambda layer: layer.module.feature_group_count > 1, ["line"]),
    ],
    ids=["path", "end", "regex", "size", "size-1d", "any", "class", "function"],
)
def test_where_selects(where, selected):
    if callable(where) and not isinstance(where, type):
        where = functools.partial(lambda f, layer: "up" not in layer.path and f(layer), where)
    model = zoo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = band_limit(model, Compression(0.5), where)
    assert sorted([*report.limited, *report.refused]) == selected
    assert len(report.limited) + len(report.excluded) + len(report.refused) == 4
    for path, layer in (("stem", model.stem), ("block.conv", model.block.conv)):
        assert isinstance(layer, BandConv) == (path in selected)


class Own(nnx.Conv):
    """A subclass with a method of its own that convolves as Flax does: standardised weights."""

    def __call__(self, inputs):
        return 3 * super().__call__(inputs - 1)


class Rebel(nnx.Conv):
    """One that does not."""

    def __call__(self, inputs):
        return jnp.einsum("bxi,xio->bo", inputs[:, :3], self.kernel[...])


def test_subclasses():
    x = draw(2, 9, 2)
    model, plain = (
        Own(2, 3, 3, rngs=nnx.Rngs(0)),
        BandConv(2, 3, 3, band=Modes(1), rngs=nnx.Rngs(0)),
    )
    again = Own(2, 3, 3, rngs=nnx.Rngs(0))
    for _ in range(2):  # The second time it is limited already.
        band_limit(model, Modes(1))
    band_limit(again, Modes(1))
    assert isinstance(model, Own)
    assert type(model).__name__ == "BandOwn"
    assert type(model) is type(again)
    assert gap(model(x), 3 * plain(x - 1)) < 1e-6
    assert gap(nnx.jit(lambda model, x: model(x))(model, x), 3 * plain(x - 1)) < 1e-6

    model = Rebel(2, 3, 3, rngs=nnx.Rngs(0))
    band_limit(model, Modes(1))
    with pytest.raises(TypeError, match=r"Rebel.__call__ does not convolve by super\(\).__call__"):
        model(x)
    with pytest.raises(ValueError, match="never called: "):
        bandjax.calibrate(Rebel(2, 3, 3, rngs=nnx.Rngs(0)), [x], bandjax.Energy(0.9))


def test_what_cannot_be_limited_is_told():
    rngs = nnx.Rngs(0)
    model = nnx.Dict(
        {
            "good": nnx.Conv(2, 2, (3,), rngs=rngs),
            "up": transposed(),
            "deep": nnx.Conv(2, 2, (1, 1, 1, 1), rngs=rngs),
            "complex": nnx.Conv(2, 2, (3,), param_dtype=jnp.complex64, rngs=rngs),
            "custom": nnx.Conv(2, 2, (3,), conv_general_dilated=lambda *a, **k: 0, rngs=rngs),
            "spectral": BandConv(
                2, 2, (3,), param_domain="spectral", spatial_shape=(8,), rngs=rngs
            ),
        }
    )
    with pytest.raises(
        ValueError, match=r"cannot be band-limited: complex .*where=, or say strict"
    ):
        band_limit(model, Modes(1), strict=True)
    assert type(model.good) is nnx.Conv
    with pytest.warns(
        UserWarning, match=r"up \(a transposed convolution: .*deep|deep .*up"
    ) as told:
        report = band_limit(model, Modes(1))
    assert told[0].filename == __file__
    assert isinstance(model.good, BandConv)
    assert list(report.limited) == ["good"]
    assert {path: reason.split(",")[0][:24] for path, reason in report.refused.items()} == {
        "up": "a transposed convolution",
        "deep": "4 spatial axes",
        "complex": "it computes in complex64",
        "custom": "it has a conv_general_di",
        "spectral": "its parameters are spect",
    }
    told = str(report)
    console = rich.console.Console(width=200, record=True, quiet=False, file=mock.MagicMock())
    console.print(report.table())
    for text in (told, console.export_text()):
        assert "convolutions: 1 band-limited, 0 not selected, 5 impossible" in text
        assert "NOT limited: 4 spatial axes, at most 3" in text
    with (
        mock.patch.dict(sys.modules, {"rich.table": None}),
        pytest.raises(ImportError, match="rich"),
    ):
        report.table()


def test_band_limit_refuses():
    model = zoo()
    for error, message, call in (
        (TypeError, "model must be a flax.nnx module", lambda: band_limit(nn.Conv(2, 3), None)),
        (TypeError, "band must be", lambda: band_limit(model, 0.5)),
        (TypeError, "band must be", lambda: band_limited(0.5)),
        (TypeError, r"where must be .* got \(\)", lambda: band_limit(model, None, ())),
        (TypeError, "where must be", lambda: band_limited(None, where=3)),
        (ValueError, "unknown method|method must be", lambda: band_limit(model, None, method="x")),
        (
            ValueError,
            r"selected \(those of the model: .*stem",
            lambda: band_limit(model, None, "x"),
        ),
        (
            ValueError,
            r"selected \(those of the model: none\)",
            lambda: band_limit(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), None),
        ),
        (
            ValueError,
            r"band Modes\(1, 1\) is for 2 spatial axes, but layer line has 1",
            lambda: band_limit(model, Modes(1, 1), [nnx.Conv]),
        ),
        (
            ValueError,
            r"grid \(9,\) is for 1 spatial axes, but layer .* has 2",
            lambda: band_limit(model, None, nnx.Conv, grid=[9]),
        ),
        (TypeError, "decorates functions", lambda: band_limited(None)(3)),
    ):
        with pytest.raises(error, match=message):
            call()
    assert all(type(layer) is not BandConv for _, layer in nnx.iter_modules(model))


@nnx.vmap(in_axes=0, out_axes=0)
def stacked(key):
    return nnx.Conv(4, 4, (3,), rngs=nnx.Rngs(key))


def test_stacked_layers():
    layers, x = stacked(jax.random.split(jax.random.key(1), 3)), draw(2, 9, 4)
    kernels, biases = layers.kernel[...], layers.bias[...]
    band_limit(layers, Modes(2))
    scan = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    each = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
    y, ys, expected = x, [], []
    for kernel, bias in zip(kernels, biases, strict=True):
        y = bandjax.band_conv(y, kernel, Modes(2)) + bias[None, None]
        expected.append(bandjax.band_conv(x, kernel, Modes(2)) + bias[None, None])
    ys = each(layers, x)
    assert gap(scan(layers, x), y) < 1e-6
    assert gap(ys, jnp.stack(expected)) < 1e-6


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
    [(ResNet, (2, 9, 8, 3), 6, Modes(2, 1)), (Parts, (2, 12, 4), 6, Modes(2))],
)
def test_linen_models_are_those_of_band_convs(kind, shape, layers, limit):
    x = draw(*shape)
    model = kind()

    class Conv(bandjax.linen.BandConv):  # Flax names layers after their class.
        band: object = limit

    limited = kind(Conv)
    variables = quick_jit(model.init)(jax.random.key(0), x)
    reports = []

    @quick_jit
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
    assert gap(narrow, quick_jit(limited.apply)(variables, x)) < 2e-6
    assert gap(narrow, dense) > 1e-2
    assert len(reports[0].limited) == layers
    assert not reports[0].refused
    assert "block_1/project" in reports[0].limited or "scanned/conv" in reports[0].limited


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


def test_a_third_party_model():
    jax_resnet = pytest.importorskip("jax_resnet")
    model = jax_resnet.ResNet18(n_classes=5)
    x = draw(2, 64, 64, 3)  # Fewer numbers, and batch norm leaves nothing of the last map.
    variables = quick_jit(model.init)(jax.random.key(0), x)
    exact, dense = quick_jit(
        lambda variables, x: (
            band_limited(Compression(0), method="dft")(
                functools.partial(model.apply, mutable=["batch_stats"])
            )(variables, x)[0],
            model.apply(variables, x, mutable=["batch_stats"])[0],
        )
    )(variables, x)
    assert 0 < gap(exact, dense) < 1e-5
