"""Networks that are trained once, kept by what they were trained with, and used by every figure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from experiments import data
from experiments.data.examples import Examples, place
from experiments.jobs.checkpoints import Checkpoints
from experiments.jobs.job import FILE
from experiments.jobs.options import Options
from experiments.jobs.runs import Stop, Stopped
from experiments.jobs.training import run_job
from experiments.settings.bands import file_stem
from experiments.settings.config import Settings
from experiments.settings.errors import UserError
from experiments.settings.records import Record, read_runs, run_path, write_json
from experiments.settings.variants import parse_variant
from experiments.training.loop import Trainer
from experiments.training.network import State

TESTED = "tested.json"
LATE_SHARE = 10  # The late epochs are the last of so many parts of a run, at least three.
_CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "compression")


@dataclass(frozen=True)
class Job:
    """Networks that are trained alike but for band and seed: a job of ``experiments.train``.

    Attributes:
        model: the network, as for ``experiments.train``.
        data: the data set.
        bands: one run for each band and seed.
        seeds: of the initial parameters and of the order of the examples.
        changes: other options, by their names in ``experiments.jobs.options.Options``; what is not
            named takes the paper's setting.
    """

    model: str
    data: str
    bands: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    changes: Mapping[str, Any] = field(default_factory=dict)

    def options(self, data_dir: Path | None = None, out: Path | None = None) -> Options:
        """The same as the options of ``experiments.train``."""
        return Options(
            model=self.model,
            data=self.data,
            data_dir=data_dir,
            band=self.bands,
            seeds=self.seeds,
            out=out,
            keep=1,
            **self.changes,
        )

    @property
    def labels(self) -> list[str]:
        """The bands as records name them."""
        return [parse_variant(text).label for text in self.bands]

    @property
    def key(self) -> str:
        """A name of its own for everything that its runs depend on besides band and seed.

        Settings at their default do not count, so that one which is new changes no key.
        """
        settings = self.options().settings().as_dict()
        defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
        changed = {k: v for k, v in settings.items() if defaults.get(k, MISSING) != v}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        return f"{file_stem(f'{self.model}-{self.data}')}-{digest}"


@dataclass(frozen=True)
class Trained:
    """A network of the store, with what it takes to use it.

    Attributes:
        trainer: of its job; other networks of the job use it, too.
        band: that the network was trained with.
        state: after the last step.
        record: of the run.
    """

    trainer: Trainer
    band: Any
    state: State
    record: Record

    def model(self) -> nnx.Module:
        """The network, in inference mode."""
        model = self.trainer.use(self.band).model()
        nnx.update(model, self.state.params, self.state.stats)
        return model

    def tested(self, band: Any) -> dict[str, float]:
        """The ``accuracy`` on the test examples with another band, and the true ``compression``."""
        self.trainer.use(band)
        loss, accuracy = self.trainer.evaluate(self.state)
        dropped = self.trainer.compression["total"]
        return {"accuracy": accuracy, "loss": loss, "compression": dropped}


class Store:
    """The networks in a folder.

    Args:
        folder: each job has a folder in it, named by its key.
        data_dir: the data sets, as for ``experiments.train``.
        console: where progress is shown.
        stop: asked after every step of training.
    """

    def __init__(self, folder: Path, data_dir: Path | None, console: Console, stop: Stop) -> None:
        self.folder = folder
        self.data_dir = data_dir
        self.console = console
        self.stop = stop
        self._placed: tuple[tuple[Any, ...], Examples] | None = None
        self._trainers: dict[tuple[Any, ...], Trainer] = {}

    def path(self, job: Job) -> Path:
        """Where a job lies."""
        return self.folder / job.key

    def finished(self, job: Job) -> dict[tuple[str, int], Record]:
        """The records of its runs that are done, by band and seed.

        Raises:
            UserError: one is damaged.
        """
        path = self.path(job)
        if not (path / FILE).is_file():
            return {}
        runs = read_runs(path, job.options().settings().as_dict())
        wanted = [(label, seed) for label in job.labels for seed in job.seeds]
        return {key: runs[key] for key in wanted if key in runs}

    def train(self, job: Job) -> dict[tuple[str, int], Record]:
        """The records of all its runs; those that are missing are trained.

        Raises:
            Stopped: somebody asked to stop; what was done is kept.
            UserError: a data file is not usable, or a loss diverged.
        """
        if len(self.finished(job)) < len(job.labels) * len(job.seeds):
            if self.stop.asked:
                raise Stopped
            options = job.options(self.data_dir, self.path(job))
            if not run_job(options, self.console, self.stop):
                raise Stopped
        return self.finished(job)

    def load(self, job: Job, label: str, seed: int) -> Trained:
        """A network that is trained already, from its last checkpoint.

        Raises:
            UserError: it is not there, or not whole.
        """
        record = self.finished(job).get((label, seed))
        if record is None:
            raise UserError(f"{self.path(job)}: no run of {label}, seed {seed}")
        variant = parse_variant(label)
        trainer = self._trainer(job, label)
        settings = trainer.settings
        folder = run_path(self.path(job), label, seed).with_suffix("") / "checkpoints"
        config = {**record["config"], "data_sha256": trainer.examples.sha256}
        provenance = {name: record[name] for name in ("versions", "git_revision")}
        checkpoints = Checkpoints(folder, config, provenance, 1, self.console.print)
        found = checkpoints.restore(trainer.start(seed), trainer.no_steps())
        steps = settings.epochs * trainer.steps
        if found is None or found[0] != steps:
            raise UserError(
                f"{folder}: the checkpoint of the last step, {steps}, is missing: remove "
                f"{run_path(self.path(job), label, seed)} and train it again"
            )
        return Trained(trainer, variant.band, found[1], record)

    def tested(
        self, job: Job, label: str, seed: int, bands: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """A trained network's accuracy with other bands, by their texts; kept beside the run.

        Raises:
            UserError: the network is not there, or not whole.
        """
        path = run_path(self.path(job), label, seed).with_suffix("") / TESTED
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        missing = [text for text in bands if text not in found]
        if missing:
            trained = self.load(job, label, seed)
            for text in missing:
                found[text] = trained.tested(parse_variant(text).band)
            write_json(path, found)
        return {text: found[text] for text in bands}

    def _trainer(self, job: Job, label: str) -> Trainer:
        """One for the runs of a job that differ in band and seed alone; the last job's stay."""
        changes = tuple(sorted(parse_variant(label).changes.items()))
        key = job.key, changes
        if key not in self._trainers:
            self._trainers = {k: v for k, v in self._trainers.items() if k[0] == job.key}
            variant = parse_variant(label)
            settings = variant.settings(job.options().settings())
            self._trainers[key] = Trainer(settings, self._examples(settings), variant.band)
        return self._trainers[key]

    def _examples(self, settings: Settings) -> Examples:
        """The data set on the device; the last one stays there."""
        key = settings.data, settings.image_size, settings.limit
        if self._placed is None or self._placed[0] != key:
            self._placed = None
            dataset = data.load(settings.data, self.data_dir, settings.image_size)
            placed = place(dataset.limited(settings.limit), stream="never")
            assert isinstance(placed, Examples)
            self._placed = key, placed
        return self._placed[1]


