"""Bands that change during training, against ramps by hand, and through save and load."""

from __future__ import annotations

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bandjax
from bandjax import Compression, Energy, LayerPlan, Modes, Plan
from bandjax.schedule import (
    Compiled,
    Recalibrated,
    constant,
    from_json,
    piecewise,
    ramp,
    recalibrated,
)


def plan(*modes):
    """A plan of one layer, on a grid of 99 points."""
    layer = LayerPlan(
        (3,) * len(modes) + (1, 1), (97,) * len(modes), (99,) * len(modes), modes, 0.9
    )
    return Plan({"conv": layer}, (97,) * len(modes) + (1,), Energy(0.9))


def test_constant_and_piecewise():
    assert {constant(None)(step) for step in range(9)} == {None}
    half = Compression(0.5)
    changing = piecewise({7: None, 0: None, 3: half, 5: Compression(0.5), 9: Modes(2, 3)})
    told = [changing(step) for step in range(12)]
    assert told == [None] * 3 + [half] * 4 + [None] * 2 + [Modes(2, 3)] * 3
    assert [start for start, _ in changing.pieces] == [0, 3, 7, 9]  # 5 changes nothing
    assert changing.bands == (None, half, Modes(2, 3))
    assert changing.max_bands == 3
    assert changing(np.int64(4)) == half
    assert not changing.due(3)
    same = piecewise({0: None, 3: half, 7: None, 9: Modes(2, 3)})
    assert (same, hash(same)) == (changing, hash(changing))
    assert same != piecewise({0: None})


@pytest.mark.parametrize(
    ("levels", "steps", "begin"), [(2, 1, 0), (2, 7, 3), (6, 10, 0), (5, 100, 20), (9, 4, 1)]
)
def test_ramp_is_the_linear_one_rounded_down(levels, steps, begin):
    """In exact fractions: the largest level that the line has reached."""
    stairs = ramp(Fraction(1, 7), Fraction(3, 5), steps, levels=levels, begin=begin)
    for step in range(begin + steps + 9):
        reached = min(max(Fraction(step - begin, steps), Fraction(0)), Fraction(1))
        level = Fraction(int(reached * (levels - 1)), levels - 1)
        assert stairs(step).rate == Fraction(1, 7) + level * (Fraction(3, 5) - Fraction(1, 7))
    assert stairs.max_bands == len(stairs.bands) <= levels
    assert stairs(begin + steps) == Compression(Fraction(3, 5))


def test_ramps_of_every_kind_of_band():
    assert [b.rate for b in ramp(0, 0.3, 3, levels=4).bands] == [0.0, 0.1, 0.2, 0.3]
    assert [b.rate for b in ramp(0.6, None, 2, levels=3).bands] == [0.6, 0.3, 0.0]
    assert ramp(Compression(0.1), 0.5, 4) == ramp(0.1, Compression(0.5), 4)
    assert ramp(0.5, 0.5, 4).bands == (Compression(0.5),)
    assert ramp(Modes(8, 9), Modes(3, 9), 3, levels=3).bands == (
        Modes(8, 9),
        Modes(6, 9),  # 5.5 to the even
        Modes(3, 9),
    )
    bound = Modes(4)
    energies = ramp(Energy(1, bound), Energy(0.9, bound), 2, levels=3).bands
    assert energies == tuple(Energy(share, bound) for share in (1.0, 0.95, 0.9))


def test_recalibrated_asks_for_plans_and_keeps_them():
    changing = recalibrated(0.9, every=2, times=3, dynamic=3, at_most=Compression(0.5))
    energy = Energy(0.9, Compression(0.5))
    assert changing.energy == energy
    assert changing.max_bands == 4
    assert changing.bands == (energy,)
    told, asked = [], []
    for step in range(12):
        if changing.due(step):
            asked.append(step)
            with pytest.raises(RuntimeError, match=rf"due at step {step}: .*update\({step}, plan"):
                changing(step)
            changing.update(step, plan(1 if step < 7 else step))
            assert not changing.due(step)
        told.append(changing(step))
    assert asked == [3, 5, 7]
    assert told == [energy] * 3 + [plan(1)] * 4 + [plan(7)] * 5
    assert changing.bands == (energy, plan(1), plan(7))
    assert [changing(step) for step in range(12)] == told  # Earlier steps are as they were.
    with pytest.raises(ValueError, match=r"no calibration is due at step 20"):
        changing.update(20, plan(1))

    at_once = recalibrated(0.9, every=5, times=1, dynamic=0)
    assert at_once.due(0)
    assert at_once.max_bands == 1
    assert at_once.bands == ()
    assert not recalibrated(0.9, every=5, times=1).due(4)
    late = recalibrated(0.9, every=2, times=2)
    late.update(5, plan(1))  # One plan does for all calibrations that were missed.
    assert not late.due(99)
    assert late(4) == Energy(0.9)


