"""Plans: saved, loaded, applied and refused."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from flax import linen as nn
from flax import nnx
from signals import smooth

import bandjax
from bandjax import Compression, Energy, LayerPlan, Modes, Plan

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
    with pytest.raises(TypeError, match=r"bandjax.Energy or a bandjax.Budget, got Modes\(1\)"):
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
    limited, wanted = jax.jit(lambda a, b, x: (forward(a, x), forward(b, x)))(model, expected, x)
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
