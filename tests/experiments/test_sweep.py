"""Sweeps: what they train, what they leave alone, and the numbers that they tell."""

from __future__ import annotations

import io
import json
import os
import signal
import sys

import numpy as np
import pytest
from rich.console import Console

from experiments import sweep
from experiments.data.ucr import ucr_names
from experiments.jobs.comparison import compare, comparison_table, draw_accuracies, draw_ranks
from experiments.settings.errors import UserError
from experiments.sweep import main


def record(curve, compression=0.25):
    result = {"test_accuracy": curve[-1], "compression": {"total": compression}}
    return {"result": result, "curves": {"test_accuracy": curve}}


def archive(folder, **sets):
    """Sets of noisy sines and cosines, by name and length."""
    rng = np.random.default_rng(0)
    for name, length in sets.items():
        place = folder / "UCRArchive_2018" / name
        place.mkdir(parents=True)
        for part, count in (("TRAIN", 16), ("TEST", 5)):
            lines = []
            for index in range(count):
                phase = np.linspace(0, 6, length) + (index % 2) * np.pi / 2
                series = np.sin(phase) + 0.1 * rng.normal(size=length)
                series = (series - series.mean()) / series.std()
                lines.append("\t".join(map(repr, [index % 2, *series.tolist()])))
            (place / f"{name}_{part}.tsv").write_text("\n".join(lines) + "\n")


def test_comparison_of_known_numbers():
    sets = {
        "one": {"a": [record([0.2, 0.5]), record([0.4, 0.7])], "b": [record([0.1, 0.9])] * 2},
        "two": {"a": [record([0.0, 0.3]), record([0.2, 0.5])], "b": [record([0.1, 0.4])] * 2},
    }
    found = compare(sets)
    assert found["bands"] == ["a", "b"]
    assert found["sets"]["one"]["a"]["seeds"] == [0.5, 0.7]
    assert found["sets"]["one"]["a"]["mean"] == pytest.approx(0.6)
    assert found["sets"]["one"]["a"]["std"] == pytest.approx(0.02**0.5)
    a, b = found["overall"]["a"], found["overall"]["b"]
    # The seeds' means over the sets are 0.4 and 0.6 with a, 0.65 twice with b.
    assert (a["mean"], a["std"]) == (pytest.approx(0.5), pytest.approx(0.02**0.5))
    assert (b["mean"], b["std"]) == (pytest.approx(0.65), pytest.approx(0))
    assert (a["better"], a["equal"], a["worse"]) == (0, 2, 0)
    assert (b["better"], b["equal"], b["worse"]) == (1, 1, 0)
    assert (a["rank"], b["rank"]) == (1.75, 1.25)
    assert a["by_epoch"] == pytest.approx([0.2, 0.5])
    assert a["compression"] == 0.25
    assert found["friedman_p"] is found["wilcoxon_p"] is None
    assert found["late_epochs"] == 1
    assert a["late"] == {"mean": a["mean"], "std": a["std"]}


def test_late_epochs_are_the_last_tenth():
    """Of 29 epochs the last two; the last alone stays what the ranks go by."""
    swinging = [0.0] * 27 + [0.25, 0.75]
    sets = {
        "one": {"a": [record(swinging), record([0.1] * 29)], "b": [record([0.5] * 29)] * 2},
        "two": {"a": [record([0.3] * 29)] * 2, "b": [record([0.5] * 29)] * 2},
    }
    found = compare(sets)
    assert found["late_epochs"] == 2
    late = found["sets"]["one"]["a"]["late"]
    assert late["seeds"] == pytest.approx([0.5, 0.1])
    assert (late["mean"], late["std"]) == (pytest.approx(0.3), pytest.approx(0.08**0.5))
    assert found["sets"]["one"]["a"]["mean"] == pytest.approx(0.425)
    # The seeds' late means over the sets are 0.4 and 0.2.
    overall = found["overall"]["a"]["late"]
    assert (overall["mean"], overall["std"]) == (pytest.approx(0.3), pytest.approx(0.02**0.5))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table("title", found))
    assert "mean, last 2 epochs" in console.export_text()