SCHEDULES = [
    constant(None),
    ramp(0, 0.5, 10),
    ramp(Fraction(1, 3), Fraction(2, 3), 10, levels=3),
    piecewise({0: Energy(0.9), 4: Energy(0.8, Modes(3, 2)), 6: Modes(2, 2)}),
]


@pytest.mark.parametrize("static", SCHEDULES, ids=str)
def test_static_schedules_survive_json(static):
    again = from_json(static.to_json())
    assert (again, hash(again)) == (static, hash(static))
    again.load_state_dict(json.loads(json.dumps(static.state_dict())))
    assert again == static


def test_a_stateful_schedule_goes_on_identically():
    def train(changing, steps):
        told = []
        for step in steps:
            if changing.due(step):
                changing.update(step, plan(step, 2))
            told.append(changing(step))
        return told

    def fresh():
        return recalibrated(0.9, every=2, times=3)

    for stop in range(9):
        whole = fresh()
        expected = train(whole, range(9))
        stopped = fresh()
        begun = train(stopped, range(stop))
        by_state = fresh()
        by_state.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        for resumed in (by_state, from_json(stopped.to_json())):
            assert begun + train(resumed, range(stop, 9)) == expected
            assert resumed.bands == whole.bands
            assert resumed.to_json() == whole.to_json()


