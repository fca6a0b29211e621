"""The command line: what a job leaves behind, resuming, and one line for every bad input."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from stopping import AtThird
from tensorboardX.proto import event_pb2

from experiments.checks import kill
from experiments.data import load_digits
from experiments.data.examples import place
from experiments.jobs.checkpoints import read_arrays
from experiments.jobs.job import open_job, options_as_json
from experiments.jobs.metrics import Metrics
from experiments.jobs.progress import Length, progress
from experiments.jobs.report import summarise
from experiments.jobs.runs import Interval, Keeping, Run, Stop, Stopped
from experiments.settings.command import run_command
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.settings.records import git_revision
from experiments.train import Options, main
from experiments.training.loop import Epoch, Trainer

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--epochs", "2", "--limit", "128", "--band", "none", "compression=0.5"]


@pytest.mark.usefixtures("quick_compile")
def test_job_writes_its_records_and_goes_on_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    job = [*SMALL, "--out", str(out), "--seeds"]
    assert main([*job, "0"]) == 0
    names = {path.name for path in out.iterdir()}
    runs = {"none_seed-0", "compression-0.5_seed-0"}
    records = {f"{name}.json" for name in runs}
    assert names == {*runs, *records, "job.json", "summary.json", "curves.png"}
    for name in runs:
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [(row["epoch"], row["step"]) for row in rows] == [(1, 2), (2, 4)]
        assert rows[1]["images_per_second"] == pytest.approx(128 / rows[1]["seconds"])
        assert {path.name for path in (out / name / "checkpoints").iterdir()} == {
            "00000004", "00000004.json",
        }  # fmt: skip
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

    kept = {name: (out / name).read_bytes() for name in records}
    assert main([*job, "0", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("already done") == 2
    assert {name: (out / name).read_bytes() for name in kept} == kept
    summary = json.loads((out / "summary.json").read_text())
    assert [row["band"] for row in summary["bands"]] == ["none", "compression=0.5"]
    assert summary["bands"][0]["seeds"] == [0, 1]

    assert main([*job, "0", "--learning-rate", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "job.json began with learning_rate 0.001, not 0.5: choose another --out" in error
    assert main(["--resume", str(out), "--learning-rate", "0.5"]) == 2
    assert "began with learning_rate 0.001, not 0.5" in capsys.readouterr().err
    assert main(["--resume", str(out)]) == 0  # the first command, and nothing left to do
    assert capsys.readouterr().out.count("already done") == 2
    (out / "job.json").unlink()
    assert main([*job, "0", "--learning-rate", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "was trained with learning_rate 0.001, not 0.5: choose another --out" in error
    (out / "job.json").unlink()

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
        (["--model", "x"], "unknown model 'x'; known: cnn, fcn, lenet, resnet18, resnet18-pool"),
        (["--data", "x"], "unknown data set 'x'"),
        (["--data", "ucr:Coffee"], "needs --data-dir"),
        (["--data", "cifar10", "--data-dir", "/nonexistent"], "does not exist"),
        (["--model", "fcn"], "needs series"),
        (["--model", "densenet121"], "at least 29x29"),
        (["--band", "half"], "unknown band 'half'"),
        (["--band", "compression=1.2"], "rate must satisfy 0 <= rate < 1, got 1.2"),
        (["--band"], "need at least one --band"),
        (["--band", "modes=3"], "model cnn: "),
        (["--seeds", "-1"], "seeds are whole numbers below 2^31"),
        (["--seeds", "0", "2147483648"], "seeds are whole numbers below 2^31"),
        (["--plateau-patience", "10000000000"], "plateau_patience must be below 2^31"),
        (["--seeds"], "at least one --band and one --seeds"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--epochs", "many"], "--epochs"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--batch-size", "2000"], "batch_size must be at most"),
        (["--accumulate", "0"], "accumulate must be at least 1, got 0"),
        (["--accumulate", "50"], "batch_size times accumulate must be at most"),
        (["--learning-rate", "-1"], "learning_rate must be positive and finite, got -1.0"),
        (["--learning-rate", "nan"], "learning_rate must be positive and finite, got nan"),
        (["--momentum", "1"], "momentum must satisfy"),
        (["--nesterov"], "nesterov needs --optimizer sgd and a momentum, got adam"),
        (["--optimizer", "sgd", "--momentum", "0", "--nesterov"], "nesterov needs"),
        (["--weight-decay", "-0.1"], "weight_decay must be finite and not negative, got -0.1"),
        (["--label-smoothing", "1"], "label_smoothing must satisfy 0 <= label_smoothing < 1, got"),
        (["--precision", "fp8"], "invalid choice 'fp8' for argument '--precision'"),
        (["--schedule", "linear"], "invalid choice 'linear' for argument '--schedule'"),
        (["--augment", "mixup"], "invalid choice 'mixup' for argument '--augment'"),
        (["--plateau-factor", "1"], "plateau_factor must satisfy"),
        (["--plateau-patience", "0"], "plateau_patience must be at least 1"),
        (["--method", "magic"], "invalid choice 'magic' for argument '--method'"),
        (["--checkpoint-every", "0s"], "checkpoint-every must be a number of epochs, steps or"),
        (["--checkpoint-every", "soon"], "or never, got 'soon'"),
        (["--keep", "0"], "keep must be at least 1, got 0"),
        (["--stream", "some"], "invalid choice 'some' for argument '--stream'"),
        (["--resume", "nowhere"], "nothing to resume: nowhere has no job.json"),
        (["--resume", "a", "--out", "b"], "--resume a writes there, not into --out b"),
        (["--unheard-of", "1"], "--unheard-of"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert_one_line(capsys, message)
    assert not any(tmp_path.iterdir())


def assert_one_line(capsys, message):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "job.json: not the file of a job"),
        ("[]", "job.json: not the file of a job"),
        ('{"options": {"engine": 1}}', "job.json has the unknown option 'engine'"),
        ('{"options": {}, "settings": {"epochs": 9}}', "job.json began with epochs 9, not 30"),
        ('{"options": {"model": "vgg"}}', "unknown model 'vgg'"),
    ],
)
def test_a_folder_that_cannot_be_resumed(tmp_path, capsys, content, message):
    (tmp_path / "job.json").write_text(content)
    assert main(["--resume", str(tmp_path)]) == 2
    assert_one_line(capsys, message)
    assert (tmp_path / "job.json").read_text() == content
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("notes.txt", "is no checkpoint of this program"), ("00000009.json", "is not the manifest")],
)
def test_foreign_checkpoints_are_left_alone(tmp_path, capsys, name, message):
    folder = tmp_path / "none_seed-0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).write_text("{}")
    assert main([*SMALL, "--seeds", "0", "--out", str(tmp_path)]) == 2
    assert_one_line(capsys, message)
    assert [path.name for path in folder.iterdir()] == [name]


def test_two_processes_do_not_share_a_folder(tmp_path, capsys):
    settings = settings_for("cnn", "digits").as_dict()
    with open_job(tmp_path, {}, settings):
        assert main(["--out", str(tmp_path)]) == 2
    assert_one_line(capsys, f"another process is training into {tmp_path}")


def test_a_full_disk_while_training_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.jsonl"))

    monkeypatch.setattr("experiments.jobs.training._train_all", full)
    assert main(["--out", str(tmp_path)]) == 2
    assert_one_line(capsys, "metrics.jsonl: No space left on device")


def test_tensorboard_that_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main(["--tensorboard", "--out", str(tmp_path / "out")]) == 2
    assert_one_line(capsys, "--tensorboard needs tensorboardX: pip install 'bandjax[tensorboard]'")
    assert not any(tmp_path.iterdir())


def test_killed_and_stopped_runs_end_as_if_nothing_had_happened(tmp_path, capsys, monkeypatch):
    """SIGKILL within an epoch, in a process of its own, and SIGTERM after one."""
    reference, out = tmp_path / "reference", tmp_path / "out"
    assert main([*kill.RUN, "--out", str(reference)]) == 0
    moment = kill.Moment(random.randint(3, 9), random.uniform(0, 0.2))
    finished = kill.run_once(out, dict(os.environ), moment)
    assert not finished
    assert not (out / f"{kill.STEM}.json").exists()

    write = Metrics.write

    def stop(metrics, epoch, row):
        write(metrics, epoch, row)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Metrics, "write", stop)
    before = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    assert main([*kill.RUN, "--out", str(out)]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    shown = capsys.readouterr().out
    assert "goes on after step" in shown
    if not (out / f"{kill.STEM}.json").exists():  # else it was killed in its last epoch
        assert f"stopped by SIGTERM; a checkpoint is written, go on with --resume {out}" in shown
    monkeypatch.setattr(Metrics, "write", write)
    assert main(["--resume", str(out)]) == 0
    assert kill.differences(reference, out) == []


@pytest.mark.usefixtures("quick_compile")
def test_stopped_within_an_epoch(tmp_path, capsys):
    """A run that is asked to stop after each third step, and started again, is the same run."""

    examples = place(load_digits().limited(100))
    settings = settings_for("cnn", "digits", epochs=2, batch_size=25, optimizer="sgd")
    trainer = Trainer(settings, examples, None)
    keeping = Keeping(Interval.parse("never"), 2, tensorboard=True)
    records, stops = {}, 0
    for name, stop in (("whole", Stop), ("parts", AtThird)):
        finished = False
        while not finished:
            console = Console(file=io.StringIO())
            run = Run(trainer, "none", 1, tmp_path / name, keeping, console, stop())
            try:
                records[name] = run.train("title")["curves"]
                finished = True
            except Stopped:
                stops += 1
                run.extra["ignored"] = True  # after the checkpoint was written
    assert stops == 2
    assert [records["whole"].pop("seconds")] != [records["parts"].pop("seconds")]
    assert records["parts"] == records["whole"]
    arrays = [
        read_arrays(tmp_path / name / "checkpoints" / "00000008") for name in ("whole", "parts")
    ]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    events = [
        (value.tag, event.step)
        for path in sorted((tmp_path / "parts").glob("events.out.tfevents.*"))
        for event in read_events(path)
        for value in event.summary.value
    ]
    assert sorted(step for tag, step in events if tag == "test/accuracy") == [1, 2]
    assert {tag for tag, _ in events} >= {"train/loss", "learning_rate", "images_per_second"}


def read_events(path):
    """The events of a TensorBoard file: records of a length, a sum, the bytes and their sum."""
    raw = path.read_bytes()
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        event = event_pb2.Event()
        event.ParseFromString(raw[12 : 12 + length])
        yield event
        raw = raw[16 + length :]


def test_intervals():
    assert Interval.parse("10epochs") == Interval(10, "epochs")
    assert Interval.parse("5 steps") == Interval(5, "steps")
    assert Interval.parse("90s") == Interval(90, "s")
    assert Interval.parse("never").count == 0


def test_git_revision(monkeypatch):
    git_revision.cache_clear()
    assert re.fullmatch(r"[0-9a-f]{40}\+?", git_revision() or "0" * 40)
    git_revision.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git_revision() is None
    git_revision.cache_clear()


def test_output_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file")]) == 2
    assert "output folder" in capsys.readouterr().err


def test_interrupted_job_says_so(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.train.run_job", interrupt)
    assert main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted; finished runs and checkpoints are kept\n"


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
        with progress(console, "run 1/1", Length(40, 10, 3000)) as show:
            for epoch in range(1, 41):
                show.step(epoch, 5, 0.5, 0.75, 0.75)
                show.epoch(epoch, row)
        shown[terminal] = text.getvalue()
    assert "\x1b" in shown[True]
    assert "40/40" in shown[True]
    assert "ETA" in shown[True]
    assert "\x1b" not in shown[False]
    assert len(shown[False].splitlines()) == 11  # the first, and every fourth of 40
    line = "epoch 4/40 · loss 0.2500 · test accuracy 87.50 % · 2,000 images/s · 1.50 s · ETA 0:00:"
    assert line in shown[False]


def test_progress_within_a_long_epoch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.jobs.progress.time.monotonic", lambda: now[0])
    text = io.StringIO()
    with progress(Console(file=text), "run 1/1", Length(2, 100, 3000)) as show:
        for done in range(1, 101):
            now[0] += 1.5
            show.step(1, done, 0.5, 0.75, 1.5 * done)
        show.epoch(1, Epoch(0.25, 0.9, 0.5, 0.875, 1e-3, 150.0))
    lines = text.getvalue().splitlines()
    assert len(lines) == 3  # after one minute, after two, and at the end
    assert lines[0].startswith("run 1/1 · epoch 1/2, step 40/100 · loss 0.5000 · accuracy 75.00 %")
    assert "20 images/s" in lines[0]
    assert lines[2].endswith("ETA 0:02:30")


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("band", ["energy=0.9", "schedule=piecewise:none@0+compression=0.5@1"])
def test_a_record_lost_after_the_last_checkpoint_is_written_again(tmp_path, band):
    """Nothing is left to train, and no layer has been run: the checkpoint has what it tells."""
    words = ["--limit", "128", "--epochs", "2", "--seeds", "0", "--band", band]
    assert main([*words, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*_seed-0.json")
    before = json.loads(path.read_text())["result"]
    assert before["compression"]["total"] > 0.2
    path.unlink()
    assert main(["--resume", str(tmp_path)]) == 0
    after = json.loads(path.read_text())["result"]
    for name in ("compression", "saved_bytes", "test_accuracy", "test_loss"):
        assert after[name] == before[name]


@pytest.mark.usefixtures("quick_compile")
def test_runs_on_other_data_are_not_mixed(tmp_path, capsys):
    words = ["--limit", "64", "--epochs", "1", "--seeds", "0", "--band", "none"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    path = tmp_path / "none_seed-0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "data_sha256": "0" * 64}))
    capsys.readouterr()
    assert main(["--resume", str(tmp_path), "--seeds", "0", "1"]) == 2
    assert_one_line(capsys, "were trained on other data: choose another --out")
    assert not (tmp_path / "none_seed-1.json").exists()


def test_a_folder_is_locked_whatever_happens_to_its_files(tmp_path):
    with open_job(tmp_path / "out", {}, {"epochs": 1}):
        (tmp_path / "out/job.json").unlink()
        with (
            pytest.raises(UserError, match="another process is training into"),
            open_job(tmp_path / "out", {}, {"epochs": 2}),
        ):
            pass


def test_out_of_memory_is_one_line(capsys):
    def action():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    assert run_command(action, "") == 2
    assert_one_line(capsys, "out of memory: choose a smaller --batch-size")


def test_a_plan_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = options_as_json(Options(band=("none", "plan=some/plan.json")))
    assert stored["band"] == ["none", f"plan={tmp_path / 'some/plan.json'}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_dir", 5),
        ("seeds", 3),
        ("seeds", "abc"),
        ("seeds", ["a"]),
        ("epochs", "x"),
        ("band", None),
        ("band", [1]),
        ("keep", 1.5),
        ("tensorboard", 1),
    ],
)
def test_a_damaged_option_of_a_job_is_one_line(tmp_path, capsys, name, value):
    with open_job(tmp_path, options_as_json(Options()), {}):
        pass
    path = tmp_path / "job.json"
    content = json.loads(path.read_text())
    content["options"][name] = value
    path.write_text(json.dumps(content))
    assert main(["--resume", str(tmp_path)]) == 2
    assert_one_line(capsys, f"the option {name!r} cannot be {value!r}")
