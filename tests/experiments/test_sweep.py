"""Sweeps: what they train, what they leave alone, and the numbers that they tell."""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np
import pytest

from experiments import sweep
from experiments.data.ucr import ucr_names
from experiments.jobs.comparison import draw_ranks
from experiments.settings.errors import UserError
from experiments.sweep import main

pytestmark = pytest.mark.usefixtures("quick_compile")


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


@pytest.mark.full
@pytest.mark.usefixtures("no_pictures")
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
    assert main(["--resume", str(out), "--seeds", "0", "1", "--band", "none"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("already done") == 2
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


@pytest.mark.full
@pytest.mark.usefixtures("no_pictures")
def test_a_failed_last_set_and_a_damaged_later_record(tmp_path, capsys):
    """The sets before it and after are trained, and the report tells of all."""
    archive(tmp_path, First=20, Coffin=25, Last=30)
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


@pytest.mark.full
@pytest.mark.usefixtures("no_pictures")
def test_sigterm_between_two_sets_ends_the_sweep(tmp_path, capsys, monkeypatch):
    archive(tmp_path, First=20, Last=30)
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
