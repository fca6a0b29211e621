"""The end of a job: a table, a picture, a summary of all seeds, and in words what was gained."""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from experiments.settings.records import Record
from experiments.settings.variants import split_variant

DENSE = "none"  # What the others are compared with.


def summarise(records: list[Record]) -> list[Record]:
    """One entry per band, in the order in which the bands first occur.

    ``test_accuracy`` is that of the last epoch: its mean and its sample standard deviation over
    the seeds (None for a single seed). ``saved_bytes`` is what a gradient keeps from its forward to
    its backward pass, ``temporary_bytes`` what XLA sets aside for a step.
    """
    summary = []
    for band, runs in _by_band(records).items():
        results = [run["result"] for run in runs]
        accuracies = [result["test_accuracy"] for result in results]
        summary.append(
            {
                "band": band,
                "seeds": [run["config"]["seed"] for run in runs],
                "test_accuracy": {
                    "each": accuracies,
                    "mean": statistics.mean(accuracies),
                    "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                },
                "compression": results[0]["compression"]["total"],
                "mean_compression": results[0].get("mean_compression"),
                "seconds_per_epoch": statistics.median(r["seconds_per_epoch"] for r in results),
                "saved_bytes": results[0]["saved_bytes"],
                "temporary_bytes": results[0].get("temporary_bytes"),
            }
        )
    return summary


def _by_band(records: list[Record]) -> dict[str, list[Record]]:
    by_band: dict[str, list[Record]] = {}
    for record in records:
        by_band.setdefault(record["config"]["band"], []).append(record)
    return by_band


def table(title: str, summary: list[Record]) -> Table:
    """The summary as a table for the terminal."""
    dense = _dense(summary)
    several = any(row["test_accuracy"]["std"] is not None for row in summary)
    caption = "accuracy: mean ± standard deviation over the seeds, last epoch"
    if not several:
        caption = "accuracy: of the last epoch, one seed"
    if dense is not None:
        caption += f"; in brackets how many times fewer bytes than with {DENSE}"
    result = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    result.add_column("band", overflow="fold")
    for heading in (
        "test\naccuracy\n%",
        "coefficients\ndropped\n%",
        "seconds\nan epoch\n",
        "kept for\nbackward\nMiB",
        "scratch\nin step\nMiB",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in summary:
        accuracy = row["test_accuracy"]
        spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
        result.add_row(
            foldable(row["band"]),
            f"{100 * accuracy['mean']:.2f}{spread}",
            _compression(row),
            f"{row['seconds_per_epoch']:.3f}",
            _mebibytes(row, dense, "saved_bytes"),
            _mebibytes(row, dense, "temporary_bytes"),
        )
    return result


def _compression(row: Record) -> str:
    """Of the last epoch; of a schedule the mean over the epochs below it."""
    last, mean = row["compression"], row.get("mean_compression")
    changed = mean is not None and abs(mean - last) >= 0.0005
    return f"{100 * last:.1f}" + (f"\n(mean {100 * mean:.1f})" if changed else "")


def foldable(label: str) -> str:
    """A label with each of its options on a line of its own."""
    band, _ = split_variant(label)
    return band + label.removeprefix(band).replace(",", ",\n")


def _dense(summary: list[Record]) -> Record | None:
    """The row that the others are compared with, if there is one and there are others."""
    found = [row for row in summary if row["band"] == DENSE]
    return found[0] if found and len(summary) > 1 else None


def _mebibytes(row: Record, dense: Record | None, name: str) -> str:
    """Bytes for the table; unknown ones are a dash."""
    if row[name] is None:
        return "-"
    text = f"{row[name] / 2**20:.2f}"
    if dense is None or row is dense or not dense[name] or not row[name]:
        return text
    return f"{text}\n({dense[name] / row[name]:.1f}x)"


def gain(summary: list[Record]) -> str | None:
    """What the runs that keep the fewest bytes gained against dense ones, or lost, in a sentence.

    An accuracy is called the same where the means differ by no more than the standard deviation of
    a difference of two seeds, ``sqrt(std1**2 + std2**2)``.

    Returns:
        None where there is no run with the band ``none``, or no other.
    """
    dense = _dense(summary)
    if dense is None:
        return None
    best = min((row for row in summary if row is not dense), key=lambda row: row["saved_bytes"])
    kept = _compared(best["saved_bytes"] / dense["saved_bytes"], "bytes")
    time = _compared(best["seconds_per_epoch"] / dense["seconds_per_epoch"], "time")
    accuracy = _accuracy_compared(best["test_accuracy"], dense["test_accuracy"])
    return (
        f"Against {DENSE}, {best['band']} keeps {kept} for the backward pass and takes {time} for "
        f"an epoch, {accuracy}."
    )


def _compared(ratio: float, what: str) -> str:
    """A ratio in words: ``1/12.5 of the bytes``, ``0.62 of the time``, ``1.20 times the time``."""
    if ratio <= 1 / 3:
        return f"1/{1 / ratio:.1f} of the {what}"
    return f"{ratio:.2f} {'of' if ratio < 0.995 else 'times'} the {what}"


def _accuracy_compared(best: Record, dense: Record) -> str:
    points = 100 * (best["mean"] - dense["mean"])
    both = f"{100 * best['mean']:.2f} and {100 * dense['mean']:.2f} %"
    if best["std"] is None or dense["std"] is None:
        return f"at test accuracies of {both} (a single seed tells no spread)"
    spread = 100 * math.hypot(best["std"], dense["std"])
    if abs(points) <= spread:
        return f"at the same test accuracy within the spread of the seeds ({both})"
    more = "higher" if points > 0 else "lower"
    return (
        f"{'and' if points > 0 else 'but'} its test accuracy is {abs(points):.2f} points {more} "
        f"({both}; the spread of the seeds is {spread:.2f})"
    )


def plot(title: str, records: list[Record], path: Path) -> None:
    """Loss and accuracy over the epochs, bytes kept and seconds an epoch; one colour per band.

    Lines are the mean of a band's seeds, the area around them is their range.
    """
    from matplotlib.figure import Figure  # Takes longer to import than all else here.

    by_band = _by_band(records)
    figure = Figure(figsize=(11, 4.6 + 0.9 + 0.33 * len(by_band)), layout="constrained")
    rows = figure.subplots(2, 2, height_ratios=(4.2, 0.5 + 0.33 * len(by_band)))
    panels = (("loss", 1, "cross-entropy (nats)"), ("accuracy", 100, "accuracy (%)"))
    for axis, (quantity, scale, label) in zip(rows[0], panels, strict=True):
        _draw_curves(axis, by_band, quantity, scale)
        axis.set(xlabel="epoch", ylabel=label, title=quantity)
        axis.grid(alpha=0.3)
    rows[0][0].set_yscale("log")
    rows[0][0].legend(fontsize="small")
    summary = summarise(records)
    kept = [row["saved_bytes"] / 2**20 for row in summary]
    seconds = [row["seconds_per_epoch"] for row in summary]
    for axis, values, label in (
        (rows[1][0], kept, "kept for the backward pass (MiB)"),
        (rows[1][1], seconds, "time of an epoch (s)"),
    ):
        bars = axis.barh(range(len(values)), values, color=[f"C{i}" for i in range(len(values))])
        axis.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize="small")
        axis.set(xlabel=label, yticks=[], xlim=(0, 1.12 * max(values)))
        axis.invert_yaxis()
    labels = [foldable(band) for band in by_band]
    rows[1][0].set_yticks(range(len(labels)), labels, fontsize="small")
    seeds = {record["config"]["seed"] for record in records}
    note = f"mean and range of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    figure.suptitle(f"{title} ({note})")
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=150, format="png")
    os.replace(part, path)


def _draw_curves(axis: Any, by_band: dict[str, list[Record]], quantity: str, scale: float) -> None:
    """A quantity by epoch: of the test examples a solid line, of the training examples a dashed."""
    for colour, runs in enumerate(by_band.values()):
        for split, style in (("train", "--"), ("test", "-")):
            curves = [run["curves"][f"{split}_{quantity}"] for run in runs]
            values = scale * np.array(curves)
            epochs = np.arange(1, values.shape[1] + 1)
            label = split if colour == 0 else None
            line = {"color": f"C{colour}", "linestyle": style, "linewidth": 1.2}
            axis.plot(epochs, values.mean(0), **line, label=label)
            axis.fill_between(epochs, values.min(0), values.max(0), color=f"C{colour}", alpha=0.12)
