"""The study: its list and order, what it trains, and the figures that it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bandjax
from experiments import study
from experiments.figures.study import summarise
from experiments.jobs import study as lists
from experiments.jobs.study import Group, Progress, StudyRun, Variant, published, runs
from experiments.settings.variants import parse_variant
from experiments.study import main

DENSE, HALF = Variant("dense", "none"), Variant("50 %", "compression=0.5")
BUDGET = Variant("allocated 50 %", "allocated-0.5", budget=0.5)
OPTIONS = {"epochs": 2, "batch_size": 64, "limit": 256}


def test_the_list():
    listed = runs()
    assert len(set(listed_names(listed))) == len(listed)
    first = listed_names(listed)[:5]
    names = ("dense", "50 %", "75 %", "Nyquist", "Nyquist + 50 %")
    assert first == [("resnet20", name, 0) for name in names]
    assert sum(run.group.name == "resnet20" for run in listed) == 27
    assert sum(run.group.model == "fcn" for run in listed) == 6 * 6 * 3
    deciding = [run for run in listed if run.group.name == "resnet20"][5:15]
    assert {run.variant.name for run in deciding} <= {"dense", "75 %", *lists.NAMED.values()}
    assert {run.group.name for run in runs(device="gpu")} == {"resnet18-gpu"}
    for run in (*listed, *runs(device="gpu")):
        if run.variant.budget is None:
            parse_variant(run.variant.band)
        assert run.options(Path("out"), None, None).settings().epochs == run.group.epochs
    assert len(runs(["resnet20/Nyquist"])) == 3
    assert len(runs(["resnet20"], [1, 2])) == 18


def listed_names(listed):
    return [(run.group.name, run.variant.name, run.seed) for run in listed]


def record(accuracies, compression=0.5, dropped=0.4):
    return {
        "curves": {"test_accuracy": accuracies, "seconds": [2.0] * len(accuracies)},
        "result": {
            "test_accuracy": accuracies[-1],
            "mean_compression": compression,
            "mean_bytes_dropped": dropped,
            "seconds_per_epoch": 2.0,
            "saved_bytes": 2**20,
        },
    }


@pytest.fixture
def tiny(monkeypatch):
    """Two groups in place of the study's."""
    groups = (
        Group("fcn-a", "cnn", "digits", OPTIONS, (0, 1), (DENSE, HALF, BUDGET), warm_up=1),
        Group("fcn-b", "cnn", "digits", OPTIONS, (0, 1), (DENSE, HALF, BUDGET), warm_up=1),
    )
    monkeypatch.setattr(lists, "GROUPS", groups)
    return groups


def test_the_figures(tmp_path, tiny, monkeypatch, capsys):
    curves = {
        ("fcn-a", "dense", 0): [0.1, 0.90, 0.92, 0.94],
        ("fcn-a", "dense", 1): [0.1, 0.92, 0.94, 0.96],
        ("fcn-a", "50 %", 0): [0.1, 0.80, 0.92, 0.95],
        ("fcn-a", "50 %", 1): [0.1, 0.90, 0.92, 0.91],
        ("fcn-b", "dense", 0): [0.1, 0.50, 0.50, 0.50],
        ("fcn-b", "50 %", 0): [0.1, 0.60, 0.60, 0.60],
    }
    every = runs()
    for run in every:
        key = run.group.name, run.variant.name, run.seed
        if key in curves:
            path = tmp_path / published(run)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(record(curves[key])))
    told = summarise(every, tmp_path)
    half = told["fcn-a"]["50 %"]
    assert half["late"]["each"] == pytest.approx([0.89, 0.91])
    assert half["last"]["mean"] == pytest.approx(0.93)
    assert half["gap"]["each"] == pytest.approx([0.03, 0.03])
    assert half["gap"]["std"] == pytest.approx(0, abs=1e-12)
    mean = told["fcn, mean of the sets"]
    assert mean["50 %"]["seeds"] == [0]
    assert mean["50 %"]["gap"]["mean"] == pytest.approx((0.03 - 0.1) / 2)
    assert "allocated 50 %" not in told["fcn-a"]

    assert main(["report", "--results", str(tmp_path)]) == 0
    assert "3.00 ± 0.00" in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["report", "--results", str(tmp_path / "none")]) == 2
    assert "give --runs DIR" in capsys.readouterr().err


def test_a_record_of_other_settings_is_no_run_of_the_list(tmp_path, tiny, capsys):
    run, out, results = runs()[0], tmp_path / "runs", tmp_path / "results"
    config = {"model": "cnn", "data": "digits", "seed": run.seed, **OPTIONS, "epochs": 1}
    path = run.record(out)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"config": config, **record([0.5])}))
    words = ["accuracy", "--out", str(out), "--list"]
    assert main(words) == 2
    assert "epochs 1 instead of 2" in capsys.readouterr().err
    assert main(["report", "--runs", str(out), "--results", str(results)]) == 2
    assert "epochs 1 instead of 2" in capsys.readouterr().err
    assert not results.exists()
    assert main([*words, "--epochs", "1"]) == 0  # A trial's own records.
    config["epochs"] = 2
    path.write_text(json.dumps({"config": config, **record([0.5, 0.6])}))
    assert main(words) == 0
    assert main(["report", "--runs", str(out), "--results", str(results)]) == 0
    assert (results / published(run)).is_file()


def test_what_is_asked_for_wrongly(capsys):
    assert main(["accuracy", "--only", "nothing"]) == 2
    assert "groups of --device cpu are resnet20, resnet18-pool" in capsys.readouterr().err
    assert main(["accuracy", "--device", "gpu"]) == 2
    assert "JAX has no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["accuracy", "--help"])
    assert "how far they are and what they cost" in " ".join(capsys.readouterr().out.split())


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile", "no_pictures")
def test_it_trains_what_is_missing(tmp_path, tiny, capsys):
    out = tmp_path / "runs"
    words = ["accuracy", "--out", str(out), "--only", "fcn-a", "--seeds", "0"]
    assert main([*words, "--list"]) == 0
    assert "0 of 3 done" in capsys.readouterr().out
    assert not out.exists()
    assert main(words) == 0
    capsys.readouterr()
    plan = bandjax.Plan.load(out / "fcn-a/plans/allocated-0.5.json")
    assert plan.band == bandjax.Budget(0.5, at_most=bandjax.Nyquist())
    run = StudyRun(tiny[0], BUDGET, 0)
    made = json.loads(run.record(out).read_text())
    assert made["result"]["mean_bytes_dropped"] >= 0.5
    assert made["config"]["band"].startswith("plan=allocated-0.5@")
    before = Progress.of(run, out)
    assert (before.epochs, before.done) == (2, True)
    assert main(words) == 0  # Nothing is left to do.
    assert "seed 0" not in capsys.readouterr().out
    assert main([*words, "--list"]) == 0
    assert "3 of 3 done" in capsys.readouterr().out
    assert main(["report", "--runs", str(out), "--results", str(tmp_path / "results")]) == 0
    copied = tmp_path / "results" / published(run)
    assert json.loads(copied.read_text()) == made
    assert Path("experiments/results/study") == study.RESULTS
