"""Calibration against a search in NumPy, and plans: saved, loaded, applied and refused."""

from __future__ import annotations

import itertools
import json
import math
import sys
from fractions import Fraction
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from calls import quick_jit
from flax import linen as nn
from flax import nnx

import bandjax
from bandjax import Compression, Energy, LayerPlan, Modes, Plan
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


def smooth(rng, shape):
    """Noise whose low frequencies are the stronger ones, with a mean."""
    x = rng.normal(size=shape) + 0.3
    for axis in range(1, len(shape) - 1):
        x = x + np.roll(x, 1, axis) + 0.5 * np.roll(x, 2, axis)
    return x.astype(np.float32)


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
        where=["BandConv_0", "shared", "again"],
    )
    assert list(plan.layers) == ["BandConv_0", "shared", "again"]
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
    seen = [apply("BatchNorm_0", "BandConv_0", "shared")(x) for x in batches]
    inputs = {
        "BandConv_0": [norm[0] for norm, *_ in seen],
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


LAYERS = {
    "a": LayerPlan((3, 1, 4), (16,), (17,), (5,), 0.91),
    "b.0": LayerPlan((3, 3, 4, 2), (8, 6), (9, 7), (2, 1), 1.0),
}


@pytest.mark.parametrize(
    "bound", [None, Compression(0.3), Compression(Fraction(1, 3)), Modes(4, 2)], ids=str
)
def test_plans_survive_a_file(tmp_path, bound):
    plan = Plan(LAYERS, (16, 1), Energy(0.9, at_most=bound), {"up": "transposed"})
    path = tmp_path / "plan.json"
    path.write_text("an older file")
    plan.save(path)
    assert Plan.load(str(path)) == plan
    assert bandjax.schedule.from_json(bandjax.schedule.constant(plan).to_json())(3) == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    content = json.loads(path.read_text())
    assert content["layers"]["a"]["compression"] == 1 - 6 / 9
    assert content["version"] == 1
    # Four times (9 - 6) and (9 * 4 - 5 * 2) of as many times 9 and 36, by input channels.
    assert plan.compression == pytest.approx(1 - (1 * 6 + 4 * 10) / (1 * 9 + 4 * 36))
    assert plan.share == 0.9


def test_a_plan_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("an older file")
    plan = Plan(LAYERS, (16, 1), Energy(0.9))
    with mock.patch("os.replace", side_effect=OSError("no space")), pytest.raises(OSError):  # noqa: PT011
        plan.save(path)
    assert path.read_text() == "an older file"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "none.json")


def entry(**changes):
    return lambda content: content["layers"]["a"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.clear(), 'no "format": "bandjax.Plan"'),
        (lambda c: c.update(version=2), "version 2, this bandjax reads version 1"),
        (lambda c: c.update(version=True), "version True"),
        (lambda c: c.pop("share"), "the plan lacks share"),
        (lambda c: c.update(colour="red"), "unknown fields colour"),
        (lambda c: c.update(share=1.5), "share must satisfy 0 < share <= 1, got 1.5"),
        (lambda c: c.update(share="much"), "share must be a real number"),
        (lambda c: c.update(at_most={"compression": 2}), "rate must satisfy"),
        (lambda c: c.update(at_most={"rate": 0.5}), "no band is written as"),
        (lambda c: c.update(at_most={"compression": 0.5, "x": 1}), "at_most has unknown fields"),
        (lambda c: c.update(layers=[]), "layers must be an object"),
        (lambda c: c.update(layers={}), "at least one layer"),
        (lambda c: c.update(left_out={"up": 3}), "left_out must map strings to str"),
        (lambda c: c.update(left_out=[]), "left_out must map paths"),
        (lambda c: c.update(input_shape=[16, 1.5]), "input_shape must be a list of integers"),
        (lambda c: c.update(input_shape=[0]), "input_shape must be positive"),
        (lambda c: c.update(compression=0.1), "the plan tells a compression of 0.1"),
        (lambda c: c["layers"].update(a=3), "layer 'a' must be an object"),
        (lambda c: c["layers"]["a"].pop("grid"), "layer 'a' lacks grid"),
        (entry(extra=1), "layer 'a' has unknown fields extra"),
        (entry(modes=[9]), "layer 'a': .* no frequency above 8"),
        (entry(modes=[-1]), "modes must be >= 0"),
        (entry(modes=[1, 2]), "modes must have one entry for each of the 1 spatial axes"),
        (entry(modes="5"), "modes must be a list of integers"),
        (entry(grid=[True]), "grid must be a list of integers"),
        (entry(kernel_shape=[3, 1]), "kernel_shape must have 3 to 5 entries"),
        (entry(energy="all"), "energy must be a real number"),
        (entry(energy=float("nan")), "energy must satisfy 0 <= energy <= 1"),
        (entry(compression=0.5), "layer 'a' tells a compression of 0.5"),
    ],
)
def test_damaged_plans_are_refused(tmp_path, change, message):
    path = tmp_path / "plan.json"
    Plan(LAYERS, (16, 1), Energy(0.9)).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(str(path))


