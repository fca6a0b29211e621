"""Tables and the picture of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.table import Table

from experiments.benchmarks.network import REST
from experiments.settings.records import Record

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# What a step's ratio stands beside, in a fixed order and colour.
PEERS = ("lax", "flax", "torch", "fft", "fft-pow2", "onnxruntime", "openvino")


def panels(rows: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Rows that belong into one table, with a title: same group, batch, direction, precision."""
    keys = ("group", "batch", "direction", "precision")
    found: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    for (group, batch, _, precision), members in found.items():
        yield f"{group}, batch {batch}, {members[0]['what']}, {precision}", members


def geometric_means(rows: Sequence[Record]) -> list[Record]:
    """Geometric means of the ratios over the rows of a panel, where it has several."""
    means = []
    for _, members in panels(rows):
        if len(members) < 2:
            continue
        for name, side in _ratio_names(members):
            values = [row["ratios"][name][side] for row in members if _has(row, name, side)]
            means.append(
                {
                    **{key: members[0][key] for key in ("group", "batch", "direction")},
                    "precision": members[0]["precision"],
                    "candidate": name,
                    "peer": side,
                    "ratio": geometric_mean(values),
                    "workloads": len(values),
                }
            )
    return means


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of the logarithms, as a number again."""
    return math.exp(sum(map(math.log, values)) / len(values))


def tables(rows: Sequence[Record], processes: int, runs: int) -> Iterator[Table]:
    """For each panel: milliseconds of every function, what bandjax gains, and errors if known."""
    for title, members in panels(rows):
        yield _seconds_table(title, members, processes, runs)
        if _ratio_names(members):
            yield _ratio_table(title, members)
        if any(c["error"] is not None for row in members for c in row["candidates"]):
            yield _error_table(title, members)


def _seconds_table(title: str, rows: list[Record], processes: int, runs: int) -> Table:
    """Milliseconds of each candidate and workload; of networks also XLA's temporary memory."""
    runs *= processes
    table = Table(
        title=f"{title}: milliseconds",
        caption=f"median ± half the interquartile range of {runs} calls, or of as many as stand in "
        f"brackets, in {processes} process{'es' if processes > 1 else ''} of each side",
    )
    _columns(table, rows)
    network = any(c["side"] == "rest" for row in rows for c in row["candidates"])
    if network:
        table.add_column("temporary\nmemory", justify="right")
    for name in _names(rows):
        cells = []
        for row in rows:
            candidate = _candidate(row, name)
            cells.append("" if candidate is None else _milliseconds(candidate["seconds"], runs))
            if network:
                size = None if candidate is None else candidate["temp_bytes"]
                cells.append("" if size is None else f"{size / 2**20:.0f} MiB")
        table.add_row(name, *cells)
    return table


def _milliseconds(seconds: Record, runs: int) -> str:
    median = 1e3 * seconds["median"]
    few = "" if seconds["runs"] == runs else f" \\[{seconds['runs']}]"
    number = f"{median:.0f}" if median >= 100 else f"{median:.3g}"
    if seconds["runs"] == 1:
        return f"{number}{few}"
    spread = (seconds["high"] - seconds["low"]) / 2 / seconds["median"]
    return f"{number} ±{spread:.0%}{few}"


def _error_table(title: str, rows: list[Record]) -> Table:
    table = Table(
        title=f"{title}: error against float64",
        caption="the largest error of y, dx or dw, in units of its largest number",
    )
    _columns(table, rows)
    for name in _names(rows):
        errors = [None if c is None else c["error"] for c in (_candidate(r, name) for r in rows)]
        if errors != [None] * len(rows):
            table.add_row(name, *("" if e is None else f"{e:.1e}" for e in errors))
    return table


def _names(rows: list[Record]) -> list[str]:
    return list(dict.fromkeys(c["name"] for row in rows for c in row["candidates"]))


def _candidate(row: Record, name: str) -> Record | None:
    return next((c for c in row["candidates"] if c["name"] == name), None)


def _ratio_table(title: str, rows: list[Record]) -> Table:
    """Times faster than each peer, band by band, with the means over several workloads."""
    table = Table(
        title=f"{title}: times faster than the fastest variant of each peer",
        caption="above the ratios of a band, the share of coefficients that it really drops",
    )
    _columns(table, rows)
    if len(rows) > 1:
        table.add_column("geometric\nmean", justify="right", overflow="fold")
    band = None
    for name, side in _ratio_names(rows):
        label = name.split()[-1]
        if label != band:
            if band is not None:
                table.add_section()
            shares = [row["bands"].get(label) for row in rows]
            table.add_row(
                label,
                *("" if s is None else f"{s['compression']:.1%}" for s in shares),
                style="dim",
            )
            band = label
        values = [row["ratios"][name][side] if _has(row, name, side) else None for row in rows]
        cells = ["" if v is None else f"{v:.2f}×" for v in values]
        if len(rows) > 1:
            cells.append(f"{geometric_mean([v for v in values if v is not None]):.2f}×")
        table.add_row(f"{name.rsplit(' ', 1)[0]} : {side}", *cells)
    return table


