"""Figure 19: trained at three energies, tested at each from 88 to 100 per cent."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.paper.item import Budget, Claim, Context, Item, Row, Verdict, energy_band, word_of
from experiments.paper.pictures import mean_and_spread, panels
from experiments.paper.store import Job, as_entry
from experiments.settings.records import Record
from experiments.settings.variants import parse_variant

TRAINED, TESTED = (90, 99, 100), tuple(range(88, 101))
BANDS = tuple(energy_band(energy) for energy in TRAINED)


def jobs(budget: Budget) -> list[Job]:
    """The one job."""
    if budget == "smoke":
        return [Job("fcn", "cbf:0", BANDS[::2], (0,), {"epochs": 2})]
    data = "ucr:UWaveGestureLibraryZ:halves"
    if budget != "full":
        epochs, seeds = (100, (0, 1, 2)) if budget == "cpu" else (30, (0,))
        return [Job("fcn", data, BANDS, seeds, {"epochs": epochs, "schedule": "onecycle"})]
    return [Job("fcn", data, BANDS, (0, 1, 2))]


def measure(context: Context) -> Record:
    """Trains, and tests at every energy."""
    (job,) = jobs(context.budget)
    entry = as_entry(job, context.store.train(job))
    energies = TESTED[::6] if context.budget == "smoke" else TESTED
    texts = [energy_band(energy) for energy in energies]
    accuracy = {}
    for label in job.labels:
        with context.console.status(f"{label}: testing"):
            found = [context.store.tested(job, label, seed, texts) for seed in job.seeds]
        accuracy[label] = [[each[text]["accuracy"] for text in texts] for each in found]
    return {"jobs": [entry], "tested_percent": list(energies), "accuracy": accuracy}


def draw(record: Record) -> Any:
    """Accuracy by the energy of testing, a line for each energy of training."""
    figure, ((axes,),) = panels(1, width=7)
    energies = record["tested_percent"]
    for colour, (label, rows) in enumerate(record["accuracy"].items()):
        values = 100 * np.array(rows)
        line = {"color": f"C{colour}", "marker": "o", "markersize": 4}
        axes.plot(energies, values.mean(0), label=f"trained at E = {_energy(label):g} %", **line)
        if len(values) > 1:
            axes.fill_between(
                energies, values.min(0), values.max(0), color=f"C{colour}", alpha=0.12
            )
    axes.set(title="Figure 19", xlabel="energy when tested (%)", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _energy(label: str) -> float:
    band = parse_variant(label).band
    return 100.0 if band is None else 100 * band.share


def judge(record: Record) -> Verdict:
    """Whether each network is best at its own energy, and declines smoothly from there."""
    energies = record["tested_percent"]
    rows, claims = [], []
    steps = []
    for label, seeds in record["accuracy"].items():
        values = np.array(seeds)
        means = values.mean(0)
        own = min(range(len(energies)), key=lambda i: abs(energies[i] - _energy(label)))
        best = int(means.argmax())
        lead = 100 * (means[best] - means[own])
        spread = mean_and_spread(values[:, own])[1]
        apart = lead > 100 * (spread or 0)
        answer = "yes" if best == own else "no" if apart else "not told apart"
        told = "" if spread is None else f" (seeds' deviation {100 * spread:.1f})"
        claims.append(
            Claim(
                f"trained at {_energy(label):g} %, the accuracy is highest at {_energy(label):g} %",
                answer,
                f"{100 * means[own]:.1f} % there{told}; best at {energies[best]} %, "
                f"{lead:.1f} points more",
            )
        )
        at = f"{energies[0]}: {100 * means[0]:.1f}, {energies[-1]}: {100 * means[-1]:.1f}"
        steps.append(100 * float(np.abs(np.diff(means)).max()))
        rows.append(Row(f"trained at {_energy(label):g} %, tested at", "a curve", f"{at} %"))
    claims.append(
        Claim(
            "the accuracy degrades smoothly away from the energy of training",
            "yes" if max(steps) < 10 else "no",
            f"the largest step from one per cent to the next is {max(steps):.1f} points",
        )
    )
    line = (
        "The archive's test file was not at hand: its training file of 896 series is split in two "
        "halves, by class, so that accuracies are not those of the archive's split."
    )
    return Verdict(word_of(tuple(claims)), line, tuple(rows), tuple(claims))


ITEM = Item(
    name="train-test",
    figures=("19",),
    title="energy of training against energy of testing, uWaveGestureLibrary_Z",
    paper=(
        "FCNs trained at 90, 99 and 100 % of the energy, tested from 88 to 100. Full: 300 epochs, "
        "three seeds. CPU: 100 epochs, one-cycle schedule, three seeds. Short: 30 epochs, one "
        "seed. All on one half of the archive's training file, tested on the other."
    ),
    costs={
        "full": "9 runs of 300 epochs, one CPU hour",
        "cpu": "9 runs of 100 epochs, two hours",
        "short": "3 runs of 30 epochs, 15 minutes",
        "smoke": "2 short runs",
    },
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
