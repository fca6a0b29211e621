"""Train a network dense and band-limited, and compare.

    python -m experiments.train
    python -m experiments.train --model fcn --data ucr:FiftyWords --data-dir DIR

Each pair of a band and a seed is one run. A finished run leaves its own JSON file in the output
folder and is not repeated when the same command is started again. The job ends with a table, a
picture of the curves (curves.png) and a summary of all runs in that folder (summary.json).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console

from experiments import data, report
from experiments.bands import parse_band
from experiments.command import parse_options, run_command
from experiments.config import (
    Method,
    Optimizer,
    Remat,
    ResidualDtype,
    Schedule,
    Settings,
    settings_for,
)
from experiments.errors import UserError
from experiments.loop import Epoch, Trainer, place
from experiments.models import MODELS
from experiments.progress import progress
from experiments.records import Record, provenance, read_runs, run_path, write_json


def _optional(metavar: str, hint: str = "the model's") -> object:
    """How --help shows an option that may be left out."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {hint})")


_Integer = Annotated[int | None, _optional("INT")]
_Number = Annotated[float | None, _optional("FLOAT")]


@dataclass(frozen=True)
class Options:
    """Train a network dense and band-limited, and compare.

    Options that are left out take the paper's setting for the model: fcn Adam 1e-3, batches of
    16, 300 epochs, plateau schedule; lenet SGD with momentum 0.9, 1e-3, batches of 64, 300
    epochs; cnn (not in the paper) Adam 1e-3, batches of 64, 30 epochs, cosine schedule.
    """

    model: str = "cnn"
    """The network: cnn (images), fcn (time series) or lenet (images of at least 16x16)."""
    data: str = "digits"
    """The data set: digits (part of scikit-learn), ucr:NAME (UCR archive) or cifar10."""
    data_dir: Annotated[Path | None, _optional("DIR", "none")] = None
    """Folder that holds UCRArchive_2018/NAME/ (or NAME/) or cifar-10-batches-py/, as the official
    archives unpack."""
    band: tuple[str, ...] = ("none", "compression=0.5", "compression=0.75")
    """One or more bands: none (every frequency), compression=RATE (drop this share of each
    layer's half spectrum) or modes=U[,U..] (keep frequencies up to U, per spatial axis)."""
    method: Method = "auto"
    """How the convolutions are computed; auto chooses by cost."""
    residual_dtype: ResidualDtype = "float32"
    """Type in which the convolutions keep spectra for the backward pass; the narrower, the less
    memory."""
    remat: Remat = "none"
    """spectra: keep nothing but the spectra for the backward pass, and recompute the rest from
    them; none: keep everything."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run per band for each: seeds the initial parameters and the order of the examples."""
    epochs: _Integer = None
    """Passes over the training examples."""
    batch_size: _Integer = None
    """Examples in a step. What is left of an epoch after whole batches is dropped."""
    learning_rate: _Number = None
    """Learning rate of the first step."""
    optimizer: Annotated[Optimizer | None, _optional("{adam,sgd}")] = None
    """Adam, or SGD with momentum."""
    momentum: _Number = None
    """Momentum of SGD."""
    schedule: Annotated[Schedule | None, _optional("{constant,cosine,plateau}")] = None
    """constant; cosine decay to zero; or plateau, which lowers the learning rate when the
    training loss has stopped falling."""
    plateau_factor: _Number = None
    """What the plateau schedule multiplies the learning rate by."""
    plateau_patience: _Integer = None
    """Epochs without a better training loss before it does so."""
    limit: Annotated[int | None, _optional("INT", "all")] = None
    """Train on the first so many examples alone."""
    out: Annotated[Path | None, _optional("DIR", "runs/MODEL-DATA")] = None
    """Folder for the results."""

    def settings(self) -> Settings:
        """The settings of every run, the model's defaults filled in."""
        names = {field.name for field in fields(Settings)}
        return settings_for(**{k: v for k, v in asdict(self).items() if k in names})


def run_job(options: Options, console: Console) -> None:
    """Train what is not yet there, then report on every run in the output folder.

    Raises:
        UserError: an option, a data file or the output folder is not usable, or a loss diverged.
    """
    settings = options.settings()
    if settings.model not in MODELS:
        raise UserError(f"unknown model {settings.model!r}; known: {', '.join(MODELS)}")
    bands = dict(parse_band(text) for text in options.band)
    if not bands or not options.seeds or min(options.seeds) < 0:
        raise UserError("need at least one --band and one --seeds, and no negative seed")
    examples = place(data.load(settings.data, options.data_dir).limited(settings.limit))
    # Every band is checked here, before the first one trains.
    trainers = {label: Trainer(settings, examples, band) for label, band in bands.items()}

    out = options.out or Path("runs") / f"{settings.model}-{settings.data.replace(':', '-')}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {str(out)!r}: {error.strerror}") from error
    runs = read_runs(out, settings.as_dict())
    # Seeds outside, bands inside: a job that is stopped early can already be compared.
    todo = [(label, seed) for seed in options.seeds for label in bands]
    for number, (label, seed) in enumerate(todo, start=1):
        title = f"run {number}/{len(todo)} · {label} · seed {seed}"
        if (label, seed) in runs:
            console.print(f"{title} · already done", highlight=False)
            continue
        record = train_run(trainers[label], label, seed, title, console)
        write_json(run_path(out, label, seed), record)
        runs[label, seed] = record

    order = list(bands)
    keys = sorted(
        runs, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key)
    )
    records = [runs[key] for key in keys]
    summary = report.summarise(records)
    write_json(out / "summary.json", {"settings": settings.as_dict(), "bands": summary})
    title = f"{settings.model} on {settings.data}"
    report.plot(title, records, out / "curves.png")
    console.print(report.table(f"{title}, epoch {settings.epochs}", summary))
    console.print(f"records, summary.json and curves.png: {out}", soft_wrap=True, highlight=False)


def train_run(trainer: Trainer, label: str, seed: int, title: str, console: Console) -> Record:
    """One run from its first to its last epoch, as the record that is written."""
    settings = trainer.settings
    state = trainer.start(seed)
    rows: list[Epoch] = []
    with progress(console, title, settings.epochs) as show:
        for epoch in range(1, settings.epochs + 1):
            state, row = trainer.run_epoch(state, seed, epoch)
            rows.append(row)
            show(epoch, row)
    return {
        "config": {**settings.as_dict(), "band": label, "seed": seed},
        **provenance(),
        "result": {
            "test_accuracy": rows[-1].test_accuracy,
            "test_loss": rows[-1].test_loss,
            "compression": trainer.compression,
            "seconds_per_epoch": statistics.median(row.seconds for row in rows),
            "compile_seconds": trainer.compile_seconds,
            "saved_bytes": trainer.saved_bytes,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        },
        "curves": {name: [getattr(row, name) for row in rows] for name in Epoch._fields},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        run_job(parse_options(Options, words, "python -m experiments.train"), Console())

    return run_command(action, "finished runs are kept")


if __name__ == "__main__":
    sys.exit(main())
