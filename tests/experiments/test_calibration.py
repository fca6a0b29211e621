"""The program that calibrates trained networks."""

from __future__ import annotations

import json

import pytest

import bandjax
from experiments import calibration
from experiments.data import load_digits
from experiments.models import build


@pytest.mark.full
def test_a_network_is_trained_and_calibrated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "SHARES", (0.7,))
    out = tmp_path / "out"
    words = (
        "--model cnn --data digits --limit 128 --epochs 1 --band modes=2,2 --energy 0.8 --grid 12"
        " --after 0 1"
    )
    assert calibration.main([*words.split(), "--out", str(out)]) == 0
    record = json.loads((out / "record.json").read_text())
    plan = bandjax.Plan.load(out / "modes-2-2.json")
    wide = bandjax.Plan.load(out / "modes-2-2-grid-12.json")
    assert {layer.grid for layer in wide.layers.values()} == {(12, 12)}
    assert plan.share == 0.8
    kept = {path: [layer.kept, layer.total] for path, layer in plan.layers.items()}
    assert record["kept_of_total"]["trained at modes=2,2, default grid"] == kept
    assert 0 <= record["networks"]["trained at modes=2,2"]["test_accuracy"] <= 1
    by_epoch = record["kept_after_epochs"]["trained at modes=2,2"]
    assert list(by_epoch) == ["0", "1"]
    assert by_epoch["1"] == [[layer.kept, layer.total] for layer in wide.layers.values()]
    digits = load_digits().x_train[:128]
    untrained = build("cnn", (8, 8, 1), 10, band=bandjax.Modes(2, 2))
    before = bandjax.calibrate(untrained, [digits], bandjax.Energy(0.8), grid=12)
    assert by_epoch["0"] == [[layer.kept, layer.total] for layer in before.layers.values()]
    assert (out / "training.png").stat().st_size > 10_000
    assert record["paper_kept_of_513"] is None
    assert (out / "energy.png").stat().st_size > 10_000
    assert "convs.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--energy 2", "--energy: share must satisfy 0 < share <= 1, got 2"),
        ("--batch-size 0", "--batch-size of at least 1"),
        ("--after 1 -1", "--after: epochs are counted from 0, got -1"),
        ("--model cnn --data digits --grid 0", "grid must be >= 1, got 0"),
        ("--model none", "unknown model 'none'"),
        ("--model cnn --data digits --out {file}", "output folder"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(words, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    out = [] if "--out" in words else ["--out", str(tmp_path)]
    assert calibration.main([*words.format(file=file).split(), *out]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "epoch" not in said.out  # It is told before anything is trained.


def test_order_of_layers():
    def plan(*modes):
        layers = {
            str(i): bandjax.LayerPlan((3, 1, 1), (9,), (10,), (u,), 1.0)
            for i, u in enumerate(modes)
        }
        return bandjax.Plan(layers, (9, 1), bandjax.Energy(0.9))

    assert calibration.deeper_keep_fewer(plan(4, 2, 1))
    assert not calibration.deeper_keep_fewer(plan(4, 2, 2))
