"""Figures 17 and 18, and table 1: the FCN on 50words by energy, its accuracy and its memory."""

from __future__ import annotations

from typing import Any

import numpy as np

import bandjax
from experiments.paper import memory
from experiments.paper.item import Budget, Claim, Context, Item, Row, Verdict, energy_band, word_of
from experiments.paper.pictures import PAPER, by_band, draw_curves, mean_and_spread, panels, told
from experiments.paper.store import Job, Trained, as_entry
from experiments.settings.records import Record
from experiments.settings.variants import parse_variant

# Energy, per cent: accuracy (%), largest and average MB, coefficients kept by layer of 513.
REPORTED = {
    100: (64.40, 305, 118, (513, 513, 513)),
    99: (61.98, 168, 41, (91, 63, 51)),
    98: (60.66, 158, 34, (68, 47, 38)),
    90: (63.52, 144, 25, (32, 21, 15)),
    50: (59.34, 138, 21, (12, 5, 3)),
    10: (40.00, 134, 17, (4, 1, 1)),
}
BANDS = tuple(energy_band(energy) for energy in REPORTED)
GRID = 1024  # The paper's for series of 270 points: 513 coefficients.
MIB = 2**20


def jobs(budget: Budget) -> list[Job]:
    """The one job."""
    if budget == "smoke":
        return [Job("fcn", "cbf:0", BANDS[::3], (0,), {"epochs": 3})]
    if budget == "short":
        changes = {"epochs": 20, "schedule": "onecycle"}
        return [Job("fcn", "ucr:FiftyWords", BANDS, (0,), changes)]
    return [Job("fcn", "ucr:FiftyWords", BANDS, (0, 1, 2) if budget == "full" else (0,))]


def measure(context: Context) -> Record:
    """Trains; then counts, for the first seed, what each layer keeps and what a step keeps."""
    (job,) = jobs(context.budget)
    entry = as_entry(job, context.store.train(job))
    measured = {}
    for label in job.labels:
        with context.console.status(f"{label}: memory"):
            measured[label] = _of_network(context.store.load(job, label, job.seeds[0]))
    return {"jobs": [entry], "measured": measured}


def _of_network(trained: Trained) -> Record:
    """Coefficients by layer on two grids, and bytes that a training step keeps.

    A band by energy has no fixed size, so that what it would keep is counted with the plan that
    the trained network's own energies give: static boxes.
    """
    trainer, settings = trained.trainer, trained.trainer.settings
    x = np.asarray(trainer.examples.x)
    size = settings.batch_size
    batches = [x[i : i + size] for i in range(0, len(x) - size + 1, size)]
    energy = trained.band if trained.band is not None else bandjax.Energy(1.0)
    length = x.shape[1]
    found: Record = {"length": length}
    plans = {}
    for name, grid in (("own", None), ("paper", max(GRID, 4 * length))):
        plans[name] = bandjax.calibrate(trained.model(), batches, energy, grid=grid)
        layers = plans[name].layers.values()
        found[f"{name}_grid"] = [list(layer.grid) for layer in layers]
        found[f"{name}_kept"] = [layer.kept for layer in layers]
        found[f"{name}_total"] = [layer.total for layer in layers]
    for remat in ("none", "spectra"):
        band = None if trained.band is None else plans["own"]
        if band is None and remat == "spectra":
            continue  # It has no spectra.
        found[f"bytes_{remat}"] = memory.kept(settings, trainer.examples, band, remat)
    return found


def energies_of(record: Record) -> dict[float, str]:
    """The energies, per cent, and their bands."""
    shares = {}
    for label in record["measured"]:
        band = parse_variant(label).band
        shares[100.0 if band is None else 100 * band.share] = label
    return shares


