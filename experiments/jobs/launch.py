"""How the commands that train begin: their options, their processes and their devices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

import bandjax
from experiments.cluster.devices import split_cpu
from experiments.cluster.processes import Cluster, check, distributed, is_main, supervised
from experiments.jobs.job import parse_job_options
from experiments.jobs.options import Options
from experiments.settings.command import run_command
from experiments.settings.errors import UserError

T = TypeVar("T", bound=Options)


def launch(
    module: str,
    kind: type[T],
    arguments: Sequence[str] | None,
    action: Callable[[T, Console], object],
) -> int:
    """Run a command that trains; returns its exit status.

    Args:
        module: of the command, as ``python -m`` takes it.
        kind: its options.
        arguments: the command line's words; None for this program's own.
        action: the work. It is called in every process; the console of all but one is quiet.
    """
    words = sys.argv[1:] if arguments is None else arguments

    def run() -> int | None:
        options = parse_job_options(kind, words, f"python -m {module}")
        check(_cluster_of(options))
        if options.distributed and (status := supervised(module, words)) is not None:
            return status
        if options.tune_allocator:
            bandjax.tune_allocator()
        with _run_on(options):
            action(options, Console(quiet=not is_main()))
        return 0

    return run_command(run, "finished runs and checkpoints are kept")


@contextmanager
def _run_on(options: Options) -> Iterator[None]:
    """Meets the other processes, and splits the CPU, if the options ask for it.

    Raises:
        UserError: they do not come, or the options do not fit together.
    """
    if options.cpu_devices is not None:
        split_cpu(options.cpu_devices)
    cluster = _cluster_of(options)
    with distributed(cluster if options.distributed else None):
        yield


def _cluster_of(options: Options) -> Cluster:
    """The processes that the options describe.

    Raises:
        UserError: they do, but not that there are several.
    """
    cluster = Cluster(options.coordinator, options.processes, options.process_id)
    if not options.distributed and cluster != Cluster():
        raise UserError("--coordinator, --processes and --process-id are for --distributed")
    return cluster
