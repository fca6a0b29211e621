"""What whole networks keep for the backward pass: dense, band-limited, recomputed from spectra.

    python -m experiments.benchmarks.memory
    python -m experiments.benchmarks.memory --networks resnet18 --batch 128 --runs 7

Counts the tensors that a training step keeps between forward and backward (bandjax.memory), before
any compiler sees it; with --runs it also compiles and times the steps, and reports XLA's temporary
memory. On a GPU it also finds the largest batch that fits, and the allocator's peak there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import bandjax
from experiments.benchmarks.allocator import release_memory
from experiments.benchmarks.largest_batch import Fitting
from experiments.benchmarks.steps import DENSE, OF_DENSE, TASKS, VARIANTS, Step
from experiments.benchmarks.timing import interleaved
from experiments.settings.bands import parse_fixed_band
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

MIB = 2**20
NETWORKS = ("resnet18", "densenet121", "resnet50", "fcn", "fcn-long", "unet3d")


@dataclass(frozen=True)
class Options:
    """Count what training keeps for the backward pass.

    Prints a table for each network, writes JSON and a picture for each beside it.
    """

    networks: tuple[str, ...] = NETWORKS
    """resnet18, resnet18-pool (with the paper's pooling), densenet121 (growth 12), fcn (270
    samples), fcn-long (16,384), unet3d (32x32x32), resnet50 (224x224)."""
    bands: tuple[str, ...] = (DENSE, "compression=0.5", "compression=0.75", "compression=0.9")
    """none (Flax's own convolutions), compression=RATE or modes=U[,U..]."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """plain; blocks (jax.checkpoint around each block); spectra (jax.checkpoint around the loss,
    keeping spectra alone); spectra-blocks (bandjax.nnx.remat of each block); bfloat16 and int8
    (spectra of that type). Of a dense network plain and blocks alone."""
    batch: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the network's)")
    ] = None
    """Examples in a step."""
    runs: int = 0
    """Compile the steps and time them, so many times each, interleaved; 0 counts alone."""
    device: Literal["cpu", "gpu"] = "cpu"
    """On a GPU: with --runs also the largest batch that fits, its peak and its speed."""
    out: Path = Path("runs/memory.json")
    """The JSON file to write; the pictures lie beside it."""


def run(options: Options, console: Console) -> None:
    """Counts, prints tables, writes the JSON file and the pictures.

    Raises:
        UserError: an option cannot be, or a file cannot be written.
    """
    _check(options)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}") from error
    bandjax.tune_allocator()
    content: Record = {**provenance(), "settings": _settings(options), "rows": []}
    written = [options.out]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for network in options.networks:
            batch = options.batch or TASKS[network].batch
            cases = [
                (band, variant)
                for band in options.bands
                for variant in options.variants
                if band != DENSE or variant in OF_DENSE
            ]
            job = bar.add_task(network, total=len(cases))
            reports, rows, calls = {}, {}, {}
            for band, variant in cases:
                name = f"{'dense' if band == DENSE else band} · {VARIANTS[variant].about}"
                try:
                    step = Step(network, band, variant, batch)
                except ValueError as error:
                    raise UserError(f"{network}: {error}") from error
                reports[name] = saved = step.saved()
                row = rows[name] = {
                    "network": network,
                    "batch": batch,
                    "band": band,
                    "variant": variant,
                    "saved_bytes": saved.total,
                    "average_bytes": saved.average,
                    "constant_bytes": saved.constants,
                    "by_kind": saved.by_kind(),
                }
                if options.runs:
                    used, calls[name] = step.compiled()
                    row["compiled"] = asdict(used)
                    if options.device == "gpu":
                        fitting = Fitting(network, band, variant, options.runs)
                        row["largest"] = fitting.found() | {"seconds": fitting.seconds()}
                bar.advance(job)
            if calls:
                for name, timing in interleaved(calls, options.runs, 3600).items():
                    rows[name]["seconds"] = timing.as_dict()
            release_memory()
            content["rows"] += rows.values()
            write_json(options.out, content)
            console.print(table(f"{network}, batch {batch}", rows))
            picture = options.out.with_name(f"{options.out.stem}-{network}.png")
            axes = bandjax.memory.plot(reports)
            axes.set_title(f"{network}, batch {batch}")
            axes.get_figure().savefig(picture, dpi=120)
            written.append(picture)
    console.print("written:", *map(str, written), soft_wrap=True, highlight=False)


def _settings(options: Options) -> Record:
    return {name: value for name, value in asdict(options).items() if name != "out"}


def _check(options: Options) -> None:
    for name, known in (("networks", TASKS), ("variants", VARIANTS)):
        for chosen in getattr(options, name):
            if chosen not in known:
                raise UserError(f"--{name}: no {chosen!r}; known: {', '.join(known)}")
    for band in options.bands:
        parse_fixed_band(band)
    if options.runs < 0 or (options.batch is not None and options.batch < 1):
        raise UserError("need --runs >= 0 and --batch >= 1")
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        raise UserError(f"--device gpu: the backend of JAX is {jax.default_backend()}")


def table(title: str, rows: dict[str, Record]) -> Table:
    """MiB kept by each variant, its share of the first's; compiled memory and time if measured."""
    made = Table(title=title)
    made.add_column("kept for the backward pass", overflow="fold")
    headings = ["MiB", "of the\nfirst", "average"]
    measured = any("seconds" in row for row in rows.values())
    if measured:
        headings += ["XLA's\ntemporaries", "of the\nfirst", "step,\nms"]
    if any("largest" in row for row in rows.values()):
        headings += ["largest\nbatch", "its\npeak", "examples\na second"]
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    first = next(iter(rows.values()))
    for name, row in rows.items():
        cells = [
            f"{row['saved_bytes'] / MIB:.1f}",
            f"{row['saved_bytes'] / max(first['saved_bytes'], 1):.1%}",
            f"{row['average_bytes'] / MIB:.1f}",
        ]
        if measured:
            temporary = row["compiled"]["temporary"]
            cells += [
                f"{temporary / MIB:.1f}",
                f"{temporary / max(first['compiled']['temporary'], 1):.0%}",
                f"{1e3 * row['seconds']['median']:.1f}",
            ]
        if "largest" in row:
            found = row["largest"]
            cells += [str(found["batch"]), f"{found['peak'] / MIB:.0f}"]
            cells.append(f"{found['batch'] / min(found['seconds'], default=math.inf):.0f}")
        made.add_row(name, *cells)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        run(
            parse_options(Options, words, "python -m experiments.benchmarks.memory"), open_console()
        )

    return run_command(action, "the networks that are done are in the file")


if __name__ == "__main__":
    sys.exit(main())
