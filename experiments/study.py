"""Accuracy at equal compression: trains the fixed list of runs, and reports on them.

    python -m experiments.study accuracy --data-dir DIR --list
    python -m experiments.study accuracy --data-dir DIR
    python -m experiments.study report

What is compared, in which order, and how it is measured stands in ``experiments/jobs/study.py``.
Each run is one of ``experiments.train`` and leaves a JSON file; a second start goes on with what is
missing, from the last checkpoint of the run that was stopped.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

import bandjax
from experiments.figures.study import draw, report_table, summarise
from experiments.jobs.allocation import make_plan
from experiments.jobs.runs import Stop, stop_on_signals
from experiments.jobs.study import GROUPS, Costs, Progress, StudyRun, check_record, published, runs
from experiments.jobs.training import run_job
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import write_json

RESULTS = Path("experiments/results/study")


@dataclass(frozen=True)
class Accuracy:
    """Train what is missing of the study's fixed list, run by run.

    The list, its order and the measure stand in experiments/jobs/study.py. A finished run is not
    repeated; one that was stopped (SIGTERM, Ctrl-C) goes on from its last checkpoint when the same
    command is started again. Plans of the allocated variants are made when their turn comes, from a
    dense network of a few epochs, on training examples alone.
    """

    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder with cifar-10-batches-py/ and UCRArchive_2018/."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/study")
    """Folder for the runs: a folder for each network and data set."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="GROUP[/VARIANT]...")] = ()
    """Train these groups, or variants of groups, alone: resnet20, 'resnet20/Nyquist + 50 %', ..."""
    seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT...")] = None
    """Train runs of these seeds alone."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Fewer epochs than the list has, to try the program: give another --out."""
    device: Literal["cpu", "gpu"] = "cpu"
    """gpu: the runs that are meant for one, resnet18 for 40 epochs; JAX must have it."""
    list: bool = False
    """Show the runs, how far they are and what they cost, and train nothing."""


@dataclass(frozen=True)
class Report:
    """Table and picture of the finished runs: accuracy against what is kept."""

    runs: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of runs whose finished records are copied into --results first."""
    results: Annotated[Path, tyro.conf.arg(metavar="DIR")] = RESULTS
    """Folder of the records; accuracy.png and summary.json are written there."""


Options = (
    Annotated[Accuracy, tyro.conf.subcommand("accuracy")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def train_study(options: Accuracy, console: Console) -> None:
    """Train the runs of the list that are missing, one after another.

    Raises:
        UserError: nothing is selected, there is no such device, a record is of other settings, or
            a run failed.
    """
    if options.seeds is not None and not options.seeds:
        raise UserError("--seeds needs at least one seed")
    chosen = runs(options.only, options.seeds, options.device)
    if not chosen:
        names = ", ".join(group.name for group in GROUPS if group.device == options.device)
        raise UserError(f"no run is selected: groups of --device {options.device} are {names}")
    for run in chosen:
        record = run.record(options.out)
        if record is not None and record.is_file():
            check_record(run, record, options.epochs)
    if options.list:
        console.print(listing(chosen, options))
        return
    if options.device == "gpu" and jax.default_backend() != "gpu":
        raise UserError("--device gpu: JAX has no GPU")
    bandjax.tune_allocator()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        for number, run in enumerate(chosen, 1):
            if Progress.of(run, options.out).done:
                continue
            title = f"{run.group.name} · {run.variant.name} · seed {run.seed}"
            console.rule(f"{number}/{len(chosen)} · {title}")
            if not _train(run, options, console, stop):
                return


def _train(run: StudyRun, options: Accuracy, console: Console, stop: Stop) -> bool:
    """Trains one run, its plan made first; False if it was asked to stop."""
    folder = options.out / run.group.name
    plan = run.variant.plan(folder)
    if run.variant.budget is not None and not plan.is_file():
        make_plan(run, plan, options.data_dir, console)
    if stop.asked:
        return False
    return run_job(run.options(options.out, options.data_dir, options.epochs), console, stop)


def listing(chosen: Sequence[StudyRun], options: Accuracy) -> Table:
    """The runs with their state, the time of an epoch and what is left."""
    table = Table(title=f"runs in {options.out}", caption="times from the epochs that are over")
    for heading in ("run", "seed", "state"):
        table.add_column(heading)
    for heading in ("last\naccuracy", "seconds\nan epoch", "hours\nleft"):
        table.add_column(heading, justify="right")
    states = [(run, Progress.of(run, options.out)) for run in chosen]
    costs = Costs()
    for run, state in states:
        costs.add(run, state)
    left: list[float | None] = []
    for run, state in states:
        epochs = options.epochs or run.group.epochs
        hours = 0.0 if state.done else costs.hours(run, state, epochs)
        left.append(hours)
        told = "done" if state.done else f"{state.epochs} of {epochs}" if state.epochs else ""
        table.add_row(
            f"{run.group.name} · {run.variant.name}",
            str(run.seed),
            told or f"to do, {epochs} epochs",
            "" if state.accuracy is None else f"{100 * state.accuracy:.2f} %",
            "" if state.seconds is None else f"{state.seconds:.1f}",
            "?" if hours is None else f"{hours:.1f}",
        )
    unknown = sum(hours is None for hours in left)
    known = f"{sum(hours for hours in left if hours is not None):.1f}"
    rest = f" and {unknown} unknown" if unknown else ""
    table.add_section()
    done = sum(state.done for _, state in states)
    table.add_row("all", "", f"{done} of {len(states)} done", "", "", known + rest)
    return table


def report(options: Report, console: Console) -> None:
    """Copy finished records, then write table and picture.

    Raises:
        UserError: there is no record, or one is of other settings.
    """
    everything = [run for device in ("cpu", "gpu") for run in runs(device=device)]
    if options.runs is not None:
        for run in everything:
            source = run.record(options.runs)
            if source is not None and source.is_file():
                check_record(run, source)
                target = options.results / published(run)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            plan = run.variant.plan(options.runs / run.group.name)
            if run.variant.budget is not None and plan.is_file():
                target = options.results / run.group.name / plan.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(plan, target)
    summary = summarise(everything, options.results)
    if not summary:
        raise UserError(f"no record of the study in {options.results}: give --runs DIR")
    write_json(options.results / "summary.json", summary)
    draw(summary, options.results / "accuracy.png")
    for name in summary:
        console.print(report_table(name, summary[name]))
    console.print(f"summary.json, accuracy.png: {options.results}", soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        options: Accuracy | Report = parse_options(Options, words, "python -m experiments.study")  # type: ignore[arg-type]
        if isinstance(options, Report):
            report(options, open_console())
        else:
            train_study(options, open_console())

    return run_command(action, "finished runs and checkpoints are kept")


if __name__ == "__main__":
    sys.exit(main())
