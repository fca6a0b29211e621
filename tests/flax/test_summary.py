"""What a model's convolutions keep and compute, against counts by hand and against derivatives."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import bandjax
from bandjax import Compression, Energy, Modes
from bandjax.memory import saved_bytes


def conv(*args, kind=nnx.Conv, **options):
    """A layer without parameters' values: nothing is compiled."""
    return nnx.eval_shape(lambda: kind(*args, rngs=nnx.Rngs(0), **options))


band_conv = functools.partial(conv, kind=bandjax.BandConv)


def only(model, *inputs, **keywords):
    (layer,) = bandjax.summary(model, *inputs, **keywords).layers
    return layer


# Two inputs of 9x8 with four channels, six outputs, 3x2 taps: SAME pads (1, 1) and (0, 1), so that
# the grid is 10x9. Modes(2, 1) keeps 5 rows of frequencies of both signs and 2 columns. The
# transform of a channel takes 2 real multiply-adds for each of 2 columns, 8 samples and 9 rows, and
# 4 for each of 5 frequencies, 9 rows and 2 columns: 288 + 360 = 648. Of the taps it takes
# 2 2 2 3 + 4 5 3 2 = 144.
SHAPE = (2, 9, 8, 4)
DENSE = 2 * 72 * 6 * 24


@pytest.mark.parametrize(
    ("method", "transforms", "products"),
    [
        ("dft", 8 * 648 + 24 * 144 + 12 * 648, 4 * 10 * 2 * 24),
        ("fft", round(1.25 * 90 * math.log2(90)) * (8 + 24 + 12), 4 * 10 * 2 * 24),
        # The window that the taps read has 9 + 2 rows and 8 + 1 columns.
        ("direct", 8 * (648 + 2 * 2 * 9 * 11 + 4 * 5 * 11 * 2), DENSE),
    ],
)
def test_a_layer_by_hand(method, transforms, products):
    layer = only(band_conv(4, 6, (3, 2), band=Modes(2, 1), method=method), SHAPE)
    assert (layer.path, layer.kind, layer.calls) == ("", "BandConv", 1)
    assert (layer.input_shape, layer.kernel_shape) == (SHAPE, (3, 2, 4, 6))
    assert layer.output_shape == (2, 9, 8, 6)
    assert (layer.geometry.grid, layer.geometry.modes) == ((10, 9), (2, 1))
    assert layer.compression == pytest.approx(1 - 10 / 50)
    assert not layer.at_most
    assert layer.method == method
    assert layer.kept_bytes == 2 * 10 * 2 * 4 * 4
    assert layer.dense_bytes == 2 * 72 * 4 * 4
    assert (layer.transforms, layer.products) == (transforms, products)
    assert layer.multiply_adds == transforms + products
    assert layer.dense_multiply_adds == DENSE


def test_dense_layers_by_hand():
    layer = only(conv(4, 6, (3, 2), feature_group_count=2, strides=2, use_bias=False), SHAPE)
    assert (layer.method, layer.geometry, layer.band) == ("dense", None, None)
    assert layer.compression == 0
    assert layer.kept_bytes == layer.dense_bytes == 2 * 72 * 4 * 4
    assert (layer.transforms, layer.products) == (0, 2 * 5 * 4 * 6 * 6 * 2)
    assert layer.multiply_adds == layer.dense_multiply_adds

    exact = only(band_conv(4, 6, (3, 2), method="direct"), SHAPE)
    assert (exact.transforms, exact.products, exact.kept_bytes) == (0, DENSE, 2 * 72 * 4 * 4)

    layer = only(conv(4, 6, (3, 2), (2, 2), kind=nnx.ConvTranspose), SHAPE)
    assert layer.output_shape == (2, 18, 16, 6)
    assert layer.multiply_adds == layer.dense_multiply_adds == 2 * 72 * 4 * 6 * 6

    # Four axes are beyond band-limited layers, not beyond Flax's.
    layer = only(conv(2, 3, (2, 2, 2, 2), padding="VALID"), (1, 3, 3, 3, 3, 2))
    assert layer.multiply_adds == 16 * 3 * 16 * 2

    # A convolution of somebody else's is not looked into.
    foreign = functools.partial(jax.lax.conv_general_dilated)
    own = conv(4, 6, (3, 2), conv_general_dilated=foreign)
    assert only(own, SHAPE).method == "dense"


