"""Figures 3, 4 and 8, 9, 10: ResNet-18 on CIFAR-10 by precision, by compression and by energy."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from experiments.paper import memory
from experiments.paper.item import (
    SMOKE_SIZE,
    Budget,
    Claim,
    Context,
    Item,
    Row,
    Verdict,
    energy_band,
    percent,
    word_of,
)
from experiments.paper.pictures import (
    PAPER,
    by_band,
    draw_curves,
    mean_and_spread,
    name_of,
    panels,
    told,
)
from experiments.paper.store import Job, as_entry
from experiments.settings.records import Record
from experiments.settings.variants import parse_variant

NETWORK = "resnet18-pool"
# The network of each budget, and how its training differs from the paper's.
TRAINED: dict[Budget, tuple[str, dict[str, Any]]] = {
    "full": (NETWORK, {}),
    "cpu": (NETWORK, {"epochs": 15, "schedule": "onecycle", "learning_rate": 0.05}),
    "short": ("resnet8", {"epochs": 5, "schedule": "onecycle", "limit": 20_000}),
}
SMOKE = {"epochs": 3, "image_size": SMOKE_SIZE, "batch_size": 32, "limit": 512}
MIB = 2**20

# Supplement, figure 3.
REPORTED = {
    "none": ("fp32", 93.69),
    "none,precision=fp16": ("fp16", 91.53),
    "compression=0.5": ("fft50", 92.32),
}
VARIANTS = (*REPORTED, "compression=0.5,precision=fp16")
ENERGIES = (100, 99, 98, 95, 90)
# The authors' logs: true compression of ResNet-18 by energy, and its accuracy, per cent.
BY_ENERGY = ((12.4, 92.39), (31, 88.99), (50.4, 83.84), (75.8, 69.47))


def precision_jobs(budget: Budget) -> list[Job]:
    """The one job of figures 3 and 4."""
    if budget == "smoke":
        return [Job("resnet8", "digits", VARIANTS[1:3], (0,), SMOKE)]
    return [Job(TRAINED[budget][0], "cifar10", VARIANTS, (0,), TRAINED[budget][1])]


def measure_precision(context: Context) -> Record:
    """Trains, and counts what a step keeps, of spectra alone too."""
    (job,) = precision_jobs(context.budget)
    runs = context.store.train(job)
    counted = {}
    for label in job.labels:
        trained = context.store.load(job, label, job.seeds[0])
        settings, examples = trained.trainer.settings, trained.trainer.examples
        kinds = ("none",) if trained.band is None else ("none", "spectra")
        with context.console.status(f"{label}: memory"):
            counted[label] = {
                remat: memory.kept(settings, examples, trained.band, remat) for remat in kinds
            }
    return {"jobs": [as_entry(job, runs)], "kept": counted}


def draw_precision(record: Record) -> Any:
    """Accuracy by epoch; bytes kept, counted, and the compiled step's temporaries."""
    (entry,) = record["jobs"]
    figure, ((train, test, bars),) = panels(3)
    draw_curves(train, entry, "accuracy", splits=["train"])
    draw_curves(test, entry, "accuracy", splits=["test"])
    train.set(title="Figure 3, training", ylabel="training accuracy (%)")
    test.set(title="Figure 3, test", ylabel="test accuracy (%)")
    runs = by_band(entry)
    rows: list[tuple[str, float, float]] = []
    for label, of in runs.items():
        for remat, bytes_ in record["kept"][label].items():
            name = name_of(label) + (", spectra alone" if remat == "spectra" else "")
            compiled = of[0]["temporary_bytes"] or 0
            rows.append((name, bytes_["total"] / MIB, compiled / MIB if remat == "none" else 0))
    places = np.arange(len(rows))
    bars.barh(places - 0.2, [row[1] for row in rows], 0.4, label="kept for backward, counted")
    bars.barh(places + 0.2, [row[2] for row in rows], 0.4, label="compiled step's temporaries")
    bars.set_yticks(places, [row[0] for row in rows], fontsize="small")
    bars.invert_yaxis()
    bars.set(title="Figure 4: memory", xlabel="MiB")
    bars.legend(fontsize="small")
    bars.grid(alpha=0.3, axis="x")
    return figure


