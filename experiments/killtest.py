"""Kill a training run at random moments, start it again, and compare it with one left alone.

    python -m experiments.killtest --kills 20

Runs the training program with SIGKILL after random times, again and again in the same folder until
the run is finished, then in the next folder, until the kills are used up. Every finished run must
have the parameters, the batch statistics, the optimizer's state and the curves of the reference,
bit by bit; only the times may differ. Exit status 1 if one does not.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.checkpoints import read_arrays
from experiments.command import parse_options, run_command
from experiments.errors import UserError
from experiments.records import Record, provenance, write_json

RUN = [
    "--band",
    "compression=0.5",
    "--seeds",
    "0",
    "--epochs",
    "4",
    "--limit",
    "512",
    "--batch-size",
    "64",
    "--optimizer",
    "sgd",
    "--schedule",
    "plateau",
    "--plateau-patience",
    "1",
    "--augment",
    "flip-crop",
    "--checkpoint-every",
    "3steps",
]
STEM = "compression-0.5_seed-0"
LONGEST = 600  # seconds; a run that takes longer hangs


@dataclass(frozen=True)
class Options:
    """Kill a training run at random moments, start it again, and compare it with one left alone."""

    kills: int = 20
    """How many SIGKILLs."""
    seed: int = 0
    """Of the random moments."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the result."""


def kill_test(kills: int, seed: int, folder: Path) -> Record:
    """Do it; returns what happened.

    Args:
        kills: how many SIGKILLs.
        seed: of the random moments.
        folder: empty; the runs' output goes there.

    Raises:
        UserError: the run fails by itself.
    """
    random_moment = random.Random(seed)
    # Compiled once: so that the kills hit training and its checkpoints, not the compiler.
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    reference = folder / "reference"
    _run(reference, environment, None)  # Fills the cache.
    begin, end = _run(folder / "timed", environment, None) or (0, 0)
    longest = end - begin
    killed: list[Record] = []
    trials = differing = 0
    while len(killed) < kills:
        out = folder / f"trial-{trials}"
        trials += 1
        finished = False
        while not finished:
            # Beyond the last kill the run is left to finish.
            moment = random_moment.uniform(0, longest) if len(killed) < kills else None
            before = _steps(out)
            times = _run(out, environment, moment)
            finished = times is not None
            if not finished:
                after = _steps(out)
                killed.append({"seconds": moment, "checkpoints": [before[-1:], after[-1:]]})
                text = f"kill {len(killed)} after {moment:.2f} s: checkpoints {before} to {after}"
                print(text, flush=True)
        names = _differences(reference, out)
        differing += bool(names)
        print(f"{out.name}: {'differs in ' + ', '.join(names) if names else 'bit-identical'}")
    return {"kills": killed, "runs": trials, "differing": differing}


def _run(
    out: Path, environment: dict[str, str], moment: float | None
) -> tuple[float, float] | None:
    """Start the run; when training began and when it ended, None if it was killed before.

    ``moment`` is in seconds after the run has got to its first step or its last checkpoint.
    """
    metrics = out / STEM / "metrics.jsonl"
    old = metrics.stat().st_ino if metrics.exists() else None
    command = [sys.executable, "-m", "experiments.train", *RUN, "--out", str(out)]
    with tempfile.TemporaryFile() as output:
        root = Path(__file__).parents[1]
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            start = time.monotonic()
            # The file is written anew at the start of training.
            while process.poll() is None and not (
                metrics.exists() and metrics.stat().st_ino != old
            ):
                time.sleep(0.005)
            begin = time.monotonic()
            status = process.wait(LONGEST if moment is None else moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            if moment is None:
                raise UserError(f"the run hangs: {time.monotonic() - start:.0f} s") from None
            return None
        if status != 0:
            output.seek(0)
            raise UserError(f"the run failed: {output.read().decode()[-500:]}")
        return begin, time.monotonic()


def _steps(out: Path) -> list[int]:
    """After how many steps there are checkpoints."""
    return sorted(int(path.stem) for path in (out / STEM / "checkpoints").glob("*.json"))


def _differences(reference: Path, out: Path) -> list[str]:
    """What two finished runs differ in: names of arrays and of curves."""
    one, other = (
        read_arrays(path / STEM / "checkpoints" / f"{_steps(path)[-1]:08d}")
        for path in (reference, out)
    )
    names = [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one or name not in other or one[name].tobytes() != other[name].tobytes()
    ]
    curves = [
        json.loads((path / f"{STEM}.json").read_text())["curves"] for path in (reference, out)
    ]
    names += [k for k in curves[0] if k != "seconds" and curves[0][k] != curves[1][k]]
    for path in (reference, out):
        lines = (path / STEM / "metrics.jsonl").read_text().splitlines()
        if [json.loads(line)["epoch"] for line in lines] != [1, 2, 3, 4]:
            names.append(f"lines of {path / STEM / 'metrics.jsonl'}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> int:
        options = parse_options(Options, words, "python -m experiments.killtest")
        if options.kills < 1:
            raise UserError(f"kills must be at least 1, got {options.kills}")
        with tempfile.TemporaryDirectory() as folder:
            result = kill_test(options.kills, options.seed, Path(folder))
        print(f"{len(result['kills'])} kills, {result['runs']} runs, {result['differing']} differ")
        if options.out is not None:
            write_json(options.out, {"command": RUN, **provenance(), "result": result})
        return 1 if result["differing"] else 0

    return run_command(action, "nothing is kept")


if __name__ == "__main__":
    sys.exit(main())