def test_table_cuts_no_figure():
    """On a terminal of 80 columns names fold; bands and figures are whole."""
    bands = ("none", "compression=0.5", "compression=0.75")
    runs = {band: [record([1.0]), record([0.5])] for band in bands}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table("title", compare({"ucr:MiddlePhalanxOutlineAgeGroup": runs})))
    shown = console.export_text()
    assert "…" not in shown
    assert all(band in shown for band in bands)
    assert shown.count("75.00 ± 35.36") == 6


def test_differences_between_three_bands(tmp_path):
    """Over ten sets one band is worst each time, and the other two take turns."""
    sets = {}
    for index in range(10):
        lead = 0.01 * (index + 1) * (-1) ** index
        accuracies = {"x": 0.8, "y": 0.8 + lead, "z": 0.5 - 0.001 * index}
        sets[f"set{index}"] = {band: [record([v])] for band, v in accuracies.items()}
    found = compare(sets)
    ranks = {band: entry["rank"] for band, entry in found["overall"].items()}
    assert ranks == {"x": 1.5, "y": 1.5, "z": 3.0}
    # Friedman's statistic by its definition: 12 n / (k (k + 1)) sum of (rank - 2)^2 is 15; the
    # chi-squared distribution with two degrees of freedom is exponential.
    assert found["friedman_p"] == pytest.approx(np.exp(-15 / 2))
    # All ten differences have one sign: exactly 2 / 2^10, times 3 and 2 by Holm's method.
    pairs = found["wilcoxon_p"]
    assert pairs["x"]["z"] == pairs["z"]["x"] == pytest.approx(3 * 2 / 2**10)
    assert pairs["x"]["y"] > 0.5
    assert found["overall"]["x"]["std"] is None

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table("title", found))
    shown = console.export_text()
    assert "mean of 10" in shown
    assert "0 / 0 / 10" in shown
    assert draw_ranks("title", found, tmp_path / "ranks.png")
    draw_accuracies("title", found, tmp_path / "accuracy.png")
    for name in ("ranks.png", "accuracy.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    # Nothing to tell apart is no difference, not NaN.
    same = {name: {band: [record([0.5])] for band in "xyz"} for name in ("s", "t")}
    equal = compare(same)
    assert equal["friedman_p"] == 1
    assert set(equal["wilcoxon_p"]["x"].values()) == {1.0}


@pytest.mark.usefixtures("quick_compile")
def test_sweep_trains_what_is_missing(tmp_path, capsys, monkeypatch):
    archive(tmp_path, Long=40, Short=20, Middle=30)
    out = tmp_path / "out"
    words = ["--data-dir", str(tmp_path), "--smallest", "2", "--epochs", "2", "--out", str(out)]
    words += ["--checkpoint-every", "never", "--band", "none", "compression=0.5"]
    assert ucr_names(tmp_path) == ["Long", "Middle", "Short"]
    assert main([*words, "--seeds", "0"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("data set 1/2 · ucr:Short") < shown.index("data set 2/2 · ucr:Middle")
    assert "mean of 2" in shown
    content = json.loads((out / "results.json").read_text())
    assert list(content["sets"]) == ["ucr:Short", "ucr:Middle"]
    run = json.loads((out / "ucr-Short/compression-0.5_seed-0.json").read_text())
    told = content["sets"]["ucr:Short"]["compression=0.5"]
    assert told["seeds"] == [run["result"]["test_accuracy"]]
    assert told["compression"] == run["result"]["compression"]["total"]
    assert content["failed"] == {}
    assert not (out / "ranks.png").exists()  # of three bands or more

    # Another seed: the first one's runs stay as they are.
    kept = (out / "ucr-Short/none_seed-0.json").read_bytes()
    assert main(["--resume", str(out), "--seeds", "0", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("already done") == 4
    assert (out / "ucr-Short/none_seed-0.json").read_bytes() == kept
    content = json.loads((out / "results.json").read_text())
    assert len(content["sets"]["ucr:Middle"]["none"]["seeds"]) == 2

    assert main([*words, "--learning-rate", "0.5"]) == 2
    assert "began with learning_rate 0.001, not 0.5" in capsys.readouterr().err

    # A set that fails is told, and the others are done; SIGTERM ends all.
    (out / "ucr-Short/none_seed-0.json").write_text("{")
    assert main([*words, "--seeds", "0"]) == 2
    ended = capsys.readouterr()
    assert "1 of 2 data sets failed, the first ucr:Short: " in ended.err
    assert "Traceback" not in ended.err
    content = json.loads((out / "results.json").read_text())
    assert list(content["sets"]) == ["ucr:Middle"]
    assert "not a record" in content["failed"]["ucr:Short"]
    monkeypatch.setattr(sweep, "run_job", lambda *_: False)
    assert main([*words, "--seeds", "0"]) == 0
    assert "data set 2/2" not in capsys.readouterr().out


@pytest.mark.usefixtures("quick_compile")
def test_a_failed_last_set_and_a_damaged_later_record(tmp_path, capsys):
    """The sets before it and after are trained, and the report tells of all."""
    archive(tmp_path, First=20, Coffin=30, Last=40)
    out = tmp_path / "out"
    words = ["--data-dir", str(tmp_path), "--epochs", "1", "--out", str(out), "--seeds", "0"]
    words += ["--checkpoint-every", "never", "--band", "none", "--data"]
    names = ["ucr:First", "ucr:Coffin", "ucr:Last"]
    (out / "ucr-Coffin").mkdir(parents=True)
    (out / "ucr-Coffin/none_seed-0.json").write_text("{")
    for last in (False, True):
        order = [names[0], names[2], names[1]] if last else names
        assert main([*words, *order]) == 2
        ended = capsys.readouterr()
        assert "ucr:Coffin: " in ended.out
        assert "mean of 2" in ended.out
        content = json.loads((out / "results.json").read_text())
        assert list(content["sets"]) == ["ucr:First", "ucr:Last"]
        assert "not a record" in content["failed"]["ucr:Coffin"]


@pytest.mark.usefixtures("quick_compile")
def test_sigterm_between_two_sets_ends_the_sweep(tmp_path, capsys, monkeypatch):
    archive(tmp_path, First=20, Last=40)
    out = tmp_path / "out"
    words = ["--data-dir", str(tmp_path), "--epochs", "1", "--out", str(out), "--seeds", "0"]
    words += ["--checkpoint-every", "never", "--band", "none", "--data", "ucr:First", "ucr:Last"]
    write = sweep.report_sweep

    def report(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        write(*args, **options)

    monkeypatch.setattr(sweep, "report_sweep", report)
    assert main(words) == 0
    assert "stopped by SIGTERM; go on with --resume" in capsys.readouterr().out
    assert (out / "ucr-First/none_seed-0.json").exists()
    assert not (out / "ucr-Last").exists()
    monkeypatch.setattr(sweep, "report_sweep", write)
    assert main(["--resume", str(out)]) == 0
    assert "mean of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data", "ucr:*"], "ucr:* needs --data-dir"),
        (["--data-dir", "{}"], "no set of the UCR archive"),
        (["--data", "ucr:Nothing", "--data-dir", "{}"], "UCR set 'Nothing' not found"),
        (["--data", "digits", "--band", "half"], "unknown band 'half'"),
        (["--data", "digits", "--smallest", "0"], "smallest must be at least 1, got 0"),
        (["--data", "digits", "--model", "nothing"], "unknown model 'nothing'"),
        (["--resume", "{}"], "nothing to resume"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, words, line):
    out = [] if "--resume" in words else ["--out", str(tmp_path / "out")]
    assert main([word.format(tmp_path) for word in words] + out) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_scikit_posthocs_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "scikit_posthocs", None)
    assert main(["--data", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'bandjax[sweep]'" in capsys.readouterr().err
    with pytest.raises(UserError, match="scikit-posthocs"):
        draw_ranks("", {"wilcoxon_p": {}}, tmp_path / "ranks.png")
