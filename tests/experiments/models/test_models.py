"""The networks' shapes and parameters."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bandjax
from experiments.models import build
from experiments.models.densenet import DenseNet
from experiments.models.fcn import FCN
from experiments.models.resnet import BasicBlock, PaddedBlock, ResNet, resnet8, resnet50
from experiments.models.unet import UNet3D
from experiments.settings.compiler import quick_jit
from experiments.settings.errors import UserError

pytestmark = pytest.mark.thin(2)

SHAPES = {"cnn": (8, 8, 1), "fcn": (70, 1), "lenet": (32, 32, 3)}
# Counted by hand: kernels, biases, batch-norm scales and offsets, the dense head.
PARAMETERS = {
    "cnn": 9 * (1 * 32 + 32 * 64 + 64 * 64) + 2 * (32 + 64 + 64) + 65 * 10,
    "fcn": 8 * 128 + 5 * 128 * 256 + 3 * 256 * 128 + 2 * (128 + 256 + 128) + 129 * 10,
    "lenet": (25 * 3 + 1) * 6 + (25 * 6 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10,
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_logits(name):
    model = build(name, SHAPES[name], 10, band=None)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == PARAMETERS[name]
    other = build(name, SHAPES[name], 10, band=bandjax.Compression(0.5))
    x = np.random.default_rng(0).normal(size=(3, *SHAPES[name])).astype(np.float32)
    dense, limited = quick_jit(lambda x: (model(x), other(x)))(x)
    assert dense.shape == limited.shape == (3, 10)
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


def parameters(make):
    state = nnx.state(nnx.eval_shape(make), nnx.Param)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def growing(channels, growth, layers):
    """Parameters of a dense block of DenseNet-BC, and its channels."""
    total = 0
    for _ in range(layers):
        total += 2 * channels + channels * 4 * growth  # batch norm, 1x1
        total += 2 * 4 * growth + 9 * 4 * growth * growth  # batch norm, 3x3
        channels += growth
    return total, channels


def densenet_by_hand(growth):
    """Parameters of DenseNet-121 with the stem for CIFAR, for 10 classes."""
    channels = 2 * growth
    expected = 27 * channels
    for layers in (6, 12, 24, 16):
        block, channels = growing(channels, growth, layers)
        expected += block
        if layers != 16:
            expected += 2 * channels + channels * (channels // 2)
            channels //= 2
    return expected + 2 * channels + channels * 10 + 10


def test_known_numbers_of_parameters():
    imagenet = {"band": None, "stem": "imagenet"}
    shape = (224, 224, 3)
    assert parameters(lambda: ResNet(shape, 1000, **imagenet, rngs=nnx.Rngs(0))) == 11_689_512
    assert densenet_by_hand(12) == 1_000_618


@pytest.mark.parametrize(
    ("name", "shape", "classes", "published"),
    [
        ("resnet8", (32, 32, 3), 10, 75_290),
        ("resnet20", (32, 32, 3), 10, 269_722),
        ("resnet18", (32, 32, 3), 10, 11_173_962),
        ("resnet18-pool", (32, 32, 3), 10, 11_173_962),
        ("resnet50", (224, 224, 3), 1000, 25_557_032),
        pytest.param("densenet121", (224, 224, 3), 1000, 7_978_856, marks=pytest.mark.full),
        pytest.param(
            "densenet121-12", (32, 32, 3), 10, densenet_by_hand(12), marks=pytest.mark.full
        ),
    ],
)
def test_networks_by_name(name, shape, classes, published):
    band = bandjax.Compression(0.5)
    assert parameters(lambda: build(name, shape, classes, band=band)) == published


def test_the_papers_resnet18_pools_after_its_stem():
    """Stages of 16, 8, 4 and 2 points, not of 32, 16, 8 and 4."""
    sizes = []

    def run(x):
        for name in ("resnet18-pool", "resnet18"):
            model = build(name, (32, 32, 3), 10, band=None)
            y = nnx.relu(model.norm(model.stem(x)))
            if model.stem_pool:
                y = nnx.max_pool(y, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
            sizes.append([])
            for block in model.blocks:
                y = block(y)
                sizes[-1].append(y.shape[1])
        return model(x)

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))
    assert sizes == [[16, 16, 8, 8, 4, 4, 2, 2], [32, 32, 16, 16, 8, 8, 4, 4]]


@pytest.mark.thin(2)
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", jnp.bfloat16), ("fp16", jnp.float16)])
def test_half_precision_computes_in_half_and_keeps_float32(precision, dtype):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    half, full = (
        build("cnn", (8, 8, 1), 10, band=bandjax.Compression(0.5), precision=p)
        for p in (precision, "float32")
    )
    logits, exact = quick_jit(lambda x: (half(x), full(x)))(x)
    assert logits.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    difference = np.abs(np.asarray(logits, np.float32) - exact).max()
    assert 0 < difference < 16 * jnp.finfo(dtype).eps * np.abs(exact).max()


SMALL = {
    "basic": ((8, 8, 3), functools.partial(ResNet, widths=(4, 8), blocks=(1, 1))),
    "padded": ((8, 8, 3), functools.partial(resnet8, width=4)),
    "bottleneck": (
        (16, 16, 3),
        functools.partial(resnet50, widths=(4,), blocks=(1,)),
    ),
    "densenet": ((8, 8, 3), functools.partial(DenseNet, growth=4, blocks=(2, 1))),
    "unet": ((8, 4, 8, 2), functools.partial(UNet3D, widths=(4, 6))),
    "fcn": ((20, 1), FCN),
}


def steps_of(name, *options):
    """Logits, statistics and gradient of a training step, of each network that options tell."""
    shape, make = SMALL[name]

    def step(key, x, options):
        model = make(shape, 3, **options, rngs=nnx.Rngs(key))
        model.train()
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest):
            model = nnx.merge(graph, params, rest, copy=True)
            logits = model(x)
            return jnp.sum(jnp.sin(logits)), (logits, nnx.state(model, nnx.BatchStat))

        gradient, (logits, stats) = jax.grad(loss, has_aux=True)(params, rest)
        return jax.tree.leaves(logits), jax.tree.leaves(stats), jax.tree.leaves(gradient)

    x = np.random.default_rng(5).normal(size=(4, *shape)).astype(np.float32)
    return quick_jit(lambda *data: [step(*data, each) for each in options])(jax.random.key(0), x)


def assert_close(actual, expected, tolerance):
    for some, wanted in zip(actual, expected, strict=True):
        largest = max(float(jnp.abs(b).max()) for b in wanted)
        for a, b in zip(some, wanted, strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() <= tolerance * largest


def some(*names):
    """By default these alone: what else there is shares their code."""
    return [pytest.param(name, marks=[pytest.mark.full] * (name not in names)) for name in SMALL]


@pytest.mark.parametrize("name", some("basic"))
def test_every_frequency_is_the_dense_network(name):
    ours, dense = steps_of(name, {"band": None}, {"band": None, "convolution": nnx.Conv})
    assert_close(ours, dense, 1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", some("basic"))
def test_recomputed_blocks_change_nothing(name):
    band = bandjax.Compression(0.5)
    spared, half = steps_of(name, {"band": band, "remat": bandjax.nnx.remat}, {"band": band})
    assert_close(spared, half, 1e-4)


@pytest.mark.parametrize(
    ("make", "shape", "part"),
    [
        (ResNet, (8, 3), "height, width, channels"),
        (DenseNet, (8, 3), "height, width, channels"),
        (UNet3D, (8, 8, 3), "depth, height, width, channels"),
        (UNet3D, (8, 6, 8, 1), "divisible by 4"),
        (functools.partial(ResNet, stem="wide"), (8, 8, 3), "stem must be"),
        (functools.partial(DenseNet, stem="wide"), (8, 8, 3), "stem must be"),
    ],
)
def test_examples_that_a_network_cannot_take(make, shape, part):
    with pytest.raises(ValueError, match=part):
        make(shape, 3, band=None, rngs=nnx.Rngs(0))


def test_resnet_with_the_papers_pooling(monkeypatch):
    seen = []
    call = BasicBlock.__call__
    monkeypatch.setattr(
        BasicBlock, "__call__", lambda block, x: seen.append(x.shape[1:]) or call(block, x)
    )

    def run(x):
        for pool in (False, True):
            options = {"stem_pool": pool, "widths": (4, 8), "blocks": (1, 1)}
            model = ResNet((16, 16, 3), 5, band=None, **options, rngs=nnx.Rngs(0))
            model.eval()
            assert model(x).shape == (2, 5)

    jax.eval_shape(run, jax.ShapeDtypeStruct((2, 16, 16, 3), "float32"))
    assert seen == [(16, 16, 4), (16, 16, 4), (8, 8, 4), (8, 8, 4)]


def test_a_padded_shortcut_takes_every_second_point():
    """A block whose convolutions are zero is its shortcut."""
    x = np.random.default_rng(2).normal(size=(2, 5, 6, 3)).astype(np.float32)
    for width, stride in ((3, 1), (7, 2)):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=nnx.Rngs(0))
        zero = functools.partial(conv, kernel_init=nnx.initializers.zeros)
        block = PaddedBlock(zero, 3, width, stride, nnx.Rngs(0))
        block.eval()
        expected = np.zeros((2, *x[:, ::stride, ::stride].shape[1:3], width), np.float32)
        expected[..., :3] = np.maximum(x[:, ::stride, ::stride], 0)
        np.testing.assert_array_equal(block(x), expected)
        assert len(jax.tree.leaves(nnx.state(block, nnx.Param))) == 6  # two kernels, norms of two
