"""Figure 20: noise and attacks on networks of several compressions."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from experiments import data
from experiments.paper.item import (
    Budget,
    Claim,
    Context,
    Item,
    Row,
    Verdict,
    percent,
    word_of,
)
from experiments.paper.pictures import PAPER, name_of, panels
from experiments.paper.resnet import SMOKE, TRAINED
from experiments.paper.store import Job, as_entry
from experiments.settings.records import Record

BANDS = ("none", "compression=0.5", "compression=0.85")
SIGNIFICANCE = 0.05
SEED = 0
IMAGES: dict[Budget, int] = {"full": 2000, "cpu": 500, "short": 300, "smoke": 192}
# Accuracy, per cent, of the networks with nothing and 85 % dropped.
UNIFORM = {
    0: (93.48, 84.55),
    0.1: (93.19, 84.07),
    0.2: (91.24, 82.11),
    0.3: (78.13, 77.00),
    0.4: (36.74, 65.84),
    0.5: (13.61, 48.78),
    0.6: (10.48, 29.78),
    0.7: (10.10, 18.79),
    0.8: (9.96, 13.39),
    1.0: (9.96, 9.49),
}
SIGN = {
    0.001: (87.7, 77.5),
    0.005: (68.7, 45.7),
    0.01: (57.5, 26.5),
    0.05: (38.8, 10.1),
    0.1: (14.4, 5.3),
}
REPORTED = {"uniform noise": UNIFORM, "gradient sign": SIGN}


def jobs(budget: Budget) -> list[Job]:
    """The one job; of the networks of figure 3 those that lie in it are not trained again."""
    if budget == "smoke":
        return [Job("resnet8", "digits", BANDS[::2], (0,), SMOKE)]
    model, changes = TRAINED[budget]
    return [Job(model, "cifar10", BANDS, (0,), changes)]


def measure(context: Context) -> Record:
    """Trains, then attacks every network with the same images and random numbers."""
    from experiments.paper import attacks  # needs foolbox

    (job,) = jobs(context.budget)
    runs = context.store.train(job)
    settings = job.options().settings()
    dataset = data.load(settings.data, context.store.data_dir, settings.image_size)
    count = IMAGES[context.budget]
    images, labels = dataset.x_test[:count], dataset.y_test[:count]
    bounds = attacks.bounds_of(dataset.x_test)
    kept: Record = {attack.name: {} for attack in attacks.ATTACKS}
    for label in job.labels:
        network = attacks.Network(context.store.load(job, label, SEED).model(), bounds)
        clean = attacks.withstood(
            attacks.ATTACKS[0], network, images, labels, [0.0], seed=SEED, batch=_batch(count)
        )[0]
        for attack in attacks.ATTACKS:
            epsilons = attack.epsilons
            if context.budget == "smoke":
                epsilons = epsilons[-1:] if attack.name != "local search" else epsilons[:1]
            part = max(16, int(attack.images * count))
            with context.console.status(f"{label}: {attack.name}"):
                found = attacks.withstood(
                    attack,
                    network,
                    images[:part],
                    labels[:part],
                    epsilons,
                    seed=SEED,
                    batch=_batch(part),
                )
            kept[attack.name] |= {
                "unit": attack.unit,
                "gradient": attack.gradient,
                "epsilons": [0.0, *epsilons],
                "images": part,
            }
            rows = np.concatenate([clean[None, :part], found])
            kept[attack.name].setdefault("right", {})[label] = [_packed(row) for row in rows]
            context.console.print(
                f"{label} · {attack.name}: "
                + ", ".join(f"{100 * row.mean():.1f}" for row in rows)
                + " %",
                highlight=False,
            )
    return {"jobs": [as_entry(job, runs, curves=False)], "bounds": bounds, "attacks": kept}


def _batch(count: int) -> int:
    return min(count, 100)


def _packed(row: np.ndarray) -> str:
    """Of each image whether it was recognised, as hexadecimal digits."""
    return np.packbits(row).tobytes().hex()


def right(found: Record, label: str) -> np.ndarray:
    """Of each strength and image whether it was recognised, ``(strengths, images)``."""
    rows = [np.frombuffer(bytes.fromhex(text), np.uint8) for text in found["right"][label]]
    return np.unpackbits(np.stack(rows), axis=1, count=found["images"]).astype(bool)


def draw(record: Record) -> Any:
    """A panel for each attack: accuracy by strength, a line for each network."""
    found = record["attacks"]
    figure, rows = panels(4, 2, width=3.9, height=3.2)
    for axes, (name, attack) in zip(rows.ravel(), found.items(), strict=True):
        x = attack["epsilons"]
        for colour, label in enumerate(attack["right"]):
            accuracy = 100 * right(attack, label).mean(1)
            axes.plot(x, accuracy, ".-", color=f"C{colour}", label=name_of(label))
        if name in REPORTED and record["budget"] != "smoke":
            for column, colour in ((0, 0), (1, len(attack["right"]) - 1)):
                points = [values[column] for values in REPORTED[name].values()]
                style = {**PAPER, "color": f"C{colour}", "label": "paper" if column == 0 else None}
                axes.plot(list(REPORTED[name]), points, **style)
        if attack["gradient"]:
            axes.set_xscale("symlog", linthresh=0.001)
        axes.set(title=f"{name} ({attack['images']} images)", ylim=(0, 100))
        axes.set_xlabel(attack["unit"], fontsize="small")
        axes.grid(alpha=0.3)
    rows[0][0].legend(fontsize="small")
    for row in rows:
        row[0].set_ylabel("test accuracy (%)")
    figure.suptitle("Figure 20")
    return figure


def judge(record: Record) -> Verdict:
    """Noise, and gradients, at the strengths where the networks differ most."""
    found = record["attacks"]
    labels = list(next(iter(found.values()))["right"])
    dense, least = labels[0], labels[-1]
    rows = []
    for name, reported in REPORTED.items():
        attack = found[name]
        for epsilon, (one, other) in reported.items():
            if epsilon in attack["epsilons"]:
                index = attack["epsilons"].index(epsilon)
                ours = " / ".join(percent(right(attack, of)[index].mean(), 1) for of in labels)
                rows.append(Row(f"{name}, ε = {epsilon:g}", f"{one} / {other} %", ours))
    claims = tuple(_claim(name, found[name], dense, least) for name in found)
    line = (
        f"Accuracies in the order {', '.join(map(name_of, labels))}; the paper's are of nothing "
        f"and "
        "of 85 % dropped. Strengths are in standardised pixels, as the paper's seem to be. "
        "p-values "
        "are of McNemar's exact test on the same images; one network of each kind."
    )
    return Verdict(word_of(claims), line, tuple(rows), claims)


def _claim(name: str, attack: Record, dense: str, least: str) -> Claim:
    """Whether the most band-limited network withstands more, or with gradients no more."""
    one, other = right(attack, dense), right(attack, least)
    # Where the two differ most, of the strengths that are not none.
    gaps = other[1:].mean(1) - one[1:].mean(1)
    at = 1 + int(np.abs(gaps).argmax())
    better, worse = int((other[at] & ~one[at]).sum()), int((one[at] & ~other[at]).sum())
    p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    told = (
        f"at ε = {attack['epsilons'][at]:g} {percent(one[at].mean(), 1)} dense, "
        f"{percent(other[at].mean(), 1)} with {name_of(least)}, p = {p:.2g}; unattacked "
        f"{percent(one[0].mean(), 1)} and {percent(other[0].mean(), 1)}"
    )
    if attack["gradient"]:
        answer = "no" if better > worse and p < SIGNIFICANCE else "yes"
        return Claim(f"{name}: band-limited networks are not more robust", answer, told)
    answer = "not told apart" if p >= SIGNIFICANCE else "yes" if better > worse else "no"
    return Claim(f"{name}: the more band-limited, the more robust", answer, told)


ITEM = Item(
    name="robustness",
    figures=("20",),
    title="noise and attacks on band-limited networks",
    paper=(
        "ResNet-18 on CIFAR-10 with 0 and 85 % dropped; additive noise, blur, contrast, rotation, "
        "gradient sign and local search by foolbox. Ours: with 0, 50 and 85 % dropped, and PGD of "
        "20 steps besides, so that a gradient that is hidden would show. Full: the paper's "
        "training, 2,000 test images. CPU: 15 epochs, one-cycle schedule, 500 images. Short: "
        "ResNet-8, 20,000 training images, 5 epochs, 300 images attacked."
    ),
    costs={
        "full": "3 runs of 350 epochs, on a GPU",
        "cpu": "3 runs of 15 epochs (two of them figure 3's), half a day",
        "short": "3 runs of ResNet-8, 5 epochs, half an hour",
        "smoke": "2 short runs",
    },
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