def draw(record: Record) -> Any:
    """Accuracy by epoch and by energy, memory, and coefficients by layer."""
    (entry,) = record["jobs"]
    measured, runs = record["measured"], by_band(entry)
    shares = energies_of(record)
    real = record["budget"] != "smoke"
    figure, ((curves, accuracy), (memory, kept)) = panels(2, 2)
    draw_curves(curves, entry, "accuracy", splits=["test"])
    curves.set(title="Figure 17, by epoch", ylabel="test accuracy (%)")
    places = np.arange(len(shares))
    for name, label, style in (
        ("test_accuracy", "last epoch", "o"),
        ("late_test_accuracy", "mean of the last tenth", "s"),
    ):
        values = [[run[name] for run in runs[band]] for band in shares.values()]
        means, spreads = zip(*(mean_and_spread(of) for of in values), strict=True)
        errors = [100 * (spread or 0) for spread in spreads]
        accuracy.errorbar(places, 100 * np.array(means), errors, fmt=style, label=label, capsize=3)
    first = next(iter(shares.values()))
    for key, label in (("bytes_none", "everything"), ("bytes_spectra", "spectra alone")):
        values = [measured[band].get(key, measured[band]["bytes_none"]) for band in shares.values()]
        base = measured[first]["bytes_none"]["average"]
        memory.plot(places, [100 * v["average"] / base for v in values], "o-", label=f"{label}")
    for index in range(len(measured[first]["paper_kept"])):
        values = [
            measured[band]["paper_kept"][index] / measured[band]["paper_total"][index]
            for band in shares.values()
        ]
        kept.plot(
            places, 100 * np.array(values), "o-", color=f"C{index}", label=f"layer {index + 1}"
        )
    if real:
        table = list(REPORTED.values())
        accuracy.plot(places, [row[0] for row in table], **PAPER)
        memory.plot(places, [100 * row[2] / table[0][2] for row in table], **PAPER)
        for index in range(3):
            points = [100 * row[3][index] / 513 for row in table]
            style = {**PAPER, "color": f"C{index}", "label": "paper" if index == 0 else None}
            kept.plot(places, points, **style)
    accuracy.set(title="Figure 17", ylabel="test accuracy (%)")
    memory.set(title="Figure 18: average kept", ylabel="of that at full energy (%)", ylim=(0, None))
    kept.set(title="Table 1: coefficients kept", yscale="log", ylabel="of those of the grid (%)")
    for axes in (accuracy, memory, kept):
        axes.set_xticks(places, [f"{share:g}" for share in shares])
        axes.set(xlabel="energy preserved (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def judge(record: Record) -> Verdict:
    """The claim of less than 1 % for four times less memory, and the numbers of table 1."""
    (entry,) = record["jobs"]
    measured, runs, shares = record["measured"], by_band(entry), energies_of(record)
    rows = []
    for share, band in shares.items():
        if share not in REPORTED:
            continue
        reported, largest, average, coefficients = REPORTED[int(share)]
        own = measured[band]
        kept = "/".join(map(str, own["paper_kept"]))
        # What is saved is counted by real numbers, two for each coefficient.
        ratios = "/".join(f"{own['length'] / (2 * k):.2f}" for k in own["paper_kept"])
        theirs = "/".join(map(str, coefficients))
        bytes_ = own.get("bytes_spectra", own["bytes_none"])
        plain = own["bytes_none"]
        rows.append(
            Row(
                f"energy {share:g} %",
                f"{reported:.2f} %; {largest} MB, on average {average}; {theirs} of 513",
                f"{told(run['test_accuracy'] for run in runs[band])} % (late mean "
                f"{told(run['late_test_accuracy'] for run in runs[band])}); "
                f"{plain['total'] / MIB:.1f} MiB, on average {plain['average'] / MIB:.1f}; spectra "
                f"alone {bytes_['total'] / MIB:.1f} and {bytes_['average'] / MIB:.1f}; {kept} of "
                f"{own['paper_total'][0]}, compression ratios {ratios}",
            )
        )
    first = shares[100.0]
    dense = 100 * mean_and_spread(run["late_test_accuracy"] for run in runs[first])[0]
    base = measured[first]["bytes_none"]["average"]
    lines, answers = [], []
    for share, band in shares.items():
        if band == first:
            continue
        loss = dense - 100 * mean_and_spread(run["late_test_accuracy"] for run in runs[band])[0]
        own = measured[band]
        times = base / own.get("bytes_spectra", own["bytes_none"])["average"]
        lines.append(f"{share:g} %: {-loss:+.1f} points, {times:.1f} times less")
        answers.append(loss < 1 and times >= 4)
    claim = Claim(
        "less than 1 % of accuracy for 4 times less memory on average",
        "yes" if any(answers) else "no",
        "; ".join(lines) + " (late mean, spectra alone)",
    )
    orders = [_kept_falls(measured[band]["paper_kept"]) for band in list(shares.values())[1:]]
    deeper = Claim(
        "deeper layers need fewer coefficients",
        "yes" if all(orders) else "no",
        f"at {sum(orders)} of {len(orders)} energies, after training",
    )
    claims = (claim, deeper)
    line = (
        f"Dense networks reach {dense:.1f} % in the late mean (the paper: "
        f"{REPORTED[100][0]} %). What a step keeps is counted by tensor, without the workspace "
        "that the paper's counts include, so that ratios compare and MB do not. Training moves "
        "energy to higher frequencies, in deeper layers most; the paper does not say when it took "
        "its figures."
    )
    return Verdict(word_of(claims), line, tuple(rows), claims)


def _kept_falls(kept: list[int]) -> bool:
    return kept == sorted(kept, reverse=True)


ITEM = Item(
    name="fcn",
    figures=("17", "18", "table1"),
    title="FCN on 50words by preserved energy: accuracy and memory",
    paper=(
        "FCN, Adam 0.001, batches of 16, 300 epochs, rate halved on a plateau of 50 epochs. Full: "
        "the same, three seeds. CPU: the same, one seed. Short: 20 epochs, one-cycle schedule, one "
        "seed. The coefficients are those of the paper's grid of 1024 points, of the trained "
        "network on its training series; bytes are counted for static boxes with these energies on "
        "bandjax's own grid."
    ),
    costs={
        "full": "18 runs of 300 epochs",
        "cpu": "6 runs of 300 epochs, two to four hours",
        "short": "6 runs of 20 epochs, 20 minutes",
        "smoke": "2 short runs",
    },
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
