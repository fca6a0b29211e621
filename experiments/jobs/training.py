"""A training job: each band and each seed is a run, and all of them are reported."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

import bandjax
from experiments import data
from experiments.cluster.devices import Devices, parse_mesh
from experiments.cluster.processes import Agreement, require_same, share
from experiments.data.examples import Examples, place
from experiments.data.streaming import StreamedExamples
from experiments.jobs import report
from experiments.jobs.job import open_job, options_as_json
from experiments.jobs.metrics import import_tensorboard
from experiments.jobs.options import Options
from experiments.jobs.runs import Interval, Keeping, Run, Stop, Stopped, stop_on_signals
from experiments.models import MODELS
from experiments.settings.config import Settings
from experiments.settings.errors import UserError
from experiments.settings.records import read_runs, run_path, write_json
from experiments.settings.variants import parse_variant
from experiments.training.loop import Trainer


def run_job(options: Options, console: Console, stop: Stop | None = None) -> bool:
    """Train what is not yet there, then report on every run in the output folder.

    Args:
        options: of the command line.
        console: where progress is shown.
        stop: asked after every step; None for one that SIGTERM or Ctrl-C asks.

    Returns:
        Whether the job came to its end; False if it was asked to stop.

    Raises:
        UserError: an option, a data file or the output folder is not usable, or a loss diverged.
    """
    settings = options.settings()
    if settings.model not in MODELS:
        raise UserError(f"unknown model {settings.model!r}; known: {', '.join(MODELS)}")
    texts = {parse_variant(text).label: text for text in options.band}
    variants = {label: parse_variant(text) for label, text in texts.items()}
    if not variants or not options.seeds or min(options.seeds) < 0 or max(options.seeds) >= 2**31:
        raise UserError(
            "need at least one --band and one --seeds, and seeds are whole numbers below 2^31"
        )
    if options.keep < 1:
        raise UserError(f"keep must be at least 1, got {options.keep}")
    keeping = Keeping(Interval.parse(options.checkpoint_every), options.keep, options.tensorboard)
    if options.tensorboard:
        import_tensorboard()
    devices = parse_mesh(options.mesh)
    dataset = data.load(settings.data, options.data_dir, settings.image_size)
    examples = place(
        dataset.limited(settings.limit),
        stream=options.stream,
        augment=settings.augment == "random-resized-crop",
        devices=devices,
    )
    common = {**options_as_json(options), **settings.as_dict(), "mesh": devices.describe()["mesh"]}
    common |= {"band": list(texts), "data_sha256": examples.sha256}
    del common["data_dir"]  # It may lie elsewhere on another host.
    require_same(common)
    # Every band is checked here, before the first one trains.
    trainers = {
        label: _trainer(variant.settings(settings), examples, variant.band, devices)
        for label, variant in variants.items()
    }

    out = options.out or Path("runs") / f"{settings.model}-{settings.data.replace(':', '-')}"
    job = open_job(out, "experiments.train", options_as_json(options), settings.as_dict())
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_on_signals())
        share(lambda: stack.enter_context(job))
        try:
            _train_all(settings, trainers, texts, options.seeds, out, keeping, console, stop)
        except Stopped:
            console.print(
                f"stopped by {stop.by}; a checkpoint is written, go on with --resume {out}",
                soft_wrap=True,
                highlight=False,
            )
            return False
        share(lambda: _report(settings, list(variants), out, console))
    return True


def _trainer(
    settings: Settings, examples: Examples | StreamedExamples, band: Any, devices: Devices
) -> Trainer:
    """A trainer that has met every band that is known."""
    if not isinstance(band, bandjax.schedule.Schedule):
        return Trainer(settings, examples, band, devices)
    trainer = Trainer(settings, examples, band(0), devices)
    for each in band.bands:
        trainer.use(each)
    trainer.use(band(0))
    return trainer


def _train_all(
    settings: Settings,
    trainers: dict[str, Trainer],
    texts: dict[str, str],
    seeds: Sequence[int],
    out: Path,
    keeping: Keeping,
    console: Console,
    stop: Stop,
) -> None:
    """Train what has no record yet, seed by seed."""
    # The data that each was trained on: older records do not tell.
    done = share(
        lambda: [
            [*key, record.get("data_sha256")]
            for key, record in read_runs(out, settings.as_dict()).items()
        ]
    )
    data_of = {(label, seed): digest for label, seed, digest in done}
    here = next(iter(trainers.values())).examples.sha256
    if any(digest not in (None, here) for digest in data_of.values()):
        raise UserError(f"the runs in {out} were trained on other data: choose another --out")
    todo = [(label, seed) for seed in dict.fromkeys(seeds) for label in trainers]
    for number, (label, seed) in enumerate(todo, 1):
        title = f"run {number}/{len(todo)} · {label} · seed {seed}"
        if (label, seed) in data_of:
            console.print(f"{title} · already done", highlight=False, soft_wrap=True)
            continue
        if Agreement().ask(stop.asked, wait=True)[0]:
            raise Stopped
        path = run_path(out, label, seed)
        # A schedule may have a state: each run has its own.
        bands = parse_variant(texts[label]).band
        schedule = bands if isinstance(bands, bandjax.schedule.Schedule) else None
        trainer, folder = trainers[label], path.with_suffix("")
        run = Run(trainer, label, seed, folder, keeping, console, stop, schedule)
        record = run.train(title)
        share(functools.partial(write_json, path, record))


def _report(settings: Settings, order: list[str], out: Path, console: Console) -> None:
    """Table, picture and summary of every run in the folder."""
    runs = read_runs(out, settings.as_dict())
    keys = sorted(
        runs, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key)
    )
    records = [runs[key] for key in keys]
    summary = report.summarise(records)
    write_json(out / "summary.json", {"settings": settings.as_dict(), "bands": summary})
    title = f"{settings.model} on {settings.data}"
    report.plot(title, records, out / "curves.png")
    console.print(report.table(f"{title}, epoch {settings.epochs}", summary))
    lines = [f"records, summary.json and curves.png: {out}"]
    if gained := report.gain(summary):
        lines.append(f"{gained} Drawn in {out / 'curves.png'}.")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
