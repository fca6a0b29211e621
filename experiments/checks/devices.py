"""Train the same run on one device, on several and by several processes, and compare the losses.

    python -m experiments.devicetest --out result.json

Fifty steps of a small band-limited network on handwritten digits, with the CPU as one device, as
eight, and by two and four processes on this host. Then one run moves: it is stopped by SIGTERM on
eight devices, goes on by two processes, by four, by two with two devices each, and ends on one
device. At last a process of two is killed: the other must end with one line, and both started again
must go on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.settings.command import parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

# One step an epoch, so that the record has the loss of each.
RUN = ("--seeds", "0", "--limit", "64", "--batch-size", "64", "--band", "compression=0.5")
STEM = "compression-0.5_seed-0"
TOLERANCE = 1e-3  # of a loss: rounding, grown over the steps
LONGEST = 600  # seconds; what takes longer hangs
TOPOLOGIES: dict[str, tuple[int, tuple[str, ...]]] = {
    "one device": (1, ()),
    "8 devices, data=8": (1, ("--cpu-devices", "8", "--mesh", "data=8")),
    "8 devices, data=4, model=2": (1, ("--cpu-devices", "8", "--mesh", "data=4,model=2")),
    "2 processes": (2, ()),
    "4 processes": (4, ()),
    "2 processes of 2 devices, data=2, model=2": (
        2,
        ("--cpu-devices", "2", "--mesh", "data=2,model=2"),
    ),
}
MOVES = (
    "8 devices, data=4, model=2",
    "2 processes",
    "4 processes",
    "2 processes of 2 devices, data=2, model=2",
    "one device",
)


@dataclass(frozen=True)
class Options:
    """Train the same run on one device, on several and by several processes, and compare."""

    steps: int = 50
    """Steps of each run."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the result."""


def start(topology: str, steps: int, out: Path) -> list[subprocess.Popen[str]]:
    """The processes of one run, started."""
    count, words = TOPOLOGIES[topology]
    command = [sys.executable, "-m", "experiments.train", *RUN, *words, "--epochs", str(steps)]
    command += ["--checkpoint-every", "5steps", "--out", str(out)]
    # One device to a process, whatever the environment says.
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if "xla_force_host_platform_device_count" not in flag]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    processes = []
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for index in range(count):
        more = ["--distributed", "--coordinator", f"localhost:{port}"]
        more += ["--processes", str(count), "--process-id", str(index)]
        processes.append(
            subprocess.Popen(
                command + (more if count > 1 else []),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status and last line of each, when they have ended."""
    ended = []
    for process in processes:
        try:
            _, errors = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired as error:
            for each in processes:
                each.kill()
            raise UserError(f"a run takes longer than {LONGEST} s") from error
        ended.append((process.returncode, (errors.strip().splitlines() or [""])[-1]))
    return ended


def whole(topology: str, steps: int, out: Path) -> dict[str, list[float]]:
    """The curves of a run that nothing stops.

    Raises:
        UserError: it failed.
    """
    for status, line in finish(start(topology, steps, out)):
        if status != 0:
            raise UserError(f"{topology}: exit status {status}: {line}")
    curves = json.loads((out / f"{STEM}.json").read_text(encoding="utf-8"))["curves"]
    return {name: curves[name] for name in ("train_loss", "test_loss")}


def wait_for_checkpoint(processes: Sequence[Any], out: Path) -> int:
    """The step of the first checkpoint that is not there yet, once it is."""
    folder = out / STEM / "checkpoints"

    def steps() -> set[int]:
        return {int(path.stem) for path in folder.glob("*.json")} if folder.is_dir() else set()

    before, end = max(steps(), default=0), time.monotonic() + LONGEST
    while max(steps(), default=0) <= before:
        if time.monotonic() > end or processes[0].poll() is not None:
            raise UserError(f"no checkpoint came after step {before}")
        time.sleep(0.02)
    return max(steps())


def largest_difference(curves: Record, reference: Record) -> float:
    """Of any loss, relative to the reference's."""
    return max(
        float(np.max(np.abs(np.array(curves[name]) / np.array(reference[name]) - 1)))
        for name in reference
    )


def compare(steps: int, folder: Path, topologies: Sequence[str]) -> Record:
    """The largest relative difference of any loss, topology by topology, from one device's."""
    reference = whole("one device", steps, folder / "one device")
    differences = {}
    for topology in topologies:
        curves = whole(topology, steps, folder / topology)
        differences[topology] = largest_difference(curves, reference)
        print(f"{topology}: losses differ by {differences[topology]:.1e} at most", flush=True)
    return {"reference": reference, "differences": differences}


def move(steps: int, out: Path, moves: Sequence[str], reference: Record) -> Record:
    """One run, stopped on each topology but the last."""
    stopped = []
    for topology in moves[:-1]:
        processes = start(topology, steps, out)
        wait_for_checkpoint(processes, out)
        processes[-1].send_signal(signal.SIGTERM)  # One is asked, all stop.
        for status, line in finish(processes):
            if status != 0:
                raise UserError(f"{topology}: exit status {status} after SIGTERM: {line}")
        stopped.append(max(int(p.stem) for p in (out / STEM / "checkpoints").glob("*.json")))
        print(f"{topology}: stopped behind step {stopped[-1]}", flush=True)
    difference = largest_difference(whole(moves[-1], steps, out), reference)
    print(f"moved, to its end on {moves[-1]}: losses differ by {difference:.1e} at most")
    return {"moves": list(moves), "stopped_after": stopped, "difference": difference}


def lose(steps: int, out: Path, victim: int, reference: Record) -> Record:
    """Two processes, one of which is killed; then both again."""
    processes = start("2 processes", steps, out)
    step = wait_for_checkpoint(processes, out)
    processes[victim].kill()
    begin = time.monotonic()
    ended = finish(processes)
    seconds = time.monotonic() - begin
    status, line = ended[1 - victim]
    print(f"process {victim} killed after step {step}: the other ended after {seconds:.1f} s")
    print(f"  with status {status}: {line}")
    difference = largest_difference(whole("2 processes", steps, out), reference)
    print(f"  started again: losses differ by {difference:.1e} at most", flush=True)
    return {
        "killed": victim,
        "after_step": step,
        "seconds": seconds,
        "status": status,
        "line": line,
        "difference": difference,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> int:
        options = parse_options(Options, words, "python -m experiments.devicetest")
        if options.steps < 20:
            raise UserError(f"steps must be at least 20, got {options.steps}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            others = [topology for topology in TOPOLOGIES if topology != "one device"]
            compared = compare(options.steps, folder, others)
            reference = compared.pop("reference")
            moved = move(options.steps, folder / "moved", MOVES, reference)
            lost = [
                lose(options.steps, folder / f"lost-{victim}", victim, reference)
                for victim in (0, 1)
            ]
        result = {"steps": options.steps, **compared, "moved": moved, "lost": lost}
        if options.out is not None:
            write_json(options.out, {**provenance(), **result})
        differences = [*compared["differences"].values(), moved["difference"]]
        differences += [each["difference"] for each in lost]
        good = max(differences) <= TOLERANCE and all(
            each["status"] != 0 and each["seconds"] < 60 for each in lost
        )
        print("as on one device" if good else "NOT as on one device")
        return 0 if good else 1

    return run_command(action, "nothing is kept")


if __name__ == "__main__":
    sys.exit(main())