def test_long_axes_are_projected_by_fft():
    layer = only(band_conv(1, 1, (3,), band=Modes(1), method="direct"), (1, 999, 1))
    assert layer.transforms == 2 * round(1.25 * 1000 * math.log2(1000))
    assert layer.products == 3 * 999


KEPT = [
    {},
    {"band": Compression(0.5)},
    {"band": Compression(0.5), "residual_dtype": "bfloat16"},
    {"band": Compression(0.5), "residual_dtype": "int8"},
    {"residual_dtype": "int8"},
    {"band": Modes(1, 2), "padding": "CIRCULAR", "kernel_dilation": 2},
    {"band": Compression(0.1), "padding": "REFLECT"},
    {"band": Modes(3, 2), "strides": 2, "padding": "VALID", "feature_group_count": 2},
    {"band": Modes(3, 2), "recompute_filter": False, "method": "dft", "feature_group_count": 2},
    {"band": Modes(3, 2), "recompute_filter": False, "method": "direct"},
    {"band": Energy(0.9)},
    {"band": Energy(0.9, Modes(2, 2)), "residual_dtype": "int8"},
    {"band": Modes(3, 2), "recompute_filter": False, "method": "fft", "residual_dtype": "float16"},
]


@pytest.mark.parametrize("options", KEPT, ids=str)
def test_kept_bytes_are_those_of_the_derivative(options):
    """An independent count: the residuals of the layer's derivative, less its parameters."""
    layer = band_conv(4, 6, (3, 2), use_bias=False, **options)
    graph, state = nnx.split(layer)
    # Negated, so that the input is made and not given; the sign itself keeps nothing.
    saved = saved_bytes(
        lambda state, x: nnx.merge(graph, state)(-x), state, jax.ShapeDtypeStruct(SHAPE, "float32")
    )
    record = only(layer, SHAPE)
    assert record.kept_bytes == saved.total

    plain = {k: v for k, v in options.items() if k in ("padding", "kernel_dilation", "strides")}
    groups = options.get("feature_group_count", 1)
    graph, state = nnx.split(conv(4, 6, (3, 2), feature_group_count=groups, **plain))
    saved = saved_bytes(
        lambda state, x: nnx.merge(graph, state)(-x), state, jax.ShapeDtypeStruct(SHAPE, "float32")
    )
    assert record.dense_bytes == saved.total


def test_types():
    half = band_conv(4, 6, (3, 2), band=Compression(0.5), dtype=jnp.bfloat16)
    single = band_conv(4, 6, (3, 2), band=Compression(0.5))
    record = only(half, SHAPE)
    assert record.dtype == jnp.bfloat16
    assert 2 * record.kept_bytes == only(single, SHAPE).kept_bytes
    assert 2 * record.dense_bytes == only(single, SHAPE).dense_bytes
    with jax.numpy_dtype_promotion("standard"):
        assert only(single, jax.ShapeDtypeStruct(SHAPE, "bfloat16")).dtype == jnp.float32


def test_energy_is_a_bound():
    band = Energy(0.9, at_most=Modes(2, 1))
    layer = only(band_conv(4, 6, (3, 2), band=band, method="dft"), SHAPE)
    assert layer.at_most
    assert layer.geometry.modes == (2, 1)
    assert (
        layer.multiply_adds
        == only(band_conv(4, 6, (3, 2), band=Modes(2, 1), method="dft"), SHAPE).multiply_adds
    )


def test_filters_in_the_frequency_domain_are_not_transformed():
    options = {"band": Modes(2, 1), "method": "dft", "rngs": nnx.Rngs(0)}
    layer = bandjax.BandConv(4, 6, (3, 2), **options)
    bandjax.nnx.to_spectral(layer, SHAPE)
    record = only(layer, SHAPE)
    assert record.method == "dft"
    assert record.transforms == 8 * 648 + 12 * 648


# Models.


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = bandjax.BandConv(4, 4, (3, 3), band=Compression(0.5), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.conv(x))))


class FlaxRemat(Block):
    @nnx.remat
    def __call__(self, x):
        return Block.__call__(self, x)


class OwnRemat(Block):
    @bandjax.nnx.remat
    def __call__(self, x):
        return Block.__call__(self, x)


class Jitted(Block):
    @nnx.jit
    def __call__(self, x):
        return Block.__call__(self, x)


class Standardised(nnx.Conv):
    """A subclass that somebody else wrote."""

    def __call__(self, x, scale=1.0):
        return scale * super().__call__(x)


