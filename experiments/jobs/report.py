"""The end of a job: a table, a picture of the curves and a summary of all seeds."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.settings.records import Record


def summarise(records: list[Record]) -> list[Record]:
    """One entry per band, in the order in which the bands first occur.

    ``test_accuracy`` is that of the last epoch: its mean and its sample standard deviation over
    the seeds (None for a single seed).
    """
    by_band: dict[str, list[Record]] = {}
    for record in records:
        by_band.setdefault(record["config"]["band"], []).append(record)
    summary = []
    for band, runs in by_band.items():
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
                "seconds_per_epoch": statistics.median(r["seconds_per_epoch"] for r in results),
                "saved_bytes": results[0]["saved_bytes"],
            }
        )
    return summary


def table(title: str, summary: list[Record]) -> Table:
    """The summary as a table for the terminal."""
    result = Table(title=title, caption="mean ± standard deviation over the seeds, last epoch")
    result.add_column("band", overflow="fold")
    for heading in (
        "test\naccuracy",
        "true\ncompression",
        "seconds\nan epoch",
        "saved for\nbackward",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in summary:
        accuracy = row["test_accuracy"]
        spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
        result.add_row(
            row["band"],
            f"{100 * accuracy['mean']:.2f}{spread} %",
            f"{100 * row['compression']:.1f} %",
            f"{row['seconds_per_epoch']:.3f}",
            f"{row['saved_bytes'] / 2**20:.2f} MiB",
        )
    return result


def plot(title: str, records: list[Record], path: Path) -> None:
    """Loss and accuracy over the epochs: one colour per band, the mean and range of its seeds."""
    from matplotlib.figure import Figure  # Takes longer to import than all else here.

    by_band: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_band.setdefault(record["config"]["band"], []).append(record["curves"])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    panels = (("loss", 1, "cross-entropy (nats)"), ("accuracy", 100, "accuracy (%)"))
    for axis, (quantity, scale, label) in zip(axes, panels, strict=True):
        for colour, (band, curves) in enumerate(by_band.items()):
            for split, style in (("train", "--"), ("test", "-")):
                values = scale * np.array([curve[f"{split}_{quantity}"] for curve in curves])
                epochs = np.arange(1, values.shape[1] + 1)
                kind = {"color": f"C{colour}", "linestyle": style}
                axis.plot(epochs, values.mean(0), **kind, linewidth=1.2, label=f"{band}, {split}")
                axis.fill_between(
                    epochs, values.min(0), values.max(0), color=f"C{colour}", alpha=0.12
                )
        axis.set(xlabel="epoch", ylabel=label, title=quantity)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].legend(fontsize="small")
    seeds = {record["config"]["seed"] for record in records}
    note = f"mean and range of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    figure.suptitle(f"{title} ({note})")
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=150, format="png")
    os.replace(part, path)
