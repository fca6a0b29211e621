"""Figure 5: memory, time and accuracy against compression."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.steps import DENSE, Step
from experiments.benchmarks.timing import interleaved
from experiments.paper.item import Budget, Claim, Context, Item, Row, Verdict, percent, word_of
from experiments.paper.pictures import by_band, panels
from experiments.paper.resnet import SMOKE, TRAINED
from experiments.paper.store import Job, as_entry
from experiments.settings.records import Record

# Supplement 2.4 and the authors' logs, against their own FFT convolution: per cent of its memory.
REPORTED = {"resnet18-pool": {50: 70, 75: 70}, "densenet121": {50: 67, 78: 45}}
RATES = (0, 0.25, 0.5, 0.75, 0.85)
NETWORKS = {"resnet18-pool": 32, "densenet121": 32, "resnet50": 8}  # and the batch of each
TIMED: dict[Budget, tuple[str, ...]] = {
    "full": ("resnet18-pool", "resnet50"),
    "cpu": ("resnet18-pool", "resnet50"),
    "short": (),
    "smoke": (),
}
RUNS, SECONDS = 5, 120  # timed calls of each step, and what they may take together
MIB = 2**20


def band_of(rate: float) -> str:
    """The text of a rate; with a rate of 0 the layers are band-limited ones that keep all."""
    return f"compression={rate:g}"


def jobs(budget: Budget) -> list[Job]:
    """The networks whose accuracy is drawn; figure 3's are not trained again."""
    if budget == "smoke":
        return [Job("resnet8", "digits", ("none", "compression=0.85"), (0,), SMOKE)]
    if budget == "short":
        return []
    bands = ("none", *map(band_of, RATES[1:])) if budget == "full" else _CPU_BANDS
    model, changes = TRAINED[budget]
    return [Job(model, "cifar10", bands, (0,), changes)]


_CPU_BANDS = ("none", "compression=0.5", "compression=0.85")


def measure(context: Context) -> Record:
    """Counts, trains for the accuracies, then times steps, all of a network in the same rounds."""
    networks = ("resnet18-pool",) if context.budget == "smoke" else tuple(NETWORKS)
    rates = RATES[::2] if context.budget == "smoke" else RATES
    counted: Record = {}
    for network in networks:
        with context.console.status(f"{network}: memory"):
            counted[network] = {
                band_of(rate): {
                    kind: _counted(network, rate, variant)
                    for kind, variant in (("everything", "plain"), ("spectra alone", "spectra"))
                }
                for rate in rates
            }
            counted[network][DENSE] = {"everything": _counted(network, None, "plain")}
    entries = [
        as_entry(job, context.store.train(job), curves=False) for job in jobs(context.budget)
    ]
    timed = {network: _timed(network, rates, context) for network in TIMED[context.budget]}
    return {
        "settings": {"batches": {n: NETWORKS[n] for n in networks}, "rates": list(rates)},
        "jobs": entries,
        "kept": counted,
        "timed": timed,
    }


def _counted(network: str, rate: float | None, variant: str) -> Record:
    """Bytes that a step keeps between forward and backward, in all and on average."""
    band = DENSE if rate is None else band_of(rate)
    saved = Step(network, band, variant, NETWORKS[network]).saved()
    return {"total": saved.total, "average": saved.average}


def _timed(network: str, rates: tuple[float, ...], context: Context) -> Record:
    """Seconds and XLA's temporary bytes of a step, by band."""
    calls, rows = {}, {}
    for band in (DENSE, *map(band_of, rates)):
        with context.console.status(f"{network}, {band}: compiling"):
            used, call = Step(network, band, "plain", NETWORKS[network]).compiled()
        rows[band] = {"temporary_bytes": used.temporary}
        calls[band] = call
    with context.console.status(f"{network}: timing"):
        for band, timing in interleaved(calls, RUNS, SECONDS).items():
            rows[band]["seconds"] = timing.as_dict()
    return rows


