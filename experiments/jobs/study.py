"""The study of accuracy at equal compression: what is trained, in which order, how it is measured.

All of it was fixed before the first run, and nothing is chosen by test data.

*Measure.* Test accuracy: the mean over the last :data:`LATE` epochs, and the last epoch's. The
headline is the *gap*: the mean over seeds of the dense network's, less that of the variant, in
points. Compression is told in coefficients, and in bytes kept by the convolutions for the backward
pass, as means over the epochs; budgets are matched in bytes.

*Named beforehand.* The gaps that count are those of ``allocated 50 %`` and ``allocated 75 %``
(:data:`NAMED`), all others are reported beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.jobs.metrics import METRICS
from experiments.jobs.options import Options as TrainOptions
from experiments.settings.bands import file_stem
from experiments.settings.errors import UserError
from experiments.settings.records import Record, run_path
from experiments.settings.variants import parse_variant

LATE = 3  # epochs
NAMED = {0.5: "allocated 50 %", 0.75: "allocated 75 %"}


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: in tables.
        band: as the command line has it; of an allocated one what its plan is called.
        budget: share of the dense network's bytes that a plan of :func:`bandjax.allocate` may keep;
            None for a band that is known beforehand.
    """

    name: str
    band: str
    budget: float | None = None

    def text(self, folder: Path) -> str:
        """The band as ``experiments.train`` takes it, for a group's folder."""
        return self.band if self.budget is None else f"plan={self.plan(folder)}"

    def plan(self, folder: Path) -> Path:
        """Where the plan of an allocated variant lies."""
        return folder / "plans" / f"{self.band}.json"


@dataclass(frozen=True)
class Group:
    """Runs that are compared with one another: of one network on one data set.

    Attributes:
        name: on the command line, and of the folder.
        model: a network.
        data: a data set.
        options: those of ``experiments.train``.
        seeds: of the runs.
        variants: the dense one first.
        warm_up: epochs for which a dense network is trained before its plans are allocated.
        device: ``gpu`` for what is trained there alone.
    """

    name: str
    model: str
    data: str
    options: dict[str, Any]
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    warm_up: int
    device: str = "cpu"

    @property
    def epochs(self) -> int:
        """Of every run."""
        return int(self.options["epochs"])


@dataclass(frozen=True)
class StudyRun:
    """One run of the list."""

    group: Group
    variant: Variant
    seed: int

    def options(self, out: Path, data_dir: Path | None, epochs: int | None) -> TrainOptions:
        """The job of ``experiments.train`` that it is; those of a group share a folder."""
        folder = out / self.group.name
        given = {**self.group.options, **({} if epochs is None else {"epochs": epochs})}
        return TrainOptions(
            model=self.group.model,
            data=self.group.data,
            data_dir=data_dir,
            band=(self.variant.text(folder),),
            seeds=(self.seed,),
            out=folder,
            **given,
        )

    def record(self, out: Path) -> Path | None:
        """Where its record is, or will be; None while its plan is not there."""
        folder = out / self.group.name
        if self.variant.budget is not None and not self.variant.plan(folder).is_file():
            return None
        return run_path(folder, parse_variant(self.variant.text(folder)).label, self.seed)


_DENSE = Variant("dense", "none")
_ALLOCATED = (
    Variant("allocated 50 %", "allocated-0.5", budget=0.5),
    Variant("allocated 75 %", "allocated-0.75", budget=0.25),
)
# On ResNet-20 these rates drop 50.7 and 78.0 % of the coefficients, 43.5 and 74.7 % of the bytes.
_UNIFORM = (Variant("50 %", "compression=0.5"), Variant("75 %", "compression=0.765"))
_NYQUIST = (
    Variant("Nyquist", "nyquist"),
    Variant("Nyquist + 50 %", "nyquist=compression=0.5"),
    Variant("Nyquist + 75 %", "nyquist=compression=0.765"),
)
_SMALL = {
    "epochs": 30,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "schedule": "onecycle",
    "augment": "flip-crop",
}
# From coarse to fine and a dense last tenth. On ResNet-20 for 30 epochs 55.2 % of the coefficients
# and 50.1 % of the bytes are dropped on average.
_COARSE_30 = Variant("coarse to fine 50 %", "schedule=ramp:0.9..0.2@27+none@27")
_COARSE_60 = Variant("coarse to fine 50 %", "schedule=ramp:0.9..0.2@54+none@54")
_SERIES = {"epochs": 60, "schedule": "onecycle"}
# Sets of six classes or more with 200 series or more: the six with the fewest numbers to train on.
UCR = (
    *("SyntheticControl", "MiddlePhalanxTW", "ProximalPhalanxTW"),
    *("MedicalImages", "Adiac", "WordSynonyms"),
)

