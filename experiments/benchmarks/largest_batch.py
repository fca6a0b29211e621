"""The largest batch of a network's training step that fits a GPU, and how long the step takes.

    python -m experiments.benchmarks.largest_batch --network resnet18 --band compression=0.5

Prints a line of JSON with the batch and the allocator's peak. Once a line has come on standard
input it prints another, with the time of each step: several programs can search at once, and be
timed one after another. On a CPU, which has no limit of its own, it takes the network's own batch.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import tyro

from experiments.benchmarks.steps import TASKS, Step
from experiments.settings.command import parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record


@dataclass(frozen=True)
class Options:
    """Find the largest batch that fits, and time a step of it."""

    network: str = "resnet18"
    """One of those of benchmarks.memory."""
    band: str = "none"
    """none (Flax's own convolutions), compression=RATE or modes=U[,U..]."""
    variant: str = "plain"
    """What is kept for the backward pass, one of those of benchmarks.memory."""
    most: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: what fits)")
    ] = None
    """The largest batch of interest."""
    runs: int = 3
    """Steps to time."""


class Fitting:
    """The search for the largest batch that fits, in a process of its own.

    Several may search at once; their steps are timed one after another, see :meth:`seconds`.
    """

    def __init__(self, network: str, band: str, variant: str, runs: int = 3) -> None:
        command = [sys.executable, "-m", "experiments.benchmarks.largest_batch"]
        command += ["--network", network, "--band", band, "--variant", variant]
        command += ["--runs", str(runs)]
        self._name = f"{network}, {band}, {variant}"
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
        )

    def found(self) -> Record:
        """Waits for the search: ``batch``, and ``peak`` and ``limit`` of the allocator, in bytes.

        Raises:
            UserError: the process failed.
        """
        return self._answer()

    def seconds(self) -> list[float]:
        """Lets the process time steps of that batch; nothing else should run meanwhile."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        times = self._answer()["seconds"]
        self._process.communicate()
        return [float(t) for t in times]

    def _answer(self) -> Record:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            message = self._process.communicate()[1].strip().splitlines()
            raise UserError(f"{self._name}: {message[-1] if message else 'no message'}")
        return dict(json.loads(line))


def run(options: Options) -> None:
    """Searches, waits for a line, and times."""
    network, band, variant = options.network, options.band, options.variant
    device, task = jax.devices()[0], TASKS[network]

    def stats(name: str) -> int:
        return int((device.memory_stats() or {}).get(name, 0))

    def bytes_of(batch: int) -> int:
        used, _ = Step(network, band, variant, batch).compiled()
        return used.temporary + used.argument + used.output - used.alias

    peaks: dict[int, int] = {}
    calls: dict[int, Callable[[], Any]] = {}

    def fits(batch: int) -> bool:
        calls.clear()  # And with it the arrays of the batch before.
        try:
            calls[batch] = Step(network, band, variant, batch).compiled()[1]
            calls[batch]()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            calls.clear()
            return False
        peaks[batch] = stats("peak_bytes_in_use")
        return True

    limit = stats("bytes_limit")
    most = options.most if options.most or limit else task.batch
    best = largest_batch(bytes_of, fits, limit, task.batch, most)
    print(json.dumps({"batch": best, "peak": peaks.get(best, 0), "limit": limit}), flush=True)
    sys.stdin.readline()
    seconds = []
    if best:
        if best not in calls:
            fits(best)
        for _ in range(options.runs):
            start = time.perf_counter()
            calls[best]()
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds}), flush=True)


def largest_batch(
    bytes_of: Callable[[int], int],
    fits: Callable[[int], bool],
    limit: int,
    first: int,
    most: int | None = None,
) -> int:
    """The largest batch that fits, to a sixteenth; 0 if not even one example does.

    Args:
        bytes_of: what a step of so many examples takes, as the compiler plans it.
        fits: whether a step of so many can be made.
        limit: bytes that there are; 0 if nobody knows.
        first: a batch of which the two are asked first.
        most: the largest of interest.
    """
    low, high = 0, math.inf if most is None else most + 1
    batch = first if most is None else most
    if limit:
        one, two = bytes_of(first), bytes_of(2 * first)
        each = max((two - one) / first, 1.0)
        batch = min(batch if most else 2**30, first + int((0.95 * limit - one) / each))
    batch = max(1, batch)
    while low < batch < high:
        if fits(batch):
            low, following = batch, batch + max(1, batch // 16)
        else:
            high, following = batch, batch - max(1, batch // 8)
        if low and high - low <= max(1, low // 16):
            break
        batch = following if low < following < high else int(low + high) // 2
    return low


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        run(parse_options(Options, words, "python -m experiments.benchmarks.largest_batch"))

    return run_command(action, "nothing is kept")


if __name__ == "__main__":
    sys.exit(main())