def test_truncated_plans_are_refused(tmp_path):
    path = tmp_path / "plan.json"
    Plan(LAYERS, (16, 1), Energy(0.9)).save(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="not a whole JSON file"):
        Plan.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a whole JSON file"):
        Plan.load(path)


def test_plans_of_wrong_types():
    with pytest.raises(TypeError, match=r"band must be a bandjax.Energy, got Modes\(1\)"):
        Plan(LAYERS, (16, 1), Modes(1))
    with pytest.raises(TypeError, match="layers must map strings to LayerPlan"):
        Plan({"a": Modes(1)}, (16, 1), Energy(0.9))


def test_tables():
    plan = Plan(LAYERS, (16, 1), Energy(0.9, at_most=Modes(3)), {"up[0]": "transposed"})
    told = str(plan)
    console = rich.console.Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(plan.table())
    for text in (told, console.export_text()):
        for part in (
            "energy 0.9, at most Modes(3),",
            "b.0",
            "(9, 7)",
            "72.2%",
            "up[0]: transposed",
        ):
            assert part in text
    assert "None" not in str(Plan(LAYERS, (16, 1), Energy(0.9)))
    with (
        mock.patch.dict(sys.modules, {"rich.table": None}),
        pytest.raises(ImportError, match=r"bandjax\[report\]"),
    ):
        plan.table()


def small(kernel=3, width=4, names=("one", "two")):
    rngs = nnx.Rngs(0)
    return nnx.Dict(
        {name: nnx.Conv(2 if i == 0 else width, width, (kernel,), rngs=rngs)
         for i, name in enumerate(names)}
    )  # fmt: skip


def forward(model, x):
    for layer in model.values():
        x = layer(x)
    return x


