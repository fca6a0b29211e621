"""Runs that are killed or stopped end to the same bits as one left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.checks import kill
from experiments.jobs.metrics import Metrics
from experiments.train import main

pytestmark = pytest.mark.usefixtures("quick_compile", "no_pictures")


@pytest.fixture(scope="module")
def reference(quick_compile, tmp_path_factory):
    """The folder of a job that nothing has stopped."""
    out = tmp_path_factory.mktemp("kill") / "reference"
    assert main([*kill.RUN, "--out", str(out)]) == 0
    return out


@pytest.mark.full
def test_killed_and_stopped_runs_end_as_if_nothing_had_happened(
    reference, tmp_path, capsys, monkeypatch
):
    """SIGKILL within an epoch, in a process of its own, and SIGTERM after one."""
    out = tmp_path / "out"
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


def damage_nothing(out):
    """The run is the reference's."""


def change_a_curve(out):
    path = out / f"{kill.STEM}.json"
    record = json.loads(path.read_text())
    record["curves"]["test_loss"][1] += 1e-9
    path.write_text(json.dumps(record))


def repeat_a_line(out):
    with (out / kill.STEM / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4}\n')


@pytest.mark.full
@pytest.mark.parametrize(
    ("damage", "differing"),
    [
        (damage_nothing, None),
        (change_a_curve, "test_loss"),
        (repeat_a_line, "lines of"),
    ],
)
def test_the_program_kills_and_compares(
    reference, tmp_path, capsys, monkeypatch, damage, differing
):
    """Without training: a process that is killed leaves a checkpoint of a later step."""
    started = []

    def run_once(out, environment, moment, more=()):
        started.append((out.name, moment, list(more)))
        assert environment["JAX_COMPILATION_CACHE_DIR"]
        if moment is None:
            shutil.copytree(reference, out, dirs_exist_ok=True)
            if out.name != "reference":
                damage(out)
            return True
        step = min(moment.step + 2, 31)
        path = out / kill.STEM / "checkpoints" / f"{step:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        return False

    monkeypatch.setattr(kill, "run_once", run_once)
    record = tmp_path / "record.json"
    words = ["--kills", "3", "--mesh", "data=2,model=2", "--out", str(record)]
    assert kill.main(words) == (1 if differing else 0)
    shown = capsys.readouterr().out
    assert f"trial-0: {f'differs in {differing}' if differing else 'bit-identical'}" in shown
    assert "3 kills, 1 runs, " in shown
    assert [name for name, *_ in started] == ["reference", *["trial-0"] * 4]
    steps = [moment.step for _, moment, _ in started[1:-1]]
    assert steps == sorted(steps)
    assert started[0][1] is started[-1][1] is None
    mesh = ["--mesh", "data=2,model=2", "--cpu-devices", "4"]
    assert all(more == mesh for *_, more in started)
    content = json.loads(record.read_text())
    assert content["command"] == [*kill.RUN, *mesh]
    assert content["result"]["differing"] == (1 if differing else 0)
    assert kill.main(["--kills", "0"]) == 2
    assert "kills must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.full
def test_arrays_that_differ_are_found(reference, tmp_path, monkeypatch):
    read = kill.read_arrays

    def other(path):
        arrays = read(path)
        if path.is_relative_to(tmp_path):
            name = sorted(arrays)[3]
            arrays[name] = arrays[name].copy()
            arrays[name].reshape(-1)[-1] += 1
        return arrays

    monkeypatch.setattr(kill, "read_arrays", other)
    out = shutil.copytree(reference, tmp_path / "out")
    assert len(kill.differences(reference, out)) == 1
    assert kill.differences(reference, reference) == []


@pytest.mark.full
def test_a_killed_run_on_a_mesh_ends_to_the_same_bits(tmp_path, monkeypatch, capfd):
    """The program as its user starts it, with devices for itself."""
    flags = os.environ["XLA_FLAGS"].split()
    monkeypatch.setenv("XLA_FLAGS", " ".join(flag for flag in flags if "device_count" not in flag))
    out = tmp_path / "record.json"
    words = ["--kills", "1", "--seed", "0", "--mesh", "data=2,model=2", "--out", str(out)]
    command = [sys.executable, "-m", "experiments.killtest", *words]
    assert subprocess.run(command, cwd=Path(__file__).parents[3], check=False).returncode == 0
    assert "trial-0: bit-identical\n1 kills, 1 runs, 0 differ" in capfd.readouterr().out
    record = json.loads(out.read_text())
    assert record["command"][-4:] == ["--mesh", "data=2,model=2", "--cpu-devices", "4"]
    assert record["result"]["kills"][0]["left"] >= 24
