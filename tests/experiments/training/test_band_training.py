"""Training with bands that follow the energy, come from a plan, or change from epoch to epoch."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from rich.console import Console
from stopping import AtThird

import bandjax
from experiments.data import load_digits
from experiments.data.examples import place
from experiments.jobs.runs import Interval, Keeping, Run, Stop, Stopped
from experiments.settings.bands import parse_band
from experiments.settings.config import settings_for
from experiments.train import main
from experiments.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("quick_compile")

SETTINGS = settings_for("cnn", "digits", epochs=3, batch_size=25, optimizer="sgd")


@pytest.fixture(scope="module")
def examples():
    return place(load_digits().limited(100))


def test_energy_tells_what_it_drops(examples):
    trainer = Trainer(SETTINGS, examples, bandjax.Energy(0.8))
    assert trainer.compression["total"] == 0  # at least
    _, row = trainer.run_epoch(trainer.start(0), 0, 1)
    layers = trainer.compression["layers"]
    assert row.compression == trainer.compression["total"]
    # The first layer's input is the image: its boxes by NumPy's whole transform.
    first, dropped = next(iter(layers.values())), []
    (g, _) = grid = first["grid"]
    u = np.abs(np.fft.fftfreq(g, 1 / g)).round()
    for x, _, _ in examples.test:
        energy = (np.abs(np.fft.fft2(np.asarray(x, np.float64), grid, (1, 2))) ** 2).sum((0, 3))
        for limit in range(g // 2 + 1):
            kept = np.multiply.outer(u <= limit, u <= limit)
            if energy[kept].sum() >= 0.8 * energy.sum():
                break
        rows = min(2 * limit + 1, g)
        dropped.append(1 - rows * (limit + 1) / (g * (g // 2 + 1)))
    assert first["compression"] == pytest.approx(np.mean(dropped), abs=1e-6)
    assert min(dropped) > 0
    weights = [layer["total"] * layer["inputs"] for layer in layers.values()]
    each = [layer["compression"] for layer in layers.values()]
    assert row.compression == pytest.approx(np.average(each, weights=weights))


@pytest.mark.full
def test_bands_that_change_are_compiled_once_each(tmp_path):
    job = ["--epochs", "4", "--limit", "64", "--seeds", "0", "--out", str(tmp_path), "--band"]
    text = "schedule=piecewise:none@0+compression=0.5@1+none@3"
    assert main([*job, text]) == 0
    (path,) = tmp_path.glob("*_seed-0.json")
    record = json.loads(path.read_text())
    assert record["config"]["band"] == text
    first, second, third, last = record["curves"]["compression"]
    assert first == last == 0
    assert second == third > 0.3
    assert record["result"]["compilations"] == 2


@pytest.mark.full
def test_a_recalibrated_run_goes_on_as_if_nothing_had_happened(examples, tmp_path):
    """Stopped within each epoch and started anew, it has the plans and curves of a whole run."""

    text = "schedule=recalibrated:0.8@1x2"
    label, known = parse_band(text)
    keeping = Keeping(Interval.parse("never"), 2, tensorboard=False)
    curves, plans, stops = {}, {}, 0
    for name, stop in (("whole", Stop), ("parts", AtThird)):
        finished = False
        while not finished:
            trainer = Trainer(SETTINGS, examples, known(0))
            console = Console(file=io.StringIO())
            bands = parse_band(text)[1]
            run = Run(trainer, label, 1, tmp_path / name, keeping, console, stop(), bands)
            try:
                curves[name] = run.train("title")["curves"]
                finished = True
            except Stopped:
                stops += 1
        plans[name] = run.extra["bands"]
        del curves[name]["seconds"]
    assert stops >= 2
    assert curves["parts"] == curves["whole"]
    assert plans["parts"] == plans["whole"]
    # An epoch by energy, then two plans; of what the network's own inputs hold.
    dynamic, first, second = curves["whole"]["compression"]
    assert min(dynamic, first, second) > 0
    again = parse_band(text)[1]
    again.load_state_dict(plans["whole"])
    assert isinstance(again(0), bandjax.Energy)
    assert isinstance(again(1), bandjax.Plan)
    assert not again.due(2)


@pytest.mark.full
def test_a_plan_from_a_file(examples, tmp_path, capsys):
    trainer = Trainer(SETTINGS, examples, None)
    plan = trainer.calibrate(trainer.start(0), bandjax.Energy(0.8))
    file = tmp_path / "plan.json"
    plan.save(file)
    out = tmp_path / "out"
    job = ["--epochs", "1", "--limit", "64", "--seeds", "0", "--band", f"plan={file}", "--out"]
    assert main([*job, str(out)]) == 0
    (path,) = out.glob("plan-plan-*_seed-0.json")
    report = json.loads(path.read_text())["result"]["compression"]
    planned = {name: list(layer.modes) for name, layer in plan.layers.items()}
    assert {name: layer["modes"] for name, layer in report["layers"].items()} == planned
    assert report["total"] > 0
    capsys.readouterr()
    assert main([*job, str(tmp_path / "other"), "--model", "lenet"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: model lenet")
    assert shown.count("\n") == 1
    file.write_text("{")
    assert main([*job, str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.startswith("error: band 'plan=")


@pytest.mark.full
def test_spectral_parameters(examples):
    settings = settings_for(
        "cnn", "digits", epochs=1, batch_size=25, optimizer="sgd", param_domain="spectral"
    )
    band = bandjax.Compression(0.5)
    spectral = Trainer(settings, examples, band)
    spatial = Trainer(SETTINGS, examples, band)
    a, b = spectral.start(0), spatial.start(0)
    assert spectral.evaluate(a)[0] == pytest.approx(spatial.evaluate(b)[0], rel=1e-4)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(a.params)}
    assert "kernel_spectrum" in names
    before = jax.tree.map(np.asarray, a.params)
    state, row = spectral.run_epoch(a, 0, 1)
    assert np.isfinite(row.train_loss)
    moved = jax.tree.map(lambda p, q: np.abs(p - q).max(), before, state.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_of_several_processes_the_first_one_calibrates(monkeypatch):
    trainer = Trainer(settings_for("cnn", "digits", batch_size=64), place(load_digits()), None)
    state, energy = trainer.start(0), bandjax.Energy(0.9)
    own = trainer.calibrate(state, energy)
    other = bandjax.Plan(
        {path: replace(layer, modes=(1, 1)) for path, layer in own.layers.items()},
        own.input_shape,
        energy,
    )
    assert own != other
    monkeypatch.setattr("experiments.training.loop.share", lambda make: json.dumps(other.as_dict()))
    assert trainer.calibrate(state, energy) == other