def late(curve: list[float]) -> float:
    """The mean over the late epochs: the last one alone swings."""
    return float(np.mean(curve[-max(3, len(curve) // LATE_SHARE) :]))


def as_entry(job: Job, runs: Mapping[tuple[str, int], Record], *, curves: bool = True) -> Record:
    """A job and its runs as they are kept in the record of a figure.

    Args:
        job: what was trained.
        runs: by band and seed.
        curves: whether to keep what happened in each epoch.
    """
    settings = job.options().settings()
    entry: Record = {"key": job.key, "settings": settings.as_dict(), "runs": []}
    for (band, seed), run in runs.items():
        result = run["result"]
        kept = {
            "band": band,
            "seed": seed,
            **{name: run[name] for name in ("date", "versions", "machine", "git_revision")},
            "data_sha256": run.get("data_sha256"),
            "test_accuracy": round(result["test_accuracy"], 6),
            "late_test_accuracy": round(late(run["curves"]["test_accuracy"]), 6),
            "compression": round(result["compression"]["total"], 6),
            "seconds_per_epoch": round(result["seconds_per_epoch"], 4),
            "saved_bytes": result["saved_bytes"],
            "temporary_bytes": result.get("temporary_bytes"),
        }
        if curves:
            kept["curves"] = {
                name: [round(value, 5) for value in run["curves"][name]] for name in _CURVES
            }
        entry["runs"].append(kept)
    return entry
