"""The command line: what a job leaves behind, resuming, and one line for every bad input."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from one_line import assert_one_line

import bandjax
from experiments import sweep
from experiments.settings.bands import file_stem
from experiments.train import main
from experiments.training.loop import Epoch

REPOSITORY = Path(__file__).parents[2]

BANDS = (
    "none",
    "compression=0.5,remat=blocks,residual-dtype=int8",
    "energy=0.9",
    "schedule=piecewise:none@0+compression=0.5@1",
)
SMALL = ["--epochs", "2", "--limit", "128", "--band", *BANDS]


@pytest.fixture(scope="module")
def finished(quick_compile, tmp_path_factory):
    """A job's folder, and what it said."""
    out, said = tmp_path_factory.mktemp("job") / "deep" / "out", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*SMALL, "--out", str(out), "--seeds", "0"]) == 0
    return out, said.getvalue()


@pytest.fixture
def job(finished, tmp_path):
    """A copy of the job's folder."""
    return shutil.copytree(finished[0], tmp_path / "job")


def record_of(folder, band, seed=0):
    return folder / f"{file_stem(band)}_seed-{seed}.json"


def test_a_job_leaves_its_records(finished):
    out, shown = finished
    records = {record_of(out, band).name for band in BANDS}
    runs = {name.removesuffix(".json") for name in records}
    names = {path.name for path in out.iterdir()}
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

    record = json.loads(record_of(out, BANDS[1]).read_text())
    config = record["config"]
    assert config["band"] == BANDS[1]
    assert (config["seed"], config["epochs"], config["limit"]) == (0, 2, 128)
    assert (config["optimizer"], config["batch_size"]) == ("adam", 64)
    assert (config["remat"], config["residual_dtype"]) == ("blocks", "int8")
    assert set(record["versions"]) == {"python", "jax", "jaxlib", "flax", "optax", "bandjax"}
    assert record["machine"]["cpu"]
    assert set(record["curves"]) == set(Epoch._fields)
    assert all(len(curve) == 2 for curve in record["curves"].values())
    result = record["result"]
    assert result["test_accuracy"] == record["curves"]["test_accuracy"][-1]
    assert (result["test_accuracy"] * 360).is_integer()
    assert 0 < result["compression"]["total"] < 1
    dense = json.loads(record_of(out, "none").read_text())
    assert 0 < 8 * result["saved_bytes"] < dense["result"]["saved_bytes"]
    assert (dense["config"]["remat"], dense["config"]["residual_dtype"]) == ("none", "float32")
    summary = json.loads((out / "summary.json").read_text())
    assert [row["band"] for row in summary["bands"]] == list(BANDS)
    assert "epoch 2/2" in shown
    assert "kept for" in shown
    assert "\x1b" not in shown
    last = shown.splitlines()[-1]
    assert last.startswith(f"Against none, {BANDS[1]} keeps 1/")
    assert last.endswith(f" Drawn in {out / 'curves.png'}.")


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_what_is_done_is_not_done_again(job, capsys):
    kept = {path: path.read_bytes() for path in job.glob("*_seed-0.json")}
    assert main([*SMALL[:4], "--band", "none", "--out", str(job), "--seeds", "0", "1"]) == 0
    assert capsys.readouterr().out.count("already done") == 1
    assert {path: path.read_bytes() for path in kept} == kept
    summary = json.loads((job / "summary.json").read_text())
    assert {row["band"]: row["seeds"] for row in summary["bands"]} == {
        band: [0, 1] if band == "none" else [0] for band in BANDS
    }
    assert main(["--resume", str(job)]) == 0  # the first command, and nothing left to do
    assert capsys.readouterr().out.count("already done") == len(BANDS)


@pytest.mark.full
def test_another_job_in_its_folder_is_refused(job, capsys):
    for words in ([*SMALL, "--out", str(job)], ["--resume", str(job)]):
        assert main([*words, "--learning-rate", "0.5"]) == 2
        told = "job.json began with learning_rate 0.001, not 0.5: choose another --out"
        assert_one_line(capsys, told)
    (job / "job.json").unlink()
    assert main([*SMALL, "--out", str(job), "--learning-rate", "0.5"]) == 2
    assert_one_line(capsys, "was trained with learning_rate 0.001, not 0.5: choose another --out")


def test_a_damaged_record_is_named(job, capsys):
    record_of(job, "none", 1).write_text('{"config": ')
    assert main(["--resume", str(job)]) == 2
    assert_one_line(capsys, "none_seed-1.json: not a record of a run")
    config = json.loads(record_of(job, BANDS[1]).read_text())["config"]
    record_of(job, "none", 1).write_text(
        json.dumps({"config": {**config, "band": "none,remat=some"}, "result": {}, "curves": {}})
    )
    assert main(["--resume", str(job)]) == 2
    assert_one_line(capsys, "none_seed-1.json: not a record of a run")


@pytest.mark.full
@pytest.mark.thin(3)
@pytest.mark.parametrize("band", BANDS[1:])
def test_a_record_lost_after_the_last_checkpoint_is_written_again(job, band):
    """Nothing is left to train, and no layer has been run: the checkpoint has what it tells."""
    path = record_of(job, band)
    before = json.loads(path.read_text())["result"]
    assert before["compression"]["total"] > 0.2
    path.unlink()
    assert main(["--resume", str(job)]) == 0
    after = json.loads(path.read_text())["result"]
    for name in ("compression", "saved_bytes", "temporary_bytes", "test_accuracy", "test_loss"):
        assert after[name] == before[name]


def test_runs_on_other_data_are_not_mixed(job, capsys):
    path = record_of(job, "none")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "data_sha256": "0" * 64}))
    assert main(["--resume", str(job), "--seeds", "0", "1"]) == 2
    assert_one_line(capsys, "were trained on other data: choose another --out")
    assert not record_of(job, "none", 1).exists()


@pytest.mark.parametrize("command", [main, sweep.main])
@pytest.mark.parametrize("words", [[], ["--no-tune-allocator"]])
def test_the_allocator_is_tuned_first(monkeypatch, capsys, command, words):
    called = []
    monkeypatch.setattr(bandjax, "tune_allocator", lambda: called.append("tuned"))
    assert command(["--band", "half", *words]) == 2
    assert_one_line(capsys, "unknown band 'half'")
    assert called == ([] if words else ["tuned"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "x"],
            "unknown model 'x'; known: cnn, fcn, lenet, resnet8, resnet20",
        ),
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


def test_help_and_bad_input_from_a_shell(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    shown = capsys.readouterr().out
    for option in ("--model", "--data-dir", "--band", "--seeds", "--limit", "--out"):
        assert option in shown
    command = [sys.executable, "-m", "experiments.train", "--data", "cifar10", "--data-dir"]
    failed = subprocess.run(
        [*command, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: CIFAR-10 not found")
    assert failed.stderr.count("\n") == 1
