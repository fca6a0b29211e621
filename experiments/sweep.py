"""Train a network on many data sets, dense and band-limited, and compare the bands over all.

    python -m experiments.sweep --data-dir DIR --data 'ucr:*' --smallest 25 --epochs 100
    python -m experiments.sweep --data-dir DIR --data ucr:Coffee ucr:GunPoint ucr:ECG200
    python -m experiments.sweep --resume runs/sweep-fcn

Each data set is a job of ``experiments.train`` in a folder of its own; a second start trains what
is missing only. After each set the whole sweep is reported anew: results.json, accuracy.png (each
band against the first, set by set, and the mean over the sets by epoch), and with three bands or
more ranks.png, a critical-difference diagram of the bands' ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments import data
from experiments.cluster.processes import Agreement, share
from experiments.data.ucr import ucr_names
from experiments.jobs.comparison import (
    compare,
    comparison_table,
    draw_accuracies,
    draw_ranks,
    import_posthocs,
)
from experiments.jobs.job import open_job, options_as_json
from experiments.jobs.launch import launch
from experiments.jobs.options import Options as TrainOptions
from experiments.jobs.runs import stop_on_signals
from experiments.jobs.training import run_job
from experiments.settings.bands import file_stem
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, read_runs, write_json
from experiments.settings.variants import parse_variant

EVERY_SET = "ucr:*"


@dataclass(frozen=True)
class Options(TrainOptions):
    """Train a network on many data sets, dense and band-limited, and compare the bands over all.

    The options besides --data and --smallest are those of experiments.train, for every set.
    """

    model: str = "fcn"
    """The network, see python -m experiments.train --help."""
    data: tuple[str, ...] = (EVERY_SET,)  # type: ignore[assignment]
    """The data sets, named as for experiments.train; 'ucr:*' is every set of the UCR archive that
    lies in --data-dir."""
    smallest: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take only so many of the sets, those with the fewest numbers to train on."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the results: a folder for each set, results.json and pictures; by default
    runs/sweep-MODEL."""


def run_sweep(options: Options, console: Console) -> None:
    """Train what is missing, set by set, and report.

    A set whose training fails (it diverges, say) is left out of the report, and the sweep goes on
    with the others; what failed is told at the end.

    Raises:
        UserError: an option or a data file is not usable, found before the first set is trained;
            or a set failed, told when all others are done.
    """
    labels = {parse_variant(text).label for text in options.band}
    if len(labels) > 2:
        import_posthocs()
    if options.smallest is not None and options.smallest < 1:
        raise UserError(f"smallest must be at least 1, got {options.smallest}")
    names = chosen_sets(options)
    out = options.out or Path("runs") / f"sweep-{options.model}"
    kept = {field.name: getattr(options, field.name) for field in fields(TrainOptions)}
    jobs = [
        TrainOptions(**{**kept, "data": name, "out": out / folder_name(name), "resume": None})
        for name in names
    ]
    settings = jobs[0].settings().as_dict()
    del settings["data"], settings["augment"]  # The latter's default depends on the data.
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        sweep = open_job(out, "experiments.sweep", options_as_json(options), settings)
        share(lambda: stack.enter_context(sweep))
        for number, job in enumerate(jobs, 1):
            if Agreement().ask(stop.asked, wait=True)[0]:
                console.print(f"stopped by {stop.by}; go on with --resume {out}", soft_wrap=True)
                return
            console.rule(f"data set {number}/{len(jobs)} · {job.data}")
            try:
                if not run_job(job, console, stop):
                    return
            except UserError as error:
                failed[job.data] = str(error)
                text = f"{job.data}: {error}"
                console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
            last = number == len(jobs)
            share(partial(report_sweep, options, jobs, failed, out, console, last=last))
    if failed:
        name, reason = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(jobs)} data sets failed, the first {name}: {reason}"
        )


def folder_name(name: str) -> str:
    """The folder of a data set's job: ``ucr:Coffee`` lies in ``ucr-Coffee``."""
    return file_stem(name)


def chosen_sets(options: Options) -> list[str]:
    """The data sets by name, in the order given; each is read once, to see that it is there.

    Raises:
        UserError: one is unknown or damaged, or there is none.
    """
    names: list[str] = []
    for name in options.data:
        if name != EVERY_SET:
            names.append(name)
        elif options.data_dir is None:
            raise UserError(f"{EVERY_SET} needs --data-dir, the folder with the archive")
        else:
            names += [f"ucr:{found}" for found in ucr_names(options.data_dir)]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError("there is no data set to train on")
    sizes = {name: data.load(name, options.data_dir, options.image_size).numbers for name in names}
    if options.smallest is not None:
        names = sorted(names, key=lambda name: sizes[name])[: options.smallest]
    return names


def report_sweep(
    options: Options,
    jobs: Sequence[TrainOptions],
    failed: dict[str, str],
    out: Path,
    console: Console,
    *,
    last: bool,
) -> None:
    """Write the results of the sets that are done; the table is shown after the last."""
    labels = list(dict.fromkeys(parse_variant(text).label for text in options.band))
    seeds = sorted(set(options.seeds))
    sets: dict[str, dict[str, list[Record]]] = {}
    for job in jobs:
        if job.data in failed or job.out is None or not job.out.is_dir():
            continue
        try:
            runs = read_runs(job.out, job.settings().as_dict())
        except UserError:  # It is told when this set's turn comes.
            continue
        if all((label, seed) in runs for label in labels for seed in seeds):
            sets[job.data] = {label: [runs[label, seed] for seed in seeds] for label in labels}
    if not sets:
        return
    comparison = compare(sets)
    content = {
        "settings": {**jobs[0].settings().as_dict(), "data": list(options.data)},
        **provenance(),
        "failed": failed,
        **comparison,
    }
    write_json(out / "results.json", content)
    title = f"{options.model}, {jobs[0].settings().epochs} epochs, {len(seeds)} seeds"
    draw_accuracies(title, comparison, out / "accuracy.png")
    ranked = draw_ranks(title, comparison, out / "ranks.png")
    if last:
        console.print(comparison_table(title, comparison))
        files = "results.json, accuracy.png" + (" and ranks.png" if ranked else "")
        console.print(f"{files}: {out}", soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return launch("experiments.sweep", Options, arguments, run_sweep)


if __name__ == "__main__":
    sys.exit(main())