def test_other_contents_are_refused():
    text = recalibrated(0.9, every=2, times=3).to_json()
    content = json.loads(text)
    pieces = json.loads(constant(None).to_json())
    for changed, match in [
        ([], "not a schedule"),
        ({**content, "format": "x"}, "not a schedule"),
        ({**content, "version": 2}, "of version 2, this bandjax reads 1"),
        ({**content, "kind": "x"}, "unknown kind 'x'"),
        ({**content, "every": "2"}, "damaged.*every must be an integer"),
        ({**content, "every": 0}, "every must be >= 1, got 0"),
        ({**content, "energy": None}, "energy must be an energy band, got None"),
        ({**content, "plans": [[1, {"plan": {"modes": []}}]]}, "not the state of Recalibrated"),
        ({k: v for k, v in content.items() if k != "times"}, "damaged.*times"),
        ({**pieces, "pieces": [[0, {"frequency": 1}]]}, "no band is written as"),
        ({**pieces, "pieces": [[1, None]]}, r"ascend from 0, got \[1\]"),
        ({**pieces, "pieces": [[0, {"compression": 2}]]}, "rate must satisfy"),
    ]:
        with pytest.raises(ValueError, match=match):
            from_json(json.dumps(changed))
    with pytest.raises(ValueError, match="state must be empty for a Piecewise"):
        constant(None).load_state_dict({"plans": []})
    with pytest.raises(ValueError, match="no calibration is due"):
        constant(None).update(0, plan(1))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: piecewise({}), ValueError, r"ascend from 0, got \[\]"),
        (lambda: piecewise({1: None}), ValueError, r"ascend from 0, got \[1\]"),
        (lambda: piecewise({0: None, "1": None}), TypeError, "not supported between"),
        (lambda: piecewise({0: 0.5}), TypeError, "a band must be .* got 0.5"),
        (lambda: constant("compression=0.5"), TypeError, "a band must be"),
        (lambda: ramp("0", 0.5, 10), TypeError, "start must be a rate or a band, got '0'"),
        (lambda: ramp(0, 1.5, 10), ValueError, "rate must satisfy"),
        (lambda: ramp(0, 0.5, 0), ValueError, "steps must be >= 1, got 0"),
        (lambda: ramp(0, 0.5, 1.5), TypeError, "steps must be an integer, got 1.5"),
        (lambda: ramp(0, 0.5, 3, levels=1), ValueError, "levels must be >= 2, got 1"),
        (lambda: ramp(0, 0.5, 3, begin=-1), ValueError, "begin must be >= 0, got -1"),
        (lambda: ramp(Modes(3), Modes(3, 4), 3), ValueError, "start and stop must be of one kind"),
        (lambda: ramp(Energy(0.9), Energy(0.9, Modes(1)), 3), ValueError, "of one kind"),
        (lambda: ramp(0, Modes(3), 3), ValueError, "of one kind"),
        (lambda: recalibrated(0.9, 0, 1), ValueError, "every must be >= 1, got 0"),
        (lambda: recalibrated(0.9, 1, True), TypeError, "times must be an integer, got True"),
        (lambda: recalibrated(0.9, 1, 1, dynamic=-1), ValueError, "dynamic must be >= 0"),
        (lambda: recalibrated(2, 1, 1), ValueError, "share must satisfy"),
        (lambda: Recalibrated(0.9, 1, 1, 0), TypeError, "energy must be bandjax.Energy, got 0.9"),
        (lambda: recalibrated(0.9, 1, 1).update(1, None), TypeError, "plan must be .* got None"),
        (lambda: recalibrated(0.9, 1, 1).update(1, 0.5), TypeError, "plan must be .* got 0.5"),
        (lambda: constant(object()), TypeError, "a band must be"),
        (lambda: piecewise({0: [1, 2]}), TypeError, r"a band must be .* got \[1, 2\]"),
        (lambda: piecewise({0: None, 3: {"a": 1}}), TypeError, "a band must be"),
        (lambda: constant(None)(-1), ValueError, "step must be >= 0, got -1"),
        (lambda: constant(None)(0.5), TypeError, "integer"),
        (lambda: jax.jit(constant(None))(3), TypeError, "integer|concrete"),
        (lambda: recalibrated(0.9, 1, 1)(-1), ValueError, "step must be >= 0"),
        (lambda: Compiled(lambda band: band, 0), ValueError, "max_bands must be >= 1, got 0"),
        (lambda: Compiled(lambda band: band, beyond="x"), ValueError, "beyond must be 'raise'"),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_training_run_compiles_once_for_each_band():
    """Each step is that of its band alone, and no band compiles twice."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 17, 3)), jnp.float32)
    start = jnp.asarray(rng.normal(size=(3, 3, 3)), jnp.float32)

    def make_step(band):
        def loss(kernel, x):
            return jnp.sum(bandjax.band_conv(x, kernel, band, method="dft") ** 2)

        return lambda kernel, x: kernel - 1e-4 * jax.grad(loss)(kernel, x)

    changing = ramp(0.2, 0.6, 6, levels=3)
    steps = Compiled(make_step, max_bands=changing.max_bands, donate_argnums=0)
    alone = {band: jax.jit(make_step(band)) for band in changing.bands}
    kernel, expected = start + 0, start
    for step in range(9):
        kernel = steps(changing(step), kernel, x)
        expected = alone[Compression((0.2, 0.4, 0.6)[min(step // 3, 2)])](expected, x)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(kernel - start).max()) > 1e-3
    assert steps.compilations == changing.max_bands == 3
    assert steps.bands == changing.bands
    steps(Compression(0.2), start + 0, x[:1])
    assert steps.compilations == 4  # another shape
    assert steps.step(Compression(0.2)) is steps.step(Compression(0.2))

    with pytest.raises(RuntimeError, match=r"4 bands, .*max_bands is 3: .*rate=0.2.*rate=0.7"):
        steps(Compression(0.7), start + 0, x)
    assert steps.bands == changing.bands


def test_more_bands_than_planned_may_warn_and_plans_need_no_hash():
    steps = Compiled(
        lambda band: lambda x: x * band.layers["conv"].modes[0], max_bands=1, beyond="warn"
    )
    assert steps(plan(2), jnp.ones(())) == 2
    assert steps(plan(2), jnp.ones(())) == 2
    assert steps.compilations == 1
    with pytest.warns(UserWarning, match="2 bands, each a compilation of its own"):
        assert steps(plan(3), jnp.ones(())) == 3
    assert steps.bands == (plan(2), plan(3))
