"""Table and picture of ``experiments.study``."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from experiments.jobs.study import LATE, NAMED, StudyRun, published
from experiments.settings.records import Record

# Dziedzic et al., supplement and logs: ResNet-18 on CIFAR-10, one seed, by true share of the
# coefficients dropped (%), test accuracy (%).
PAPER = (
    *((0, 93.69), (8.4, 93.42), (11.9, 93.12), (17.8, 93.06), (21.1, 93.24), (26, 93.20)),
    *((29.3, 92.89), (39.2, 92.61), (49, 91.95), (53.5, 91.64), (67.5, 89.71), (77.8, 87.97)),
)
UCR_MEAN = "fcn, mean of the sets"


def summarise(everything: Sequence[StudyRun], results: Path) -> Record:
    """What is known of each group: its variants, in the order of the list.

    Args:
        everything: the runs of the list.
        results: folder of the records.

    Returns:
        By group, by variant: the ``seeds``; ``late`` and ``last``, each run's mean test accuracy
        over the last :data:`LATE` epochs, and after the last, with ``mean`` and ``std`` (None for
        one seed); ``gap``, by how much ``late`` is below the dense network's, of the same seeds
        alone (None without any); ``coefficients`` and ``bytes``, the shares dropped, means over
        the epochs; ``seconds`` an epoch (the median); and ``kept_bytes`` for backward by the whole
        network.
    """
    found: dict[str, dict[str, dict[int, Record]]] = {}
    for run in everything:
        path = results / published(run)
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(run.group.name, {}).setdefault(run.variant.name, {})[run.seed] = record
    summary: Record = {}
    for group, variants in found.items():
        dense = variants.get("dense", {})
        summary[group] = {name: _entry(by_seed, dense) for name, by_seed in variants.items()}
    series = [summary[name] for name in summary if name.startswith("fcn-")]
    if len(series) > 1:
        summary[UCR_MEAN] = _mean_of(series)
    return summary


def _entry(by_seed: dict[int, Record], dense: dict[int, Record]) -> Record:
    results = [record["result"] for record in by_seed.values()]
    shared = [seed for seed in by_seed if seed in dense]
    gaps = [_late(dense[seed]) - _late(by_seed[seed]) for seed in shared]
    return {
        "seeds": list(by_seed),
        "late": _spread([_late(record) for record in by_seed.values()]),
        "last": _spread([result["test_accuracy"] for result in results]),
        "gap": _spread(gaps) if gaps else None,
        "coefficients": statistics.mean(result["mean_compression"] for result in results),
        "bytes": statistics.mean(result["mean_bytes_dropped"] for result in results),
        "seconds": statistics.median(result["seconds_per_epoch"] for result in results),
        "kept_bytes": results[0]["saved_bytes"],
    }


def _late(record: Record) -> float:
    return statistics.mean(record["curves"]["test_accuracy"][-LATE:])


def _spread(values: list[float]) -> Record:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"each": values, "mean": statistics.mean(values), "std": spread}


def _mean_of(groups: list[Record]) -> Record:
    """The means over groups of the variants, and seeds, that all of them have."""
    names = [name for name in groups[0] if all(name in group for group in groups)]
    table: Record = {}
    for name in names:
        rows = [group[name] for group in groups]
        seeds = [seed for seed in rows[0]["seeds"] if all(seed in row["seeds"] for row in rows)]
        if not seeds or any(row["gap"] is None for row in rows):
            continue
        entry: Record = {"seeds": seeds, "groups": len(groups)}
        for quantity in ("late", "last"):
            each = [
                [row[quantity]["each"][row["seeds"].index(seed)] for seed in seeds] for row in rows
            ]
            entry[quantity] = _spread(
                [statistics.mean(of_seed) for of_seed in zip(*each, strict=True)]
            )
        for quantity in ("coefficients", "bytes", "seconds", "kept_bytes"):
            entry[quantity] = statistics.mean(row[quantity] for row in rows)
        table[name] = entry
    dense = table.get("dense")
    for entry in table.values():
        shared = [seed for seed in entry["seeds"] if dense and seed in dense["seeds"]]
        gaps = [
            dense["late"]["each"][dense["seeds"].index(seed)]
            - entry["late"]["each"][entry["seeds"].index(seed)]
            for seed in shared
            if dense
        ]
        entry["gap"] = _spread(gaps) if gaps else None
    return table


def report_table(group: str, variants: Record) -> Table:
    """The variants of a group: the gap first."""
    table = Table(
        title=group,
        caption=f"gap: below the dense network of the same seeds, mean over the last {LATE} "
        "epochs; *: named beforehand; in brackets the seeds; dropped: means over the epochs",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("variant", overflow="fold")
    for heading in (
        "gap\npoints",
        f"last {LATE}\nepochs\n%",
        "last\none\n%",
        "drops\ncoeff.\n%",
        "drops\nbytes\n%",
        "sec-\nonds an\nepoch",
        "kept\nback-\nward\nMiB",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in variants.items():
        table.add_row(
            name + (" *" if name in NAMED.values() else "") + f" ({len(row['seeds'])})",
            "" if name == "dense" or row["gap"] is None else _cell(row["gap"]),
            _cell(row["late"]),
            f"{100 * row['last']['mean']:.2f}",
            f"{100 * row['coefficients']:.1f}",
            f"{100 * row['bytes']:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['kept_bytes'] / 2**20:.1f}",
        )
    return table


def _cell(entry: Record) -> str:
    spread = "" if entry["std"] is None else f" ± {100 * entry['std']:.2f}"
    return f"{100 * entry['mean']:.2f}{spread}"


def draw(summary: Record, path: Path) -> None:
    """Accuracy of each variant against what it keeps, a panel for each group.

    Beside the gaps of the networks that were trained on CIFAR-10 the paper's are drawn, from its
    own dense network.
    """
    from matplotlib.figure import Figure  # Takes longer to import than all else here.

    columns = min(len(summary), 3)
    rows = math.ceil(len(summary) / columns)
    figure = Figure(figsize=(1 + 4.6 * columns, 0.8 + 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    names = list(dict.fromkeys(name for variants in summary.values() for name in variants))
    for axes, (group, variants) in zip(panels, summary.items(), strict=False):
        _panel(axes, variants, names)
        if "resnet" in group:
            dense = PAPER[0][1]
            dropped, accuracies = zip(*PAPER, strict=True)
            gaps = [accuracy - dense for accuracy in accuracies]
            kept = [100 - share for share in dropped]
            axes.plot(kept, gaps, ":", color="0.4", label="the paper's ResNet-18, by coefficients")
        axes.set(title=group, xlabel="bytes kept for the backward pass, % of dense")
        axes.set_ylabel("test accuracy less dense (points)")
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:  # None where only dense runs have ended.
            axes.legend(fontsize="x-small")
    for axes in panels[len(summary) :]:
        axes.set_visible(False)
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=120, format="png")
    os.replace(part, path)


def _panel(axes: Any, variants: Record, names: list[str]) -> None:
    for name, row in variants.items():
        if row["gap"] is None or name == "dense":
            continue
        error = None if row["gap"]["std"] is None else 100 * row["gap"]["std"]
        marker = "*" if name in NAMED.values() else "o"
        axes.errorbar(
            100 * (1 - row["bytes"]),
            -100 * row["gap"]["mean"],
            error,
            fmt=marker,
            color=f"C{names.index(name)}",
            markersize=11 if marker == "*" else 6,
            label=name,
        )
