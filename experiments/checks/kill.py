"""Kill a training run at random moments, start it again, and compare it with one left alone.

    python -m experiments.killtest --kills 20

Runs the training program with SIGKILL after random times, again and again in the same folder until
the run is finished, then in the next folder, until the kills are used up. Every finished run must
have the parameters, the batch statistics, the optimizer's state and the curves of the reference,
bit by bit; only the times may differ. Exit status 1 if one does not.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from experiments.jobs.checkpoints import read_arrays
from experiments.settings.command import parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

RUN = [
    *("--band", "compression=0.5", "--seeds", "0", "--epochs", "4", "--limit", "512"),
    *(
        "--batch-size",
        "64",
        "--optimizer",
        "sgd",
        "--schedule",
        "plateau",
        "--plateau-patience",
        "1",
    ),
    *("--augment", "flip-crop", "--checkpoint-every", "3steps"),
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
    stream: bool = False
    """Stream the examples in the runs that are killed; the reference has them on the device."""
    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,...")] = None
    """Several CPU devices for all runs, the reference too: data=4 or data=2,model=2."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the result."""


class Moment(NamedTuple):
    """When to kill: after the checkpoint of this step or a later one, and so many seconds more."""

    step: int
    delay: float


def kill_test(
    kills: int, seed: int, folder: Path, *, stream: bool = False, mesh: str | None = None
) -> Record:
    """Do it; returns what happened.

    Args:
        kills: how many SIGKILLs.
        seed: of the random moments.
        folder: empty; the runs' output goes there.
        stream: whether the runs that are killed stream their examples.
        mesh: of CPU devices, for all runs; None for one device.

    Raises:
        UserError: the run fails by itself.
    """
    at_random = random.Random(seed)
    # Compiled once: so that the kills hit training and its checkpoints, not the compiler.
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    reference = folder / "reference"
    devices = _mesh_words(mesh) if mesh else []
    run_once(reference, environment, None, devices)
    last = _steps(reference)[-1]
    more = [*devices, "--stream", "always"] if stream else devices
    killed: list[Record] = []
    trials = differing = 0
    while len(killed) < kills:
        out = folder / f"trial-{trials}"
        trials += 1
        finished = False
        while not finished:
            before = max(_steps(out), default=0)
            moment = None  # With its last checkpoint, or no kills left, the run may finish.
            if len(killed) < kills and before < last:
                moment = Moment(at_random.randint(before, last - 1), at_random.uniform(0, 0.3))
            finished = run_once(out, environment, moment, more)
            if not finished:
                after = max(_steps(out), default=0)
                killed.append({**moment._asdict(), "resumed_from": before, "left": after})
                print(f"kill {len(killed)}: went on from step {before}, left {after}", flush=True)
        names = differences(reference, out)
        differing += bool(names)
        print(f"{out.name}: {'differs in ' + ', '.join(names) if names else 'bit-identical'}")
    return {"kills": killed, "runs": trials, "differing": differing}


def run_once(
    out: Path, environment: dict[str, str], moment: Moment | None, more: Sequence[str] = ()
) -> bool:
    """Start the run, and kill it unless ``moment`` is None; tells whether it came to its end.

    Args:
        out: its folder.
        environment: its variables.
        moment: when to kill it.
        more: words of its command line besides :data:`RUN`.

    Raises:
        UserError: it failed, or hangs.
    """
    metrics = out / STEM / "metrics.jsonl"
    old = metrics.stat().st_ino if metrics.exists() else None
    command = [sys.executable, "-m", "experiments.train", *RUN, *more, "--out", str(out)]
    root = Path(__file__).parents[2]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT
        )

        def reached() -> bool:
            # The file is written anew at the start of training.
            began = metrics.exists() and metrics.stat().st_ino != old
            return began and max(_steps(out), default=0) >= moment.step

        start = time.monotonic()
        killed = False
        while process.poll() is None:
            hangs = time.monotonic() - start > LONGEST
            if hangs or (moment is not None and reached()):
                time.sleep(0 if hangs else moment.delay)
                process.kill()
                killed = process.wait() != 0
                if hangs:
                    raise UserError(f"the run hangs: it takes more than {LONGEST} s")
            time.sleep(0.005)
        if process.returncode != 0 and not killed:
            output.seek(0)
            raise UserError(f"the run failed: {output.read().decode()[-500:]}")
        return not killed


def _mesh_words(mesh: str) -> list[str]:
    """Of a run on as many virtual CPU devices as the mesh has; the run refuses what is none."""
    count = math.prod(int(number) for number in re.findall(r"=(\d+)", mesh))
    return ["--mesh", mesh, "--cpu-devices", str(count)]


def _steps(out: Path) -> list[int]:
    """After how many steps there are checkpoints."""
    return sorted(int(path.stem) for path in (out / STEM / "checkpoints").glob("*.json"))


def differences(reference: Path, out: Path) -> list[str]:
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
            result = kill_test(
                options.kills,
                options.seed,
                Path(folder),
                stream=options.stream,
                mesh=options.mesh,
            )
        print(f"{len(result['kills'])} kills, {result['runs']} runs, {result['differing']} differ")
        if options.out is not None:
            command = [*RUN, *(_mesh_words(options.mesh) if options.mesh else [])]
            write_json(options.out, {"command": command, **provenance(), "result": result})
        return 1 if result["differing"] else 0

    return run_command(action, "nothing is kept")


if __name__ == "__main__":
    sys.exit(main())
