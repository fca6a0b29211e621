"""Supplement 2.12: spectra of filters, activations and gradients, before and after training."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

import bandjax
from experiments.figures.layer_spectra import PARTS, loss
from experiments.paper import fcn
from experiments.paper.item import (
    BUDGETS,
    Budget,
    Claim,
    Context,
    Item,
    Row,
    Verdict,
    energy_band,
    word_of,
)
from experiments.paper.pictures import panels
from experiments.paper.store import Job
from experiments.settings.records import Record

BAND = energy_band(90)
BATCH = 64
LOW = 0.1  # The lowest tenth of the frequencies.
TITLES = {"input": "input", "kernel": "filter", "output": "output", "gradient": "gradient"}


def jobs(budget: Budget) -> list[Job]:
    """The same as figure 17's, of which one network is looked at."""
    (job,) = fcn.jobs(budget)
    return [Job(job.model, job.data, (BAND,), job.seeds[:1], job.changes)]


def measure(context: Context) -> Record:
    """The mean magnitudes of each layer's signals by frequency, for one batch."""
    (job,) = jobs(context.budget)
    context.store.train(job)
    trained = context.store.load(job, BAND, job.seeds[0])
    trainer = trained.trainer
    x, y = trainer.examples.x[:BATCH], trainer.examples.y[:BATCH]
    after = trained.model()
    before = trainer.network.model()
    nnx.update(before, trainer.start(job.seeds[0]).params)
    plan = bandjax.calibrate(after, [x], trained.band)
    layers = {}
    for path, planned in plan.layers.items():
        layers[path] = {"grid": planned.grid[0], "limit": planned.modes[0]}
        for name, model in (("before", before), ("after", after)):
            model.train()  # The statistics of the batch, as a training step has them.
            signals = bandjax.plot.layer_signals(model, path, loss, x, y)
            layers[path][name] = {
                part: _magnitudes(getattr(signals, part), part, planned.grid[0]) for part in PARTS
            }
    return {
        "settings": {"key": job.key, "band": BAND, "seed": job.seeds[0], "batch": len(x)},
        "test_accuracy": trained.record["result"]["test_accuracy"],
        "layers": layers,
    }


def _magnitudes(values: Any, part: str, grid: int) -> list[float]:
    """The root mean square over examples and channels, by frequency ``0 .. grid // 2``."""
    axis = 0 if part == "kernel" else 1
    spectrum = np.abs(np.fft.rfft(np.asarray(values, np.float64), grid, axis=axis))
    others = tuple(i for i in range(spectrum.ndim) if i != axis)
    return [float(f"{v:.4g}") for v in np.sqrt((spectrum**2).mean(others))]


def low_share(magnitudes: list[float]) -> float:
    """The share of the energy in the lowest tenth of the frequencies."""
    energy = np.array(magnitudes) ** 2
    energy[1:] *= 2  # Each stands for its mirror image too.
    return float(energy[: max(1, round(LOW * len(energy)))].sum() / energy.sum())


def draw(record: Record) -> Any:
    """A row for each layer: input, filter, output and gradient, before and after."""
    figure, rows = panels(len(PARTS), len(record["layers"]), width=3.3, height=2.4)
    for row, (path, layer) in zip(rows, record["layers"].items(), strict=True):
        for axes, part in zip(row, PARTS, strict=True):
            for name, style in (("before", "--"), ("after", "-")):
                values = np.array(layer[name][part])
                level = 20 * np.log10(np.maximum(values / values.max(), 1e-4))
                axes.plot(level, style, label=f"{name} training", linewidth=1.2)
            axes.axvspan(0, layer["limit"], color="0.85", zorder=0)
            axes.set(title=f"{path}: {TITLES[part]}", ylim=(-62, 3))
            axes.grid(alpha=0.3)
        row[0].set_ylabel("dB below the largest")
    for axes in rows[-1]:
        axes.set_xlabel("frequency")
    rows[0][0].legend(fontsize="small", title="grey: 90 % of the input", title_fontsize="small")
    return figure


def judge(record: Record) -> Verdict:
    """Where the energy of each signal lies."""
    layers = list(record["layers"].values())
    after = {part: [low_share(layer["after"][part]) for layer in layers] for part in PARTS}
    before = {part: [low_share(layer["before"][part]) for layer in layers] for part in PARTS}

    def told(shares: list[float]) -> str:
        return ", ".join(f"{100 * share:.0f}" for share in shares)

    rows = tuple(
        Row(
            f"{TITLES[part]}s: energy in the lowest tenth of the frequencies, by layer",
            "highest values at low frequencies" if part != "kernel" else "high at high ones too",
            f"{told(before[part])} % before, {told(after[part])} % after training",
        )
        for part in PARTS
    )
    claims = tuple(
        Claim(
            f"the highest values of {TITLES[part]}s lie at the low frequencies",
            "yes" if min(after[part]) > 0.5 else "no",
            f"{told(after[part])} % of the energy in the lowest tenth, after training",
        )
        for part in ("input", "output", "gradient")
    )
    claims += (
        Claim(
            "filters, of the first layer most, have high values at high frequencies too",
            "yes" if max(after["kernel"]) < 0.5 else "no",
            f"{told(after['kernel'])} % of the energy in the lowest tenth",
        ),
        Claim(
            "training turns the last layer's filters from random into a slope towards low "
            "frequencies",
            "yes" if after["kernel"][-1] > 1.1 * before["kernel"][-1] else "no",
            f"lowest tenth: {100 * before['kernel'][-1]:.0f} % before, "
            f"{100 * after['kernel'][-1]:.0f} % after",
        ),
    )
    line = (
        "The paper shows pictures without numbers; here the energy in the lowest tenth of the "
        "frequencies tells. An even spectrum would have 10 % there."
    )
    return Verdict(word_of(claims), line, rows, claims)


ITEM = Item(
    name="spectra",
    figures=("2.12",),
    title="spectra of filters, activations and gradients",
    paper=(
        "FCN on 50words at 90 % of the energy, three layers. Ours: the network of figure 17 with "
        "that band, the first 64 training series, root mean squares over series and channels."
    ),
    costs=dict.fromkeys(BUDGETS, "1 run, of figure 17"),
    measure=measure,
    draw=draw,
    judge=judge,
    jobs=jobs,
)
