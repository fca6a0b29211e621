"""Figures 14 and 15: trained at one energy, tested at others, ranked over 25 time-series sets."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from experiments.jobs.comparison import SIGNIFICANCE, import_posthocs
from experiments.paper.item import Budget, Claim, Context, Item, Row, Verdict, energy_band, word_of
from experiments.paper.pictures import panels
from experiments.paper.store import Job, as_entry
from experiments.settings.records import Record

TRAINED, TESTED = (90, 100), (80, 90, 100)  # energies, per cent
# The 25 sets of the UCR archive, of those at hand, with the fewest numbers to train on; the
# quickest to train first.
SETS = (
    *("Chinatown", "SonyAIBORobotSurface1", "ItalyPowerDemand", "CBF", "SmoothSubspace", "Coffee"),
    *("Fungi", "GunPoint", "Beef", "ECG200", "DiatomSizeReduction", "ArrowHead", "BeetleFly"),
    *("BirdChicken", "ToeSegmentation2", "ShapeletSim", "SyntheticControl", "InsectEPGSmallTrain"),
    *("GunPointAgeSpan", "GunPointOldVersusYoung", "GunPointMaleVersusFemale", "PowerCons"),
    *("MiddlePhalanxOutlineAgeGroup", "MiddlePhalanxTW", "DistalPhalanxOutlineAgeGroup"),
)
SHORT = 15  # of them at the short budget
BANDS = tuple(energy_band(energy) for energy in TRAINED)


def jobs(budget: Budget) -> list[Job]:
    """A job for each set."""
    if budget == "smoke":
        return [Job("fcn", f"cbf:{seed}", BANDS, (0,), {"epochs": 2}) for seed in range(3)]
    epochs = {"full": None, "cpu": 100, "short": 60}[budget]
    changes = {} if epochs is None else {"epochs": epochs, "schedule": "onecycle"}
    names, seeds = (SETS[:SHORT], (0,)) if budget == "short" else (SETS, (0, 1, 2))
    return [Job("fcn", f"ucr:{name}", BANDS, seeds, changes) for name in names]


def measure(context: Context) -> Record:
    """Trains and tests, set by set."""
    entries, accuracy = [], {}
    every = jobs(context.budget)
    for number, job in enumerate(every, 1):
        context.console.rule(f"data set {number}/{len(every)} · {job.data}", style="dim")
        entries.append(as_entry(job, context.store.train(job), curves=False))
        accuracy[job.data] = {
            label: {
                str(energy): [
                    context.store.tested(job, label, seed, [energy_band(energy)])[
                        energy_band(energy)
                    ]["accuracy"]
                    for seed in job.seeds
                ]
                for energy in TESTED
            }
            for label in job.labels
        }
    return {"jobs": entries, "accuracy": accuracy, **compare(accuracy)}


def compare(accuracy: Record) -> Record:
    """By the band that was trained with: mean accuracies, ranks, and the tests of both."""
    posthocs = import_posthocs()
    compared = {}
    for trained, band in zip(TRAINED, BANDS, strict=True):
        # (sets, energies): means over the seeds.
        means = np.array(
            [[np.mean(by[band][str(energy)]) for energy in TESTED] for by in accuracy.values()]
        )
        ranks = stats.rankdata(-means.round(9), axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 where all are equal
            statistic, p = stats.friedmanchisquare(*means.T)
        nemenyi = posthocs.posthoc_nemenyi_friedman(means).to_numpy()
        compared[str(trained)] = {
            "mean_accuracy": means.mean(0).round(6).tolist(),
            "mean_rank": ranks.mean(0).round(4).tolist(),
            "friedman": {"statistic": _finite(statistic, 0), "p": _finite(p, 1)},
            "nemenyi_p": [[_finite(value, 1) for value in row] for row in nemenyi.tolist()],
        }
    return {"compared": compared}


def _finite(value: float, otherwise: float) -> float:
    """Where all are equal the tests give NaN."""
    return float(f"{value:.4g}") if np.isfinite(value) else otherwise


def draw(record: Record) -> Any:
    """A critical-difference diagram for each energy of training."""
    import pandas as pd

    posthocs = import_posthocs()
    figure, rows = panels(1, 2, width=8, height=2.2)
    for axes, (trained, found), number in zip(
        rows[:, 0], record["compared"].items(), ("14", "15"), strict=True
    ):
        names = [f"tested at {energy} %" for energy in TESTED]
        posthocs.critical_difference_diagram(
            dict(zip(names, found["mean_rank"], strict=True)),
            pd.DataFrame(found["nemenyi_p"], index=names, columns=names),
            ax=axes,
            alpha=SIGNIFICANCE,
            label_fmt_left="{label} ({rank:.2f})",
            label_fmt_right="({rank:.2f}) {label}",
            color_palette={name: f"C{index}" for index, name in enumerate(names)},
        )
        axes.set_title(
            f"Figure {number}: trained at {trained} % of the energy, {len(record['accuracy'])} "
            f"sets, Friedman p = {found['friedman']['p']:.2g}",
            fontsize="small",
        )
    return figure


def judge(record: Record) -> Verdict:
    """Whether the energy of training ranks first when testing, and by how much."""
    rows, claims = [], []
    for trained, found in record["compared"].items():
        order = found["mean_rank"]
        own = TESTED.index(int(trained))
        others = [i for i in range(len(TESTED)) if i != own]
        p = found["friedman"]["p"]
        apart = [i for i in others if found["nemenyi_p"][own][i] < SIGNIFICANCE]
        best = min(range(len(TESTED)), key=lambda i: order[i])
        first = order[own] == order[best]
        told_apart = p < SIGNIFICANCE and (apart if first else best in apart)
        answer = "not told apart" if not told_apart else "yes" if first else "no"
        told = ", ".join(
            f"{energy} %: {rank:.2f}" for energy, rank in zip(TESTED, order, strict=True)
        )
        accuracies = ", ".join(
            f"{energy} %: {100 * value:.1f}"
            for energy, value in zip(TESTED, found["mean_accuracy"], strict=True)
        )
        pairs = ", ".join(f"{TESTED[i]} % p = {found['nemenyi_p'][own][i]:.2g}" for i in others)
        rows.append(
            Row(
                f"trained at {trained} %, mean ranks when tested at",
                f"{trained} % first, Friedman rejects",
                f"{told} (1 is best)",
            )
        )
        rows.append(Row("their mean accuracies, %", "", accuracies))
        claims.append(
            Claim(
                f"trained at {trained} % of the energy, a network is best tested at {trained} %",
                answer,
                f"Friedman p = {p:.2g}; Nemenyi against {pairs}",
            )
        )
    line = (
        f"{len(record['accuracy'])} sets; accuracies are means over the seeds before they are "
        "ranked. The paper's 25 sets are drawn at random and not named, ours are among the "
        "smallest."
    )
    return Verdict(word_of(tuple(claims)), line, tuple(rows), tuple(claims))


ITEM = Item(
    name="ranks",
    figures=("14", "15"),
    title="trained at one energy, tested at others: ranks over UCR sets",
    paper=(
        "FCNs trained at 90 and at 100 % of the energy, tested at 80, 90 and 100; Friedman's test, "
        "then Nemenyi's; a line joins what it does not tell apart. Full: 300 epochs, three seeds. "
        "CPU: 100 epochs, one-cycle schedule, three seeds. Short: 15 sets, 60 epochs, one seed."
    ),
    costs={
        "full": "150 runs of 300 epochs, four hours",
        "cpu": "150 runs of 100 epochs, an hour and a half",
        "short": "30 runs of 60 epochs, 10 minutes",
        "smoke": "6 short runs",
    },
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
