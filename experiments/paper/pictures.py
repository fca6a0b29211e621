"""What the pictures have in common."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.settings.records import Record

PAPER = {"color": "k", "marker": "x", "linestyle": "none", "markersize": 6, "label": "paper"}


def panels(columns: int, rows: int = 1, *, width: float = 5.0, height: float = 4.0) -> Any:
    """A figure and its axes, ``(rows, columns)``."""
    size = (width * columns, height * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: Path) -> None:
    """The whole picture, or the one before."""
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=90, format="png")
    os.replace(part, path)


def by_band(entry: Record) -> dict[str, list[Record]]:
    """A job's runs by band, seed after seed."""
    found: dict[str, list[Record]] = {}
    for run in entry["runs"]:
        found.setdefault(run["band"], []).append(run)
    return found


def name_of(band: str) -> str:
    """A band in few words: ``E = 90 %``, ``50 % dropped``, ``dense``."""
    kind, _, value = band.partition("=")
    value, *options = value.split(",")
    after = "".join(f", {option.partition('=')[2]}" for option in options)
    if kind.startswith("none"):
        return "dense" + "".join(f", {o.partition('=')[2]}" for o in band.split(",")[1:])
    if kind == "energy":
        return f"E = {100 * float(value):g} %{after}"
    if kind == "compression":
        return f"{100 * float(value):g} % dropped{after}"
    return band


def draw_curves(
    axes: Any, entry: Record, quantity: str, *, splits: Sequence[str], scale: float = 100
) -> None:
    """A quantity by epoch, a colour for each band: training dashed, test solid; range of seeds."""
    for colour, (band, runs) in enumerate(by_band(entry).items()):
        for split in splits:
            name = f"{split}_{quantity}" if split else quantity
            curves = scale * np.array([run["curves"][name] for run in runs])
            epochs = np.arange(1, curves.shape[1] + 1)
            style = "--" if split == "train" and len(splits) > 1 else "-"
            label = name_of(band) if split == splits[-1] else None
            line = {"color": f"C{colour}", "linestyle": style, "linewidth": 1.2}
            axes.plot(epochs, curves.mean(0), **line, label=label)
            if len(curves) > 1:
                axes.fill_between(
                    epochs, curves.min(0), curves.max(0), color=f"C{colour}", alpha=0.12
                )
    axes.set(xlabel="epoch")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def mean_and_spread(values: Iterable[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation; None of a single value."""
    array = np.array(list(values))
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def told(values: Iterable[float], scale: float = 100, digits: int = 2) -> str:
    """Mean and spread as they are written in tables: ``63.40 ± 1.62``."""
    mean, spread = mean_and_spread(values)
    after = "" if spread is None else f" ± {scale * spread:.{digits}f}"
    return f"{scale * mean:.{digits}f}{after}"