def _columns(table: Table, rows: list[Record]) -> None:
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_column(row["workload"], justify="right", overflow="fold")


def _ratio_names(rows: Sequence[Record]) -> list[tuple[str, str]]:
    """Every candidate and peer that some row compares; one band after another."""
    names = dict.fromkeys(
        (name, side)
        for row in rows
        for name in row["ratios"]
        for side in PEERS
        if _has(row, name, side)
    )
    bands = list(dict.fromkeys(name.split()[-1] for name, _ in names))
    return sorted(names, key=lambda pair: bands.index(pair[0].split()[-1]))


def _has(row: Record, name: str, side: str) -> bool:
    return side in row["ratios"].get(name, {})


def notes(rows: Sequence[Record]) -> list[str]:
    """What a reader must know besides the tables: what was left out, and a step's remainder."""
    absent: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for pair in row["left_out"].items():
            absent.setdefault(pair, []).append(f"{row['workload']}, {row['direction']}")
    lines = [
        f"{'; '.join(dict.fromkeys(wheres))}: no {peer}: {why}"
        for (peer, why), wheres in absent.items()
    ]
    for row in rows:
        where = f"{row['workload']}, {row['direction']}"
        seconds = {c["name"]: c["seconds"]["median"] for c in row["candidates"]}
        if REST in seconds:
            shares = ", ".join(
                f"{seconds[REST] / seconds[c['name']]:.0%} of {c['name']}"
                for c in row["candidates"]
                if c["side"] in ("flax", "bandjax")
            )
            lines.append(
                f"{where}: with one frequency of every convolution it takes "
                f"{1e3 * seconds[REST]:.0f} ms: batch norm, ReLU and all else are at most {shares}"
            )
    return list(dict.fromkeys(lines))


def plot(rows: Sequence[Record], title: str, path: Path) -> bool:
    """Bars of what bandjax gains, by workload, band and peer, on a logarithmic scale.

    Returns:
        Whether there was anything to draw.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        if row["ratios"]:
            groups.setdefault((row["direction"], row["precision"]), []).append(row)
    groups = {key: members for key, members in groups.items() if _clusters(members)}
    if not groups:
        return False
    widest = max(len(_clusters(members)) for members in groups.values())
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(min(60, 3 + 0.75 * widest), 4.2 * len(groups)),
        layout="constrained",
        squeeze=False,
    )
    for axis, ((direction, precision), members) in zip(axes[:, 0], groups.items(), strict=True):
        clusters = _clusters(members)
        sides = [p for p in PEERS if any(p in ratios for _, ratios in clusters)]
        width = 0.8 / len(sides)
        for i, side in enumerate(sides):
            at = np.array([n for n, (_, ratios) in enumerate(clusters) if side in ratios])
            values = [ratios[side] for _, ratios in clusters if side in ratios]
            bars = axis.bar(
                at + (i - (len(sides) - 1) / 2) * width,
                np.array(values) - 1,
                width,
                bottom=1,  # on a logarithmic axis a bar needs a foot: as fast as the peer
                color=f"C{PEERS.index(side)}",
                label=f"against {side}",
            )
            labels = [f"{value:.3g}" for value in values]
            axis.bar_label(bars, labels, fontsize=6, padding=1)
        axis.set_yscale("log")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(clusters)), [label for label, _ in clusters], fontsize=7)
        axis.tick_params(axis="x", rotation=90 if len(clusters) > 12 else 0)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axis.set(ylabel="times faster", xlim=(-0.6, len(clusters) - 0.4))
        what = "training" if direction == "train" else "forward alone"
        axis.set_title(f"{what}, {precision}", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.margins(y=0.12)
        axis.legend(fontsize="small", ncols=len(sides))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _clusters(rows: list[Record]) -> list[tuple[str, dict[str, float]]]:
    """One for each workload and candidate: a label, and the ratios by peer."""
    clusters = []
    for row in rows:
        for name, ratios in row["ratios"].items():
            if ratios:
                *words, band = name.split()
                how = " ".join(words[1:])
                share = row["bands"][band]["compression"]
                label = f"{row['workload']}\nbatch {row['batch']}\n{how}\n{share:.0%} dropped"
                clusters.append((label.replace("\n\n", "\n"), ratios))
    return clusters
