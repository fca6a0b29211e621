"""The peers of the benchmark compute what they are said to.

No test looks at how long anything took.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx

import bandjax
from experiments.benchmarks import layers, network, oracle
from experiments.benchmarks.candidates import in_precision, layer_call, random_arrays
from experiments.benchmarks.examples import random_examples
from experiments.benchmarks.workloads import DIRECTIONS, WORKLOADS, Layer, Network
from experiments.settings.bands import parse_band
from experiments.settings.compiler import quick_jit

pytestmark = pytest.mark.usefixtures("quick_compile")

BANDS = ("none", "compression=0.5")
LAYERS = {
    "1d": Layer("1d", "test", 3, (19,), (5,), 4, 6, bands=BANDS),
    "2d": Layer("2d", "test", 3, (7, 10), (3, 5), 4, 6, bands=BANDS),
    "even": Layer("even", "test", 2, (9, 8), (4, 2), 3, 5, bands=BANDS),
    "3d": Layer("3d", "test", 2, (5, 6, 7), (3, 3, 2), 2, 3, bands=BANDS),
    "depthwise": Layer("depthwise", "test", 2, (9, 12), (7, 5), 4, 4, groups=4, bands=BANDS),
    "periodic": Layer(
        "periodic", "test", 2, (8, 9), (8, 9), 4, 3, padding="CIRCULAR", bands=("none", "modes=3,2")
    ),
}
FIRST = ("2d",)  # This alone runs by default.
HALF = ("compression=0.5",)
SMALL_NETWORK = Network("net", "test", 4, (8, 8, 3), widths=(4, 8), blocks=(1, 2), bands=HALF)


def results(candidate):
    return candidate.results(candidate.call())


@functools.cache
def band_conv_at(layer, label, direction, grid=None):
    """``(y, dx, dw)`` or ``(y,)`` of the library itself."""

    def convolve(x, kernel):
        return bandjax.band_conv(
            x,
            kernel,
            parse_band(label)[1],
            padding=layer.padding,
            feature_group_count=layer.groups,
            grid=grid,
        )

    return quick_jit(layer_call(convolve, direction))(*random_arrays(layer))


@functools.cache
def dense_results(layer, direction):
    """Of the convolution of jax.lax, in each of its memory layouts."""
    return [results(c) for c in layers.dense(layer, random_arrays(layer), direction, None)]


def assert_close(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("name", "direction"),
    [
        *((name, "train") for name in FIRST),
        *(
            pytest.param(name, "train", marks=pytest.mark.full)
            for name in LAYERS
            if name not in FIRST
        ),
        *(pytest.param(name, "forward", marks=pytest.mark.full) for name in LAYERS),
    ],
)
def test_peers_on_jax_compute_the_same(name, direction):
    layer = LAYERS[name]
    arrays = random_arrays(layer)
    dense = dense_results(layer, direction)
    assert len(dense) == 2
    assert_close(dense[1], dense[0])
    assert len(dense[0]) == (3 if direction == "train" else 1)

    ours = {c.band: c for c in layers.band_limited(layer, arrays, direction, None, *[["auto"]] * 2)}
    assert list(ours) == list(layer.bands)
    assert_close(results(ours["none"]), dense[0])
    grids = {False: None, True: layers.authors_grid(layer)}
    if name == "periodic":
        del grids[True]
    for powers_of_two, grid in grids.items():
        for band in layer.bands:
            at_band = dataclasses.replace(layer, bands=(band,))
            found = list(
                layers.compositions(at_band, arrays, direction, None, powers_of_two=powers_of_two)
            )
            assert [c.band for c in found] == [band, band]
            for candidate in found:
                assert_close(results(candidate), band_conv_at(layer, band, direction, grid))
                if band == "none":
                    assert_close(results(candidate), dense[0])


@pytest.mark.parametrize("name", LAYERS)
def test_float64_reference(name):
    layer = LAYERS[name]
    arrays = random_arrays(layer)
    dense = dense_results(layer, "train")[0]
    assert_close(dense, oracle.reference(arrays, layer.geometry()))
    limited = band_conv_at(layer, layer.bands[1], "train")
    expected = oracle.reference(arrays, layer.geometry(parse_band(layer.bands[1])[1]))
    assert_close(limited, expected)
    assert oracle.relative_error(dense, expected) > 1e-2  # the band is in use
    off = (expected[0], expected[1] + 0.25 * np.abs(expected[1]).max(), expected[2])
    assert oracle.relative_error(off, expected) == pytest.approx(0.25)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_convolutions_of_torch(name, direction):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_peer

    layer = LAYERS[name]
    arrays = random_arrays(layer)
    expected = dense_results(layer, direction)[0]
    device = torch_peer.prepare("cpu", "float32")
    found = list(torch_peer.dense(layer, arrays, direction, device))
    assert len(found) == (1 if name == "1d" else 2)
    for candidate in found:
        assert_close(results(candidate), expected)
        assert_close(results(candidate), expected)  # a second call adds nothing to gradients
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision_of_torch_is_that_of_lax(direction):
    pytest.importorskip("torch")
    from experiments.benchmarks import torch_peer

    layer = LAYERS["2d"]
    arrays = in_precision(random_arrays(layer), "bf16")
    expected = oracle.reference(arrays, layer.geometry())
    device = torch_peer.prepare("cpu", "bf16")
    found = list(torch_peer.dense(layer, arrays, direction, device))
    found += layers.dense(layer, arrays, direction, None)
    assert len(found) == 4
    for candidate in found:
        types = [str(a.dtype).removeprefix("torch.") for a in candidate.call()]
        assert types == ["bfloat16", "bfloat16", "float32"][: len(types)]
        # oneDNN sums some of the kernel's gradient in bfloat16.
        assert 1e-4 < oracle.relative_error(results(candidate), expected) < 3e-2


@pytest.mark.parametrize("stem_pool", [False, True])
def test_network_of_torch_is_that_of_flax(stem_pool):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_peer

    workload = dataclasses.replace(SMALL_NETWORK, stem_pool=stem_pool)
    model = network.model_of(workload, None, convolution=nnx.Conv)
    twin = torch_peer.ResNet(workload)
    flax_parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    torch_parameters = list(twin.parameters())
    assert sum(a.size for a in flax_parameters) == sum(p.numel() for p in torch_parameters)

    def copy(layer, module):
        with torch.no_grad():
            if isinstance(module, torch.nn.Conv2d):
                kernel = np.moveaxis(np.asarray(layer.kernel[...]), (3, 2), (0, 1))
                module.weight.copy_(torch.from_numpy(kernel.copy()))
            else:
                module.weight.copy_(torch.from_numpy(np.asarray(layer.kernel[...]).T.copy()))
                module.bias.copy_(torch.from_numpy(np.asarray(layer.bias[...]).copy()))

    copy(model.stem, twin.stem)
    copy(model.head, twin.head)
    for ours, theirs in zip(model.blocks, twin.blocks, strict=True):
        copy(ours.conv1, theirs.conv1)
        copy(ours.conv2, theirs.conv2)
        if ours.shortcut is not None:
            copy(ours.shortcut, theirs.shortcut[0])
    images, _ = random_examples(workload)
    channels_first = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    expected = np.asarray(model(images))
    np.testing.assert_allclose(twin(channels_first).detach().numpy(), expected, atol=1e-5)


@pytest.mark.full
def test_steps_train_and_differ_by_their_convolutions():
    same = ("train", "float32", "cpu")
    found = [network.dense(SMALL_NETWORK, *same)]
    found += network.band_limited(SMALL_NETWORK, *same, ["auto"], ["auto"])
    names = ["flax dense", *(f"bandjax {band}" for band in SMALL_NETWORK.bands), network.REST]
    assert [c.name for c in found] == names
    assert all(c.temp_bytes > 0 for c in found)
    losses = {c.name: [float(*results(c)) for _ in range(12)] for c in found}
    for name, curve in losses.items():
        assert curve[-1] < curve[0], name
    assert len({curve[0] for curve in losses.values()}) == len(names)
    exact = dataclasses.replace(SMALL_NETWORK, bands=("none",))
    (ours, _) = network.band_limited(exact, *same, ["auto"], ["auto"])
    np.testing.assert_allclose(
        [float(*results(ours)) for _ in range(3)], losses["flax dense"][:3], rtol=1e-4
    )


@pytest.mark.full
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_inference_is_of_the_same_network(precision):
    dense = network.dense(SMALL_NETWORK, "forward", precision, "cpu")
    exact = dataclasses.replace(SMALL_NETWORK, bands=("none", *HALF))
    ours = network.band_limited(exact, "forward", precision, "cpu", ["auto"], ["auto"])
    (expected,) = results(dense)
    assert expected.shape == (SMALL_NETWORK.batch, SMALL_NETWORK.classes)
    (none,), (half,), _ = map(results, ours)
    close = 1e-5 if precision == "float32" else 3e-2
    np.testing.assert_allclose(none, expected, rtol=0, atol=close)
    assert np.abs(half - expected).max() > 2 * close


def test_resnet18_has_the_known_number_of_parameters():
    workload = next(w for w in WORKLOADS if w.name == "resnet18")
    model = nnx.eval_shape(lambda: network.model_of(workload, "compression=0.5", training=False))
    parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in parameters) == 11_173_962
    convolutions = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Conv)]
    assert len(convolutions) == 20
    assert all(isinstance(m, bandjax.BandConv) for m in convolutions)
    assert {m.band for m in convolutions} == {bandjax.Compression(0.5)}


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        *((next(w for w in WORKLOADS if w.name == f"stage{n}"), 256 >> n) for n in range(1, 5)),
        (Layer("50words", "test", 1, (270,), (8,), 1, 1), 1024),
    ],
)
def test_grid_of_the_authors(layer, grid):
    assert layers.authors_grid(layer) == (grid,) * len(layer.size)
