"""Figures 12 and 13: LeNet on CIFAR-10 at several energies."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

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
from experiments.paper.pictures import PAPER, by_band, draw_curves, mean_and_spread, panels, told
from experiments.paper.store import Job, as_entry
from experiments.settings.records import Record

# Energy preserved, per cent: compression and test accuracy, per cent, of the paper.
REPORTED = {100: (0, 62.76), 95: (36, 56.12), 90: (60, 54.10), 85: (72, 51.17)}
BANDS = tuple(energy_band(energy) for energy in REPORTED)


def jobs(budget: Budget) -> list[Job]:
    """The one job."""
    if budget == "full":
        return [Job("lenet", "cifar10", BANDS, (0, 1, 2))]
    if budget in ("cpu", "short"):
        epochs, seeds = (30, (0, 1, 2)) if budget == "cpu" else (12, (0,))
        changes = {"epochs": epochs, "schedule": "onecycle", "learning_rate": 0.01}
        return [Job("lenet", "cifar10", BANDS, seeds, changes)]
    changes = {"epochs": 2, "image_size": SMOKE_SIZE, "learning_rate": 0.01}
    return [Job("lenet", "digits", BANDS[::2], (0,), changes)]


def measure(context: Context) -> Record:
    """Trains."""
    (job,) = jobs(context.budget)
    return {"jobs": [as_entry(job, context.store.train(job))]}


def draw(record: Record) -> Any:
    """Training and test accuracy by epoch, and the last against the compression."""
    (entry,) = record["jobs"]
    figure, ((train, test, last),) = panels(3)
    draw_curves(train, entry, "accuracy", splits=["train"])
    draw_curves(test, entry, "accuracy", splits=["test"])
    train.set(title="Figure 12", ylabel="training accuracy (%)")
    test.set(title="Figure 13", ylabel="test accuracy (%)")
    for colour, runs in enumerate(by_band(entry).values()):
        x = [100 * run["compression"] for run in runs]
        last.plot(x, [100 * run["test_accuracy"] for run in runs], "o", color=f"C{colour}")
    if record["budget"] != "smoke":
        last.plot(*zip(*REPORTED.values(), strict=True), **PAPER)
        last.legend(fontsize="small")
    last.set(
        title="after the last epoch",
        xlabel="coefficients dropped, test images (%)",
        ylabel="test accuracy (%)",
    )
    last.grid(alpha=0.3)
    return figure


def judge(record: Record) -> Verdict:
    """Whether less energy is less accuracy, and by how much beside the paper."""
    (entry,) = record["jobs"]
    runs = by_band(entry)
    accuracy = {band: [run["test_accuracy"] for run in of] for band, of in runs.items()}
    means = {band: mean_and_spread(values)[0] for band, values in accuracy.items()}
    rows = []
    for energy, (dropped, reported) in REPORTED.items():
        if (band := energy_band(energy)) in runs:
            ours = mean_and_spread(run["compression"] for run in runs[band])[0]
            rows.append(
                Row(
                    f"energy {energy} %",
                    f"{reported:.2f} % at {dropped} % dropped",
                    f"{told(accuracy[band])} % at {percent(ours, 0)} dropped",
                )
            )
    order = [means[band] for band in runs]
    falls = all(later < earlier for earlier, later in pairwise(order))
    loss = 100 * (order[0] - order[-1])
    reported_loss = REPORTED[100][1] - REPORTED[85][1]
    claims = (
        Claim(
            "the less energy is preserved, the lower the accuracy, and it declines gracefully",
            "yes" if falls and loss < reported_loss else "no",
            " > ".join(f"{100 * value:.2f}" for value in order) + " %",
        ),
    )
    line = (
        f"From full energy to the least the accuracy falls by {loss:.1f} points, in the paper by "
        f"{reported_loss:.1f}; where all is kept it is {100 * order[0]:.1f} %, in the paper "
        f"{REPORTED[100][1]} %."
    )
    return Verdict(word_of(claims), line, tuple(rows), claims)


ITEM = Item(
    name="lenet",
    figures=("12", "13"),
    title="LeNet on CIFAR-10 by preserved energy",
    paper=(
        "LeNet with two convolutions, SGD with momentum 0.9, batches of 64, rate 0.001, 300 "
        "epochs. Full: the same, three seeds. CPU: 30 epochs, one-cycle schedule up to 0.01, three "
        "seeds. Short: 12 epochs, one seed."
    ),
    costs={
        "full": "12 runs of 300 epochs",
        "cpu": "12 runs of 30 epochs, an hour and a half",
        "short": "4 runs of 12 epochs, 10 minutes",
        "smoke": "2 short runs",
    },
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
