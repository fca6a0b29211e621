"""Figures 1 and 2: DenseNet-121 on CIFAR-100 at several rates."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.paper.item import (
    SMOKE_SIZE,
    Budget,
    Claim,
    Context,
    Item,
    Row,
    Verdict,
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
)
from experiments.paper.store import Job, as_entry
from experiments.settings.records import Record

# Compression and test accuracy, per cent.
REPORTED = (
    (0, 75.30),
    (10, 75.28),
    (20, 74.25),
    (30, 73.66),
    (40, 72.26),
    (50, 71.18),
    (78, 63.95),
)
BANDS = ("none", *(f"compression={rate}" for rate in (0.1, 0.2, 0.3, 0.4, 0.5, 0.75)))
QUANTITIES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def jobs(budget: Budget) -> list[Job]:
    """The one job."""
    if budget == "smoke":
        changes = {"epochs": 1, "image_size": SMOKE_SIZE, "batch_size": 64, "limit": 256}
        return [Job("densenet13-12", "digits", ("none", "compression=0.5"), (0,), changes)]
    if budget in ("cpu", "short"):
        epochs = 5 if budget == "cpu" else 1
        changes = {"epochs": epochs, "schedule": "onecycle", "learning_rate": 0.05}
        return [
            Job("densenet121-12", "cifar100:first20000", (BANDS[0], *BANDS[-2:]), (0,), changes)
        ]
    return [Job("densenet121-12", "cifar100", BANDS)]


def measure(context: Context) -> Record:
    """Trains."""
    (job,) = jobs(context.budget)
    return {"jobs": [as_entry(job, context.store.train(job))]}


def _late(run: Record, quantity: str) -> float:
    curve = run["curves"][quantity]
    return float(np.mean(curve[-max(1, len(curve) // 10) :]))


def draw(record: Record) -> Any:
    """Test accuracy by epoch; the four figures of the end against those of the dense network."""
    (entry,) = record["jobs"]
    figure, ((curves, bars, rates),) = panels(3)
    draw_curves(curves, entry, "accuracy", splits=["train", "test"])
    curves.set(title="Figure 1 (dashed: training)", ylabel="accuracy (%)")
    runs = {band: of[0] for band, of in by_band(entry).items()}
    dense = next(iter(runs.values()))
    width = 0.8 / len(runs)
    for index, (band, run) in enumerate(runs.items()):
        heights = [100 * _late(run, name) / _late(dense, name) for name in QUANTITIES]
        bars.bar(np.arange(4) + index * width, heights, width, label=name_of(band))
    bars.set_xticks(
        np.arange(4) + 0.4 - width / 2, [name.replace("_", "\n") for name in QUANTITIES]
    )
    bars.set(title="Figure 2: normalised to dense", ylabel="%")
    bars.legend(fontsize="small")
    x = [100 * run["compression"] for run in runs.values()]
    rates.plot(x, [100 * _late(run, "test_accuracy") for run in runs.values()], "o-")
    if record["budget"] != "smoke":
        rates.plot(*zip(*REPORTED, strict=True), **PAPER)
        rates.legend(fontsize="small")
    rates.set(xlabel="coefficients dropped (%)", ylabel="test accuracy (%)")
    for axes in (bars, rates):
        axes.grid(alpha=0.3)
    return figure


def judge(record: Record) -> Verdict:
    """The gap of each rate to the dense network, beside the paper's."""
    (entry,) = record["jobs"]
    runs = by_band(entry)
    late = {
        band: 100 * mean_and_spread(_late(run, "test_accuracy") for run in of)[0]
        for band, of in runs.items()
    }
    dense = late[next(iter(runs))]
    rows, gaps = [], []
    rates, reported = zip(*REPORTED, strict=True)
    for band, of in runs.items():
        dropped = 100 * of[0]["compression"]
        # Between the paper's rates its accuracies are interpolated.
        theirs = float(np.interp(dropped, rates, reported))
        gaps.append((late[band] - dense, theirs - reported[0]))
        rows.append(
            Row(
                f"{name_of(band)} ({percent(of[0]['compression'], 1)} in truth)",
                f"{theirs:.2f} %, {theirs - reported[0]:+.2f} against dense",
                f"{late[band]:.2f} %, {late[band] - dense:+.2f}",
            )
        )
    small = all(ours > theirs - 2 for ours, theirs in gaps)
    claims = (
        Claim(
            "the differences between rates are small",
            "yes" if small else "no",
            "none loses 2 points more against dense than in the paper"
            if small
            else "some lose more than 2 points more against dense than in the paper",
        ),
    )
    line = (
        "Accuracies depend on how long is trained: compare the differences to dense. One seed; the "
        "mean of the last epochs."
    )
    return Verdict(word_of(claims), line, tuple(rows), claims)


ITEM = Item(
    name="densenet",
    figures=("1", "2"),
    title="DenseNet-121 on CIFAR-100 at several rates",
    paper=(
        "DenseNet-121 of growth 12, the settings of figure 3 with weight decay 1e-4. Full: the "
        "same, seven rates, one seed. CPU: the first 20,000 images, three rates, 5 epochs, "
        "one-cycle schedule up to 0.05. Short: 1 epoch."
    ),
    costs={
        "full": "7 runs of 350 epochs, on a GPU",
        "cpu": "3 runs of 5 epochs of 20,000 images, five hours",
        "short": "3 runs of an epoch of 20,000 images, an hour",
        "smoke": "2 short runs",
    },
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