GROUPS = (
    Group(
        "resnet20",
        # The shortcuts are convolutions, He et al.'s option B: in their option A they take every
        # second point as it is, which no band can keep from aliasing.
        "resnet20-projection",
        "cifar10",
        _SMALL,
        (0, 1, 2),
        (_DENSE, *_UNIFORM, *_NYQUIST, *_ALLOCATED, _COARSE_30),
        warm_up=3,
    ),
    Group(
        "resnet18-pool",
        "resnet18-pool",
        "cifar10",
        {**_SMALL, "epochs": 15},
        (0,),
        (
            *(_DENSE, Variant("50 %", "compression=0.5"), Variant("75 %", "compression=0.75")),
            *(Variant("85 %", "compression=0.85"), *_ALLOCATED),
        ),
        warm_up=2,
    ),
    *(
        Group(
            f"fcn-{name}",
            "fcn",
            f"ucr:{name}",
            _SERIES,
            (0, 1, 2),
            (_DENSE, *_UNIFORM, *_ALLOCATED, _COARSE_60),
            warm_up=6,
        )
        for name in UCR
    ),
    Group(
        "resnet18-gpu",
        "resnet18",
        "cifar10",
        {**_SMALL, "epochs": 40},
        (0, 1, 2),
        (
            *(_DENSE, *_UNIFORM, *_NYQUIST, *_ALLOCATED),
            Variant("coarse to fine 50 %", "schedule=ramp:0.9..0.2@36+none@36"),
        ),
        warm_up=4,
        device="gpu",
    ),
)

# What decides comes first: seed 0 of these, then the named variants and what they are compared
# with for all seeds, then everything else seed by seed.
_FIRST = ("dense", "50 %", "75 %", "Nyquist", "Nyquist + 50 %")
_DECIDING = ("dense", *NAMED.values(), "75 %")


def runs(
    only: Sequence[str] = (), seeds: Sequence[int] | None = None, device: str = "cpu"
) -> list[StudyRun]:
    """The runs in the order in which they are trained.

    Args:
        only: names of groups, or ``GROUP/VARIANT``; none for all.
        seeds: those of these seeds; None for all.
        device: where they are trained.
    """
    listed = [
        StudyRun(group, variant, seed)
        for group in GROUPS
        if group.device == device
        for seed in group.seeds
        for variant in group.variants
    ]

    def rank(run: StudyRun) -> int:
        if run.group.model == "fcn":
            return 2
        if run.group.name == "resnet18-pool":
            return 3
        if run.seed == 0 and run.variant.name in _FIRST:
            return 0
        return 1 if run.variant.name in _DECIDING else 4

    return [
        run
        for run in sorted(listed, key=rank)  # stable: within a rank as they are listed
        if (not only or {run.group.name, f"{run.group.name}/{run.variant.name}"} & set(only))
        and (seeds is None or run.seed in seeds)
    ]


def check_record(run: StudyRun, path: Path, epochs: int | None = None) -> None:
    """Checks that a record is of the run that the list has, or of one of fewer ``epochs``.

    Raises:
        UserError: it is of other settings.
    """
    wanted = {"model": run.group.model, "data": run.group.data, "seed": run.seed}
    wanted |= run.group.options | ({} if epochs is None else {"epochs": epochs})
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    other = [
        f"{name} {config.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if config.get(name) != value
    ]
    if other:
        raise UserError(f"{path} is of another run: {', '.join(other)}; give another folder")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epochs: that are over.
        seconds: median of an epoch; None where none is over.
        accuracy: the last epoch's; None likewise.
        done: whether there is a record.
    """

    epochs: int = 0
    seconds: float | None = None
    accuracy: float | None = None
    done: bool = False

    @classmethod
    def of(cls, run: StudyRun, out: Path) -> Progress:
        """Reads the record, or the metrics of a run that is under way."""
        path = run.record(out)
        if path is None:
            return cls()
        if path.is_file():
            curves = json.loads(path.read_text(encoding="utf-8"))["curves"]
            rows = [
                {"seconds": s, "test_accuracy": a}
                for s, a in zip(curves["seconds"], curves["test_accuracy"], strict=True)
            ]
        else:
            rows = list(_metrics(path.with_suffix("") / METRICS))
        if not rows:
            return cls()
        seconds = sorted(row["seconds"] for row in rows)[len(rows) // 2]
        return cls(len(rows), seconds, rows[-1]["test_accuracy"], path.is_file())


def _metrics(path: Path) -> Iterator[Record]:
    """The whole lines of a file that may be written at this moment."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


@dataclass
class Costs:
    """How long epochs take, from what was measured; a group's mean stands for what was not."""

    seen: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, run: StudyRun, progress: Progress) -> None:
        """Counts a run in."""
        if progress.seconds is not None:
            of_group = self.seen.setdefault(run.group.name, {})
            of_group.setdefault(run.variant.name, []).append(progress.seconds)

    def hours(self, run: StudyRun, progress: Progress, epochs: int) -> float | None:
        """What is left of a run, in hours; None where nothing of its group was measured."""
        of_group = self.seen.get(run.group.name, {})
        known = of_group.get(run.variant.name) or [s for each in of_group.values() for s in each]
        if not known:
            return None
        return max(epochs - progress.epochs, 0) * sum(known) / len(known) / 3600


def published(run: StudyRun) -> str:
    """Where the record of a run lies in the folder of results."""
    return f"{run.group.name}/{file_stem(run.variant.name)}_seed-{run.seed}.json"