def draw(record: Record) -> Any:
    """A panel for each network, all normalised to the band-limited network that keeps all."""
    kept, timed = record["kept"], record["timed"]
    figure, (row,) = panels(len(kept) + len(record["jobs"]), width=4.4)
    rates = record["settings"]["rates"]
    x = [100 * rate for rate in rates]
    for axes, (network, by_rate) in zip(row, kept.items(), strict=False):
        base = by_rate[band_of(0)]["everything"]["average"]
        for colour, kind in enumerate(("everything", "spectra alone")):
            y = [100 * by_rate[band_of(rate)][kind]["average"] / base for rate in rates]
            axes.plot(x, y, "o-", color=f"C{colour}", label=f"average kept, {kind}")
        if network in timed:
            for colour, (label, value) in enumerate(
                (
                    ("time of a step", lambda entry: entry["seconds"]["median"]),
                    ("XLA's temporaries", lambda entry: entry["temporary_bytes"]),
                ),
                2,
            ):
                first = value(timed[network][band_of(0)])
                y = [100 * value(timed[network][band_of(rate)]) / first for rate in rates]
                axes.plot(x, y, "s--", color=f"C{colour}", label=label)
        if network in REPORTED and record["budget"] != "smoke":
            points = REPORTED[network]
            axes.plot(list(points), list(points.values()), "kx", label="memory in the paper")
        axes.set(title=f"Figure 5: {network}", ylim=(0, None), ylabel="of that at 0 % (%)")
        axes.legend(fontsize="x-small")
    for job in record["jobs"]:
        runs = by_band(job)
        dropped = [100 * of[0]["compression"] for of in runs.values()]
        accuracy = [100 * of[0]["late_test_accuracy"] for of in runs.values()]
        row[-1].plot(dropped, accuracy, "o-")
        row[-1].set(title=f"accuracy, {job['settings']['model']}", ylabel="test accuracy (%)")
    for axes in row:
        axes.set_xlabel("coefficients dropped (%)")
        axes.grid(alpha=0.3)
    return figure


def judge(record: Record) -> Verdict:
    """What memory falls to, with everything kept and with spectra alone."""
    kept, timed = record["kept"], record["timed"]
    rows, rates = [], record["settings"]["rates"]
    plain_half, plain_most, alone_half = {}, {}, {}
    for network, by_rate in kept.items():
        base = by_rate[band_of(0)]["everything"]["average"]

        def share(rate: float, kind: str, by_rate: Any = by_rate, base: float = base) -> float:
            return by_rate[band_of(rate)][kind]["average"] / base

        for rate in rates[1:]:
            reported = REPORTED.get(network, {}).get(round(100 * rate))
            rows.append(
                Row(
                    f"{network}, {100 * rate:g} % dropped: memory of that at 0 %",
                    "-" if reported is None else f"about {reported} %",
                    f"{percent(share(rate, 'everything'), 0)}; spectra alone "
                    f"{percent(share(rate, 'spectra alone'), 0)}",
                )
            )
        plain_half[network] = share(0.5, "everything")
        plain_most[network] = share(rates[-1], "everything")
        alone_half[network] = share(0.5, "spectra alone")
        if network in timed:
            times = {b: entry["seconds"]["median"] for b, entry in timed[network].items()}
            half = times[band_of(0.5)] / times[band_of(0)]
            rows.append(
                Row(
                    f"{network}: time of a step at 50 %",
                    "slower than cuDNN at every rate (2.8 to 3.4 times forward)",
                    f"{percent(half, 0)} of that at 0 %, {times[DENSE] / times[band_of(0.5)]:.1f} "
                    "times faster than Flax's own layers",
                )
            )
    claims = [
        Claim(
            "ResNet-18's memory falls until half is dropped, then other layers dominate it",
            "yes"
            if plain_half["resnet18-pool"] - plain_most["resnet18-pool"]
            < 1 - plain_half["resnet18-pool"]
            else "no",
            f"everything kept: {percent(plain_half['resnet18-pool'], 0)} at 50 %, "
            f"{percent(plain_most['resnet18-pool'], 0)} at {100 * rates[-1]:g} %; with spectra "
            f"alone {percent(alone_half['resnet18-pool'], 0)} at 50 %",
        )
    ]
    if "densenet121" in kept:
        claims.append(
            Claim(
                "DenseNet-121's memory falls to 67 % at 50 % dropped",
                "yes" if abs(plain_half["densenet121"] - 0.67) < 0.1 else "no",
                f"{percent(plain_half['densenet121'], 0)}; with spectra alone "
                f"{percent(alone_half['densenet121'], 0)}",
            )
        )
    line = (
        "Memory is what a step keeps between forward and backward, counted by tensor, on average "
        "over the step, against the same network with nothing dropped."
    )
    if not timed:
        line += " Times are for a quiet machine, at the CPU budget."
    return Verdict(word_of(tuple(claims)), line, tuple(rows), tuple(claims))


ITEM = Item(
    name="resources",
    figures=("5",),
    title="memory, time and accuracy against compression",
    paper=(
        "ResNet-18 and DenseNet-121 on CIFAR, ResNet-50 on ImageNet. Ours: random images for the "
        "resources (ResNet-50: 224x224, batch 8; the others 32x32, batch 32); the accuracies are "
        "of the networks of figures 3 and 20. Short: memory alone, no times and no accuracies."
    ),
    costs={
        "full": "5 runs of 350 epochs (two of them figure 3's), on a GPU; and minutes",
        "cpu": "3 runs of 15 epochs (all of them figure 20's), and 20 minutes on a quiet machine",
        "short": "minutes",
        "smoke": "2 short runs",
    },
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