def judge_precision(record: Record) -> Verdict:
    """fp16 and a band of 50 % against float32: accuracy and memory."""
    (entry,) = record["jobs"]
    runs = by_band(entry)
    late = {b: mean_and_spread(r["late_test_accuracy"] for r in of)[0] for b, of in runs.items()}
    rows = []
    for label, of in runs.items():
        name, reported = REPORTED.get(label, ("fp16 with fft50", None))
        kept = {k: f"{v['total'] / MIB:.1f}" for k, v in record["kept"][label].items()}
        only = f", spectra alone {kept['spectra']}" if "spectra" in kept else ""
        rows.append(
            Row(
                f"{name} ({name_of(label)})",
                "not in the paper" if reported is None else f"{reported} %, its best epoch",
                f"{told(run['test_accuracy'] for run in of)} % (late mean "
                f"{100 * late[label]:.2f}), {percent(of[0]['compression'], 1)} dropped, "
                f"{kept['none']} MiB kept{only}",
            )
        )
    claims: list[Claim] = []
    dense, half, band = (late.get(label) for label in REPORTED)
    if dense is not None and half is not None and band is not None:
        claims = [
            Claim(
                "a band of 50 % loses no more than fp16 does",
                "yes" if band >= half else "no",
                f"{100 * (band - dense):+.2f} and {100 * (half - dense):+.2f} points against "
                "float32 (the paper: -1.37 and -2.16)",
            ),
            Claim(
                "both can be combined, and keep less together than each alone",
                "yes" if _combined_is_least(record) else "no",
                "bytes kept, spectra alone",
            ),
        ]
    line = (
        "The last epoch is told, where the paper tells the best: that would choose by the test "
        "images. One seed."
    )
    return Verdict(word_of(tuple(claims)), line, tuple(rows), tuple(claims))


def _combined_is_least(record: Record) -> bool:
    least = {label: min(v["total"] for v in of.values()) for label, of in record["kept"].items()}
    return min(least, key=lambda label: least[label]) == VARIANTS[-1]


def energy_jobs(budget: Budget) -> list[Job]:
    """The one job of figures 8 to 10."""
    if budget == "smoke":
        return [Job("resnet8", "digits", (energy_band(100), energy_band(90)), (0,), SMOKE)]
    bands = tuple(energy_band(energy) for energy in ENERGIES)
    model, changes = TRAINED[budget]
    return [
        Job(
            model, "cifar10", bands, (0,), {**changes, "epochs": 10} if budget == "cpu" else changes
        )
    ]


def measure_energy(context: Context) -> Record:
    """Trains."""
    (job,) = energy_jobs(context.budget)
    return {"jobs": [as_entry(job, context.store.train(job))]}


