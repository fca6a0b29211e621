"""The script for a machine with a GPU, on a small job on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_compile")

REPOSITORY = Path(__file__).parents[3]


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    small = "--model cnn --data digits --epochs 1 --limit 128 --batch-size 64 --augment none"
    return subprocess.run(
        [str(REPOSITORY / "experiments/checks/gpu_train.sh"), str(folder)],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PLATFORM": "cpu",
            "PRECISIONS": "bf16",
            "OPTIONS": small,
            "RUNS": str(folder / "runs"),
            "OUT": str(folder / "out"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.full
def test_stops_in_time_and_goes_on(tmp_path):
    late = run(tmp_path, LIMIT="1")
    assert (late.returncode, late.stderr) == (3, "")
    assert late.stdout.startswith("the time is over")
    assert not any((tmp_path / "out").iterdir())

    whole = run(tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.splitlines()[-1] == f"everything is trained: {tmp_path}/out"
    names = ("compression-0.5_seed-0.json", "curves.png", "none_seed-0.json", "summary.json")
    assert tuple(sorted(p.name for p in (tmp_path / "out/bf16").iterdir())) == names
    config = json.loads((tmp_path / "out/bf16" / names[0]).read_text())["config"]
    wanted = {"precision": "bf16", "schedule": "onecycle", "nesterov": True, "weight_decay": 5e-4}
    assert config.items() >= wanted.items()


@pytest.mark.full
def test_says_what_is_missing(tmp_path):
    wrong = run(tmp_path, PLATFORM="tpu", LIMIT="1")
    assert (wrong.returncode, wrong.stderr.splitlines()[-1]) == (1, "JAX finds no tpu")
    failing = run(tmp_path, OPTIONS="--model nothing")
    assert failing.returncode == 2
    assert "unknown model 'nothing'" in failing.stderr
    assert failing.stderr.splitlines()[-1] == "training in bf16 ended with status 2"