class Net(nnx.Module):
    def __init__(self, rngs):
        blocks = [kind(rngs) for kind in (Block, FlaxRemat, OwnRemat, Jitted)]
        self.blocks = nnx.List(blocks)
        low = bandjax.conv_general_dilated(Compression(0.5))
        self.shared = nnx.Conv(4, 4, (3, 3), conv_general_dilated=low, rngs=rngs)
        self.again = self.shared
        self.pool = nnx.Conv(4, 4, (3, 3), strides=2, rngs=rngs)
        self.own = Standardised(4, 4, (3, 3), rngs=rngs)
        self.unused = nnx.Conv(4, 4, (1, 1), rngs=rngs)

    def __call__(self, x, scale=None, *, last):
        for block in self.blocks:
            x = block(x)
        x = jax.checkpoint(lambda x: self.again(self.shared(x)))(x)
        x = self.own(self.shared(self.pool(x)), scale=scale)
        return {"y": x} if last else None


@pytest.mark.full
def test_a_model_of_everything():
    net = Net(nnx.Rngs(0))
    x = jnp.ones((2, 9, 9, 4))
    scale = jax.ShapeDtypeStruct((), "float32")
    # A jitted block is traced here; it must be seen all the same.
    nnx.eval_shape(lambda block, x: block(x), net.blocks[3], x)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngKey))))
    with jax.checking_leaks():
        summary = bandjax.summary(net, x, scale=scale, last=True)
    after = nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngKey)))
    jax.tree.map(np.testing.assert_array_equal, before, after)

    told = [(layer.path, layer.kind, layer.calls, layer.input_shape) for layer in summary.layers]
    assert told == [
        *((f"blocks.{i}.conv", "BandConv", 1, (2, 9, 9, 4)) for i in range(4)),
        ("shared", "Conv", 2, (2, 9, 9, 4)),
        ("pool", "Conv", 1, (2, 9, 9, 4)),
        ("shared", "Conv", 1, (2, 5, 5, 4)),
        ("own", "Standardised", 1, (2, 5, 5, 4)),
    ] or told == [  # Of two names of one layer either.
        (path.replace("shared", "again"), *rest) for path, *rest in told
    ]
    assert summary.uncalled == ("unused",)
    *blocks, twice, pool, small, own = summary.layers
    limited = dataclasses.replace(blocks[0], path="", calls=1, kind="")
    for layer in (*blocks, twice):
        assert dataclasses.replace(layer, path="", calls=1, kind="") == limited
    assert pool.geometry is None
    # 10x10 keeps 7x4 of 60 coefficients, 6x6 keeps 3x2 or 5x3 of 24.
    assert blocks[0].geometry.kept == 28
    assert blocks[0].kept_bytes == 2 * 28 * 2 * 4 * 4
    kept = 6 * 28 + small.geometry.kept
    assert summary.compression == pytest.approx(1 - kept / (6 * 60 + 24))
    assert summary.kept_bytes == (6 * 1792 + pool.dense_bytes + small.kept_bytes + own.dense_bytes)
    assert summary.dense_bytes == 7 * 2 * 81 * 4 * 4 + 2 * (2 * 25 * 4 * 4)
    assert summary.dense_multiply_adds == 144 * 2 * (6 * 81 + 3 * 25)
    assert summary.multiply_adds == sum(n.calls * n.multiply_adds for n in summary.layers)

    # As abstract model, and by shapes alone.
    ghost = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    assert bandjax.summary(ghost, (2, 9, 9, 4), scale=scale, last=False) == summary


class LinenBlock(flax.linen.Module):
    train: bool

    @flax.linen.compact
    def __call__(self, x):
        x = bandjax.linen.BandConv(4, (3, 3), band=Compression(0.5))(inputs=x)
        x = flax.linen.BatchNorm(use_running_average=not self.train)(x)
        return flax.linen.Dropout(0.5, deterministic=not self.train)(x)


class LinenNet(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x, *, train):
        x = LinenBlock(train)(x)
        x = flax.linen.remat(LinenBlock)(train, name="recomputed")(x)
        low = bandjax.conv_general_dilated(Compression(0.5))
        shared = flax.linen.Conv(4, (3, 3), conv_general_dilated_cls=lambda: low, name="shared")
        x = shared(shared(x))
        x = flax.linen.Conv(4, (3, 3), conv_general_dilated=low, padding="CIRCULAR")(x)
        x = flax.linen.ConvTranspose(4, (3, 3))(x)
        return flax.linen.Conv(6, 3, strides=2, feature_group_count=2)(x[:, 0])