def _points(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Energies, per cent, and accuracies in the late mean, per cent."""
    (entry,) = record["jobs"]
    points = []
    for label, of in by_band(entry).items():
        band = parse_variant(label).band
        share = 100.0 if band is None else 100 * band.share
        points.append((share, 100 * np.mean([run["late_test_accuracy"] for run in of])))
    x, y = zip(*points, strict=True)
    return np.array(x), np.array(y)


def draw_energy(record: Record) -> Any:
    """Accuracy by energy with its line, and both accuracies by epoch."""
    (entry,) = record["jobs"]
    figure, ((line, test, train), (share, *rest)) = panels(3, 2)
    x, y = _points(record)
    line.plot(x, y, "o")
    if len(x) > 2:
        fit = stats.linregress(x, y)
        line.plot(x, fit.intercept + fit.slope * x, "-", color="0.6", label=f"r = {fit.rvalue:.3f}")
        line.legend(fontsize="small")
    line.invert_xaxis()
    line.set(title="Figure 8", xlabel="energy preserved (%)", ylabel="test accuracy (%)")
    draw_curves(test, entry, "accuracy", splits=["test"])
    draw_curves(train, entry, "accuracy", splits=["train"])
    test.set(title="Figure 9", ylabel="test accuracy (%)")
    train.set(title="Figure 10", ylabel="training accuracy (%)")
    dropped = [100 * run["compression"] for run in entry["runs"]]
    share.plot(dropped, [100 * run["late_test_accuracy"] for run in entry["runs"]], "o")
    if record["budget"] != "smoke":
        share.plot(*zip(*BY_ENERGY, strict=True), **PAPER)
        share.legend(fontsize="small")
    share.set(xlabel="coefficients dropped, test images (%)", ylabel="test accuracy (%)")
    draw_curves(rest[0], entry, "compression", splits=[""])
    rest[0].set(title="dropped, by epoch", ylabel="coefficients dropped (%)")
    for axes in (line, share):
        axes.grid(alpha=0.3)
    rest[1].axis("off")
    return figure


def judge_energy(record: Record) -> Verdict:
    """Whether the accuracy is linear in the energy."""
    (entry,) = record["jobs"]
    x, y = _points(record)
    rows = tuple(
        Row(
            f"energy {energy:g} %",
            "a curve",
            f"{accuracy:.2f} % at {percent(run['compression'], 0)} dropped",
        )
        for energy, accuracy, run in zip(x, y, entry["runs"], strict=True)
    )
    if len(x) < 3:
        return Verdict("differs", "Too few points for a line.", rows)
    fit = stats.linregress(x, y)
    falls = bool((np.diff(y[np.argsort(-x)]) < 0).all())
    claims = (
        Claim(
            "accuracy is linear in the preserved energy",
            "yes"
            if fit.rvalue > 0.9 and fit.pvalue < 0.05
            else "not told apart"
            if fit.rvalue > 0
            else "no",
            f"r = {fit.rvalue:.3f}, p = {fit.pvalue:.2g}, {fit.slope:.2f} points of accuracy for a "
            "per cent of energy",
        ),
        Claim(
            "it declines gracefully: less energy, lower accuracy",
            "yes" if falls else "no",
            " > ".join(f"{value:.1f}" for value in y[np.argsort(-x)]) + " %",
        ),
    )
    line = "One seed; accuracies are means over the last epochs."
    return Verdict(word_of(claims), line, rows, claims)


PRECISION_ITEM = Item(
    name="precision",
    figures=("3", "4"),
    title="ResNet-18 on CIFAR-10: float32, fp16 and half of the coefficients",
    paper=(
        "ResNet-18 with a pooled stem, SGD with momentum 0.9, rate 0.01, weight decay 5e-4, "
        "batches of 32, 350 epochs, rate ×0.1 on a plateau of 10 epochs, flips and crops. Full: "
        "the same, one seed. CPU: 15 epochs, one-cycle schedule up to 0.05. Short: ResNet-8, "
        "20,000 images, 5 epochs, one-cycle up to 0.1. All also combine fp16 with a band."
    ),
    costs={
        "full": "4 runs of 350 epochs, on a GPU",
        "cpu": "4 runs of 15 epochs, half a day (fp16 is emulated)",
        "short": "4 runs of ResNet-8, 5 epochs, 20 minutes",
        "smoke": "2 short runs",
    },
    measure=measure_precision,
    draw=draw_precision,
    judge=judge_precision,
    jobs=precision_jobs,
)
ENERGY_ITEM = Item(
    name="energy",
    figures=("8", "9", "10"),
    title="ResNet-18 on CIFAR-10 by preserved energy",
    paper=(
        "A network for each energy, trained and tested with it. Full: the settings of figure 3, "
        "one seed. CPU: 10 epochs, one-cycle schedule up to 0.05. Short: ResNet-8, 20,000 images, "
        "5 epochs."
    ),
    costs={
        "full": "5 runs of 350 epochs, on a GPU",
        "cpu": "5 runs of 10 epochs, half a day",
        "short": "5 runs of ResNet-8, 5 epochs, 20 minutes",
        "smoke": "2 short runs",
    },
    measure=measure_energy,
    draw=draw_energy,
    judge=judge_energy,
    jobs=energy_jobs,
)
