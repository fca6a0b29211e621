"""Calibration against a search in NumPy."""

from __future__ import annotations

import itertools
import math
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from signals import smooth

import bandjax
from bandjax import Compression, Energy, Modes
from bandjax._bands.boxes import smallest_box
from bandjax._bands.frequencies import hermitian_weights


def energies(inputs, grid, dilation=1):
    """``|X[u]|^2`` of the whole spectrum, summed over the inputs, examples and channels."""
    rank = len(grid)
    total = np.zeros(grid)
    for x in (np.asarray(x, dtype=np.float64) for x in inputs):
        flat = x.reshape(-1, *x.shape[x.ndim - rank - 1 :])
        for example, channel in itertools.product(range(len(flat)), range(x.shape[-1])):
            circle = np.zeros(grid)
            circle[tuple(slice(0, n * dilation, dilation) for n in flat.shape[1:-1])] = flat[
                (example, ..., channel)
            ]
            total += np.abs(np.fft.fftn(circle)) ** 2
    return total


def smallest_by_search(power, share, bound=None):
    """The smallest box that holds the share, by trying one after another; and what it holds."""
    grid = power.shape
    halves = [g // 2 for g in grid]
    boxes = {
        tuple(min(m * h // j, b) for h, b in zip(halves, bound or halves, strict=True))
        for j in halves
        if j
        for m in range(j + 1)
    }
    frequencies = np.meshgrid(*(np.rint(np.fft.fftfreq(g, 1 / g)) for g in grid), indexing="ij")
    held = {}
    for box in sorted(boxes, key=lambda box: math.prod(2 * limit + 1 for limit in box)):
        inside = np.ones(grid, bool)
        for u, limit in zip(frequencies, box, strict=True):
            inside &= np.abs(u) <= limit
        held[box] = power[inside].sum() / power.sum()
        if held[box] >= share:
            return box, held[box]
    return box, held[box]


class Shapes(nnx.Module):
    """Layers of one to three dimensions with every kind of padding, all on the same map."""

    def __init__(self):
        rngs = nnx.Rngs(3)
        self.lines = nnx.List(
            [
                nnx.Conv(3, 2, 3, rngs=rngs),
                nnx.Conv(3, 2, 4, padding="CIRCULAR", strides=2, rngs=rngs),
                nnx.Conv(3, 2, 4, padding="REFLECT", rngs=rngs),
                nnx.Conv(3, 2, 3, padding="CAUSAL", kernel_dilation=2, rngs=rngs),
                nnx.Conv(3, 2, 3, padding=[(1, 2)], input_dilation=2, rngs=rngs),
                bandjax.BandConv(3, 2, 3, band=Modes(2), grid=20, rngs=rngs),
                nnx.Conv(
                    3, 2, 3, conv_general_dilated=bandjax.conv_general_dilated(grid=18), rngs=rngs
                ),
            ]
        )
        self.plane = nnx.Conv(3, 4, (3, 3), feature_group_count=1, rngs=rngs)
        self.volume = bandjax.BandConv(1, 2, (3, 3, 2), band=None, rngs=rngs)
        self.up = nnx.ConvTranspose(3, 2, (3,), rngs=rngs)
        self.spare = nnx.Conv(3, 2, (1,), conv_general_dilated=lambda *a, **k: 0, rngs=rngs)

    def __call__(self, x):
        for line in self.lines:
            line(x)
        self.up(x)
        return self.plane(x), self.volume(x[..., None])


# The grid of each layer on 7 x 10 points: the default, or what the layer asks for.
GRIDS = {
    "lines.0": (11,),
    "lines.1": (10,),
    "lines.2": (13,),
    "lines.3": (14,),
    "lines.4": (21,),
    "lines.5": (20,),
    "lines.6": (18,),
    "plane": (8, 11),
    "volume": (8, 11, 4),
}


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("band", "grid"),
    [(Energy(0.9), None), (Energy(0.97, at_most=Compression(0.4)), 24), (Energy(1.0), None)],
)
def test_boxes_are_those_of_a_search_in_numpy(band, grid):
    rng = np.random.default_rng(7)
    batches = [smooth(rng, (n, 7, 10, 3)) for n in (3, 3, 2)]
    plan = bandjax.calibrate(Shapes(), iter(batches), band, grid=grid)
    assert list(plan.layers) == list(GRIDS)
    assert plan.input_shape == (7, 10, 3)
    assert plan.band == band
    for path, layer in plan.layers.items():
        on = GRIDS[path] if grid is None or path == "lines.1" else (grid,) * len(GRIDS[path])
        inputs = batches
        if path == "lines.2":
            inputs = [np.pad(x, [(0, 0), (0, 0), (1, 2), (0, 0)], mode="reflect") for x in batches]
        if path == "volume":
            inputs = [x[..., None] for x in batches]
        power = energies(inputs, on, 2 if path == "lines.4" else 1)
        bound = None if band.at_most is None else band.at_most.modes(on)
        box, held = smallest_by_search(power, band.share, bound)
        assert (layer.grid, layer.modes) == (on, box), path
        assert layer.energy == pytest.approx(held, abs=1e-5)
        assert layer.energy >= band.share - 1e-6 or layer.modes == bound
        assert layer.size == (
            (7, 10) if path == "plane" else (10,) if path[0] == "l" else (7, 10, 3)
        )
    assert plan.layers["plane"].kernel_shape == (3, 3, 3, 4)
    assert plan.layers["volume"].kernel_shape == (3, 3, 2, 1, 2)
    assert {path: reason[:12] for path, reason in plan.left_out.items()} == {
        "up": "a transposed",
        "spare": "it has a con",
    }


@pytest.mark.parametrize("grid", [(17,), (16,), (9, 12), (4, 5, 6), (1, 7), (1,)])
def test_smallest_box_of_random_energies(grid):
    rng = np.random.default_rng(grid)
    for share in (0.2, 0.6, 0.95):
        power = energies([rng.normal(size=(2, *grid, 1)) ** 3], grid)
        half = power[..., : grid[-1] // 2 + 1]
        if math.prod(grid) == 1:
            assert smallest_box(half, grid, Energy(share).boxes(grid), share) == ((0,), 1.0)
            continue
        box, held = smallest_by_search(power, share)
        energy = half * hermitian_weights(grid[-1], grid[-1] // 2)
        modes, kept = smallest_box(energy, grid, Energy(share).boxes(grid), share)
        assert modes == box
        assert kept == pytest.approx(held)


class Net(nnx.Module):
    """A shared layer, batch norm, dropout, layers that are stacked, rematerialised and jitted."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 4, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.9, rngs=rngs)
        self.shared = nnx.Conv(4, 4, (3,), rngs=rngs)
        self.alias = self.shared
        self.blocks = stacked(jax.random.split(jax.random.key(5), 3))
        self.last = nnx.Conv(4, 2, (1,), rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.drop(self.stem(x)))
        x = self.alias(nnx.relu(self.shared(x)))
        x = nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(
            self.blocks, x
        )
        return nnx.jit(lambda last, x: last(x))(self.last, nnx.remat(lambda x: x + 1)(x))


@nnx.vmap(in_axes=0, out_axes=0)
def stacked(key):
    return nnx.Conv(4, 4, (3,), padding="CIRCULAR", rngs=nnx.Rngs(key))


def test_a_model_that_shares_stacks_and_compiles_layers_is_left_as_it_was():
    rng = np.random.default_rng(1)
    model = Net(nnx.Rngs(0))
    model.train()
    model.norm.mean[...] = jnp.array([1.0, -2.0, 0.5, 3.0])
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    x = smooth(rng, (4, 16, 1))
    plan = bandjax.calibrate(model, [(x, "label")], Energy(0.8))
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    assert model.norm.use_running_average is False
    assert type(model.shared) is nnx.Conv
    assert plan.layers.keys() == {"stem", "shared", "blocks", "last"} or plan.layers.keys() == {
        "stem",
        "alias",
        "blocks",
        "last",
    }

    # The same in inference mode, layer by layer.
    model.eval()
    y = model.norm(model.stem(x))
    z = nnx.relu(model.shared(y))
    inputs = {"stem": [x], "shared": [y, z], "blocks": [model.shared(z)]}
    for kernel, bias in zip(model.blocks.kernel[...], model.blocks.bias[...], strict=True):
        one = bandjax.band_conv(inputs["blocks"][-1], kernel, padding="CIRCULAR") + bias[None, None]
        inputs["blocks"].append(one)
    inputs["last"] = [inputs["blocks"].pop() + 1]
    for path, layer in plan.layers.items():
        seen = inputs["shared" if path == "alias" else path]
        box, held = smallest_by_search(energies(seen, layer.grid), 0.8)
        assert layer.modes == box
        assert layer.energy == pytest.approx(held, abs=1e-5)


class Dense(nn.Module):
    """The same in linen: a compact model with a flag, batch norm and a layer for each kind."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = bandjax.linen.BandConv(4, (3, 3), band=Modes(2, 2))(x)
        shared = nn.Conv(4, (3, 2), padding="CIRCULAR", name="shared")
        x = nn.remat(nn.Conv)(4, (3, 3), name="again")(shared(shared(x)))
        x = nn.ConvTranspose(4, (2, 2), name="up")(x)
        return x.mean((1, 2))


@pytest.mark.full
def test_linen_models():
    rng = np.random.default_rng(2)
    model = Dense()
    batches = [smooth(rng, (n, 6, 8, 3)) for n in (2, 1)]
    variables = model.init(jax.random.key(0), batches[0])
    evaluate = lambda model, x: model(x, train=False)  # noqa: E731
    with pytest.raises(Exception, match="batch_stats"):
        bandjax.calibrate(model, batches, Energy(0.9), variables=variables)
    plan = bandjax.calibrate(
        model,
        batches,
        Energy(0.9),
        variables=variables,
        call=evaluate,
        where=["Conv_1", "shared", "again"],
    )
    assert list(plan.layers) == ["Conv_1", "shared", "again"]
    assert plan.left_out.keys() == {"Conv_0", "up"}

    apply = lambda *names: jax.jit(  # noqa: E731
        lambda x: [
            jax.tree.leaves(out[name])
            for out in [
                model.apply(
                    variables, x, train=False, capture_intermediates=True, mutable="intermediates"
                )[1]["intermediates"]
            ]
            for name in names
        ]
    )
    seen = [apply("BatchNorm_0", "Conv_1", "shared")(x) for x in batches]
    inputs = {
        "Conv_1": [norm[0] for norm, *_ in seen],
        "shared": [x for _, band, shared in seen for x in (band[0], shared[0])],
        "again": [shared[1] for *_, shared in seen],
    }
    for path, layer in plan.layers.items():
        box, held = smallest_by_search(energies(inputs[path], layer.grid), 0.9)
        assert layer.modes == box
        assert layer.energy == pytest.approx(held, abs=1e-5)
    assert plan.layers["shared"].grid == (6, 8)

    # The plan is for the whole of what it was found for.
    with bandjax.linen.band_limited(plan) as report, pytest.warns(UserWarning, match="up"):
        y = model.apply(variables, batches[0], train=False)
    assert {path: band.limits for path, band in report.limited.items()} == {
        path: layer.modes for path, layer in plan.layers.items()
    }
    assert report.excluded == ["Conv_0"]
    assert np.isfinite(y).all()


def test_a_layer_that_sees_zeros_keeps_everything():
    model = nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0))
    plan = bandjax.calibrate(model, [np.zeros((1, 8, 2))], Energy(0.1, at_most=Modes(3)))
    assert plan.layers[""].modes == (3,)
    assert plan.layers[""].energy == 1
    assert "(the model itself)" in str(plan)


class Faulty(nnx.Module):
    def __init__(self):
        self.used = nnx.Conv(2, 2, (3,), rngs=nnx.Rngs(0))
        self.idle = nnx.Conv(2, 2, (3,), rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.used(self.used(x)[:, ::2]) if x.shape[1] == 8 else self.used(x)


def test_calibrate_refuses():
    model, x = Faulty(), np.ones((1, 7, 2), np.float32)
    energy = Energy(0.9)

    def refused(kind, match, model=model, batches=(x,), band=energy, **more):
        with pytest.raises(kind, match=match):
            bandjax.calibrate(model, batches, band, **more)

    refused(TypeError, "band must be a bandjax.Energy, got Compression", band=Compression(0.5))
    refused(TypeError, "batches must be an iterable of arrays", batches=x)
    refused(TypeError, "batches must be an iterable of arrays", batches=3)
    refused(ValueError, "at least one batch, got none", batches=[])
    refused(ValueError, r"examples of one shape, got \(9, 2\) after \(7, 2\)", where="used",
            batches=[x, np.ones((1, 9, 2), np.float32)])  # fmt: skip
    refused(ValueError, "never called: idle")
    refused(ValueError, r"used is called on inputs of size \(8,\) and \(4,\)",
            batches=[np.ones((1, 8, 2), np.float32)])  # fmt: skip
    refused(ValueError, "input of layer used is not finite", batches=[x * np.inf], where="used")
    refused(
        ValueError, r"no convolution layer to calibrate \(idle: not selected, used", where="nothing"
    )
    refused(ValueError, r"no convolution layer to calibrate \(none\)",
            model=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))  # fmt: skip
    refused(TypeError, "where must be", where=3)
    refused(TypeError, "variables are those of a flax.linen", variables={})
    refused(TypeError, "variables must be given", model=nn.Conv(2, (3,)))
    refused(TypeError, "model must be a module of flax.nnx or flax.linen", model=lambda x: x)
    refused(ValueError, "grid must be at least", where="used", grid=[5])
    with mock.patch.dict(sys.modules, {"flax": None}):
        refused(ImportError, r"bandjax\[flax\]")


def test_progress(capsys):
    model = nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0))
    bandjax.calibrate(model, [np.ones((1, 8, 2), np.float32)], Energy(0.9), progress=True)
    assert "calibrating" in capsys.readouterr().out
    with (
        mock.patch.dict(sys.modules, {"rich.progress": None}),
        pytest.raises(ImportError, match=r"bandjax\[report\]"),
    ):
        bandjax.calibrate(model, [np.ones((1, 8, 2))], Energy(0.9), progress=True)
