"""Models written for Flax's nnx layers, made band-limited as they are."""

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
from flax import linen as nn
from flax import nnx
from oracle import relative_gap as gap
from signals import draw

import bandjax
from bandjax import BandConv, Compression, Energy, Modes, Nyquist

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

    ours, theirs = jax.jit(lambda a, b, x: (a(x), b(x)))(model, wanted, x)
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
            "whole": nnx.Conv(2, 2, (3,), dtype=jnp.int32, rngs=rngs),
            "custom": nnx.Conv(2, 2, (3,), conv_general_dilated=lambda *a, **k: 0, rngs=rngs),
            "spectral": BandConv(
                2, 2, (3,), param_domain="spectral", spatial_shape=(8,), rngs=rngs
            ),
        }
    )
    with pytest.raises(ValueError, match=r"cannot be band-limited: custom .*where=, or say strict"):
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
        "whole": "it computes in int32",
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
            r"band Modes\(1, 1\) is for 2 spatial axes, but layer line has 1",
            lambda: band_limit(model, Energy(0.9, at_most=Modes(1, 1)), [nnx.Conv]),
        ),
        (
            ValueError,
            r"band Modes\(1, 1\) is for 2 spatial axes, but layer line has 1",
            lambda: band_limit(model, Energy(0.9, at_most=Nyquist(Modes(1, 1))), [nnx.Conv]),
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
