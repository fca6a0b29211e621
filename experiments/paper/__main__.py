"""Remake the figures and tables of the paper, beside its own numbers.

    python -m experiments.paper --list
    python -m experiments.paper 12 --data-dir DIR
    python -m experiments.paper all --budget smoke
    python -m experiments.paper report

Networks are trained by ``experiments.train``'s own jobs, kept in the folder of ``--models`` by what
they were trained with, and used by every figure that needs them. A figure leaves a record and a
picture in ``--out``, and the page of all figures is written anew. What is done is not repeated;
what was stopped, or killed, goes on where it was when the same command is started again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

import bandjax
from experiments.jobs.runs import Stopped, stop_on_signals
from experiments.paper import items as known
from experiments.paper.item import BUDGETS, Budget, Context, Item
from experiments.paper.page import best_record, judged, page, read_record, record_path
from experiments.paper.pictures import save
from experiments.paper.store import Store
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

PROGRAM = "python -m experiments.paper"
RESULTS = Path("experiments/results/paper")


@dataclass(frozen=True)
class Options:
    """Remake the figures and tables of the paper, beside its own numbers."""

    figure: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIGURE...")]
    ] = ()
    """A figure's number (12), a table (table1), a section (2.12) or a name of --list (lenet);
    several of them; all; or report, which draws pictures and page again from the records alone."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds cifar-10-batches-py/, cifar-100-python/ and UCRArchive_2018/, as the
    official archives unpack. Smoke needs none: it trains on digits and generated series."""
    budget: Budget = "cpu"
    """full: the paper's settings, for a GPU; cpu: what two cores do in hours, with fewer epochs;
    short: what they do in minutes to an hour; smoke: minutes for all, too short to tell anything
    but that it runs."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for records, pictures and the page; by default experiments/results/paper, of smoke
    runs/paper/smoke."""
    models: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/paper/models")
    """Folder of the trained networks, with their records and checkpoints."""
    list: bool = False
    """Show the figures, what they cost, and how far they are; nothing is run."""

    @property
    def folder(self) -> Path:
        """Where records go."""
        default = Path("runs/paper/smoke") if self.budget == "smoke" else RESULTS
        return self.out or default


def run(options: Options, console: Console) -> int:
    """Do what the options say; returns the exit status.

    Raises:
        UserError: an option, a data file or a record is not usable.
    """
    report = options.figure == ("report",)
    chosen = [] if report else known.find(options.figure)
    with stop_on_signals() as stop:
        store = Store(options.models, options.data_dir, console, stop)
        if options.list:
            console.print(listing(options, store, chosen or list(known.ITEMS)))
            return 0
        if report:
            redraw(options.folder, console)
            return 0
        if not chosen:
            raise UserError(f"name a figure, all or report ({PROGRAM} --list shows them)")
        context = Context(options.budget, store, console)
        try:
            for item in chosen:
                make(item, context, options.folder)
        except Stopped:
            console.print(f"stopped by {stop.by}; the same command goes on", highlight=False)
            return 130
    return 0


def make(item: Item, context: Context, out: Path) -> Record:
    """One item: its record, its picture, the page; nothing where the record is there.

    Raises:
        Stopped: somebody asked to stop.
        UserError: a data file or a record is not usable.
    """
    console, path = context.console, record_path(out, context.budget, item)
    console.rule(f"{item.heading}: {item.title}")
    record = read_record(path, item)
    if record is not None:
        console.print(f"already done; remove {path} to do it again", soft_wrap=True)
        return record
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    measured = item.measure(context)
    record = {"item": item.name, "figures": list(item.figures), "budget": context.budget}
    record = {**record, **provenance(), **measured}
    save(item.draw(record), path.with_suffix(".png"))
    write_json(path, record)
    write_page(out)
    tell(item, record, console)
    console.print(f"{path} and .png", soft_wrap=True, highlight=False)
    return record


def tell(item: Item, record: Record, console: Console) -> None:
    """The verdict on the terminal."""
    verdict = judged(item, record)
    table = Table(title=f"{item.heading}: {verdict.word}", caption=verdict.line)
    for heading in ("", "paper", "here"):
        table.add_column(heading)
    for row in verdict.rows:
        table.add_row(row.what, row.paper, row.ours)
    if verdict.claims:
        table.add_section()
    for claim in verdict.claims:
        table.add_row(claim.text, claim.answer, claim.evidence)
    console.print(table)


def redraw(out: Path, console: Console) -> None:
    """Pictures and page again, from the records.

    Raises:
        UserError: there is no record, or one is damaged.
    """
    found = 0
    for item in known.ITEMS:
        for budget in BUDGETS:
            path = record_path(out, budget, item)
            record = read_record(path, item)
            if record is not None:
                save(item.draw(record), path.with_suffix(".png"))
                found += 1
    if not found:
        raise UserError(f"no records in {out}: make a figure first")
    write_page(out)
    console.print(f"{found} pictures and {out / 'README.md'}", soft_wrap=True, highlight=False)


def write_page(out: Path) -> None:
    """The page, whole or the one before."""
    part = out / "README.part"
    part.write_text(page(out, known.ITEMS), encoding="utf-8")
    part.replace(out / "README.md")


def listing(options: Options, store: Store, chosen: Sequence[Item]) -> Table:
    """What there is, what it costs at this budget, and how far it is."""
    table = Table(title=f"budget {options.budget}; records in {options.folder}")
    for heading in ("name", "figures", "what", "cost", "networks", "record"):
        table.add_column(heading, overflow="fold")
    for item in chosen:
        jobs = item.jobs(options.budget)
        wanted = sum(len(job.labels) * len(job.seeds) for job in jobs)
        done = sum(len(store.finished(job)) for job in jobs)
        record = read_record(record_path(options.folder, options.budget, item), item)
        other = best_record(options.folder, item) if record is None else None
        state = "" if other is None else f"{other['budget']} alone"
        table.add_row(
            item.name,
            ", ".join(item.figures),
            item.title,
            item.costs[options.budget],
            f"{done} of {wanted}" if wanted else "none needed",
            state if record is None else judged(item, record).word,
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> int:
        options = parse_options(Options, words, PROGRAM)
        bandjax.tune_allocator()
        return run(options, open_console())

    return run_command(action, "networks and figures that are done are kept")


if __name__ == "__main__":
    sys.exit(main())