def test_a_plan_is_for_one_model_and_one_input_size(tmp_path):
    rng = np.random.default_rng(0)
    x = jnp.asarray(smooth(rng, (2, 70, 2)))
    found = bandjax.calibrate(small(), [x], Energy(0.9), call=forward)
    found.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == found

    model = small()
    assert plan.layers["one"].grid == (72,)
    report = bandjax.nnx.band_limit(model, plan)
    assert repr(report.limited["one"]) == f"Modes({plan.layers['one'].modes[0]}) of a plan"
    expected = small()
    for name, layer in expected.items():
        bandjax.nnx.band_limit(layer, Modes(*plan.layers[name].modes))
    limited, wanted = quick_jit(lambda a, b, x: (forward(a, x), forward(b, x)))(model, expected, x)
    np.testing.assert_allclose(limited, wanted, atol=1e-6)
    assert model.one.geometry(x.shape).modes == plan.layers["one"].modes
    # 71 points lie on the same grid of 72, and are another size all the same.
    for length in (71, 35):
        with pytest.raises(
            ValueError, match=rf"'one' is for inputs of size \(70,\), got \({length},"
        ):
            forward(model, jnp.ones((1, length, 2)))
    with pytest.raises(ValueError, match=r"'one' is for a grid of \(72,\), got \(75,\)"):
        bandjax.conv_geometry((1, 70, 2), (3, 2, 4), model.one.band, grid=75)

    for other, message in (
        (small(names=("one",)), "the model lacks 'two'"),
        (small(names=("one", "two", "three")), "the plan has nothing for 'three'"),
        (small(kernel=5), r"kernel of 'one' has shape \(5, 2, 4\), in the plan \(3, 2, 4\)"),
        (small(width=6), r"kernel of 'two' has shape \(3, 6, 6\)"),
        (small(names=[str(i) for i in range(9)]), "'0', '1', '2', '3', '4', '5' and 3 more"),
    ):
        with pytest.raises(ValueError, match=f"the plan is for another model: .*{message}"):
            bandjax.nnx.band_limit(other, plan)
        assert all(type(layer) is nnx.Conv for layer in other.values())
    with pytest.raises(ValueError, match="grid must be None with a plan"):
        bandjax.nnx.band_limit(small(), plan, grid=80)

    # What calibration left out, band_limit leaves out; where= takes a part.
    part = bandjax.calibrate(small(), [x], Energy(0.9), call=forward, where="two")
    model = small()
    assert bandjax.nnx.band_limit(model, part).excluded == ["one"]
    assert type(model.one) is nnx.Conv
    with pytest.raises(ValueError, match="the plan has nothing for 'one'"):
        bandjax.nnx.band_limit(small(), part, where=["one", "two"])
    assert list(bandjax.nnx.band_limit(small(), plan, where="one").limited) == ["one"]


def test_a_linen_plan_is_for_one_model():
    model = nn.Sequential([nn.Conv(3, (3,)), nn.Conv(2, (3,))])
    x = jnp.asarray(smooth(np.random.default_rng(0), (2, 12, 2)))
    variables = model.init(jax.random.key(0), x)
    plan = bandjax.calibrate(model, [x], Energy(0.8), variables=variables)
    limited = bandjax.linen.band_limited
    expected = nn.Sequential(
        [
            bandjax.linen.BandConv(n, (3,), band=Modes(*plan.layers[f"layers_{i}"].modes))
            for i, n in enumerate((3, 2))
        ]
    ).apply(variables, x)
    np.testing.assert_allclose(limited(plan)(model.apply)(variables, x), expected, atol=1e-6)

    for other, message in (
        (nn.Sequential([nn.Conv(3, (3,))]), "'layers_1' was not called"),
        (nn.Sequential([nn.Conv(n, (3,)) for n in (3, 2, 2)]), "nothing for 'layers_2'"),
        (nn.Sequential([nn.Conv(3, (5,)), nn.Conv(2, (3,))]), r"'layers_0' is for kernels of"),
    ):
        for run in (limited(plan)(other.init), in_context(limited(plan), other.init)):
            with pytest.raises(ValueError, match=message):
                run(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"'layers_0' is for inputs of size \(12,\), got \(13,\)"):
        limited(plan)(model.apply)(variables, jnp.ones((1, 13, 2)))
    # Where part of a plan is asked for, the rest need not be there.
    one = nn.Sequential([nn.Conv(3, (3,))])
    limited(plan, where="layers_0")(one.init)(jax.random.key(0), x)
    # An error inside the context is not hidden by that of a part not called.
    wrong = in_context(limited(plan), lambda x: {}[one.init(jax.random.key(0), x)["params"].keys()])
    with pytest.raises(TypeError, match="unhashable"):
        wrong(x)


def in_context(context, function):
    def call(*args):
        with context:
            return function(*args)

    return call