def test_a_linen_model():
    x = jax.ShapeDtypeStruct((2, 9, 9, 4), "float32")
    summary = bandjax.summary(LinenNet(), x, train=True)
    told = [(layer.path, layer.kind, layer.calls) for layer in summary.layers]
    assert told == [
        ("LinenBlock_0/Conv_0", "BandConv", 1),
        ("recomputed/Conv_0", "BandConv", 1),
        ("shared", "Conv", 2),
        ("Conv_0", "Conv", 1),
        ("ConvTranspose_0", "ConvTranspose", 1),
        ("Conv_1", "Conv", 1),
    ]
    *blocks, circular, transposed, last = summary.layers
    expected = only(band_conv(4, 4, (3, 3), band=Compression(0.5)), x)
    for layer in blocks:
        assert dataclasses.replace(layer, path="", kind="BandConv", calls=1) == expected
    # The hook sees what Flax has wrapped: 9 + 2 samples, VALID.
    assert circular.geometry.grid == (11, 11)
    assert circular.dense_bytes == 2 * 121 * 4 * 4
    assert transposed.multiply_adds == 2 * 81 * 9 * 16
    assert (last.kernel_shape, last.output_shape) == ((3, 2, 6), (2, 5, 6))
    assert last.multiply_adds == 2 * 5 * 6 * 3 * 2

    variables = jax.eval_shape(
        lambda k: LinenNet().init(k, jnp.ones((2, 9, 9, 4)), train=False), jax.random.key(0)
    )
    again = bandjax.summary(
        LinenNet(), x, variables=variables, rngs={"dropout": jax.random.key(1)}, train=True
    )
    assert again == summary


def test_table_text_and_json():
    net = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    net.blocks[0].conv.band = Energy(0.9)
    summary = bandjax.summary(net, (2, 9, 9, 4), scale=np.float32(1), last=True)
    console = Console(file=io.StringIO(), width=80)
    console.print(summary.table())
    shown = console.file.getvalue()
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "…" not in shown
    assert "≤5×5" in shown
    assert "10×10" in shown
    assert "dense" in shown
    assert "not called: unused" in shown
    assert "an Energy band chooses" in shown
    total = next(line for line in shown.splitlines() if "│ all" in line)
    assert f"{summary.kept_bytes / 1024:.4g}" in total
    assert f"{100 * summary.multiply_adds / summary.dense_multiply_adds:.1f}" in total

    text = str(summary)
    assert len(text.splitlines()) == len(summary.layers) + 2
    assert "blocks.0.conv: grid 10×10, |u| <= at most 5×5, drops at least 0.0 %" in text
    assert "blocks.1.conv: grid 10×10, |u| <= 3×3, drops 53.3 %" in text
    assert "pool: dense, keeps" in text
    assert "not called: unused" in text

    record = json.loads(json.dumps(summary.as_dict()))
    assert record["kept_bytes"] == summary.kept_bytes
    assert record["uncalled"] == ["unused"]
    first, second = record["layers"][:2]
    assert (first["band"], first["at_most"]) == ("Energy(share=0.9, at_most=None)", True)
    assert (second["grid"], second["modes"]) == ([10, 10], [3, 3])
    assert (second["kept"], second["total"], second["dtype"]) == (28, 60, "float32")
    dense = next(layer for layer in record["layers"] if layer["path"] == "pool")
    assert dense["grid"] is None
    assert dense["band"] is None


def test_a_model_without_convolutions():
    summary = bandjax.summary(conv(2, 3, kind=nnx.Linear), (5, 2))
    assert summary.layers == ()
    assert summary.compression == 0
    assert summary.table().row_count == 1


def test_refusals():
    with pytest.raises(
        TypeError, match=r"must be a flax\.nnx\.Module or a flax\.linen\.Module, got function"
    ):
        bandjax.summary(lambda x: x, (2, 3))
    with pytest.raises(TypeError, match=r"variables are for a flax\.linen model"):
        bandjax.summary(conv(4, 4, (3, 3)), (2, 9, 9, 4), variables={})
    with pytest.raises(TypeError, match="inputs are missing: the model's arguments"):
        bandjax.summary(conv(4, 4, (3, 3)))
    with pytest.raises(TypeError, match=r"inputs must be arrays, .* got 'x'"):
        bandjax.summary(conv(4, 4, (3, 3)), "x")
    with pytest.raises(ValueError, match="Modes"):
        bandjax.summary(band_conv(4, 4, (3, 3), band=Modes(9, 9)), (2, 9, 9, 4))
