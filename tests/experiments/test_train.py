"""The command line: what a job leaves behind, resuming, and one line for every bad input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.loop import Epoch
from experiments.progress import progress
from experiments.report import summarise
from experiments.train import main

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--epochs", "2", "--limit", "128", "--band", "none", "compression=0.5"]


def test_job_writes_its_records_and_goes_on_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    job = [*SMALL, "--out", str(out), "--seeds"]
    assert main([*job, "0"]) == 0
    names = {path.name for path in out.iterdir()}
    first = {"none_seed-0.json", "compression-0.5_seed-0.json", "summary.json", "curves.png"}
    assert names == first
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    record = json.loads((out / "compression-0.5_seed-0.json").read_text())
    config = record["config"]
    assert config["band"] == "compression=0.5"
    assert (config["seed"], config["epochs"], config["limit"]) == (0, 2, 128)
    assert (config["optimizer"], config["batch_size"]) == ("adam", 64)
    assert set(record["versions"]) == {"python", "jax", "jaxlib", "flax", "optax", "bandjax"}
    assert record["machine"]["cpu"]
    assert set(record["curves"]) == set(Epoch._fields)
    assert all(len(curve) == 2 for curve in record["curves"].values())
    result = record["result"]
    assert result["test_accuracy"] == record["curves"]["test_accuracy"][-1]
    assert (result["test_accuracy"] * 360).is_integer()
    assert 0 < result["compression"]["total"] < 1
    assert result["saved_bytes"] > 0

    shown = capsys.readouterr().out
    assert "epoch 2/2" in shown
    assert "saved for" in shown
    assert "\x1b" not in shown

    kept = {name: (out / name).read_bytes() for name in names if "seed" in name}
    assert main([*job, "0", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("already done") == 2
    assert {name: (out / name).read_bytes() for name in kept} == kept
    summary = json.loads((out / "summary.json").read_text())
    assert [row["band"] for row in summary["bands"]] == ["none", "compression=0.5"]
    assert summary["bands"][0]["seeds"] == [0, 1]

    assert main([*job, "0", "--learning-rate", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "was trained with learning_rate 0.001, not 0.5: choose another --out" in error

    (out / "none_seed-1.json").write_text('{"config": ')
    assert main([*job, "0"]) == 2
    assert "none_seed-1.json: not a record of a run" in capsys.readouterr().err


def test_summary_of_known_numbers():
    def record(band, seed, accuracy, seconds):
        return {
            "config": {"band": band, "seed": seed},
            "result": {
                "test_accuracy": accuracy,
                "seconds_per_epoch": seconds,
                "compression": {"total": 0.25},
                "saved_bytes": 8,
            },
        }

    many, one = summarise(
        [record("b", 0, 0.5, 3.0), record("b", 1, 0.7, 1.0), record("a", 0, 0.9, 2.0)]
    )
    assert many["test_accuracy"]["mean"] == pytest.approx(0.6)
    assert many["test_accuracy"]["std"] == pytest.approx(0.02**0.5)
    assert many["seconds_per_epoch"] == 2
    assert one["band"] == "a"
    assert one["test_accuracy"]["std"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "x"], "unknown model 'x'; known: cnn, fcn, lenet"),
        (["--data", "x"], "unknown data set 'x'"),
        (["--data", "ucr:Coffee"], "needs --data-dir"),
        (["--data", "cifar10", "--data-dir", "/nonexistent"], "does not exist"),
        (["--model", "fcn"], "needs series"),
        (["--band", "half"], "unknown band 'half'"),
        (["--band", "compression=1.2"], "rate must satisfy 0 <= rate < 1, got 1.2"),
        (["--band"], "need at least one --band"),
        (["--band", "modes=3"], "model cnn: "),
        (["--seeds", "-1"], "no negative seed"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--epochs", "many"], "--epochs"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--batch-size", "2000"], "batch_size must be at most"),
        (["--learning-rate", "-1"], "learning_rate must be positive and finite, got -1.0"),
        (["--momentum", "1"], "momentum must satisfy"),
        (["--plateau-factor", "1"], "plateau_factor must satisfy"),
        (["--method", "magic"], "invalid choice 'magic' for argument '--method'"),
        (["--unheard-of", "1"], "--unheard-of"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not any(tmp_path.iterdir())


def test_output_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file")]) == 2
    assert "output folder" in capsys.readouterr().err


def test_interrupted_job_says_so(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.train.run_job", interrupt)
    assert main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted; finished runs are kept\n"


def test_help_and_bad_input_from_a_shell(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "experiments.train", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    shown = run("--help")
    assert shown.returncode == 0
    for option in ("--model", "--data-dir", "--band", "--seeds", "--limit", "--out"):
        assert option in shown.stdout
    failed = run("--data", "cifar10", "--data-dir", str(tmp_path))
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: CIFAR-10 not found")
    assert failed.stderr.count("\n") == 1


def test_progress_on_a_terminal_is_a_bar_and_lines_elsewhere():
    row = Epoch(0.25, 0.9, 0.5, 0.875, 1e-3, 1.5)
    shown = {}
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=120)
        with progress(console, "run 1/1", 40) as show:
            for epoch in range(1, 41):
                show(epoch, row)
        shown[terminal] = text.getvalue()
    assert "\x1b" in shown[True]
    assert "40/40" in shown[True]
    assert "ETA" in shown[True]
    assert "\x1b" not in shown[False]
    assert len(shown[False].splitlines()) == 11  # the first, and every fourth of 40
    assert "epoch 4/40 · loss 0.2500 · test accuracy 87.50 %" in shown[False]
